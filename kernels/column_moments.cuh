// Bodies of one thread of column_moments, shared with activation_moments: power sums of a chunk of rows about a
// fixed shift, float32 in registers, then the chunk's moments and their merging, in float64. A block walks a chunk
// of the rows for 64 columns; between the phases it waits for all its threads.
#pragma once

#include "_values.cuh"
#include "interpcore/column_chunks.h"

namespace interpcore {

constexpr int kTileRows = 32, kTileColumns = 64, kTileThreads = kTileRows * kTileColumns / kLane;
// Rows of a lane that are loaded at once, where loads are of 16 bytes.
template <typename T, bool VECTOR>
constexpr int ahead = VECTOR ? T::words == kLane ? 2 : 4 : 1;
constexpr int kSumRows = 7;  // of a chunk: s1 to s4, extremes, shift

// Where a thread of a block stands.
struct Place {
  int64_t chunk, first, column;  // its chunk, the chunk's first row, the thread's first column
  int count, row, width;         // the chunk's rows, the thread's first of them, its columns that there are

  INTERPCORE_BODY Place(const ColumnChunks& p, int64_t block_x, int64_t block_y, int thread) {
    chunk = block_y, first = block_y * p.chunk_rows, row = thread / (kTileColumns / kLane);
    column = block_x * kTileColumns + thread % (kTileColumns / kLane) * kLane;
    const int64_t rows = p.totals.rows - first, columns = p.totals.columns - column;
    count = static_cast<int>(rows < p.chunk_rows ? rows : p.chunk_rows);
    width = columns < 0 ? 0 : columns < kLane ? static_cast<int>(columns) : kLane;
  }
};

INTERPCORE_BODY bool is_finite(float x) { return fabsf(x) < INFINITY; }

// Which of a thread's rows count, a bit a row from its first on; their number is at most 64.
INTERPCORE_BODY uint64_t kept_rows(const ColumnChunks& p, const Place& at) {
  uint64_t bits = 0;
#pragma unroll 1
  for (int row = at.row, i = 0; row < at.count; row += kTileRows, ++i)
    bits |= static_cast<uint64_t>(!p.totals.mask || p.totals.mask[at.first + row]) << i;
  return bits;
}

INTERPCORE_BODY int ones_of(uint64_t bits) {
#ifdef __CUDACC__
  return __popcll(bits);
#else
  return __builtin_popcountll(bits);
#endif
}

// Whether rows start at multiples of 16 bytes.
template <typename T>
INTERPCORE_BODY bool aligned(const void* base, int64_t stride) {
  return (reinterpret_cast<uintptr_t>(base) | stride * sizeof(typename T::Stored)) % 16 == 0;
}

// One number of each of a thread's columns, in its places of a tile [32, 64].
struct Tile {
  float value[kTileRows][kTileColumns];
};

// The first rows of a chunk, NaN where there is none that counts.
template <typename T>
INTERPCORE_BODY void first_values(const ColumnChunks& p, const Place& at, const Eight<T>& v, Tile& tile, int thread) {
  const bool there = at.row < at.count && (!p.totals.mask || p.totals.mask[at.first + at.row]);
#pragma unroll
  for (int i = 0; i < kLane; ++i)
    tile.value[at.row][thread % (kTileColumns / kLane) * kLane + i] = there && i < at.width ? value_of(v, i) : NAN;
}

// A column's shift: 0, or where the mean of the first rows exceeds their deviation the value nearest to it. The
// difference of a value that repeats is then 0, or exact at least, and not rounded the same way each time.
INTERPCORE_BODY float fixed_shift(const Tile& tile, int column) {
  float n = 0, sum = 0, square = 0, nearest = 0, distance = INFINITY;
  for (int row = 0; row < kTileRows; ++row) {
    const float v = tile.value[row][column];
    if (is_finite(v)) n += 1, sum += v;
  }
  const float mean = sum / fmaxf(n, 1.0f);
  for (int row = 0; row < kTileRows; ++row) {
    const float v = tile.value[row][column], d = v - mean;
    if (!is_finite(v)) continue;
    square += d * d;
    if (fabsf(d) < distance) distance = fabsf(d), nearest = v;
  }
  return fabsf(mean) > sqrtf(square / fmaxf(n, 1.0f)) && is_finite(nearest) ? nearest : 0.0f;
}

// What a thread keeps of its columns over a chunk; K: thresholds that there is room for.
template <typename T, int K>
struct Sums {
  float s1[kLane], s2[kLane], s3[kLane], s4[kLane];
  uint32_t low[T::words], high[T::words];
  uint32_t above[K + 1][T::words], limit[K + 1];
  int rows;

  INTERPCORE_BODY void clear(const ColumnMoments& p) {
#pragma unroll
    for (int i = 0; i < kLane; ++i) s1[i] = s2[i] = s3[i] = s4[i] = 0;
#pragma unroll
    for (int i = 0; i < T::words; ++i) low[i] = everywhere(T{}, INFINITY), high[i] = everywhere(T{}, -INFINITY);
#pragma unroll
    for (int k = 0; k < K; ++k) {
      limit[k] = limit_of(T{}, k < p.thresholds ? p.threshold[k] : 0.0f);
#pragma unroll
      for (int i = 0; i < T::words; ++i) above[k][i] = 0;
    }
    rows = 0;
  }

  INTERPCORE_BODY void add_row(const Eight<T>& v, const float (&shift)[kLane]) {
#pragma unroll
    for (int i = 0; i < kLane; ++i) {
      const float d = value_of(v, i) - shift[i], d2 = d * d;
      s1[i] += d, s2[i] += d2;
      s3[i] = fmaf(d2, d, s3[i]), s4[i] = fmaf(d2, d2, s4[i]);
    }
#pragma unroll
    for (int i = 0; i < T::words; ++i) {
      low[i] = least(T{}, low[i], v.word[i]), high[i] = most(T{}, high[i], v.word[i]);
#pragma unroll
      for (int k = 0; k < K; ++k) above[k][i] = add(T{}, above[k][i], exceeds(T{}, v.word[i], limit[k]));
    }
  }

  // The thread's numbers of one kind: 0 to 3 power sums, 4 and 5 extremes, 6 rows, from 7 on values above a threshold.
  INTERPCORE_BODY float number(int kind, int i) const {
    const int word = i * T::words / kLane, half = i * T::words % kLane ? 1 : 0;
    if (kind < 4) return kind == 0 ? s1[i] : kind == 1 ? s2[i] : kind == 2 ? s3[i] : s4[i];
    if (kind == 6) return static_cast<float>(rows);
    float found = widen(T{}, kind == 4 ? low[word] : high[word], half);
#pragma unroll
    for (int k = 0; k < K; ++k) found = kind == 7 + k ? widen(T{}, above[k][word], half) : found;
    return found;
  }

  INTERPCORE_BODY void put(int kind, Tile& tile, const Place& at, int thread) const {
#pragma unroll
    for (int i = 0; i < kLane; ++i) tile.value[at.row][thread % (kTileColumns / kLane) * kLane + i] = number(kind, i);
  }
};

INTERPCORE_BODY int kinds(const ColumnMoments& p) { return 7 + static_cast<int>(p.thresholds); }

// A column's number of one kind over the chunk, by the thread that has the column.
INTERPCORE_BODY void collect(const ColumnChunks& p, int64_t chunk, int64_t column, int kind, float shift, const Tile& tile,
                             int place) {
  const int64_t N = p.totals.columns;
  if (column >= N) return;
  double total = kind == 4 ? INFINITY : kind == 5 ? -INFINITY : 0.0;
  for (int row = 0; row < kTileRows; ++row) {
    const double v = tile.value[row][place];
    // NaN stays: the column is then done again.
    total = kind == 4 ? (v < total || v != v ? v : total) : kind == 5 ? (v > total || v != v ? v : total) : total + v;
  }
  int32_t* counts = p.counts + chunk * (2 + p.totals.thresholds) * N + column;
  double* sums = p.sums + chunk * kSumRows * N + column;
  if (kind < 6) sums[kind * N] = total;
  if (kind == 6) counts[0] = static_cast<int32_t>(total), sums[6 * N] = shift;
  if (kind > 6) counts[(kind - 5) * N] = static_cast<int32_t>(total);
}

// Walk the chunk's rows from the thread's own on, every 32nd.
template <typename T, int K, bool VECTOR>
INTERPCORE_BODY void walk(const ColumnChunks& p, const Place& at, const float (&shift)[kLane], Sums<T, K>& sums) {
  constexpr int kAhead = ahead<T, VECTOR>;
  const ColumnMoments& x = p.totals;
  uint64_t keep = kept_rows(p, at);
  sums.rows = ones_of(keep);
  const int64_t step = kTileRows * x.row_stride;
  int64_t from = (at.first + at.row) * x.row_stride + at.column;
  int row = at.row;
  for (; row + (kAhead - 1) * kTileRows < at.count; row += kAhead * kTileRows) {
    Eight<T> v[kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) v[i] = load<T, VECTOR>(x.x, from + i * step, at.width);
#pragma unroll
    for (int i = 0; i < kAhead; ++i)
      if (keep >> i & 1) sums.add_row(v[i], shift);
    from += kAhead * step, keep >>= kAhead;
  }
#pragma unroll 1
  for (; row < at.count; row += kTileRows, from += step, keep >>= 1)
    if (keep & 1) sums.add_row(load<T, VECTOR>(x.x, from, at.width), shift);
}

INTERPCORE_BODY float read_value(const ColumnMoments& p, int64_t at) {
  if (p.stored == Stored::float32) return static_cast<const float*>(p.x)[at];
  return widen(BFloat16{}, static_cast<const uint16_t*>(p.x)[at], 0);
}

// Moments of a chunk's finite values of one column, from the values: two passes in float64.
INTERPCORE_BODY void moments_of_values(const ColumnChunks& p, int64_t chunk, int64_t column, double* sums, int32_t* counts) {
  const ColumnMoments& x = p.totals;
  const int64_t first = chunk * p.chunk_rows, end = first + p.chunk_rows < x.rows ? first + p.chunk_rows : x.rows;
  double n = 0, mean = 0, m2 = 0, m3 = 0, m4 = 0, low = INFINITY, high = -INFINITY;
  int32_t others = 0, above[ColumnMoments::max_thresholds] = {};
  for (int64_t row = first; row < end; ++row) {
    if (x.mask && !x.mask[row]) continue;
    const float v = read_value(x, row * x.row_stride + column);
    if (!is_finite(v)) {
      ++others;
      continue;
    }
    n += 1, mean += v;
    low = v < low ? v : low, high = v > high ? v : high;
#pragma unroll
    for (int k = 0; k < ColumnMoments::max_thresholds; ++k)
      if (k < x.thresholds) above[k] += v > x.threshold[k];
  }
  mean = low == high ? low : mean / (n > 0 ? n : 1);
  for (int64_t row = first; row < end && low < high; ++row) {
    const float v = read_value(x, row * x.row_stride + column);
    if ((x.mask && !x.mask[row]) || !is_finite(v)) continue;
    const double d = v - mean, d2 = d * d;
    m2 += d2, m3 += d2 * d, m4 += d2 * d2;
  }
  const double found[6] = {mean, m2, m3, m4, low, high};
  for (int i = 0; i < 6; ++i) sums[i * x.columns] = found[i];
  counts[0] = static_cast<int32_t>(n), counts[x.columns] = others;
#pragma unroll
  for (int k = 0; k < ColumnMoments::max_thresholds; ++k)
    if (k < x.thresholds) counts[(2 + k) * x.columns] = above[k];
}

// A chunk's sums of one column become its moments, in their place. Columns for which float32 had neither the range
// nor the bits, or that hold a value that is not finite, are done again.
INTERPCORE_BODY void settle(const ColumnChunks& p, int64_t chunk, int64_t column) {
  const int64_t N = p.totals.columns;
  double* sums = p.sums + chunk * kSumRows * N + column;
  int32_t* counts = p.counts + chunk * (2 + p.totals.thresholds) * N + column;
  const double n = counts[0], s1 = sums[0], s2 = sums[N], s3 = sums[2 * N], s4 = sums[3 * N];
  const double low = sums[4 * N], high = sums[5 * N], shift = sums[6 * N];
  const double k = s1 / (n > 0 ? n : 1), m2 = s2 - k * s1;
  const double reach = high - shift > shift - low ? high - shift : shift - low;
  // Comparisons that NaN fails. The fourth power of the reach must leave float32 bits; far from the mean they cancel.
  const bool bits = reach > 0x1p-28 && reach < 0x1p29 && k * s1 <= 2 * m2;
  if (!(n == 0 || ((bits || low == high) && s4 < INFINITY && low > -INFINITY && high < INFINITY)))
    return moments_of_values(p, chunk, column, sums, counts);
  const bool varied = low < high;
  sums[0] = low == high ? low : shift + k;
  sums[N] = varied ? m2 : 0;
  sums[2 * N] = varied ? s3 - k * (3 * s2 - 2 * k * s1) : 0;
  sums[3 * N] = varied ? s4 - k * (4 * s3 - k * (6 * s2 - 3 * k * s1)) : 0;
  counts[N] = 0;
}

// Sums of powers about a mean that is d below the mean of these.
INTERPCORE_BODY void add_deviations(double n, double d, const double* own, int64_t step, double* m) {
  const double m2 = own[step], m3 = own[2 * step], m4 = own[3 * step], d2 = d * d;
  m[0] += m2 + n * d2;
  m[1] += m3 + 3 * d * m2 + n * d2 * d;
  m[2] += m4 + 4 * d * m3 + 6 * d2 * m2 + n * d2 * d2;
}

// All chunks of one column, in order, with what the totals hold where they go on.
INTERPCORE_BODY void merge(const ColumnChunks& p, int64_t column) {
  const ColumnMoments& x = p.totals;
  const int64_t N = x.columns, chunks = (x.rows + p.chunk_rows - 1) / p.chunk_rows, kinds = 2 + x.thresholds;
  const double* sums = p.sums + column;
  const int32_t* counts = p.counts + column;
  double* out = x.moments + column;
  const double n0 = x.go_on ? static_cast<double>(x.counts[column]) : 0.0, mean0 = n0 > 0 ? out[0] : 0.0;
  double n = n0, mean = n0 * mean0, low = x.go_on ? out[4 * N] : INFINITY, high = x.go_on ? out[5 * N] : -INFINITY;
  for (int64_t c = 0; c < chunks; ++c) {
    const double own = counts[c * kinds * N];
    const double *at = sums + c * kSumRows * N, l = at[4 * N], h = at[5 * N];
    n += own, mean += own * at[0];
    low = l < low ? l : low, high = h > high ? h : high;
  }
  mean /= n > 0 ? n : 1;
  double m[3] = {0, 0, 0};
  if (n0 > 0) add_deviations(n0, mean0 - mean, out, N, m);
  for (int64_t c = 0; c < chunks; ++c)
    add_deviations(counts[c * kinds * N], sums[c * kSumRows * N] - mean, sums + c * kSumRows * N, N, m);
  for (int64_t kind = 0; kind < kinds; ++kind) {
    int64_t total = x.go_on ? x.counts[kind * N + column] : 0;
    for (int64_t c = 0; c < chunks; ++c) total += counts[(c * kinds + kind) * N];
    x.counts[kind * N + column] = total;
  }
  // A constant column has no rounding of the mean in its powers.
  const bool varied = low < high;
  out[0] = mean, out[4 * N] = low, out[5 * N] = high;
  for (int i = 0; i < 3; ++i) out[(1 + i) * N] = varied ? m[i] : 0;
}

}  // namespace interpcore
