// Device code of norm_vjp: one block of threads per row of the result.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "interpcore/norm_vjp.h"

namespace interpcore {

constexpr int kNormVjpThreads = 256;

__device__ inline float to_float(float value) { return value; }
__device__ inline float to_float(__half value) { return __half2float(value); }
__device__ inline float to_float(__nv_bfloat16 value) { return __bfloat162float(value); }

template <typename T>
__device__ inline T from_float(float value);
template <>
__device__ inline float from_float<float>(float value) { return value; }
template <>
__device__ inline __half from_float<__half>(float value) { return __float2half(value); }
template <>
__device__ inline __nv_bfloat16 from_float<__nv_bfloat16>(float value) { return __float2bfloat16(value); }

// Sums two values over the block, in a fixed order; every thread gets both sums.
__device__ inline float2 block_sum(float2 value) {
  __shared__ float2 partial[kNormVjpThreads / 32];
  for (int offset = 16; offset > 0; offset /= 2) {
    value.x += __shfl_xor_sync(0xffffffffu, value.x, offset);
    value.y += __shfl_xor_sync(0xffffffffu, value.y, offset);
  }
  __syncthreads();  // an earlier call's readers are done with `partial`
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = value;
  __syncthreads();
  float2 total = partial[0];
  for (int warp = 1; warp < kNormVjpThreads / 32; ++warp) {
    total.x += partial[warp].x;
    total.y += partial[warp].y;
  }
  return total;
}

template <typename T>
__device__ inline float scaled_at(const NormVjp<T>& p, const T* g, int64_t i) {
  const float value = to_float(g[i]);
  return p.weight ? value * (to_float(p.weight[i]) + p.weight_offset) : value;
}

// `sums` holds one row of the result in float32 while its sum_over batch rows are added.
template <typename T>
__global__ void __launch_bounds__(kNormVjpThreads) norm_vjp_kernel(NormVjp<T> p) {
  extern __shared__ float sums[];  // [d]
  const int64_t row = blockIdx.x;
  const int64_t position = row % p.positions;
  const int64_t c = row / p.positions % p.vectors;
  const int64_t first = row / p.positions / p.vectors * p.sum_over;
  for (int64_t b = first; b < first + p.sum_over; ++b) {
    const T* g = p.g + b * p.g_stride[0] + c * p.g_stride[1] + position * p.g_stride[2];
    const T* normed = p.normed + b * p.normed_stride[0] + position * p.normed_stride[1];
    const T* residual = p.residual ? p.residual + b * p.residual_stride[0] + c * p.residual_stride[1] +
                                         position * p.residual_stride[2]
                                   : nullptr;
    const float rstd = p.rstd[b * p.rstd_stride[0] + position * p.rstd_stride[1]];
    float2 sum = make_float2(0.0f, 0.0f);
    for (int64_t i = threadIdx.x; i < p.width; i += kNormVjpThreads) {
      const float scaled = scaled_at(p, g, i);
      sum.x += scaled;
      sum.y += scaled * to_float(normed[i]);
    }
    sum = block_sum(sum);
    const float mean = p.center ? sum.x / p.width : 0.0f;
    const float projection = sum.y / p.width;
    // A thread reads and writes only its own elements of `sums`, so no barrier is needed between batch rows.
    for (int64_t i = threadIdx.x; i < p.width; i += kNormVjpThreads) {
      float value = norm_vjp_element(scaled_at(p, g, i), to_float(normed[i]), rstd, mean, projection);
      if (residual) value += to_float(residual[i]);
      sums[i] = b == first ? value : sums[i] + value;
    }
  }
  for (int64_t i = threadIdx.x; i < p.width; i += kNormVjpThreads) p.out[row * p.width + i] = from_float<T>(sums[i]);
}

}  // namespace interpcore
