#include "activation_moments.cuh"

#include "cuda/launch.h"

namespace interpcore {

template <typename T, int K, Activation A>
__global__ void __launch_bounds__(kTileThreads) activation_sums_kernel(ActivationChunks p, int64_t tiles) {
  __shared__ Tile tile;
  __shared__ float shifts[2][kTileColumns];
  const int thread = threadIdx.x, lane = thread % (kTileColumns / kLane) * kLane;
  const int64_t block = blockIdx.x % tiles, left = block * kTileColumns;
  const Place at(p.pre, block, blockIdx.x / tiles, thread);
  const ColumnMoments& x = p.pre.totals;
  Eight<T> first, second;
  first_rows<T, A>(p, at, first, second);
#pragma unroll
  for (int side = 0; side < 2; ++side) {
    first_values(p.pre, at, side ? second : first, tile, thread);
    __syncthreads();
    if (thread < kTileColumns) shifts[side][thread] = fixed_shift(tile, thread);
    __syncthreads();
  }
  float shift[kLane], out_shift[kLane];
#pragma unroll
  for (int i = 0; i < kLane; ++i) shift[i] = shifts[0][lane + i], out_shift[i] = shifts[1][lane + i];
  Sums<T, K> pre;
  Sums<T, 0> post;
  pre.clear(x), post.clear(p.post.totals);
  const bool vector = aligned<T>(x.x, x.row_stride) && aligned<T>(p.up, p.up_stride) && aligned<T>(p.out, x.columns);
  if (vector && at.width == kLane)
    walk<T, K, A, true>(p, at, shift, out_shift, pre, post);
  else if (at.width > 0)
    walk<T, K, A, false>(p, at, shift, out_shift, pre, post);
  for (int kind = 0; kind < kinds(x); ++kind) {
    pre.put(kind, tile, at, thread);
    __syncthreads();
    if (thread < kTileColumns) collect(p.pre, at.chunk, left + thread, kind, shifts[0][thread], tile, thread);
    __syncthreads();
  }
  for (int kind = 0; kind < kinds(p.post.totals); ++kind) {
    post.put(kind, tile, at, thread);
    __syncthreads();
    if (thread < kTileColumns) collect(p.post, at.chunk, left + thread, kind, shifts[1][thread], tile, thread);
    __syncthreads();
  }
}

template <typename T, Activation A>
static void launch_sums(const ActivationChunks& p, cudaStream_t stream) {
  const ColumnMoments& x = p.pre.totals;
  const int64_t tiles = (x.columns + kTileColumns - 1) / kTileColumns;
  const auto blocks = static_cast<unsigned>(tiles * ((x.rows + p.pre.chunk_rows - 1) / p.pre.chunk_rows));
  activation_sums_kernel<T, kDeviceThresholds, A><<<blocks, kTileThreads, 0, stream>>>(p, tiles);
}

template <typename T>
static void launch_sums(const ActivationChunks& p, Activation activation, cudaStream_t stream) {
  if (activation == Activation::silu) return launch_sums<T, Activation::silu>(p, stream);
  launch_sums<T, Activation::gelu_tanh>(p, stream);
}

cudaError_t activation_moments_cuda(const ActivationChunks& p, Activation activation, cudaStream_t stream) {
  const ColumnMoments& x = p.pre.totals;
  if (x.rows == 0 || x.columns == 0) return cudaSuccess;
  if (x.stored == Stored::float32) launch_sums<Float32>(p, activation, stream);
  if (x.stored == Stored::bfloat16) launch_sums<BFloat16>(p, activation, stream);
  const cudaError_t error = finish_cuda(p.pre, stream);
  return error == cudaSuccess ? finish_cuda(p.post, stream) : error;
}

}  // namespace interpcore
