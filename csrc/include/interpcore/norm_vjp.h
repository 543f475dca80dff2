// Vector-Jacobian product of a LayerNorm or RMSNorm with respect to its input.
#pragma once

#include <cstdint>

namespace interpcore {

// Sizes in elements, strides in elements; the width axis is contiguous everywhere and `out` is contiguous.
struct NormVjp {
  int64_t batch, vectors, positions, width;  // B, C, P, d
  int64_t sum_over;                          // consecutive batch rows added into one row of `out`; divides batch
  bool center;                               // LayerNorm (true) or RMSNorm (false)
  float weight_offset;
  const float* g;              // [B, C, P, d]
  const float* residual;       // [B, C, P, d] or null
  const float* normed;         // [B, P, d]
  const float* rstd;           // [B, P]
  const float* weight;         // [d] or null for ones
  float* out;                  // [B / sum_over, C, P, d]
  int64_t g_stride[3];         // B, C, P
  int64_t residual_stride[3];  // B, C, P
  int64_t normed_stride[2];    // B, P
  int64_t rstd_stride[2];      // B, P
};

// One element of the result, from `scaled` = g * weight and its two means over the row: `mean` of scaled (0 for
// RMSNorm) and `projection` of scaled * normed.
inline float norm_vjp_element(float scaled, float normed, float rstd, float mean, float projection) {
  return rstd * (scaled - mean - normed * projection);
}

}  // namespace interpcore
