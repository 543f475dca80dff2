// Products of matrices that fit in the first cache levels, where a BLAS call costs more than its arithmetic. Included by
// sources that are compiled once per instruction set; no standard-library templates, as in those.
#pragma once

#include "lanes.h"

namespace interpcore {
namespace INTERPCORE_ISA {
namespace {

// A tile of 6 rows by `kVectors` vectors of sums, with the operands, fills the vector registers.
constexpr int kRows = 6, kVectors = kLanes == 16 ? 4 : 2;

struct In {
  const float* at;
  int64_t row, column;  // strides
};

struct Out {
  float* at;
  int64_t row;  // stride; columns are contiguous
  bool add;     // to what is there
};

// One tile: out[r, n] = sum over k of a[r, k] b[k, n]; the columns of b are contiguous.
template <int rows, int vectors>
inline void tile(const In& a, const float* b, int64_t b_row, const Out& out, int64_t depth) {
  Vec sum[rows][vectors];
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < vectors; ++v) {
      sum[r][v] = Vec{};
      if (out.add) sum[r][v] = vec(out.at + r * out.row + v * kLanes);
    }
  }
  for (int64_t k = 0; k < depth; ++k) {
    Vec value[vectors];
#pragma GCC unroll 8
    for (int v = 0; v < vectors; ++v) value[v] = vec(b + k * b_row + v * kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) {
      const float weight = a.at[r * a.row + k * a.column];
#pragma GCC unroll 8
      for (int v = 0; v < vectors; ++v) sum[r][v] += weight * value[v];
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < vectors; ++v) {
      vec(out.at + r * out.row + v * kLanes) = sum[r][v];
    }
  }
}

// Up to kRows rows, the number known when compiling.
template <int vectors, int rows = kRows>
inline void tile_rows(int64_t count, const In& a, const float* b, int64_t b_row, const Out& out, int64_t depth) {
  if constexpr (rows > 0) {
    if (count >= rows) return tile<rows, vectors>(a, b, b_row, out, depth);
    tile_rows<vectors, rows - 1>(count, a, b, b_row, out, depth);
  }
}

template <int vectors>
inline void column_panel(int64_t rows, const In& a, const float* b, int64_t b_row, const Out& out, int64_t depth) {
  for (int64_t r = 0; r < rows; r += kRows) {
    tile_rows<vectors>(rows - r, {a.at + r * a.row, a.row, a.column}, b, b_row,
                       {out.at + r * out.row, out.row, out.add}, depth);
  }
}

// out [rows, columns] = a [rows, depth] b [depth, columns]
void small_product(int64_t rows, int64_t depth, int64_t columns, const In& a, const float* b, int64_t b_row,
                   const Out& out) {
  int64_t n = 0;
  for (; n + kVectors * kLanes <= columns; n += kVectors * kLanes) {
    column_panel<kVectors>(rows, a, b + n, b_row, {out.at + n, out.row, out.add}, depth);
  }
  for (; n + kLanes <= columns; n += kLanes) {
    column_panel<1>(rows, a, b + n, b_row, {out.at + n, out.row, out.add}, depth);
  }
  for (int64_t r = 0; r < rows && n < columns; ++r) {
    for (int64_t i = n; i < columns; ++i) {
      float sum = out.add ? out.at[r * out.row + i] : 0.0f;
      for (int64_t k = 0; k < depth; ++k) sum += a.at[r * a.row + k * a.column] * b[k * b_row + i];
      out.at[r * out.row + i] = sum;
    }
  }
}

}  // namespace
}  // namespace INTERPCORE_ISA
}  // namespace interpcore
