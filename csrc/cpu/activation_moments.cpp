// Compiled once per instruction set; INTERPCORE_ISA names the namespace.
//
// Rows are activated a few at a time, and both their inputs and outputs summed while they are in the cache.
#include "interpcore/activation_moments.h"

#include "activations.h"
#include "column_totals.h"

namespace interpcore {
namespace INTERPCORE_ISA {
namespace {

template <typename F>
void activate_row(const float* x, const float* up, int64_t width, float* out) {
  int64_t j = 0;
  if (up) {
    for (; j + kLanes <= width; j += kLanes) vec(out + j) = F::of(vec(x + j)) * vec(up + j);
  } else {
    for (; j + kLanes <= width; j += kLanes) vec(out + j) = F::of(vec(x + j));
  }
  if (j == width) return;
  alignas(64) float rest[kLanes] = {};
  for (int64_t i = j; i < width; ++i) rest[i - j] = x[i];
  vec(rest) = F::of(vec(rest));
  for (int64_t i = j; i < width; ++i) out[i] = up ? rest[i - j] * up[i] : rest[i - j];
}

template <typename F>
void activate(const ActivationMoments& p, int64_t first, int64_t width, int64_t row, int64_t end) {
  for (; row < end; ++row) {
    const float* up = p.up ? p.up + row * p.up_stride + first : nullptr;
    const float* x = static_cast<const float*>(p.pre.x) + row * p.pre.row_stride + first;
    activate_row<F>(x, up, width, p.out + row * p.out_stride + first);
  }
}

template <typename F>
void tile_moments(const ActivationMoments& p, int64_t first, int64_t most) {
  const int64_t width = p.pre.columns - first < most ? p.pre.columns - first : most;
  const Tile<float> pre{p.pre, first, width}, post{p.post, first, width};
  int64_t live[kBlock], next = 0, active = 0;
  Totals pre_totals, post_totals;
  begin(pre, pre_totals);
  begin(post, post_totals);
  while (const int64_t n = take_rows(p.pre, next, live)) {
    if (!pre_totals.shifted || !post_totals.shifted) {
      activate<F>(p, first, width, active, next);
      active = next;
      if (!pre_totals.shifted) find_shift(pre, live, n, pre_totals.s);
      if (!post_totals.shifted) find_shift(post, live, n, post_totals.s);
      pre_totals.shifted = post_totals.shifted = true;
    }
    clear(pre, pre_totals.s);
    clear(post, post_totals.s);
    for (int64_t i = 0; i < n; i += kVisit) {
      const int64_t rows = n - i < kVisit ? n - i : kVisit, end = live[i + rows - 1] + 1;
      if (active < end) {
        activate<F>(p, first, width, active, end);
        active = end;
      }
      sum_visit(pre, live + i, n - i, pre_totals.s);
      sum_visit(post, live + i, n - i, post_totals.s);
    }
    add_block(pre, live, n, pre_totals);
    add_block(post, live, n, post_totals);
  }
  activate<F>(p, first, width, active, p.pre.rows);
  finish(pre, pre_totals);
  finish(post, post_totals);
}

}  // namespace

void activation_moments(const ActivationMoments& p, int threads) {
  // Below about 50 microseconds of work a second thread costs more than it saves.
  if (p.pre.rows * p.pre.columns < 100000) threads = 1;
  const int64_t width = tile_width(p.pre.columns, threads);
#pragma omp parallel for schedule(dynamic) num_threads(threads) if (threads > 1)
  for (int64_t first = 0; first < p.pre.columns; first += width) {
    switch (p.activation) {
      case Activation::relu: tile_moments<Relu>(p, first, width); break;
      case Activation::silu: tile_moments<Silu>(p, first, width); break;
      case Activation::gelu_tanh: tile_moments<GeluTanh>(p, first, width); break;
    }
  }
}

}  // namespace INTERPCORE_ISA
}  // namespace interpcore
