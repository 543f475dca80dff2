// Dense product of a few rows with a weight that is read once, where it lies.
#pragma once

#include <cstdint>

namespace interpcore {

// out = x weight + bias. Sizes and strides in elements; the last axis of `x` and `out` is contiguous.
struct Product {
  int64_t rows, depth, columns;
  bool out_by_in;          // the weight's contiguous axis: depth (else columns)
  int64_t x_stride;        // rows
  int64_t weight_stride;   // the weight's other axis
  const float* x;          // [rows, depth]
  const float* weight;     // [depth, columns]
  const float* bias;       // [columns] or null
  float* out;              // [rows, columns], contiguous
};

}  // namespace interpcore
