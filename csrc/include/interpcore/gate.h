// The sum of two gated inputs, each gate shared by many vectors.
#pragma once

#include <cstdint>

namespace interpcore {

// out = x * factor + x2 * factor2. Sizes and strides in elements; the last axis is contiguous everywhere, and `out`
// is contiguous.
struct Gate {
  int64_t batch, vectors, positions, width;  // B, C, P, m
  const float* x;        // [B, C, P, m]
  const float* x2;       // [B, C, P, m]
  const float* factor;   // [B, P, m]
  const float* factor2;  // [B, P, m]
  float* out;            // [B, C, P, m]
  int64_t x_stride[3];        // B, C, P
  int64_t x2_stride[3];       // B, C, P
  int64_t factor_stride[2];   // B, P
  int64_t factor2_stride[2];  // B, P
};

}  // namespace interpcore
