// Power sums of a block of rows, for a tile of columns. Everything is local to the source that includes it and to its
// instruction set. No standard-library templates here: the linker could keep an AVX-512 copy of one for every caller.
//
// A block's power sums are taken in float32 about a shift near the mean. The columns of a block for which float32 is
// not enough (non-finite values, powers out of range, a shift far off) are summed again in float64. No column's result
// depends on the tiling.
#pragma once

#include "interpcore/column_moments.h"
#include "lanes.h"

namespace interpcore {
namespace INTERPCORE_ISA {
namespace {

constexpr int64_t kTile = 4096, kPart = 256;  // columns: most of a tile, and of a step of the merge
constexpr int64_t kBlock = 256, kVisit = 8;    // rows: of a block, and summed between loads of the sums
constexpr int64_t kLine = 16;                  // columns whose sums lie together: floats in a cache line
constexpr int kMaxThresholds = ColumnMoments::max_thresholds;

// Sums over the rows of one block of powers of x - shift, and extremes of x. All that a line of columns needs lies
// together: arrays of their own would often be a multiple of 4 KB away from each other and from the rows, and crowd
// one another out of the first cache.
struct Sums {
  struct alignas(64) Line {
    float shift[kLine], a1[kLine], a2[kLine], a3[kLine], a4[kLine], low[kLine], high[kLine];
    float excess2[kLine], excess4[kLine];  // what rounding has added to a2 and a4
  };
  struct alignas(64) Counts {
    int32_t above[kMaxThresholds][kLine];
  };
  Line line[kTile / kLine];
  Counts counts[kTile / kLine];
  float& shift(int64_t column) { return line[column / kLine].shift[column % kLine]; }
  int32_t& above(int64_t column, int64_t k) { return counts[column / kLine].above[k][column % kLine]; }
};

struct Moments {
  double count, mean, m2, m3, m4;
};

// Moments of one block, for a part of the tile.
struct Block {
  double count[kPart], mean[kPart], m2[kPart], m3[kPart], m4[kPart];
  float low[kPart], high[kPart];
};

// The columns [first, first + width) of x.
template <typename T>
struct Tile {
  const ColumnMoments& p;
  int64_t first, width;
  const T* row(int64_t t) const { return static_cast<const T*>(p.x) + t * p.row_stride + first; }
};

// Up to kBlock unmasked rows from `next` on; moves `next` past them.
int64_t take_rows(const ColumnMoments& p, int64_t& next, int64_t* live) {
  int64_t n = 0;
  for (; next < p.rows && n < kBlock; ++next) {
    live[n] = next;
    n += p.mask ? p.mask[next] : 1;
  }
  return n;
}

// Adds x to the sum, by Kahan: beside a large value many small ones would be rounded all to one side.
inline void add_exactly(Vec x, Vec& sum, Vec& excess) {
  const Vec rest = x - excess, total = sum + rest;
  excess = (total - sum) - rest;
  sum = total;
}

// Adds one vector of each of some rows, the first column `at` places into the line. The rows are summed by themselves
// first, those of even and of odd number: every addition costs a sum half a last bit.
template <int rows, typename T>
inline void add_vectors(const T* const* row, int64_t column, Sums::Line& line, int64_t at) {
  const Vec shift = vec(line.shift + at);
  Vec a1[2] = {}, a2[2] = {}, a3[2] = {}, a4[2] = {}, low = vec(line.low + at), high = vec(line.high + at);
  for (int r = 0; r < rows; ++r) {
    const Vec x = widened(row[r] + column), d = x - shift, d2 = d * d;
    a1[r % 2] += d;
    a2[r % 2] += d2;
    a3[r % 2] += d2 * d;
    a4[r % 2] += d2 * d2;
    low = x < low ? x : low;
    high = x > high ? x : high;
  }
  vec(line.a1 + at) += a1[0] + a1[1], vec(line.a3 + at) += a3[0] + a3[1];
  add_exactly(a2[0] + a2[1], vec(line.a2 + at), vec(line.excess2 + at));
  add_exactly(a4[0] + a4[1], vec(line.a4 + at), vec(line.excess4 + at));
  vec(line.low + at) = low, vec(line.high + at) = high;
}

template <int rows, typename T>
inline void count_above(const T* const* row, int64_t column, float threshold, int32_t* above) {
  IntVec count = vec(above);
  for (int r = 0; r < rows; ++r) count -= widened(row[r] + column) > threshold;
  vec(above) = count;
}

// Adds `lines` lines of columns of some rows, and fetches those of the rows that come next into the second cache.
template <int rows, typename T>
void add_rows(const ColumnMoments& p, const T* const* row, const T* const* next, int64_t lines, Sums::Line* line,
              Sums::Counts* counts) {
  for (int64_t i = 0; i < lines; ++i) {
    for (int r = 0; r < rows; ++r) __builtin_prefetch(next[r] + i * kLine, 0, 1);
    for (int64_t at = 0; at < kLine; at += kLanes) {
      const int64_t column = i * kLine + at;
      add_vectors<rows>(row, column, line[i], at);
      for (int64_t k = 0; k < p.thresholds; ++k) {
        count_above<rows>(row, column, p.threshold[k], counts[i].above[k] + at);
      }
    }
  }
}

// The same for up to kVisit rows, kVisit at once or one by one.
template <typename T>
void add_some_rows(const ColumnMoments& p, int64_t rows, const T* const* row, const T* const* next, int64_t lines,
                   Sums::Line* line, Sums::Counts* counts) {
  if (rows == kVisit) return add_rows<kVisit>(p, row, next, lines, line, counts);
  for (int64_t r = 0; r < rows; ++r) add_rows<1>(p, row + r, next + r, lines, line, counts);
}

template <typename T>
void clear(const Tile<T>& tile, Sums& s) {
  for (int64_t i = 0; i < (tile.width + kLine - 1) / kLine; ++i) {
    Sums::Line& line = s.line[i];
    for (int64_t j = 0; j < kLine; ++j) {
      line.a1[j] = line.a2[j] = line.a3[j] = line.a4[j] = line.excess2[j] = line.excess4[j] = 0.0f;
      line.low[j] = __builtin_inff(), line.high[j] = -__builtin_inff();
    }
    for (int64_t k = 0; k < tile.p.thresholds; ++k) {
      for (int64_t j = 0; j < kLine; ++j) s.counts[i].above[k][j] = 0;
    }
  }
}

// Adds the first rows, at most kVisit, of the `left` live rows that the block still has.
template <typename T>
void sum_visit(const Tile<T>& tile, const int64_t* live, int64_t left, Sums& s) {
  const int64_t rows = left < kVisit ? left : kVisit, full = tile.width / kLine, rest = tile.width % kLine;
  const T *row[kVisit], *next[kVisit];
  for (int64_t r = 0; r < rows; ++r) {
    // Behind the block, the rows that come next if none is masked.
    const int64_t ahead = r + kVisit < left ? live[r + kVisit] : live[left - 1] + 1 + r + kVisit - left;
    row[r] = tile.row(live[r]);
    next[r] = ahead < tile.p.rows ? tile.row(ahead) : row[r];
  }
  add_some_rows(tile.p, rows, row, next, full, s.line, s.counts);
  if (!rest) return;
  alignas(64) T last[kVisit][kLine] = {};
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t j = 0; j < rest; ++j) last[r][j] = row[r][full * kLine + j];
    row[r] = last[r];
  }
  add_some_rows(tile.p, rows, row, row, 1, s.line + full, s.counts + full);
}

// Sums the n rows of a block.
template <typename T>
void sum_block(const Tile<T>& tile, const int64_t* live, int64_t n, Sums& s) {
  clear(tile, s);
  for (int64_t i = 0; i < n; i += kVisit) sum_visit(tile, live + i, n - i, s);
}

Moments from_power_sums(double n, double shift, double a1, double a2, double a3, double a4) {
  const double k = a1 / n;
  return {n, shift + k, a2 - k * a1, a3 - k * (3 * a2 - 2 * k * a1), a4 - k * (4 * a3 - k * (6 * a2 - 3 * k * a1))};
}

// Column `column` of a block in float64, non-finite values left out; into place j of `block`.
template <typename T>
void exact_column(const Tile<T>& tile, int64_t column, const int64_t* live, int64_t n, Sums& s, Block& block,
                  int64_t j) {
  int64_t count = 0;
  double sum = 0;
  float low = __builtin_inff(), high = -__builtin_inff();
  for (int64_t k = 0; k < tile.p.thresholds; ++k) s.above(column, k) = 0;
  for (int64_t i = 0; i < n; ++i) {
    const float x = widen(tile.row(live[i])[column]);
    if (!__builtin_isfinite(x)) continue;
    ++count;
    sum += x;
    low = x < low ? x : low;
    high = x > high ? x : high;
    for (int64_t k = 0; k < tile.p.thresholds; ++k) s.above(column, k) += x > tile.p.threshold[k];
  }
  const double mean = count ? sum / static_cast<double>(count) : 0;
  double m2 = 0, m3 = 0, m4 = 0;
  for (int64_t i = 0; i < n && low < high; ++i) {
    const float x = widen(tile.row(live[i])[column]);
    if (!__builtin_isfinite(x)) continue;
    const double d = x - mean, d2 = d * d;
    m2 += d2;
    m3 += d2 * d;
    m4 += d2 * d2;
  }
  block.count[j] = static_cast<double>(count), block.mean[j] = mean;
  block.m2[j] = m2, block.m3[j] = m3, block.m4[j] = m4;
  block.low[j] = low, block.high[j] = high;
}

// Moments of the n rows of a block from a line of sums, into places j on of `block`; whether float32 was enough.
inline void line_moments(const Sums::Line& line, float n, int64_t first, Block& block, int32_t* enough) {
#pragma omp simd
  for (int64_t c = 0; c < kLine; ++c) {
    const int64_t j = first + c;
    const float a1 = line.a1[c], a2 = line.a2[c], a4 = line.a4[c];
    const bool constant = line.low[c] == line.high[c];
    // Below 2^-110 the fourth powers lose bits; where the mean is 2 standard deviations off the shift (4/5 of A2)
    // the centred sums do; beside one value that is nearly all of A2 the others are rounded all to one side.
    const bool in_range =
        (a4 >= 0x1p-110f) & (a4 <= 0x1p118f) & (a1 * a1 <= 0.8f * n * a2) & (a4 <= 0.99f * a2 * a2);
    enough[j] = in_range | (constant & (a1 - a1 == 0.0f));
    const Moments m = from_power_sums(n, line.shift[c], a1, a2, line.a3[c], a4);
    block.count[j] = n;
    block.mean[j] = constant ? line.low[c] : m.mean;
    block.m2[j] = constant ? 0.0 : m.m2;
    block.m3[j] = constant ? 0.0 : m.m3;
    block.m4[j] = constant ? 0.0 : m.m4;
    block.low[j] = line.low[c], block.high[j] = line.high[c];
  }
}

// The moments of a block from its sums, for `width` columns from `column`, the first of a line, on.
template <typename T>
void block_moments(const Tile<T>& tile, int64_t column, int64_t width, const int64_t* live, int64_t n, Sums& s,
                   Block& block) {
  int32_t enough[kPart];
  for (int64_t j = 0; j < width; j += kLine) {
    line_moments(s.line[(column + j) / kLine], static_cast<float>(n), j, block, enough);
  }
  for (int64_t j = 0; j < width; ++j) {
    if (!enough[j]) exact_column(tile, column + j, live, n, s, block, j);
  }
}

}  // namespace
}  // namespace INTERPCORE_ISA
}  // namespace interpcore
