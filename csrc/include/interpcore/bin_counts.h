// How many values of each column of a matrix fall into fixed bins.
#pragma once

#include <cstdint>

namespace interpcore {

// Log-spaced bins of both signs: the leading bits of |x|, shifted right by `shift`, less `offset`, are a bin from 0 to
// `most` on x's own side of bin `most`.
struct OctaveBins {
  int32_t shift, offset, most;
};

// Bin k holds edge[k] < x <= edge[k + 1]; edge[0] is -inf and edge[count + 1] inf. (x - first) * scale is near k.
struct LinearBins {
  float first, scale;
  int32_t count;
  const float* edge;  // [count + 2]
};

struct BinCounts {
  int64_t rows, columns, bins;
  int64_t row_stride;
  bool linear;  // which of the two rules
  OctaveBins octaves;
  LinearBins line;
  const float* x;      // [T, N]
  int64_t* counts;     // [N, bins], added to
  int64_t* nonfinite;  // [N], added to: values in no bin
};

}  // namespace interpcore
