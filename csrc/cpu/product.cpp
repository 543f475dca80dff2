// Compiled once per instruction set; INTERPCORE_ISA names the namespace. No standard-library templates here: the
// linker could keep an AVX-512 copy of one for every caller.
//
// Every sum runs over the depth in the same order whatever the number of rows, so a row's bits do not depend on it.
#include "interpcore/product.h"

#include "lanes.h"

namespace interpcore {
namespace INTERPCORE_ISA {
namespace {

// Tiles of sums that with their operands fill the vector registers.
constexpr int kPanelRows = 6, kPanelVectors = kLanes == 16 ? 4 : 2;
constexpr int kDotRows = kLanes == 16 ? 6 : 3, kDotColumns = kLanes == 16 ? 4 : 3;
constexpr int64_t kBlock = 192;  // rows of x that stay in the second cache
// Rows of the weight that are summed at a time. A few rows of x wait for memory, which is fastest along the weight's
// rows; many rows use a panel of the weight again and again, from the second cache.
constexpr int64_t kFewRows = 32, kFewDepth = 16, kManyDepth = 512;

struct Span {
  int64_t first, last;
};

// Weight with contiguous columns: tile of `vectors` vectors of columns from n, sums over the depth's span.
template <int rows, int vectors>
inline void panel_tile(const Product& p, int64_t row, int64_t n, Span depth) {
  Vec sum[rows][vectors] = {};
  const float* x = p.x + row * p.x_stride;
  const float* weight = p.weight + n;
  for (int64_t k = depth.first; k < depth.last; ++k) {
    const float* values = weight + k * p.weight_stride;
    Vec value[vectors];
#pragma GCC unroll 8
    for (int v = 0; v < vectors; ++v) {
      __builtin_prefetch(values + vectors * kLanes + v * kLanes);
      value[v] = vec(values + v * kLanes);
    }
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) {
      const float factor = x[r * p.x_stride + k];
#pragma GCC unroll 8
      for (int v = 0; v < vectors; ++v) sum[r][v] += factor * value[v];
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < vectors; ++v) {
      const int64_t at = n + v * kLanes;
      float* out = p.out + (row + r) * p.columns + at;
      if (depth.first > 0) {
        sum[r][v] += vec(out);
      } else if (p.bias) {
        sum[r][v] += vec(p.bias + at);
      }
      vec(out) = sum[r][v];
    }
  }
}

inline float lanes_sum(Vec v) {
#if defined(__AVX512F__)
  return _mm512_reduce_add_ps(v);
#else
  float sum = 0.0f;
  for (int i = 0; i < kLanes; ++i) sum += v[i];
  return sum;
#endif
}

// Weight with contiguous depth: a tile of dot products, `columns` of them from n.
template <int rows, int columns>
inline void dot_tile(const Product& p, int64_t row, int64_t n) {
  Vec sum[rows][columns] = {};
  const float* x = p.x + row * p.x_stride;
  const float* weight = p.weight + n * p.weight_stride;
  const int64_t whole = p.depth / kLanes * kLanes;
  for (int64_t k = 0; k < whole; k += kLanes) {
    Vec value[columns];
#pragma GCC unroll 8
    for (int c = 0; c < columns; ++c) {
      const float* at = weight + c * p.weight_stride + k;
      __builtin_prefetch(at + columns * p.weight_stride);
      value[c] = vec(at);
    }
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) {
      const Vec factor = vec(x + r * p.x_stride + k);
#pragma GCC unroll 8
      for (int c = 0; c < columns; ++c) sum[r][c] += factor * value[c];
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 8
    for (int c = 0; c < columns; ++c) {
      float total = lanes_sum(sum[r][c]);
      for (int64_t k = whole; k < p.depth; ++k) total += x[r * p.x_stride + k] * weight[c * p.weight_stride + k];
      p.out[(row + r) * p.columns + n + c] = p.bias ? total + p.bias[n + c] : total;
    }
  }
}

// As many rows as are left, at most a tile, the number known when compiling.
template <int vectors, int rows = kPanelRows>
inline void panel_rows(const Product& p, int64_t row, int64_t n, Span depth) {
  if constexpr (rows > 0) {
    if (p.rows - row >= rows) return panel_tile<rows, vectors>(p, row, n, depth);
    panel_rows<vectors, rows - 1>(p, row, n, depth);
  }
}

template <int columns, int rows = kDotRows>
inline void dot_rows(const Product& p, int64_t row, int64_t n) {
  if constexpr (rows > 0) {
    if (p.rows - row >= rows) return dot_tile<rows, columns>(p, row, n);
    dot_rows<columns, rows - 1>(p, row, n);
  }
}

template <int vectors>
void panel(const Product& p, int64_t n, Span depth) {
  for (int64_t row = 0; row < p.rows; row += kPanelRows) panel_rows<vectors>(p, row, n, depth);
}

template <int columns>
void dots(const Product& p, int64_t n) {
  for (int64_t row = 0; row < p.rows; row += kDotRows) dot_rows<columns>(p, row, n);
}

// The columns of a span, weight with contiguous columns.
void panels(const Product& p, Span columns, int64_t step) {
  const int64_t width = kPanelVectors * kLanes;
  for (int64_t k = 0; k < p.depth; k += step) {
    const Span depth = {k, k + step < p.depth ? k + step : p.depth};
    int64_t n = columns.first;
    for (; n + width <= columns.last; n += width) panel<kPanelVectors>(p, n, depth);
    for (; n + kLanes <= columns.last; n += kLanes) panel<1>(p, n, depth);
  }
  // Columns that fill no vector.
  for (int64_t n = columns.last / kLanes * kLanes; n < columns.last; ++n) {
    for (int64_t r = 0; r < p.rows; ++r) {
      float sum = p.bias ? p.bias[n] : 0.0f;
      for (int64_t k = 0; k < p.depth; ++k) sum += p.x[r * p.x_stride + k] * p.weight[k * p.weight_stride + n];
      p.out[r * p.columns + n] = sum;
    }
  }
}

// The same, weight with contiguous depth.
void dot_products(const Product& p, Span columns) {
  int64_t n = columns.first;
  for (; n + kDotColumns <= columns.last; n += kDotColumns) dots<kDotColumns>(p, n);
  for (; n < columns.last; ++n) dots<1>(p, n);
}

}  // namespace

void product(const Product& whole, int threads) {
  // Spans begin where a tile would, so that a column is summed the same way on any number of threads.
  const int64_t tile = whole.out_by_in ? kDotColumns : kPanelVectors * kLanes;
  const int64_t tiles = (whole.columns + tile - 1) / tile, share = (tiles + threads - 1) / threads * tile;
  for (int64_t first = 0; first < whole.rows; first += kBlock) {
    Product p = whole;
    p.rows = whole.rows - first < kBlock ? whole.rows - first : kBlock;
    p.x += first * p.x_stride;
    p.out += first * p.columns;
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int64_t from = 0; from < p.columns; from += share) {
      const Span columns = {from, from + share < p.columns ? from + share : p.columns};
      if (p.out_by_in) {
        dot_products(p, columns);
      } else {
        panels(p, columns, whole.rows <= kFewRows ? kFewDepth : kManyDepth);
      }
    }
  }
}

}  // namespace INTERPCORE_ISA
}  // namespace interpcore
