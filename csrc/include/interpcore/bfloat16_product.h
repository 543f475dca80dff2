// Dense product of bfloat16 operands with float32 sums and results, where the processor multiplies pairs of them.
#pragma once

#include <cstdint>

namespace interpcore {

// out = x weight. Sizes and strides in elements; the last axis of `x` and `out` is contiguous.
struct BFloat16Product {
  int64_t rows, depth, columns;
  bool out_by_in;          // the weight's contiguous axis: depth (else columns)
  int64_t x_stride;        // rows
  int64_t weight_stride;   // the weight's other axis
  const uint16_t* x;       // [rows, depth]
  const uint16_t* weight;  // [depth, columns]
  float* out;              // [rows, columns], contiguous
};

// Whether this build and this processor have it.
bool bfloat16_product_supported();

void bfloat16_product(const BFloat16Product& p, int threads);

}  // namespace interpcore
