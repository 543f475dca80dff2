#include "norm_vjp.cuh"

#include "cuda/launch.h"

namespace interpcore {

template <typename T>
cudaError_t norm_vjp_cuda(const NormVjp<T>& p, cudaStream_t stream) {
  const int64_t rows = p.batch / p.sum_over * p.vectors * p.positions;
  if (rows == 0) return cudaSuccess;
  norm_vjp_kernel<T><<<static_cast<unsigned>(rows), kNormVjpThreads, p.width * sizeof(float), stream>>>(p);
  return cudaGetLastError();
}

template cudaError_t norm_vjp_cuda(const NormVjp<float>&, cudaStream_t);
template cudaError_t norm_vjp_cuda(const NormVjp<__half>&, cudaStream_t);
template cudaError_t norm_vjp_cuda(const NormVjp<__nv_bfloat16>&, cudaStream_t);

}  // namespace interpcore
