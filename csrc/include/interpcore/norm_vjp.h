// Vector-Jacobian product of a LayerNorm or RMSNorm with respect to its input.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define INTERPCORE_HOST_DEVICE __host__ __device__
#else
#define INTERPCORE_HOST_DEVICE
#endif

namespace interpcore {

// Sizes in elements, strides in elements; the width axis is contiguous everywhere and `out` is contiguous.
template <typename T>
struct NormVjp {
  int64_t batch, vectors, positions, width;  // B, C, P, d
  int64_t sum_over;                          // consecutive batch rows added into one row of `out`; divides batch
  bool center;                               // LayerNorm (true) or RMSNorm (false)
  float weight_offset;
  const T* g;                // [B, C, P, d]
  const T* residual;         // [B, C, P, d] or null
  const T* normed;           // [B, P, d]
  const float* rstd;         // [B, P]
  const T* weight;           // [d] or null for ones
  T* out;                    // [B / sum_over, C, P, d]
  int64_t g_stride[3];         // B, C, P
  int64_t residual_stride[3];  // B, C, P
  int64_t normed_stride[2];    // B, P
  int64_t rstd_stride[2];      // B, P
};

// One element of the result, from `scaled` = g * weight and its two means over the row: `mean` of scaled (0 for
// RMSNorm) and `projection` of scaled * normed. The same line runs on the CPU and on the GPU.
INTERPCORE_HOST_DEVICE inline float norm_vjp_element(float scaled, float normed, float rstd, float mean,
                                                     float projection) {
  return rstd * (scaled - mean - normed * projection);
}

}  // namespace interpcore
