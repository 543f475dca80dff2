// Compiled once per instruction set; INTERPCORE_ISA names the namespace. No standard-library templates here: the
// linker could keep an AVX-512 copy of one for every caller.
#include "interpcore/attn_jvp.h"

#include "small_product.h"

namespace interpcore {
namespace INTERPCORE_ISA {
namespace {

constexpr int64_t kVectorBlock = 24;  // vectors that read a query's key-value covariance while it is in cache
constexpr int64_t kQueryBlock = 16, kKeyBlock = 64;

int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// Where one vector c of one head h at one point b finds its operands.
struct Head {
  const float *tk, *tv, *queries_t, *v, *z, *pattern, *factor;
  float* tz;
};

Head head_at(const AttnJvp& p, int64_t b, int64_t c, int64_t h) {
  const int64_t group = h / (p.heads / p.groups), padded = (p.positions + kQueryRound - 1) / kQueryRound * kQueryRound;
  Head at;
  at.tk = p.tk + b * p.tk_stride[0] + c * p.tk_stride[1] + group * p.tk_stride[3];
  at.tv = p.tv + b * p.tv_stride[0] + c * p.tv_stride[1] + group * p.tv_stride[3];
  at.queries_t = p.queries_t + (b * p.heads + h) * p.width * padded;
  at.v = p.v + b * p.v_stride[0] + group * p.v_stride[2];
  at.z = p.z + (b * p.positions * p.heads + h) * p.width;
  at.pattern = p.pattern + b * p.pattern_stride[0] + h * p.pattern_stride[2];
  at.factor = p.factor ? p.factor + b * p.factor_stride[0] + h * p.factor_stride[2] : nullptr;
  at.tz = p.tz + b * p.tz_stride[0] + c * p.tz_stride[1] + h * p.tz_stride[3];
  return at;
}

// tz = tq M for a block of vectors, one query at a time.
void through_queries(const AttnJvp& p, int64_t b, int64_t h, int64_t c, int64_t count) {
  const float* tq = p.tq + b * p.tq_stride[0] + c * p.tq_stride[1] + h * p.tq_stride[3];
  const float* map = p.key_value + b * p.key_value_stride[0] + h * p.key_value_stride[2];
  float* tz = head_at(p, b, c, h).tz;
  for (int64_t position = 0; position < p.positions; ++position) {
    small_product(count, p.width, p.width, {tq + position * p.tq_stride[2], p.tq_stride[1], 1},
                  map + position * p.key_value_stride[1], p.width,
                  {tz + position * p.tz_stride[2], p.tz_stride[1], false});
  }
}

// score[t, i] = factor pattern (q_i . tk_t) for a block of keys and one of queries; adds each query's sum to `total`.
void score_block(const AttnJvp& p, const Head& at, int64_t query, int64_t queries, int64_t key, int64_t keys,
                 float* total, float (*score)[kQueryBlock]) {
  const int64_t padded = (p.positions + kQueryRound - 1) / kQueryRound * kQueryRound;
  small_product(keys, p.width, kQueryBlock, {at.tk + key * p.tk_stride[2], p.tk_stride[2], 1}, at.queries_t + query,
                padded, {score[0], kQueryBlock, false});
  for (int64_t i = 0; i < queries; ++i) {
    const float* pattern = at.pattern + (query + i) * p.pattern_stride[1] + key;
    const float* factor = at.factor ? at.factor + (query + i) * p.factor_stride[1] + key : nullptr;
    for (int64_t t = 0; t < keys; ++t) {
      score[t][i] *= pattern[t] * (factor ? factor[t] : p.scale);
      total[i] += score[t][i];
    }
  }
}

// Adds what the tangents of keys and values give, for one vector of one head.
void through_keys_and_values(const AttnJvp& p, const Head& at) {
  float score[kKeyBlock][kQueryBlock];
  for (int64_t query = 0; query < p.positions; query += kQueryBlock) {
    const int64_t queries = smaller(kQueryBlock, p.positions - query);
    const Out out{at.tz + query * p.tz_stride[2], p.tz_stride[2], true};
    float total[kQueryBlock] = {};
    for (int64_t key = 0; key < p.live; key += kKeyBlock) {
      const int64_t keys = smaller(kKeyBlock, p.live - key);
      score_block(p, at, query, queries, key, keys, total, score);
      small_product(queries, keys, p.width, {score[0], 1, kQueryBlock}, at.v + key * p.v_stride[1], p.v_stride[1], out);
      small_product(queries, keys, p.width,
                    {at.pattern + query * p.pattern_stride[1] + key, p.pattern_stride[1], 1},
                    at.tv + key * p.tv_stride[2], p.tv_stride[2], out);
    }
    for (int64_t i = 0; i < queries; ++i) {
      float* __restrict row = out.at + i * out.row;
      const float* __restrict z = at.z + (query + i) * p.heads * p.width;
      const float weight = total[i];
#pragma omp simd
      for (int64_t j = 0; j < p.width; ++j) row[j] -= weight * z[j];
    }
  }
}

}  // namespace

void attn_jvp(const AttnJvp& p, [[maybe_unused]] int threads) {
  const int64_t blocks = (p.vectors + kVectorBlock - 1) / kVectorBlock;
  const int64_t units = p.batch * p.heads * blocks;
  // Below about 50 microseconds of work a second thread costs more than it saves.
  [[maybe_unused]] const bool parallel =
      threads > 1 && p.batch * p.vectors * p.positions * p.heads * p.width * p.width >= 2000000;
#pragma omp parallel for schedule(static) num_threads(threads) if (parallel)
  for (int64_t unit = 0; unit < units; ++unit) {
    const int64_t c = unit % blocks * kVectorBlock, h = unit / blocks % p.heads, b = unit / blocks / p.heads;
    const int64_t count = smaller(kVectorBlock, p.vectors - c);
    through_queries(p, b, h, c, count);
    for (int64_t i = c; i < c + count; ++i) through_keys_and_values(p, head_at(p, b, i, h));
  }
}

}  // namespace INTERPCORE_ISA
}  // namespace interpcore
