// Count, mean, centred power sums, extremes and threshold counts of every column of a matrix.
#pragma once

#include <cstdint>

namespace interpcore {

enum class Stored { float32, bfloat16, float16 };

// Sizes and strides in elements; columns of x are contiguous, the outputs are contiguous.
struct ColumnMoments {
  static constexpr int max_thresholds = 8;
  int64_t rows, columns;  // T, N
  int64_t thresholds;     // K, at most max_thresholds
  int64_t row_stride;
  Stored stored;
  bool go_on;              // counts and moments hold earlier rows' totals, to be added to
  const void* x;           // [T, N]
  const bool* mask;        // [T] or null for all rows
  const float* threshold;  // [K]
  const float* shift;      // [N], or null: the kernel chooses
  int64_t* counts;         // [2 + K, N]: finite values, others, values above each threshold
  double* moments;         // [6, N]: mean, M2, M3, M4, minimum, maximum
};

}  // namespace interpcore
