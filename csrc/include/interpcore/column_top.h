// The largest values of each column of a matrix, and where they are.
#pragma once

#include <cstdint>

namespace interpcore {

struct ColumnTop {
  int64_t rows, columns, k;
  int64_t row_stride;
  const float* x;        // [T, N]
  const int64_t* index;  // [T], increasing
  float* value;          // [k, N], largest first; -inf where there are fewer
  int64_t* place;        // [k, N], the index of each value
};

}  // namespace interpcore
