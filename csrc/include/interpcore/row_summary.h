// What is kept of the rows of a matrix that comes in tiles of columns: power sums, a histogram, and the extremes.
#pragma once

#include <cstdint>

namespace interpcore {

// NaN enters nothing. All matrices are contiguous; the sums and lists hold what earlier tiles gave.
struct RowSummary {
  int64_t rows, columns;  // n, m
  int64_t k;              // extremes that are kept of each row
  int64_t first;          // number of the tile's first column
  int32_t edges;          // E, equally spaced but for rounding
  bool wide;              // r, top and bottom are float64, else float32
  const void* r;          // [n, m]
  const double* edge;     // [E + 2]: -inf, the edges, inf
  int64_t* histogram;     // [n, E + 1]: bin b counts edge[b] < r <= edge[b + 1]
  double* powers;         // [4, n]: sums of r to r^4, or null
  int64_t powers_stride;  // from one power to the next
  int64_t* count;         // [n], or null
  void *top, *bottom;     // [n, k]: in order, NaN where there are fewer; of equals the smaller number
  int64_t *top_index, *bottom_index;  // [n, k]: their numbers, -1 where there are fewer
};

}  // namespace interpcore
