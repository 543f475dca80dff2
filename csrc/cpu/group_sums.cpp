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

// Adds kColumns columns of a group's rows to the sums; the columns are `column` of x, and begin at the other pointers.
bool add_group(const GroupSums& p, int64_t group, int64_t column, const float* shift, double* total, double* square,
               int32_t* active) {
  WideVec sum[kVectors] = {}, squares[kVectors] = {};
  NarrowInt above[kVectors] = {}, wrong = {};
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
      wrong |= ~finite;
    }
  }
  for (int v = 0; v < kVectors; ++v) {
    *reinterpret_cast<WideVec*>(total + v * kWide) += sum[v];
    *reinterpret_cast<WideVec*>(square + v * kWide) += squares[v];
    if (active) *reinterpret_cast<NarrowInt*>(active + v * kWide) += above[v];
  }
  int32_t any = 0;
  for (int lane = 0; lane < kWide; ++lane) any |= wrong[lane];
  return any;
}

// The last columns, fewer than kColumns, one by one.
bool add_column(const GroupSums& p, int64_t group, int64_t column) {
  const double shift = p.shift[column];
  double sum = 0, squares = 0;
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
  }
  const int64_t at = p.place[group] * p.columns + column;
  p.total[at] += sum, p.square[at] += squares;
  if (p.active) p.active[at] += above;
  return wrong;
}

bool add_tile(const GroupSums& p, int64_t first, int64_t end) {
  bool wrong = false;
  for (int64_t group = 0; group < p.groups; ++group) {
    const int64_t sums = p.place[group] * p.columns;
    int64_t j = first;
    for (; j + kColumns <= end; j += kColumns) {
      wrong |= add_group(p, group, j, p.shift + j, p.total + sums + j, p.square + sums + j,
                         p.active ? p.active + sums + j : nullptr);
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
