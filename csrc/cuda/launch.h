// Entry points of the CUDA kernels. Each returns the launch's error and waits for nothing.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include "interpcore/norm_vjp.h"

namespace interpcore {

// T is float, __half or __nv_bfloat16.
template <typename T>
cudaError_t norm_vjp_cuda(const NormVjp<T>& params, cudaStream_t stream);

}  // namespace interpcore
