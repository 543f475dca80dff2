// Compiled once per instruction set; INTERPCORE_ISA names the namespace.
//
// Most values are below the least that is kept, which a comparison of vectors finds. The lists of a few columns are
// brought together when a value first enters one of them.
#include "interpcore/column_top.h"

#include "lanes.h"

namespace interpcore {
namespace INTERPCORE_ISA {
namespace {

constexpr int64_t kColumns = 64, kAhead = 8;  // columns of a step; rows fetched ahead

// The lists of a step's columns, each together: [column, k].
struct Lists {
  const ColumnTop& p;
  int64_t first, width;
  float* value;
  int64_t* place;

  void load() {
    for (int64_t i = 0; i < p.k; ++i) {
      for (int64_t j = 0; j < width; ++j) {
        value[j * p.k + i] = p.value[i * p.columns + first + j];
        place[j * p.k + i] = p.place[i * p.columns + first + j];
      }
    }
  }

  void store() const {
    for (int64_t i = 0; i < p.k; ++i) {
      for (int64_t j = 0; j < width; ++j) {
        p.value[i * p.columns + first + j] = value[j * p.k + i];
        p.place[i * p.columns + first + j] = place[j * p.k + i];
      }
    }
  }

  // Puts x behind those that are as large; returns the least that is kept.
  float insert(int64_t column, float x, int64_t index) {
    float* values = value + column * p.k;
    int64_t *places = place + column * p.k, i = p.k - 1;
    for (; i > 0 && values[i - 1] < x; --i) values[i] = values[i - 1], places[i] = places[i - 1];
    values[i] = x, places[i] = index;
    return values[p.k - 1];
  }
};

inline bool any_above(const float* x, const float* least) {
  IntVec above = {};
  for (int64_t j = 0; j < kColumns; j += kLanes) above |= vec(x + j) > vec(least + j);
  int32_t any = 0;
  for (int lane = 0; lane < kLanes; ++lane) any |= above[lane];
  return any;
}

void take(Lists lists) {
  const ColumnTop& p = lists.p;
  alignas(64) float least[kColumns], rest[kColumns] = {};
  for (int64_t j = 0; j < kColumns; ++j) {
    least[j] = j < lists.width ? p.value[(p.k - 1) * p.columns + lists.first + j] : __builtin_inff();
  }
  bool loaded = false;
  for (int64_t t = 0; t < p.rows; ++t) {
    const float* x = p.x + t * p.row_stride + lists.first;
    for (int64_t j = 0; t + kAhead < p.rows && j < lists.width; j += 16) {
      __builtin_prefetch(x + kAhead * p.row_stride + j);
    }
    if (lists.width < kColumns) {
      for (int64_t j = 0; j < lists.width; ++j) rest[j] = x[j];
      x = rest;
    }
    if (!any_above(x, least)) continue;
    if (!loaded) lists.load();
    loaded = true;
    for (int64_t j = 0; j < kColumns; ++j) {
      if (x[j] > least[j] && __builtin_isfinite(x[j])) least[j] = lists.insert(j, x[j], p.index[t]);
    }
  }
  if (loaded) lists.store();
}

}  // namespace

void column_top(const ColumnTop& p, int threads) {
  if (p.rows * p.columns < 250000) threads = 1;
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    float* value = new float[kColumns * p.k];
    int64_t* place = new int64_t[kColumns * p.k];
#pragma omp for schedule(dynamic, 4)
    for (int64_t first = 0; first < p.columns; first += kColumns) {
      take({p, first, p.columns - first < kColumns ? p.columns - first : kColumns, value, place});
    }
    delete[] value;
    delete[] place;
  }
}

}  // namespace INTERPCORE_ISA
}  // namespace interpcore
