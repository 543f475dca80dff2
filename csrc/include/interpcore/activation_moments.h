// The activation of an MLP together with the column moments of its input and its output.
#pragma once

#include "interpcore/column_moments.h"

namespace interpcore {

enum class Activation { relu, silu, gelu_tanh };

// out = activation(x) * up, of the same shape as x; `post` reads out, and has the shape and mask of `pre`, which reads x.
struct ActivationMoments {
  Activation activation;
  ColumnMoments pre, post;
  const float* up;  // [T, N] or null for 1
  int64_t up_stride;
  float* out;  // [T, N]
  int64_t out_stride;
};

}  // namespace interpcore
