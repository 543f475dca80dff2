// Sums of the rows of a matrix within groups of rows.
#pragma once

#include <cstdint>

namespace interpcore {

struct GroupSums {
  int64_t columns, groups;  // N, and G groups that have rows
  int64_t row_stride;
  const float* x;        // [T, N]
  const int64_t* order;  // rows, those of a group together
  const int64_t* start;  // [G + 1], where in `order` each group begins
  const int64_t* place;  // [G], its row in the sums
  const float* shift;    // [N]
  double* total;         // [.., N], added to: sums of x - shift over finite x
  double* square;        // [.., N], of (x - shift)^2
  int32_t* active;       // [.., N], of x > 0, or null
  float* largest;        // [.., N], raised to the largest finite x, or null
  bool* nonfinite;       // set where any x is not finite
};

}  // namespace interpcore
