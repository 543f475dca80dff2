// Products of a batch of matrices, the left ones with factors along the depth.
#pragma once

#include <cstdint>

namespace interpcore {

// out[b] = (x[b] * scale[b] + y[b] * y_scale[b]) weight[b]. Strides in elements; the last axis of `x`, `y` and `out` is
// contiguous; a batch stride of 0 takes the same operand for all.
struct BatchProduct {
  int64_t batch, rows, depth, columns;
  int64_t x_stride[2], weight_stride[3], out_stride[2];  // batch, rows (, columns)
  const float* x;        // [batch, rows, depth]
  const float* y;        // [batch, rows, depth], strides of x, or null
  const float* scale;    // [batch, depth], contiguous, or null
  const float* y_scale;  // [batch, depth], contiguous, or null
  const float* weight;   // [batch, depth, columns]
  float* out;            // [batch, rows, columns]
};

}  // namespace interpcore
