// Vector-Jacobian product of softmax attention with respect to queries and to live keys and values.
#pragma once

#include <cstdint>

namespace interpcore {

// Sizes and strides in elements; the last axis of every array is contiguous.
struct AttnVjp {
  int64_t batch, vectors, positions, heads, width;  // B, C, P, H, e
  int64_t groups;  // G; heads / groups query heads share a key and a value
  int64_t keys;    // keys read: all T of them, or the live ones where `key_value` is given
  int64_t live;    // the last of the keys read; they get cotangents
  bool group_kv;   // dk and dv per group (summed over its query heads) or per query head
  float scale;     // d score / d (q . k) where `factor` is null
  const float* g;          // [B, C, P, H, e]
  const float* q;          // [B, P, H, e]
  const float* k;          // [B, keys, G, e]; not read where `key_value` is given
  const float* values_t;   // [B, G, e, keys rounded up to kKeyRound], zeros behind, contiguous
  const float* z;          // [B, P, H, e], the attention's output, contiguous
  const float* pattern;    // [B, P, H, keys]
  const float* factor;     // [B, P, H, keys] or null
  const float* key_value;  // [B, P, H, e (value), e (key)], the last two contiguous, or null
  float* dq;               // [B, C, P, H, e]
  float* dk;               // [B, C, live, G or H, e]
  float* dv;               // as dk
  int64_t g_stride[4];        // B, C, P, H
  int64_t q_stride[3];        // B, P, H
  int64_t k_stride[3];        // B, key, G
  int64_t pattern_stride[3];  // B, P, H
  int64_t factor_stride[3];   // B, P, H
  int64_t key_value_stride[3];  // B, P, H
  int64_t dq_stride[4];       // B, C, P, H
  int64_t dk_stride[4];       // B, C, key, G or H
  int64_t dv_stride[4];       // as dk
};

constexpr int64_t kKeyRound = 16;

}  // namespace interpcore
