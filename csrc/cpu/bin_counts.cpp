// Compiled once per instruction set; INTERPCORE_ISA names the namespace.
//
// A few columns at a time, so that the bins that occur stay in the first cache; values next to each other are counted
// in different columns, so that no count waits for the one before.
#include "interpcore/bin_counts.h"

#include "lanes.h"

namespace interpcore {
namespace INTERPCORE_ISA {
namespace {

constexpr int64_t kColumns = 32, kAhead = 16;  // columns of a step; rows fetched ahead

struct Octaves {
  const OctaveBins& bins;
  void find(const float* x, int32_t* bin) const {
    for (int64_t j = 0; j < kColumns; j += kLanes) {
      const IntVec bits = reinterpret_cast<const IntVec&>(x[j]), zero = {}, most = zero + bins.most;
      IntVec size = ((bits & 0x7fffffff) >> bins.shift) - bins.offset;
      size = size < zero ? zero : size;
      size = size > most ? most : size;
      const IntVec sign = bits >> 31;
      vec(bin + j) = (size ^ sign) - sign + most;
    }
  }
};

struct Line {
  const LinearBins& bins;
  void find(const float* x, int32_t* bin) const {
    const Vec zero = {}, low = zero - 1.0f, high = zero + static_cast<float>(bins.count - 1);
    for (int64_t j = 0; j < kColumns; j += kLanes) {
      Vec near = (vec(x + j) - bins.first) * bins.scale;
      near = near > low ? near : low;
      near = near < high ? near : high;
      vec(bin + j) = __builtin_convertvector(near, IntVec) + 1;
    }
    // Rounding towards zero leaves it one off at most.
    const float* edge = bins.edge;
#pragma omp simd
    for (int64_t j = 0; j < kColumns; ++j) {
      const int32_t k = bin[j];
      bin[j] = k + (x[j] > edge[k + 1]) - (x[j] <= edge[k]);
    }
  }
};

inline bool all_finite(const float* x) {
  IntVec wrong = {};
  for (int64_t j = 0; j < kColumns; j += kLanes) {
    wrong |= (reinterpret_cast<const IntVec&>(x[j]) & 0x7f800000) == 0x7f800000;
  }
  int32_t any = 0;
  for (int lane = 0; lane < kLanes; ++lane) any |= wrong[lane];
  return !any;
}

template <typename Rule>
void count(const BinCounts& p, Rule rule, int64_t first) {
  const int64_t width = p.columns - first < kColumns ? p.columns - first : kColumns;
  int64_t* counts = p.counts + first * p.bins;
  alignas(64) float rest[kColumns] = {};
  alignas(64) int32_t bin[kColumns];
  for (int64_t t = 0; t < p.rows; ++t) {
    const float* x = p.x + t * p.row_stride + first;
    if (t + kAhead < p.rows) {
      __builtin_prefetch(x + kAhead * p.row_stride);
      __builtin_prefetch(x + kAhead * p.row_stride + width - 1);
    }
    if (width < kColumns) {
      for (int64_t j = 0; j < width; ++j) rest[j] = x[j];
      x = rest;
    }
    rule.find(x, bin);
    if (width == kColumns && all_finite(x)) {
      for (int64_t j = 0; j < kColumns; ++j) ++counts[j * p.bins + bin[j]];
      continue;
    }
    for (int64_t j = 0; j < width; ++j) {
      ++(__builtin_isfinite(x[j]) ? counts[j * p.bins + bin[j]] : p.nonfinite[first + j]);
    }
  }
}

}  // namespace

void bin_counts(const BinCounts& p, int threads) {
  if (p.rows * p.columns < 100000) threads = 1;
#pragma omp parallel for schedule(dynamic, 8) num_threads(threads) if (threads > 1)
  for (int64_t first = 0; first < p.columns; first += kColumns) {
    p.linear ? count(p, Line{p.line}, first) : count(p, Octaves{p.octaves}, first);
  }
}

}  // namespace INTERPCORE_ISA
}  // namespace interpcore
