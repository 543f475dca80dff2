// Totals of a tile of columns over blocks of rows: each block's float32 power sums are merged into float64 moments.
#pragma once

#include "column_sums.h"

namespace interpcore {
namespace INTERPCORE_ISA {
namespace {

Moments merged(const Moments& a, const Moments& b) {
  const double count = a.count + b.count, inverse = 1 / (count > 0 ? count : 1);
  const double fa = a.count * inverse, fb = b.count * inverse, d = b.mean - a.mean, c = d * d * a.count * fb;
  return {count, a.mean + d * fb, a.m2 + b.m2 + c,
          a.m3 + b.m3 + c * d * (fa - fb) + 3 * d * (fa * b.m2 - fb * a.m2),
          a.m4 + b.m4 + c * d * d * (fa * fa - fa * fb + fb * fb) + 6 * d * d * (fa * fa * b.m2 + fb * fb * a.m2) +
              4 * d * (fa * b.m3 - fb * a.m3)};
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
    s.shift(j) = __builtin_isfinite(x) ? x : 0.0f;
  }
  sum_block(tile, live, n, s);
  Block block;
  for (int64_t c = 0; c < tile.width; c += kPart) {
    const int64_t width = tile.width - c < kPart ? tile.width - c : kPart;
    block_moments(tile, c, width, live, n, s, block);
    for (int64_t j = 0; j < width; ++j) s.shift(c + j) = static_cast<float>(block.mean[j]);
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
  for (int64_t j = 0; j < kTile; ++j) totals.s.shift(j) = 0.0f;
  for (int64_t j = 0; j < tile.width; ++j) {
    totals.count[j] = static_cast<double>(p.counts[tile.first + j]);
    totals.s.shift(j) = p.shift ? p.shift[tile.first + j] : static_cast<float>(p.moments[tile.first + j]);
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
    for (int64_t j = 0; !p.shift && j < width; ++j) totals.s.shift(c + j) = static_cast<float>(p.moments[column + j]);
  }
  for (int64_t k = 0; k < p.thresholds; ++k) {
    int64_t* above = p.counts + (2 + k) * p.columns + tile.first;
    for (int64_t j = 0; j < tile.width; ++j) above[j] += totals.s.above(j, k);
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
