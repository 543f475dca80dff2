// Compiled once per instruction set; INTERPCORE_ISA names the namespace.
//
// The rows of a group are added in their order, in float64, with some columns' sums in registers; then once to the
// totals. No column's result depends on the tiling.
#include "interpcore/group_sums.h"

#include "lanes.h"

namespace interpcore {
namespace INTERPCORE_ISA {
namespace {

constexpr int kWide = kLanes / 2, kVectors = 4;  // doubles of a register; registers of each sum
constexpr int64_t kColumns = kWide * kVectors, kTile = 256;
typedef float NarrowVec __attribute__((vector_size(4 * kWide), aligned(4), may_alias));
typedef int32_t NarrowInt __attribute__((vector_size(4 * kWide), aligned(4), may_alias));
typedef double WideVec __attribute__((vector_size(8 * kWide), aligned(8), may_alias));

inline WideVec wide(const float* at) {
  return __builtin_convertvector(*reinterpret_cast<const NarrowVec*>(at), WideVec);
}

// Adds kColumns columns of a group's rows, from `column` on, to the sums.
template <bool kLargest>
bool add_group(const GroupSums& p, int64_t group, int64_t column) {
  const int64_t at = p.place[group] * p.columns + column;
  const float* shift = p.shift + column;
  WideVec sum[kVectors] = {}, squares[kVectors] = {};
  NarrowInt above[kVectors] = {}, wrong = {};
  NarrowVec most[kVectors];
  for (int v = 0; kLargest && v < kVectors; ++v) {
    most[v] = *reinterpret_cast<const NarrowVec*>(p.largest + at + v * kWide);
  }
  for (int64_t i = p.start[group]; i < p.start[group + 1]; ++i) {
    const float* row = p.x + p.order[i] * p.row_stride + column;
    for (int v = 0; v < kVectors; ++v) {
      const NarrowVec x = *reinterpret_cast<const NarrowVec*>(row + v * kWide), zero = {};
      const NarrowVec about = *reinterpret_cast<const NarrowVec*>(shift + v * kWide);
      const NarrowInt finite = x - x == zero;
      const WideVec d = __builtin_convertvector(finite ? x : about, WideVec) - wide(shift + v * kWide);
      sum[v] += d;
      squares[v] += d * d;
      above[v] -= (x > zero) & finite;
      if (kLargest) most[v] = (x > most[v]) & finite ? x : most[v];
      wrong |= ~finite;
    }
  }
  for (int v = 0; v < kVectors; ++v) {
    *reinterpret_cast<WideVec*>(p.total + at + v * kWide) += sum[v];
    *reinterpret_cast<WideVec*>(p.square + at + v * kWide) += squares[v];
    if (p.active) *reinterpret_cast<NarrowInt*>(p.active + at + v * kWide) += above[v];
    if (kLargest) *reinterpret_cast<NarrowVec*>(p.largest + at + v * kWide) = most[v];
  }
  int32_t any = 0;
  for (int lane = 0; lane < kWide; ++lane) any |= wrong[lane];
  return any;
}

// The last columns, fewer than kColumns, one by one.
bool add_column(const GroupSums& p, int64_t group, int64_t column) {
  const int64_t at = p.place[group] * p.columns + column;
  const double shift = p.shift[column];
  double sum = 0, squares = 0;
  float most = p.largest ? p.largest[at] : 0;
  int32_t above = 0;
  bool wrong = false;
  for (int64_t i = p.start[group]; i < p.start[group + 1]; ++i) {
    const float x = p.x[p.order[i] * p.row_stride + column];
    if (!__builtin_isfinite(x)) {
      wrong = true;
      continue;
    }
    const double d = x - shift;
    sum += d;
    squares += d * d;
    above += x > 0;
    most = x > most ? x : most;
  }
  p.total[at] += sum, p.square[at] += squares;
  if (p.active) p.active[at] += above;
  if (p.largest) p.largest[at] = most;
  return wrong;
}

bool add_tile(const GroupSums& p, int64_t first, int64_t end) {
  bool wrong = false;
  for (int64_t group = 0; group < p.groups; ++group) {
    int64_t j = first;
    for (; j + kColumns <= end; j += kColumns) {
      wrong |= p.largest ? add_group<true>(p, group, j) : add_group<false>(p, group, j);
    }
    for (; j < end; ++j) wrong |= add_column(p, group, j);
  }
  return wrong;
}

}  // namespace

void group_sums(const GroupSums& p, int threads) {
  if (p.start[p.groups] * p.columns < 100000) threads = 1;
  const int64_t share = (p.columns + threads - 1) / threads, width = (share + kTile - 1) / kTile * kTile;
  bool wrong = false;
#pragma omp parallel for schedule(dynamic) num_threads(threads) if (threads > 1) reduction(|| : wrong)
  for (int64_t first = 0; first < p.columns; first += width) {
    const int64_t end = first + width < p.columns ? first + width : p.columns;
    if (add_tile(p, first, end)) wrong = true;
  }
  *p.nonfinite = wrong;
}

}  // namespace INTERPCORE_ISA
}  // namespace interpcore
