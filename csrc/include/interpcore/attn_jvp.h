// Jacobian-vector product of softmax attention.
#pragma once

#include <cstdint>

namespace interpcore {

// Sizes and strides in elements; the last axis of every array is contiguous.
struct AttnJvp {
  int64_t batch, vectors, positions, heads, width;  // B, C, P, H, e
  int64_t groups;  // G; heads / groups query heads share a key and a value
  int64_t live;    // keys with tangents
  float scale;     // d score / d (q . k) where `factor` is null
  const float* tq;         // [B, C, P, H, e]
  const float* tk;         // [B, C, live, G, e]
  const float* tv;         // [B, C, live, G, e]
  const float* queries_t;  // [B, H, e, P rounded up to kQueryRound], zeros behind, contiguous
  const float* v;          // [B, live, G, e]
  const float* z;          // [B, P, H, e], the attention's output, contiguous
  const float* pattern;    // [B, P, H, live]
  const float* factor;     // [B, P, H, live] or null
  const float* key_value;  // [B, P, H, e (key), e (value)], the last two contiguous
  float* tz;               // [B, C, P, H, e]
  int64_t tq_stride[4];         // B, C, P, H
  int64_t tk_stride[4];         // B, C, key, G
  int64_t tv_stride[4];         // B, C, key, G
  int64_t v_stride[3];          // B, key, G
  int64_t pattern_stride[3];    // B, P, H
  int64_t factor_stride[3];     // B, P, H
  int64_t key_value_stride[3];  // B, P, H
  int64_t tz_stride[4];         // B, C, P, H
};

constexpr int64_t kQueryRound = 16;

}  // namespace interpcore
