// Body of one thread of activation_moments: activate rows in registers, write them, sum both.
#pragma once

#include "column_moments.cuh"

namespace interpcore {

INTERPCORE_BODY float exponential(float x) {
#ifdef __CUDACC__
  return __expf(x);
#else
  return std::exp(x);
#endif
}

INTERPCORE_BODY float quotient(float x, float y) {
#ifdef __CUDACC__
  return __fdividef(x, y);  // 0 where y is so large that the quotient is below 1e-36
#else
  return x / y;
#endif
}

template <Activation A>
INTERPCORE_BODY float activated(float x) {
  if (A == Activation::silu) return quotient(x, 1.0f + exponential(-x));
  return quotient(x, 1.0f + exponential(-x * (x * x * 0.0713548163f + 1.59576912f)));
}

template <typename T, Activation A>
INTERPCORE_BODY Eight<T> activated(const Eight<T>& x, const Eight<T>& up, bool gated) {
  Eight<T> y;
#pragma unroll
  for (int word = 0; word < T::words; ++word) {
    constexpr int each = kLane / T::words;
    float value[2] = {0.0f, 0.0f};
#pragma unroll
    for (int i = 0; i < each; ++i) {
      value[i] = activated<A>(value_of(x, word * each + i));
      if (gated) value[i] *= value_of(up, word * each + i);
    }
    y.word[word] = narrow(T{}, value[0], value[1]);
  }
  return y;
}

// The thread's part of the chunk's first rows, and the activation there: what the shifts are chosen from.
template <typename T, Activation A>
INTERPCORE_BODY void first_rows(const ActivationChunks& p, const Place& at, Eight<T>& x, Eight<T>& y) {
  const int width = at.row < at.count ? at.width : 0;
  const int64_t row = at.first + at.row;
  x = load<T, false>(p.pre.totals.x, row * p.pre.totals.row_stride + at.column, width);
  const Eight<T> up = load<T, false>(p.up, row * p.up_stride + at.column, p.up ? width : 0);
  y = activated<T, A>(x, up, p.up != nullptr);
}

// As `walk` of column_moments, for both sides.
template <typename T, int K, Activation A, bool VECTOR>
INTERPCORE_BODY void walk(const ActivationChunks& p, const Place& at, const float (&shift)[kLane],
                          const float (&out_shift)[kLane], Sums<T, K>& pre, Sums<T, 0>& post) {
  constexpr int kAhead = VECTOR ? 2 : 1;
  const ColumnMoments& x = p.pre.totals;
  const bool gated = p.up != nullptr;
  uint64_t keep = kept_rows(p.pre, at);
  pre.rows = post.rows = ones_of(keep);
  int64_t first = at.first + at.row;
  for (int row = at.row; row < at.count; row += kAhead * kTileRows, first += kAhead * kTileRows) {
    Eight<T> v[kAhead], up[kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      // Past the end the last rows are read again and not used.
      const int64_t here = row + i * kTileRows < at.count ? first + i * kTileRows : first;
      v[i] = load<T, VECTOR>(x.x, here * x.row_stride + at.column, at.width);
      if (gated) up[i] = load<T, VECTOR>(p.up, here * p.up_stride + at.column, at.width);
    }
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (row + i * kTileRows >= at.count) continue;
      const Eight<T> y = activated<T, A>(v[i], up[i], gated);
      store<T, VECTOR>(p.out, (first + i * kTileRows) * x.columns + at.column, at.width, y);
      if (!(keep >> i & 1)) continue;
      pre.add_row(v[i], shift);
      post.add_row(y, out_shift);
    }
    keep >>= kAhead;
  }
}

}  // namespace interpcore
