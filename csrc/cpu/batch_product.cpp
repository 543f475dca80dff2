// Compiled once per instruction set; INTERPCORE_ISA names the namespace. No standard-library templates here: the
// linker could keep an AVX-512 copy of one for every caller.
//
// The weight and a block of rows are copied into the order in which they are read, the rows with their factors, and
// then read from the caches again and again. Every sum runs over the depth in the same order whatever the number of
// rows, so a row's bits do not depend on it.
#include "interpcore/batch_product.h"

#include <new>

#include "lanes.h"

namespace interpcore {
namespace INTERPCORE_ISA {
namespace {

// A tile of sums that with its operands fills the vector registers.
constexpr int kPackRows = kLanes == 16 ? 8 : 4, kPackVectors = 3;
constexpr int64_t kPackWidth = kPackVectors * kLanes;
constexpr int64_t kPackBlock = 96;    // rows that stay in the second cache
constexpr int64_t kPackDepth = 1536;  // of a panel of the weight, which stays there, too

// Floats that begin on a cache line.
class Floats {
 public:
  explicit Floats(int64_t count) : at_(static_cast<float*>(::operator new(count * sizeof(float), kLine))) {}
  ~Floats() { ::operator delete(at_, kLine); }
  Floats(const Floats&) = delete;
  Floats& operator=(const Floats&) = delete;
  float* at() const { return at_; }

 private:
  static constexpr std::align_val_t kLine{64};
  float* at_;
};

inline int64_t rounded_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

// x of a product: rows times one factor per column, and a second operand with factors of its own. Strides in floats.
struct PackRows {
  const float *x, *y, *scale, *y_scale;  // all but x may be null; y comes with both scales
  int64_t stride;
};

struct PackWeight {
  const float* at;
  int64_t row, column;  // strides
};

struct PackShape {
  int64_t rows, depth, columns;
};

// Floats of a packed weight and of a packed block of rows, in whole cache lines.
inline int64_t packed_weight_size(const PackShape& s) {
  return rounded_up(s.depth * rounded_up(s.columns, kPackWidth), 16);
}
inline int64_t packed_rows_size(const PackShape& s) {
  return kPackBlock * rounded_up(s.depth < kPackDepth ? s.depth : kPackDepth, 16);
}
inline int64_t pack_panels(const PackShape& s) { return (s.columns + kPackWidth - 1) / kPackWidth; }
inline int64_t pack_blocks(const PackShape& s) { return (s.rows + kPackBlock - 1) / kPackBlock; }

// A panel of the weight [depth, kPackWidth], zero where it has no column. Panels lie one behind the other.
void pack_panel(const PackWeight& w, const PackShape& s, int64_t panel, float* packed) {
  const int64_t n = panel * kPackWidth, width = s.columns - n < kPackWidth ? s.columns - n : kPackWidth;
  float* __restrict to = packed + n * s.depth;
  const float* __restrict from = w.at + n * w.column;
  if (w.column == 1) {
    for (int64_t k = 0; k < s.depth; ++k) {
      for (int64_t i = 0; i < width; ++i) to[k * kPackWidth + i] = from[k * w.row + i];
      for (int64_t i = width; i < kPackWidth; ++i) to[k * kPackWidth + i] = 0.0f;
    }
    return;
  }
  for (int64_t i = 0; i < kPackWidth; ++i) {
    for (int64_t k = 0; k < s.depth; ++k) to[k * kPackWidth + i] = i < width ? from[i * w.column + k * w.row] : 0.0f;
  }
}

// Columns of one row from k on, with their factors.
void pack_row(const PackRows& rows, int64_t row, int64_t k, int64_t count, float* __restrict packed) {
  const float* __restrict x = rows.x + row * rows.stride + k;
  if (rows.y) {
    const float* __restrict y = rows.y + row * rows.stride + k;
    const float *__restrict a = rows.scale + k, *__restrict b = rows.y_scale + k;
    for (int64_t i = 0; i < count; ++i) packed[i] = x[i] * a[i] + y[i] * b[i];
  } else if (rows.scale) {
    const float* __restrict a = rows.scale + k;
    for (int64_t i = 0; i < count; ++i) packed[i] = x[i] * a[i];
  } else {
    for (int64_t i = 0; i < count; ++i) packed[i] = x[i];
  }
}

struct PackOut {
  float* at;
  int64_t stride, rows, columns;  // rows and columns that are there
  bool add;                       // to what is there
};

// One tile: packed rows times a packed panel.
template <int rows, int vectors>
inline void pack_tile(const float* x, const float* weight, int64_t depth, const PackOut& out) {
  Vec sum[rows][vectors] = {};
  for (int64_t k = 0; k < depth; ++k) {
    Vec value[vectors];
#pragma GCC unroll 8
    for (int v = 0; v < vectors; ++v) value[v] = vec(weight + k * kPackWidth + v * kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) {
      const float factor = x[r * depth + k];
#pragma GCC unroll 8
      for (int v = 0; v < vectors; ++v) sum[r][v] += factor * value[v];
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r) {
    if (r >= out.rows) return;
#pragma GCC unroll 8
    for (int v = 0; v < vectors; ++v) {
      const int64_t n = v * kLanes;
      float* at = out.at + r * out.stride + n;
      if (n + kLanes <= out.columns) {
        vec(at) = out.add ? vec(at) + sum[r][v] : sum[r][v];
        continue;
      }
      for (int64_t i = 0; n + i < out.columns; ++i) at[i] = sum[r][v][i] + (out.add ? at[i] : 0.0f);
    }
  }
}

// A block of rows times the whole packed weight. `room` holds packed_rows_size floats.
void packed_block(const PackRows& rows, const PackShape& s, int64_t block, const float* weight, float* out,
                  int64_t out_stride, float* room) {
  const int64_t first = block * kPackBlock, count = s.rows - first < kPackBlock ? s.rows - first : kPackBlock;
  for (int64_t k = 0; k < s.depth || k == 0; k += kPackDepth) {
    const int64_t depth = s.depth - k < kPackDepth ? s.depth - k : kPackDepth, whole = rounded_up(count, kPackRows);
    for (int64_t r = 0; r < whole; ++r) {
      if (r < count) {
        pack_row(rows, first + r, k, depth, room + r * depth);
      } else {
        for (int64_t i = 0; i < depth; ++i) room[r * depth + i] = 0.0f;
      }
    }
    for (int64_t n = 0; n < s.columns; n += kPackWidth) {
      const float* panel = weight + n * s.depth + k * kPackWidth;
      for (int64_t r = 0; r < count; r += kPackRows) {
        const PackOut place = {out + (first + r) * out_stride + n, out_stride, count - r, s.columns - n, k > 0};
        if (place.columns > 2 * kLanes) {
          pack_tile<kPackRows, 3>(room + r * depth, panel, depth, place);
        } else if (place.columns > kLanes) {
          pack_tile<kPackRows, 2>(room + r * depth, panel, depth, place);
        } else {
          pack_tile<kPackRows, 1>(room + r * depth, panel, depth, place);
        }
      }
    }
  }
}

PackRows rows_of(const BatchProduct& p, int64_t b) {
  const int64_t from = b * p.x_stride[0];
  return {p.x + from, p.y ? p.y + from : nullptr, p.scale ? p.scale + b * p.depth : nullptr,
          p.y_scale ? p.y_scale + b * p.depth : nullptr, p.x_stride[1]};
}

PackWeight weight_of(const BatchProduct& p, int64_t b) {
  return {p.weight + b * p.weight_stride[0], p.weight_stride[1], p.weight_stride[2]};
}

}  // namespace

void batch_product(const BatchProduct& p, int threads) {
  const PackShape shape = {p.rows, p.depth, p.columns};
  const int64_t panels = pack_panels(shape), blocks = pack_blocks(shape);
  const int64_t weight_size = packed_weight_size(shape), rows_size = packed_rows_size(shape);
  // A weight for all is packed once, and blocks of rows are shared out; else whole matrices are.
  const bool shared = p.weight_stride[0] == 0;
  const int64_t units = shared ? p.batch * blocks : p.batch, share = (units + threads - 1) / threads;
  const Floats weights(weight_size * (shared ? 1 : threads)), rooms(rows_size * threads);
  if (shared) {
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int64_t panel = 0; panel < panels; ++panel) pack_panel(weight_of(p, 0), shape, panel, weights.at());
  }
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (int64_t thread = 0; thread < threads; ++thread) {
    float *weight = weights.at() + (shared ? 0 : thread * weight_size), *room = rooms.at() + thread * rows_size;
    const int64_t end = (thread + 1) * share < units ? (thread + 1) * share : units;
    for (int64_t unit = thread * share; unit < end; ++unit) {
      const int64_t b = shared ? unit / blocks : unit, first = shared ? unit % blocks : 0;
      for (int64_t panel = 0; !shared && panel < panels; ++panel) pack_panel(weight_of(p, b), shape, panel, weight);
      for (int64_t block = first; block < (shared ? first + 1 : blocks); ++block) {
        packed_block(rows_of(p, b), shape, block, weight, p.out + b * p.out_stride[0], p.out_stride[1], room);
      }
    }
  }
}

}  // namespace INTERPCORE_ISA
}  // namespace interpcore
