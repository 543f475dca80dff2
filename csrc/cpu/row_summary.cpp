// Compiled once per instruction set; INTERPCORE_ISA names the namespace.
//
// A row is read once: its powers are summed in registers, its bins counted in several tables, so that equal bins next
// to each other do not wait for each other, and what reaches the least of its extremes enters them.
#include "interpcore/row_summary.h"

#include "lanes.h"

namespace interpcore {
namespace INTERPCORE_ISA {
namespace {

constexpr int kWide = kLanes / 2, kTables = 4;
typedef float NarrowVec __attribute__((vector_size(4 * kWide), aligned(4), may_alias));
typedef int32_t NarrowInt __attribute__((vector_size(4 * kWide), aligned(4), may_alias));
typedef double WideVec __attribute__((vector_size(8 * kWide), aligned(8), may_alias));
typedef int64_t WideInt __attribute__((vector_size(8 * kWide), aligned(8), may_alias));

inline WideVec wide(const double* at) { return *reinterpret_cast<const WideVec*>(at); }
inline WideVec wide(const float* at) {
  return __builtin_convertvector(*reinterpret_cast<const NarrowVec*>(at), WideVec);
}

// The k largest of sign * r, in order; the others are -inf.
struct List {
  double sign;
  int64_t k;
  double* value;
  int64_t* index;

  template <typename T>
  void load(const T* values, const int64_t* indices) {
    for (int64_t i = 0; i < k; ++i) {
      value[i] = values[i] == values[i] ? sign * values[i] : -__builtin_inf(), index[i] = indices[i];
    }
  }

  template <typename T>
  void store(T* values, int64_t* indices) const {
    for (int64_t i = 0; i < k; ++i) {
      const bool none = value[i] == -__builtin_inf();
      values[i] = static_cast<T>(none ? __builtin_nan("") : sign * value[i]), indices[i] = none ? -1 : index[i];
    }
  }

  double least() const { return value[k - 1]; }

  void insert(double r, int64_t number) {
    const double x = sign * r;
    const auto before = [&](int64_t i) { return value[i] < x || (value[i] == x && index[i] > number); };
    if (x == -__builtin_inf() || !before(k - 1)) return;
    int64_t i = k - 1;
    for (; i > 0 && before(i - 1); --i) value[i] = value[i - 1], index[i] = index[i - 1];
    value[i] = x, index[i] = number;
  }
};

struct Row {
  const RowSummary& p;
  List top, bottom;
  int64_t* tables;  // [kTables, E + 1]
  WideVec sums[4];
  WideInt count;

  // Adds up to kWide values from column j on; the lanes behind `n` hold NaN.
  void add(WideVec x, int64_t j, int n) {
    const WideInt known = x == x;
    const WideVec zero = {}, v = known ? x : zero, v2 = v * v;
    sums[0] += v, sums[1] += v2, sums[2] += v2 * v, sums[3] += v2 * v2;
    count -= known;
    const WideVec low = zero - 1.0, high = zero + static_cast<double>(p.edges - 1);
    WideVec near = (v - p.edge[1]) * ((p.edges - 1) / (p.edge[p.edges] - p.edge[1]));
    near = near > low ? near : low;
    near = near < high ? near : high;
    const NarrowInt guess = __builtin_convertvector(near, NarrowInt) + 1;
    const WideInt reached = (x >= zero + top.least()) | (-x >= zero + bottom.least());
    int64_t any = 0, missing = 0;
    for (int lane = 0; lane < kWide; ++lane) any |= reached[lane], missing |= ~known[lane];
    alignas(64) double values[kWide];
    alignas(64) int32_t bins[kWide];
    *reinterpret_cast<WideVec*>(values) = x, *reinterpret_cast<NarrowInt*>(bins) = guess;
    for (int lane = 0; lane < n; ++lane) {
      if (missing && values[lane] != values[lane]) continue;
      const int32_t b = bins[lane];
      // The guess is one off at most.
      const int32_t bin = b + (values[lane] > p.edge[b + 1]) - (values[lane] <= p.edge[b]);
      ++tables[lane % kTables * (p.edges + 1) + bin];
    }
    if (!any) return;
    for (int lane = 0; lane < n; ++lane) {
      if (!reached[lane]) continue;
      top.insert(values[lane], p.first + j + lane);
      bottom.insert(values[lane], p.first + j + lane);
    }
  }
};

template <typename T>
void summarize(const RowSummary& p, int64_t at, Row& row) {
  const T* r = static_cast<const T*>(p.r) + at * p.columns;
  T *top = static_cast<T*>(p.top) + at * p.k, *bottom = static_cast<T*>(p.bottom) + at * p.k;
  row.top.load(top, p.top_index + at * p.k);
  row.bottom.load(bottom, p.bottom_index + at * p.k);
  row.count = WideInt{};
  for (int power = 0; power < 4; ++power) row.sums[power] = WideVec{};
  for (int64_t b = 0; b < kTables * (p.edges + 1); ++b) row.tables[b] = 0;
  int64_t j = 0;
  for (; j + kWide <= p.columns; j += kWide) row.add(wide(r + j), j, kWide);
  if (j < p.columns) {
    alignas(64) T rest[kWide];
    for (int lane = 0; lane < kWide; ++lane) {
      rest[lane] = j + lane < p.columns ? r[j + lane] : static_cast<T>(__builtin_nan(""));
    }
    row.add(wide(rest), j, static_cast<int>(p.columns - j));
  }
  row.top.store(top, p.top_index + at * p.k);
  row.bottom.store(bottom, p.bottom_index + at * p.k);
  for (int64_t b = 0; b <= p.edges; ++b) {
    for (int t = 0; t < kTables; ++t) p.histogram[at * (p.edges + 1) + b] += row.tables[t * (p.edges + 1) + b];
  }
  for (int lane = 0; lane < kWide; ++lane) {
    if (p.count) p.count[at] += row.count[lane];
    for (int power = 0; p.powers && power < 4; ++power) {
      p.powers[power * p.powers_stride + at] += row.sums[power][lane];
    }
  }
}

}  // namespace

void row_summary(const RowSummary& p, int threads) {
  if (p.rows * p.columns < 100000) threads = 1;
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    double* values = new double[2 * p.k];
    int64_t *indices = new int64_t[2 * p.k], *tables = new int64_t[kTables * (p.edges + 1)];
    Row row{p, {1, p.k, values, indices}, {-1, p.k, values + p.k, indices + p.k}, tables, {}, {}};
#pragma omp for schedule(dynamic, 16)
    for (int64_t at = 0; at < p.rows; ++at) {
      p.wide ? summarize<double>(p, at, row) : summarize<float>(p, at, row);
    }
    delete[] values;
    delete[] indices;
    delete[] tables;
  }
}

}  // namespace INTERPCORE_ISA
}  // namespace interpcore
