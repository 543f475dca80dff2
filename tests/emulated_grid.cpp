// The bodies of the CUDA kernels of column_moments and activation_moments on a grid that the CPU emulates: block by
// block, every thread to the next barrier. tests/test_device_bodies.py compiles and calls this.
#include <vector>

#include "../kernels/activation_moments.cuh"

using namespace interpcore;

namespace {

constexpr int kThresholds = 2;

template <typename Body>
void every_thread(Body body) {
  for (int thread = 0; thread < kTileThreads; ++thread) body(thread);
}

int64_t chunks_of(const ColumnChunks& p) { return (p.totals.rows + p.chunk_rows - 1) / p.chunk_rows; }

template <typename Each>
void every_block(const ColumnChunks& p, Each each) {
  for (int64_t chunk = 0; chunk < chunks_of(p); ++chunk)
    for (int64_t tile = 0; tile * kTileColumns < p.totals.columns; ++tile) each(tile, chunk);
}

template <typename S>
void collect_all(const ColumnChunks& p, int64_t block, int64_t chunk, const std::vector<S>& sums, const float* shifts) {
  Tile tile;
  for (int kind = 0; kind < kinds(p.totals); ++kind) {
    every_thread([&](int t) { sums[t].put(kind, tile, Place(p, block, chunk, t), t); });
    for (int t = 0; t < kTileColumns; ++t) collect(p, chunk, block * kTileColumns + t, kind, shifts[t], tile, t);
  }
}

void choose_shifts(const Tile& tile, float* shifts) {
  for (int t = 0; t < kTileColumns; ++t) shifts[t] = fixed_shift(tile, t);
}

void own_shifts(const float* shifts, int thread, float (&own)[kLane]) {
  for (int i = 0; i < kLane; ++i) own[i] = shifts[thread % (kTileColumns / kLane) * kLane + i];
}

void finish(const ColumnChunks& p) {
  for (int64_t unit = 0; unit < chunks_of(p) * p.totals.columns; ++unit)
    settle(p, unit / p.totals.columns, unit % p.totals.columns);
  for (int64_t column = 0; column < p.totals.columns; ++column) merge(p, column);
}

template <typename T>
void plain(const ColumnChunks& p) {
  const ColumnMoments& x = p.totals;
  const bool vector = aligned<T>(x.x, x.row_stride);
  every_block(p, [&](int64_t block, int64_t chunk) {
    Tile tile;
    float shifts[kTileColumns];
    std::vector<Sums<T, kThresholds>> sums(kTileThreads);
    every_thread([&](int t) {
      const Place at(p, block, chunk, t);
      const int64_t from = (at.first + at.row) * x.row_stride + at.column;
      first_values(p, at, load<T, false>(x.x, from, at.row < at.count ? at.width : 0), tile, t);
    });
    choose_shifts(tile, shifts);
    every_thread([&](int t) {
      const Place at(p, block, chunk, t);
      float shift[kLane];
      own_shifts(shifts, t, shift);
      sums[t].clear(x);
      if (vector && at.width == kLane) return walk<T, kThresholds, true>(p, at, shift, sums[t]);
      if (at.width > 0) walk<T, kThresholds, false>(p, at, shift, sums[t]);
    });
    collect_all(p, block, chunk, sums, shifts);
  });
  finish(p);
}

template <typename T, Activation A>
void fused(const ActivationChunks& p) {
  const ColumnMoments& x = p.pre.totals;
  const bool vector = aligned<T>(x.x, x.row_stride) && aligned<T>(p.up, p.up_stride) && aligned<T>(p.out, x.columns);
  every_block(p.pre, [&](int64_t block, int64_t chunk) {
    Tile tile, out_tile;
    float shifts[kTileColumns], out_shifts[kTileColumns];
    std::vector<Sums<T, kThresholds>> pre(kTileThreads);
    std::vector<Sums<T, 0>> post(kTileThreads);
    every_thread([&](int t) {
      const Place at(p.pre, block, chunk, t);
      Eight<T> first, second;
      first_rows<T, A>(p, at, first, second);
      first_values(p.pre, at, first, tile, t);
      first_values(p.pre, at, second, out_tile, t);
    });
    choose_shifts(tile, shifts), choose_shifts(out_tile, out_shifts);
    every_thread([&](int t) {
      const Place at(p.pre, block, chunk, t);
      float shift[kLane], out_shift[kLane];
      own_shifts(shifts, t, shift), own_shifts(out_shifts, t, out_shift);
      pre[t].clear(x), post[t].clear(p.post.totals);
      if (vector && at.width == kLane)
        walk<T, kThresholds, A, true>(p, at, shift, out_shift, pre[t], post[t]);
      else if (at.width > 0)
        walk<T, kThresholds, A, false>(p, at, shift, out_shift, pre[t], post[t]);
    });
    collect_all(p.pre, block, chunk, pre, shifts);
    collect_all(p.post, block, chunk, post, out_shifts);
  });
  finish(p.pre), finish(p.post);
}

template <typename T>
void fused(const ActivationChunks& p, Activation activation) {
  if (activation == Activation::silu) return fused<T, Activation::silu>(p);
  fused<T, Activation::gelu_tanh>(p);
}

}  // namespace

extern "C" void column_moments(const ColumnChunks* p) {
  if (p->totals.stored == Stored::float32) plain<Float32>(*p);
  if (p->totals.stored == Stored::bfloat16) plain<BFloat16>(*p);
}

extern "C" void activation_moments(const ActivationChunks* p, int activation) {
  const auto which = static_cast<Activation>(activation);
  if (p->pre.totals.stored == Stored::float32) fused<Float32>(*p, which);
  if (p->pre.totals.stored == Stored::bfloat16) fused<BFloat16>(*p, which);
}
