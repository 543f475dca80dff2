// Power sums of blocks of rows, for a tile of columns, and their merge. Included by one source per op; everything is
// local to it and to its instruction set. No standard-library templates here: the linker could keep an AVX-512 copy
// of one for every caller.
//
// A block's power sums are taken in float32 about a shift near the mean, and merged into float64. The columns of a
// block for which float32 is not enough (non-finite values, powers out of range, a shift far off) are summed again
// in float64. No column's result depends on the tiling.
#pragma once

#include "interpcore/column_moments.h"

namespace interpcore {
namespace INTERPCORE_ISA {
namespace {

constexpr int64_t kTile = 4096, kPart = 256;  // columns: most of a tile, and of a step of the merge
constexpr int64_t kBlock = 256, kVisit = 8;    // rows: of a block, and summed between loads of the sums
constexpr int64_t kLine = 16;  // floats in a cache line
constexpr int kMaxThresholds = ColumnMoments::max_thresholds;
#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif
typedef float Vec __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));
typedef int32_t IntVec __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));

Vec& vec(float* at) { return *reinterpret_cast<Vec*>(at); }
const Vec& vec(const float* at) { return *reinterpret_cast<const Vec*>(at); }

struct Bf16 { uint16_t bits; };
struct Fp16 { uint16_t bits; };

inline float from_bits(uint32_t bits) {
  float x;
  __builtin_memcpy(&x, &bits, sizeof x);
  return x;
}

inline float widen(float x) { return x; }
inline float widen(Bf16 x) { return from_bits(static_cast<uint32_t>(x.bits) << 16); }
inline float widen(Fp16 x) {
  // The product moves the exponent's bias, subnormal numbers included; infinities and NaNs keep their full exponent.
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000u) << 16, rest = static_cast<uint32_t>(x.bits & 0x7fffu);
  const float magnitude = from_bits(rest << 13) * 0x1p112f;
  uint32_t bits;
  __builtin_memcpy(&bits, &magnitude, sizeof bits);
  return from_bits(sign | (rest >= 0x7c00u ? 0x7f800000u | rest << 13 : bits));
}

// Sums over the rows of one block of powers of x - shift, and extremes of x.
struct Sums {
  alignas(64) float shift[kTile], a1[kTile], a2[kTile], a3[kTile], a4[kTile], low[kTile], high[kTile];
  alignas(64) float excess2[kTile], excess4[kTile];  // what rounding has added to a2 and a4
  alignas(64) int32_t above[kMaxThresholds][kTile];
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

Moments from_power_sums(double n, double shift, double a1, double a2, double a3, double a4) {
  const double k = a1 / n;
  return {n, shift + k, a2 - k * a1, a3 - k * (3 * a2 - 2 * k * a1), a4 - k * (4 * a3 - k * (6 * a2 - 3 * k * a1))};
}

Moments merged(const Moments& a, const Moments& b) {
  const double count = a.count + b.count, inverse = 1 / (count > 0 ? count : 1);
  const double fa = a.count * inverse, fb = b.count * inverse, d = b.mean - a.mean, c = d * d * a.count * fb;
  return {count, a.mean + d * fb, a.m2 + b.m2 + c,
          a.m3 + b.m3 + c * d * (fa - fb) + 3 * d * (fa * b.m2 - fb * a.m2),
          a.m4 + b.m4 + c * d * d * (fa * fa - fa * fb + fb * fb) + 6 * d * d * (fa * fa * b.m2 + fb * fb * a.m2) +
              4 * d * (fa * b.m3 - fb * a.m3)};
}

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

// The visited rows are summed by themselves first: every addition to a block's sum costs it half a last bit.
template <int rows>
void add_rows(const float* const* row, int64_t width, Sums& s) {
  for (int64_t j = 0; j < width; j += kLanes) {
    const Vec shift = vec(s.shift + j);
    Vec a1 = {}, a2 = {}, a3 = {}, a4 = {}, low = vec(s.low + j), high = vec(s.high + j);
    for (int r = 0; r < rows; ++r) {
      const Vec x = vec(row[r] + j), d = x - shift, d2 = d * d;
      a1 += d;
      a2 += d2;
      a3 += d2 * d;
      a4 += d2 * d2;
      low = x < low ? x : low;
      high = x > high ? x : high;
    }
    vec(s.a1 + j) += a1, vec(s.a3 + j) += a3;
    add_exactly(a2, vec(s.a2 + j), vec(s.excess2 + j));
    add_exactly(a4, vec(s.a4 + j), vec(s.excess4 + j));
    vec(s.low + j) = low, vec(s.high + j) = high;
  }
}

template <int rows>
void count_above(const float* const* row, float threshold, int64_t width, int32_t* above) {
  for (int64_t j = 0; j < width; j += kLanes) {
    IntVec& count = *reinterpret_cast<IntVec*>(above + j);
    for (int r = 0; r < rows; ++r) count -= vec(row[r] + j) > threshold;
  }
}

template <int rows>
void visit(const ColumnMoments& p, const float* const* row, int64_t width, Sums& s) {
  add_rows<rows>(row, width, s);
  for (int64_t k = 0; k < p.thresholds; ++k) count_above<rows>(row, p.threshold[k], width, s.above[k]);
}

template <typename T>
void clear(const Tile<T>& tile, Sums& s) {
  const int64_t padded = (tile.width + kLine - 1) / kLine * kLine;
  for (int64_t j = 0; j < padded; ++j) {
    s.a1[j] = s.a2[j] = s.a3[j] = s.a4[j] = s.excess2[j] = s.excess4[j] = 0.0f;
    s.low[j] = __builtin_inff(), s.high[j] = -__builtin_inff();
  }
  for (int64_t k = 0; k < tile.p.thresholds; ++k) {
    for (int64_t j = 0; j < padded; ++j) s.above[k][j] = 0;
  }
}

const float* as_floats(const float* row) { return row; }
template <typename T>
const float* as_floats(const T*) { return nullptr; }

// Adds up to kVisit rows. Half precision, and a last tile of odd width, go through `copy`.
template <typename T>
void sum_visit(const Tile<T>& tile, const int64_t* live, int64_t rows, float (*copy)[kTile], Sums& s) {
  const int64_t padded = (tile.width + kLine - 1) / kLine * kLine;
  const float* row[kVisit];
  for (int64_t r = 0; r < rows; ++r) {
    const T* from = tile.row(live[r]);
    row[r] = as_floats(from);
    if (row[r] && padded == tile.width) continue;
    row[r] = copy[r];
    for (int64_t j = 0; j < tile.width; ++j) copy[r][j] = widen(from[j]);
    for (int64_t j = tile.width; j < padded; ++j) copy[r][j] = 0.0f;
  }
  if (rows == kVisit) {
    visit<kVisit>(tile.p, row, padded, s);
  } else {
    for (int64_t r = 0; r < rows; ++r) visit<1>(tile.p, row + r, padded, s);
  }
}

// Sums the n rows of a block.
template <typename T>
void sum_block(const Tile<T>& tile, const int64_t* live, int64_t n, Sums& s) {
  alignas(64) float copy[kVisit][kTile];
  clear(tile, s);
  for (int64_t i = 0; i < n; i += kVisit) sum_visit(tile, live + i, n - i < kVisit ? n - i : kVisit, copy, s);
}

// Column `column` of a block in float64, non-finite values left out; into place j of `block`.
template <typename T>
void exact_column(const Tile<T>& tile, int64_t column, const int64_t* live, int64_t n, Sums& s, Block& block,
                  int64_t j) {
  int64_t count = 0;
  double sum = 0;
  float low = __builtin_inff(), high = -__builtin_inff();
  for (int64_t k = 0; k < tile.p.thresholds; ++k) s.above[k][column] = 0;
  for (int64_t i = 0; i < n; ++i) {
    const float x = widen(tile.row(live[i])[column]);
    if (!__builtin_isfinite(x)) continue;
    ++count;
    sum += x;
    low = x < low ? x : low;
    high = x > high ? x : high;
    for (int64_t k = 0; k < tile.p.thresholds; ++k) s.above[k][column] += x > tile.p.threshold[k];
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

// The moments of a block from its sums, for `width` columns from `column` on.
template <typename T>
void block_moments(const Tile<T>& tile, int64_t column, int64_t width, const int64_t* live, int64_t n, Sums& sums,
                   Block& block) {
  int32_t enough[kPart];
  const Sums& s = sums;
  const float rows = static_cast<float>(n);
#pragma omp simd
  for (int64_t j = 0; j < width; ++j) {
    const int64_t c = column + j;
    const float a1 = s.a1[c], a2 = s.a2[c], a4 = s.a4[c];
    const bool constant = s.low[c] == s.high[c];
    // Below 2^-110 the fourth powers lose bits; where the mean is 2 standard deviations off the shift (4/5 of A2)
    // the centred sums do; beside one value that is nearly all of A2 the others are rounded all to one side.
    const bool in_range = (a4 >= 0x1p-110f) & (a4 <= 0x1p118f) & (a1 * a1 <= 0.8f * rows * a2) &
                          (a4 <= 0.99f * a2 * a2);
    enough[j] = in_range | (constant & (a1 - a1 == 0.0f));
    const Moments m = from_power_sums(rows, s.shift[c], a1, a2, s.a3[c], a4);
    block.count[j] = rows;
    block.mean[j] = constant ? s.low[c] : m.mean;
    block.m2[j] = constant ? 0.0 : m.m2;
    block.m3[j] = constant ? 0.0 : m.m3;
    block.m4[j] = constant ? 0.0 : m.m4;
    block.low[j] = s.low[c], block.high[j] = s.high[c];
  }
  for (int64_t j = 0; j < width; ++j) {
    if (!enough[j]) exact_column(tile, column + j, live, n, sums, block, j);
  }
}

// Merges a block of n rows into the outputs, which hold the totals; `count` is the rows of each column so far.
void merge(const ColumnMoments& p, int64_t first, int64_t width, int64_t n, const Block& block, double* count) {
  const int64_t N = p.columns;
  double* __restrict mean = p.moments + first;
  double* __restrict m2 = mean + N;
  double* __restrict m3 = mean + 2 * N;
  double* __restrict m4 = mean + 3 * N;
  double* __restrict low = mean + 4 * N;
  double* __restrict high = mean + 5 * N;
#pragma omp simd
  for (int64_t j = 0; j < width; ++j) {
    const Moments m = merged({count[j], mean[j], m2[j], m3[j], m4[j]},
                             {block.count[j], block.mean[j], block.m2[j], block.m3[j], block.m4[j]});
    count[j] = m.count, mean[j] = m.mean, m2[j] = m.m2, m3[j] = m.m3, m4[j] = m.m4;
    low[j] = block.low[j] < low[j] ? block.low[j] : low[j];
    high[j] = block.high[j] > high[j] ? block.high[j] : high[j];
  }
  int64_t* others = p.counts + N + first;
  for (int64_t j = 0; j < width; ++j) others[j] += n - static_cast<int64_t>(block.count[j]);
}

void start(const ColumnMoments& p, int64_t first, int64_t width) {
  for (int64_t row = 0; row < 2 + p.thresholds; ++row) {
    for (int64_t j = first; j < first + width; ++j) p.counts[row * p.columns + j] = 0;
  }
  const double none = __builtin_inf(), initial[6] = {0, 0, 0, 0, none, -none};
  for (int64_t row = 0; row < 6; ++row) {
    for (int64_t j = first; j < first + width; ++j) p.moments[row * p.columns + j] = initial[row];
  }
}

// Takes a shift from the first block: about its first row the sums are good enough for the block's mean.
template <typename T>
void find_shift(const Tile<T>& tile, const int64_t* live, int64_t n, Sums& s) {
  for (int64_t j = 0; j < tile.width; ++j) {
    const float x = widen(tile.row(live[0])[j]);
    s.shift[j] = __builtin_isfinite(x) ? x : 0.0f;
  }
  sum_block(tile, live, n, s);
  Block block;
  for (int64_t c = 0; c < tile.width; c += kPart) {
    const int64_t width = tile.width - c < kPart ? tile.width - c : kPart;
    block_moments(tile, c, width, live, n, s, block);
    for (int64_t j = 0; j < width; ++j) s.shift[c + j] = static_cast<float>(block.mean[j]);
  }
}

// A tile's sums of the present block and its rows so far; the other totals are in the outputs.
struct Totals {
  Sums s;
  double count[kTile];
  bool shifted;
};

// Sets `totals` up: from the outputs where they go on, else from nothing.
template <typename T>
void begin(const Tile<T>& tile, Totals& totals) {
  const ColumnMoments& p = tile.p;
  if (!p.go_on) start(p, tile.first, tile.width);
  totals.shifted = p.shift || p.go_on;
  for (int64_t j = 0; j < kTile; ++j) totals.s.shift[j] = 0.0f;
  for (int64_t j = 0; j < tile.width; ++j) {
    totals.count[j] = static_cast<double>(p.counts[tile.first + j]);
    totals.s.shift[j] = p.shift ? p.shift[tile.first + j] : static_cast<float>(p.moments[tile.first + j]);
  }
}

// Merges the block that `totals` holds the sums of.
template <typename T>
void add_block(const Tile<T>& tile, const int64_t* live, int64_t n, Totals& totals) {
  const ColumnMoments& p = tile.p;
  Block block;
  for (int64_t c = 0; c < tile.width; c += kPart) {
    const int64_t width = tile.width - c < kPart ? tile.width - c : kPart, column = tile.first + c;
    block_moments(tile, c, width, live, n, totals.s, block);
    merge(p, column, width, n, block, totals.count + c);
    for (int64_t j = 0; !p.shift && j < width; ++j) totals.s.shift[c + j] = static_cast<float>(p.moments[column + j]);
  }
  for (int64_t k = 0; k < p.thresholds; ++k) {
    int64_t* above = p.counts + (2 + k) * p.columns + tile.first;
    for (int64_t j = 0; j < tile.width; ++j) above[j] += totals.s.above[k][j];
  }
}

template <typename T>
void finish(const Tile<T>& tile, const Totals& totals) {
  for (int64_t j = 0; j < tile.width; ++j) tile.p.counts[tile.first + j] = static_cast<int64_t>(totals.count[j]);
}

// Columns of a tile, for so many threads.
inline int64_t tile_width(int64_t columns, int threads) {
  const int64_t share = (columns + threads - 1) / threads;
  const int64_t wanted = (share + kPart - 1) / kPart * kPart;
  return wanted < kTile ? wanted : kTile;
}

}  // namespace
}  // namespace INTERPCORE_ISA
}  // namespace interpcore
