// Entry points of the CUDA kernels. Each returns the launch's error and waits for nothing.
#pragma once

#include <cuda_runtime_api.h>

#include "interpcore/column_chunks.h"
#include "interpcore/edge_scores.h"

namespace interpcore {

// Of these and the next; more would fill the registers.
constexpr int kDeviceThresholds = 2;
cudaError_t column_moments_cuda(const ColumnChunks& params, cudaStream_t stream);
cudaError_t activation_moments_cuda(const ActivationChunks& params, Activation activation, cudaStream_t stream);

// On compute capability 9.0 alone.
cudaError_t edge_scores_cuda(const EdgeScores& params, cudaStream_t stream);

// What follows the sums of either: their moments, merged into the totals.
cudaError_t finish_cuda(const ColumnChunks& params, cudaStream_t stream);

}  // namespace interpcore
