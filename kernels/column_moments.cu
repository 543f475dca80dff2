#include "column_moments.cuh"

#include "cuda/launch.h"

namespace interpcore {

template <typename T, int K>
__global__ void __launch_bounds__(kTileThreads, 2) column_sums_kernel(ColumnChunks p, int64_t tiles) {
  __shared__ Tile tile;
  __shared__ float shifts[kTileColumns];
  const int thread = threadIdx.x;
  const int64_t block = blockIdx.x % tiles, left = block * kTileColumns;
  const Place at(p, block, blockIdx.x / tiles, thread);
  const ColumnMoments& x = p.totals;
  const int64_t from = (at.first + at.row) * x.row_stride + at.column;
  first_values(p, at, load<T, false>(x.x, from, at.row < at.count ? at.width : 0), tile, thread);
  __syncthreads();
  if (thread < kTileColumns) shifts[thread] = fixed_shift(tile, thread);
  __syncthreads();
  float shift[kLane];
#pragma unroll
  for (int i = 0; i < kLane; ++i) shift[i] = shifts[thread % (kTileColumns / kLane) * kLane + i];
  Sums<T, K> sums;
  sums.clear(x);
  if (aligned<T>(x.x, x.row_stride) && at.width == kLane)
    walk<T, K, true>(p, at, shift, sums);
  else if (at.width > 0)
    walk<T, K, false>(p, at, shift, sums);
  for (int kind = 0; kind < kinds(x); ++kind) {
    sums.put(kind, tile, at, thread);
    __syncthreads();
    if (thread < kTileColumns) collect(p, at.chunk, left + thread, kind, shifts[thread], tile, thread);
    __syncthreads();
  }
}

__global__ void settle_kernel(ColumnChunks p) {
  const int64_t unit = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x, N = p.totals.columns;
  const int64_t chunks = (p.totals.rows + p.chunk_rows - 1) / p.chunk_rows;
  if (unit < chunks * N) settle(p, unit / N, unit % N);
}

__global__ void merge_kernel(ColumnChunks p) {
  const int64_t column = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x;
  if (column < p.totals.columns) merge(p, column);
}

cudaError_t finish_cuda(const ColumnChunks& p, cudaStream_t stream) {
  const int64_t N = p.totals.columns, chunks = (p.totals.rows + p.chunk_rows - 1) / p.chunk_rows;
  settle_kernel<<<static_cast<unsigned>((chunks * N + 127) / 128), 128, 0, stream>>>(p);
  merge_kernel<<<static_cast<unsigned>((N + 31) / 32), 32, 0, stream>>>(p);
  return cudaGetLastError();
}

template <typename T>
static void launch_sums(const ColumnChunks& p, cudaStream_t stream) {
  const int64_t tiles = (p.totals.columns + kTileColumns - 1) / kTileColumns;
  const int64_t chunks = (p.totals.rows + p.chunk_rows - 1) / p.chunk_rows;
  const auto blocks = static_cast<unsigned>(tiles * chunks);
  if (p.totals.thresholds == 0)
    column_sums_kernel<T, 0><<<blocks, kTileThreads, 0, stream>>>(p, tiles);
  else
    column_sums_kernel<T, kDeviceThresholds><<<blocks, kTileThreads, 0, stream>>>(p, tiles);
}

cudaError_t column_moments_cuda(const ColumnChunks& p, cudaStream_t stream) {
  if (p.totals.rows == 0 || p.totals.columns == 0) return cudaSuccess;
  if (p.totals.stored == Stored::float32) launch_sums<Float32>(p, stream);
  if (p.totals.stored == Stored::bfloat16) launch_sums<BFloat16>(p, stream);
  return finish_cuda(p, stream);
}

}  // namespace interpcore
