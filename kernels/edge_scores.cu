#include "edge_scores.cuh"

#include "cuda/launch.h"

namespace interpcore {

#ifdef __CUDA_ARCH_FEAT_SM90_ALL
// d += a b^T for a warp group: 64 sources, 40 to 80 destinations, 16 values of the inner product; under way until waited
// for. Each size is an instruction of its own.
__device__ __forceinline__ void multiply(float (&d)[edge_sums<40>], const EdgeOperands& of) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n40k16.f32.bf16.bf16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, "
      "%10, %11, %12, %13, %14, %15, %16, %17, %18, %19"
      "}, %20, %21, 1, 1, 1, 0, 0;"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), "+f"(d[8]), "+f"(d[9]),
        "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19])
      : "l"(of.a), "l"(of.b));
}
__device__ __forceinline__ void multiply(float (&d)[edge_sums<56>], const EdgeOperands& of) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n56k16.f32.bf16.bf16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, "
      "%10, %11, %12, %13, %14, %15, %16, %17, %18, %19, "
      "%20, %21, %22, %23, %24, %25, %26, %27"
      "}, %28, %29, 1, 1, 1, 0, 0;"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), "+f"(d[8]), "+f"(d[9]),
        "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]),
        "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27])
      : "l"(of.a), "l"(of.b));
}
__device__ __forceinline__ void multiply(float (&d)[edge_sums<64>], const EdgeOperands& of) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, "
      "%10, %11, %12, %13, %14, %15, %16, %17, %18, %19, "
      "%20, %21, %22, %23, %24, %25, %26, %27, %28, %29, "
      "%30, %31"
      "}, %32, %33, 1, 1, 1, 0, 0;"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), "+f"(d[8]), "+f"(d[9]),
        "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]),
        "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]),
        "+f"(d[30]), "+f"(d[31])
      : "l"(of.a), "l"(of.b));
}
__device__ __forceinline__ void multiply(float (&d)[edge_sums<80>], const EdgeOperands& of) {
  asm volatile(
      "wgmma.mma_async.sync.aligned.m64n80k16.f32.bf16.bf16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, "
      "%10, %11, %12, %13, %14, %15, %16, %17, %18, %19, "
      "%20, %21, %22, %23, %24, %25, %26, %27, %28, %29, "
      "%30, %31, %32, %33, %34, %35, %36, %37, %38, %39"
      "}, %40, %41, 1, 1, 1, 0, 0;"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), "+f"(d[8]), "+f"(d[9]),
        "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]),
        "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]),
        "+f"(d[30]), "+f"(d[31]), "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35]), "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39])
      : "l"(of.a), "l"(of.b));
}
#endif

// Written for compute capability 9.0 alone: the products of a warp group are not in other parts.
template <int N>
__global__ void __launch_bounds__(kEdgeThreads, 2) edge_products_kernel(EdgeScores p) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ unsigned char room[];
  const int thread = threadIdx.x;
  const EdgePlace<N> at(p, blockIdx.x);
  if (!__syncthreads_or(reached(p, at, thread))) return;
  const uint32_t stages = (static_cast<uint32_t>(__cvta_generic_to_shared(room)) + kSwizzledBytes - 1) / kSwizzledBytes * kSwizzledBytes;
  const int steps = at.steps();
  EdgeLoads<N> loads(p, at, thread);
  const auto load = [&](int step) {
    if (step < steps) loads.load(stages + step % kEdgeStages * edge_stage_bytes<N>);
    asm volatile("cp.async.commit_group;" ::: "memory");
  };
  for (int step = 0; step < kEdgeStages - 1; ++step) load(step);
  float sum[edge_sums<N>] = {};
#pragma unroll 1
  for (int step = 0; step < steps; ++step) {
    asm volatile("cp.async.wait_group %0;" ::"n"(kEdgeStages - 2) : "memory");
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    __syncthreads();
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
    for (int inner = 0; inner < kEdgeDepth / kEdgeInner; ++inner)
      multiply(sum, EdgeOperands(stages + step % kEdgeStages * edge_stage_bytes<N>, thread, inner));
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
    // Into the stage that every thread has waited for before the barrier.
    load(step + kEdgeStages - 1);
    asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
  }
  store_sums(p, at, thread, sum);
#endif
}

__global__ void edge_sums_kernel(EdgeScores p, int64_t blocks) {
  const int64_t edge = blockIdx.x % blocks * blockDim.x + threadIdx.x;
  if (edge < p.sources * p.destinations) add_units(p, blockIdx.x / blocks, edge);
}

template <int N>
static cudaError_t launch_products(const EdgeScores& p, cudaStream_t stream) {
  constexpr int kBytes = kEdgeStages * edge_stage_bytes<N> + kSwizzledBytes;
  const cudaError_t failed =
      cudaFuncSetAttribute(edge_products_kernel<N>, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
  if (failed != cudaSuccess) return failed;
  const int64_t tiles = (p.sources + kEdgeSources - 1) / kEdgeSources * ((p.destinations + N - 1) / N);
  const auto blocks = static_cast<unsigned>(tiles * p.units * p.spans);
  edge_products_kernel<N><<<blocks, kEdgeThreads, kBytes, stream>>>(p);
  return cudaGetLastError();
}

cudaError_t edge_scores_cuda(const EdgeScores& p, cudaStream_t stream) {
  int device = 0, major = 0, minor = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
  if (major != 9 || minor != 0) return cudaErrorNoKernelImageForDevice;
  const cudaError_t failed = p.units == 0   ? cudaSuccess
                             : p.tile == 40 ? launch_products<40>(p, stream)
                             : p.tile == 56 ? launch_products<56>(p, stream)
                             : p.tile == 64 ? launch_products<64>(p, stream)
                                            : launch_products<80>(p, stream);
  if (failed != cudaSuccess) return failed;
  const int64_t blocks = (p.sources * p.destinations + 255) / 256;
  edge_sums_kernel<<<static_cast<unsigned>(blocks * p.segments), 256, 0, stream>>>(p, blocks);
  return cudaGetLastError();
}

}  // namespace interpcore
