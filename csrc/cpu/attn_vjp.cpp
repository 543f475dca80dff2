// Compiled once per instruction set; INTERPCORE_ISA names the namespace. No standard-library templates here: the
// linker could keep an AVX-512 copy of one for every caller.
#include "interpcore/attn_vjp.h"

#include "small_product.h"

namespace interpcore {
namespace INTERPCORE_ISA {
namespace {

constexpr int64_t kVectorBlock = 24;  // vectors that read a query's key-value covariance while it is in cache
constexpr int64_t kQueryBlock = 32, kKeyBlock = 64;

int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// Where one vector c of one head h at one point b finds its operands.
struct Head {
  const float *g, *q, *k, *values_t, *z, *pattern, *factor;
  float *dq, *dk, *dv;
  bool first;  // of the heads that share dk and dv
};

Head head_at(const AttnVjp& p, int64_t b, int64_t c, int64_t h) {
  const int64_t repeat = p.heads / p.groups, group = h / repeat, padded = (p.keys + kKeyRound - 1) / kKeyRound * kKeyRound;
  const int64_t kv = p.group_kv ? group : h;
  Head at;
  at.g = p.g + b * p.g_stride[0] + c * p.g_stride[1] + h * p.g_stride[3];
  at.q = p.q + b * p.q_stride[0] + h * p.q_stride[2];
  at.k = p.k + b * p.k_stride[0] + group * p.k_stride[2];
  at.values_t = p.values_t + (b * p.groups + group) * p.width * padded;
  at.z = p.z + (b * p.positions * p.heads + h) * p.width;
  at.pattern = p.pattern + b * p.pattern_stride[0] + h * p.pattern_stride[2];
  at.factor = p.factor ? p.factor + b * p.factor_stride[0] + h * p.factor_stride[2] : nullptr;
  at.dq = p.dq + b * p.dq_stride[0] + c * p.dq_stride[1] + h * p.dq_stride[3];
  at.dk = p.dk + b * p.dk_stride[0] + c * p.dk_stride[1] + kv * p.dk_stride[3];
  at.dv = p.dv + b * p.dv_stride[0] + c * p.dv_stride[1] + kv * p.dv_stride[3];
  at.first = !p.group_kv || h % repeat == 0;
  return at;
}

// dq = M g for a block of vectors, one query at a time.
void queries_by_covariance(const AttnVjp& p, int64_t b, int64_t h, int64_t c, int64_t count) {
  const Head at = head_at(p, b, c, h);
  const float* map = p.key_value + b * p.key_value_stride[0] + h * p.key_value_stride[2];
  for (int64_t position = 0; position < p.positions; ++position) {
    small_product(count, p.width, p.width, {at.g + position * p.g_stride[2], p.g_stride[1], 1},
                  map + position * p.key_value_stride[1], p.width,
                  {at.dq + position * p.dq_stride[2], p.dq_stride[1], false});
  }
}

// score[i, t] = factor pattern (g_i . v_t - g_i . z_i) for a block of queries and one of keys.
void score_block(const AttnVjp& p, const Head& at, int64_t query, int64_t queries, int64_t key, int64_t keys,
                 const float* mean, float (*score)[kKeyBlock]) {
  const int64_t padded = (p.keys + kKeyRound - 1) / kKeyRound * kKeyRound;
  const int64_t columns = smaller((keys + kKeyRound - 1) / kKeyRound * kKeyRound, padded - key);
  small_product(queries, p.width, columns, {at.g + query * p.g_stride[2], p.g_stride[2], 1},
                at.values_t + key, padded, {score[0], kKeyBlock, false});
  for (int64_t i = 0; i < queries; ++i) {
    const float* __restrict pattern = at.pattern + (query + i) * p.pattern_stride[1] + key;
    float* __restrict row = score[i];
    if (at.factor) {
      const float* __restrict factor = at.factor + (query + i) * p.factor_stride[1] + key;
      for (int64_t t = 0; t < keys; ++t) row[t] = (row[t] - mean[i]) * pattern[t] * factor[t];
    } else {
      const float scale = p.scale;
      for (int64_t t = 0; t < keys; ++t) row[t] = (row[t] - mean[i]) * pattern[t] * scale;
    }
  }
}

void means(const AttnVjp& p, const Head& at, int64_t query, int64_t queries, float* mean) {
  for (int64_t i = 0; i < queries; ++i) {
    const float* __restrict g = at.g + (query + i) * p.g_stride[2];
    const float* __restrict z = at.z + (query + i) * p.heads * p.width;
    float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
    for (int64_t j = 0; j < p.width; ++j) sum += g[j] * z[j];
    mean[i] = sum;
  }
}

void clear(float* out, int64_t row, int64_t rows, int64_t width) {
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < width; ++j) out[i * row + j] = 0.0f;
  }
}

struct Keys {
  int64_t first, last;
};

// The keys that one of the queries sees, the first at a multiple of kKeyRound: what masks hide costs nothing.
Keys seen(const AttnVjp& p, const Head& at, int64_t query, int64_t queries) {
  const float* pattern = at.pattern + query * p.pattern_stride[1];
  const auto hidden = [&](int64_t key) {
    for (int64_t i = 0; i < queries; ++i) {
      if (pattern[i * p.pattern_stride[1] + key] != 0.0f) return false;
    }
    return true;
  };
  Keys keys = {0, p.keys};
  while (keys.last > 0 && hidden(keys.last - 1)) --keys.last;
  while (keys.first < keys.last && hidden(keys.first)) ++keys.first;
  keys.first = keys.first / kKeyRound * kKeyRound;
  return keys;
}

// dk and dv, and dq where no covariance is given, for one vector of one head.
void keys_and_values(const AttnVjp& p, const Head& at) {
  float score[kQueryBlock][kKeyBlock], mean[kQueryBlock];
  const int64_t dead = p.keys - p.live;
  if (at.first) {
    clear(at.dk, p.dk_stride[2], p.live, p.width);
    clear(at.dv, p.dv_stride[2], p.live, p.width);
  }
  for (int64_t query = 0; query < p.positions; query += kQueryBlock) {
    const int64_t queries = smaller(kQueryBlock, p.positions - query);
    const Keys range = seen(p, at, query, queries);
    float* dq = at.dq + query * p.dq_stride[2];
    if (!p.key_value && range.first == range.last) clear(dq, p.dq_stride[2], queries, p.width);
    means(p, at, query, queries, mean);
    for (int64_t key = range.first; key < range.last; key += kKeyBlock) {
      const int64_t keys = smaller(kKeyBlock, range.last - key);
      score_block(p, at, query, queries, key, keys, mean, score);
      if (!p.key_value) {
        small_product(queries, keys, p.width, {score[0], kKeyBlock, 1}, at.k + key * p.k_stride[1], p.k_stride[1],
                      {dq, p.dq_stride[2], key > range.first});
      }
      const int64_t from = key < dead ? smaller(dead, key + keys) : key;  // the block's first live key
      const int64_t count = key + keys - from;
      small_product(count, queries, p.width, {score[0] + from - key, 1, kKeyBlock}, at.q + query * p.q_stride[1],
                    p.q_stride[1], {at.dk + (from - dead) * p.dk_stride[2], p.dk_stride[2], true});
      small_product(count, queries, p.width,
                    {at.pattern + query * p.pattern_stride[1] + from, 1, p.pattern_stride[1]},
                    at.g + query * p.g_stride[2], p.g_stride[2],
                    {at.dv + (from - dead) * p.dv_stride[2], p.dv_stride[2], true});
    }
  }
}

}  // namespace

void attn_vjp(const AttnVjp& p, [[maybe_unused]] int threads) {
  const int64_t blocks = (p.vectors + kVectorBlock - 1) / kVectorBlock;
  // One vector's heads lie side by side in memory, so a unit takes all of them where there are units for every thread.
  const int64_t parts = p.batch * blocks < 4 * threads && threads > 1 ? p.groups : 1;
  const int64_t units = p.batch * parts * blocks, heads = p.heads / parts;
  // Below about 50 microseconds of work a second thread costs more than it saves.
  [[maybe_unused]] const bool parallel =
      threads > 1 && p.batch * p.vectors * p.positions * p.heads * p.width * p.width >= 2000000;
#pragma omp parallel for schedule(static) num_threads(threads) if (parallel)
  for (int64_t unit = 0; unit < units; ++unit) {
    const int64_t c = unit % blocks * kVectorBlock, part = unit / blocks % parts, b = unit / blocks / parts;
    const int64_t count = smaller(kVectorBlock, p.vectors - c), first = part * heads;
    for (int64_t h = first; p.key_value && h < first + heads; ++h) queries_by_covariance(p, b, h, c, count);
    for (int64_t i = c; i < c + count; ++i) {
      for (int64_t h = first; h < first + heads; ++h) keys_and_values(p, head_at(p, b, i, h));
    }
  }
}

}  // namespace INTERPCORE_ISA
}  // namespace interpcore
