// What the CUDA forms of column_moments and activation_moments keep between their kernels.
#pragma once

#include "interpcore/activation_moments.h"

namespace interpcore {

// Sums over chunks of the rows of a float32 or bfloat16 matrix; `totals` says which matrix, and where the result goes.
struct ColumnChunks {
  ColumnMoments totals;
  int64_t chunk_rows;  // a multiple of 32, at most 64 of them
  int32_t* counts;     // [chunks, 2 + K, N]: values, those that are not finite, those above each threshold
  double* sums;        // [chunks, 7, N]: power sums about a shift, extremes, the shift; then the chunk's moments
};

// out = activation(x) * up, silu or gelu_tanh; `post` is over out, of the same shape, dtype and chunks as x.
struct ActivationChunks {
  ColumnChunks pre, post;
  const void* up;  // [T, N] or null for 1
  int64_t up_stride;
  void* out;  // [T, N], contiguous
};

}  // namespace interpcore
