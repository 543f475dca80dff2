// Compiled for AVX512-BF16 alone (see CMakeLists.txt); isa.cpp says whether the processor has it. No standard-library
// templates here: the linker could keep such a copy of one for every caller.
//
// Operands are copied as pairs along the depth, a block of the weight's depth at a time, which the last cache holds.
// Every sum runs over the depth in the same order whatever the number of rows, so a row's bits do not depend on it.
#include "interpcore/bfloat16_product.h"

#if defined(INTERPCORE_BF16)
#include <immintrin.h>

#include <cstring>
#include <new>

namespace interpcore {
namespace {

constexpr int kLanes = 16, kTileRows = 8, kTileVectors = 3;
constexpr int64_t kWidth = kTileVectors * kLanes;
constexpr int64_t kRows = 96, kPairs = 1024;  // of a block; it and a panel of the weight stay in the second cache

inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t parts(int64_t n, int64_t unit) { return (n + unit - 1) / unit; }

// Pairs that begin on a cache line.
class Room {
 public:
  explicit Room(int64_t count) : at_(static_cast<uint32_t*>(::operator new(count * sizeof(uint32_t), kLine))) {}
  ~Room() { ::operator delete(at_, kLine); }
  Room(const Room&) = delete;
  Room& operator=(const Room&) = delete;
  uint32_t* at() const { return at_; }

 private:
  static constexpr std::align_val_t kLine{64};
  uint32_t* at_;
};

// Two neighbours along the depth; the second is 0 behind the end.
inline uint32_t pair(const uint16_t* first, int64_t step, bool both) {
  return static_cast<uint32_t>(first[0]) | (both ? static_cast<uint32_t>(first[step]) << 16 : 0u);
}

// A panel of the weight from depth `k` on: [pairs, kWidth], zero where it has no column.
void pack_panel(const BFloat16Product& p, int64_t k, int64_t pairs, int64_t panel, uint32_t* to) {
  const int64_t n = panel * kWidth, width = least(p.columns - n, kWidth);
  const int64_t row = p.out_by_in ? 1 : p.weight_stride, column = p.out_by_in ? p.weight_stride : 1;
  for (int64_t i = 0; i < pairs; ++i) {
    const int64_t at = k + 2 * i;
    const bool both = at + 1 < p.depth;
    const uint16_t* from = p.weight + at * row + n * column;
    uint32_t* out = to + i * kWidth;
    if (!p.out_by_in && width == kWidth && both) {
      for (int64_t c = 0; c < kWidth; ++c) out[c] = from[c] | static_cast<uint32_t>(from[row + c]) << 16;
      continue;
    }
    for (int64_t c = 0; c < width; ++c) out[c] = pair(from + c * column, row, both);
    for (int64_t c = width; c < kWidth; ++c) out[c] = 0;
  }
}

// Rows of a block from depth `k` on [kTileRows * n, pairs], zero behind the last.
void pack_rows(const BFloat16Product& p, int64_t first, int64_t count, int64_t k, int64_t pairs, uint32_t* to) {
  const int64_t whole = least(pairs, (p.depth - k) / 2);
  for (int64_t r = 0; r < parts(count, kTileRows) * kTileRows; ++r) {
    uint32_t* out = to + r * pairs;
    if (r >= count) {
      std::memset(out, 0, pairs * sizeof(uint32_t));
      continue;
    }
    const uint16_t* from = p.x + (first + r) * p.x_stride + k;
    std::memcpy(out, from, whole * sizeof(uint32_t));
    if (whole < pairs) out[whole] = pair(from + 2 * whole, 1, false);
  }
}

// One tile of sums: packed rows times a packed panel, written over or added to the first rows and columns of `out`.
void tile(const uint32_t* x, const uint32_t* weight, int64_t pairs, float* out, int64_t stride, int64_t rows,
          int64_t columns, bool add) {
  __m512 sum[kTileRows][kTileVectors];
#pragma GCC unroll 8
  for (int r = 0; r < kTileRows; ++r) {
#pragma GCC unroll 3
    for (int v = 0; v < kTileVectors; ++v) sum[r][v] = _mm512_setzero_ps();
  }
  for (int64_t k = 0; k < pairs; ++k) {
    __m512bh value[kTileVectors];
#pragma GCC unroll 3
    for (int v = 0; v < kTileVectors; ++v) {
      value[v] = (__m512bh)_mm512_loadu_si512(weight + k * kWidth + v * kLanes);
    }
#pragma GCC unroll 8
    for (int r = 0; r < kTileRows; ++r) {
      const __m512bh factor = (__m512bh)_mm512_set1_epi32(static_cast<int>(x[r * pairs + k]));
#pragma GCC unroll 3
      for (int v = 0; v < kTileVectors; ++v) sum[r][v] = _mm512_dpbf16_ps(sum[r][v], factor, value[v]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kTileRows; ++r) {
    if (r >= rows) return;
#pragma GCC unroll 3
    for (int v = 0; v < kTileVectors; ++v) {
      const int64_t left = columns - v * kLanes;
      if (left <= 0) continue;
      const __mmask16 there = left >= kLanes ? 0xffff : static_cast<__mmask16>((1u << left) - 1);
      float* at = out + r * stride + v * kLanes;
      const __m512 before = add ? _mm512_maskz_loadu_ps(there, at) : _mm512_setzero_ps();
      _mm512_mask_storeu_ps(at, there, _mm512_add_ps(before, sum[r][v]));
    }
  }
}

}  // namespace

void bfloat16_product(const BFloat16Product& p, int threads) {
  const int64_t panels = parts(p.columns, kWidth), blocks = parts(p.rows, kRows);
  const int64_t most = least(parts(p.depth, 2), kPairs);
  const Room weight(panels * kWidth * most), rooms(threads * kRows * most);
  for (int64_t k = 0; k < p.depth || k == 0; k += 2 * kPairs) {
    const int64_t pairs = least(parts(p.depth - k, 2), kPairs);
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
#pragma omp for schedule(static)
      for (int64_t panel = 0; panel < panels; ++panel) {
        pack_panel(p, k, pairs, panel, weight.at() + panel * kWidth * pairs);
      }
#pragma omp for schedule(static)
      for (int64_t thread = 0; thread < threads; ++thread) {
        uint32_t* room = rooms.at() + thread * kRows * most;
        for (int64_t block = thread; block < blocks; block += threads) {
          const int64_t first = block * kRows, count = least(p.rows - first, kRows);
          pack_rows(p, first, count, k, pairs, room);
          for (int64_t panel = 0; panel < panels; ++panel) {
            const int64_t n = panel * kWidth;
            for (int64_t r = 0; r < count; r += kTileRows) {
              tile(room + r * pairs, weight.at() + n * pairs, pairs, p.out + (first + r) * p.columns + n,
                   p.columns, count - r, p.columns - n, k > 0);
            }
          }
        }
      }
    }
  }
}

}  // namespace interpcore

#else

#include <stdexcept>

namespace interpcore {

void bfloat16_product(const BFloat16Product&, int) { throw std::runtime_error("bfloat16_product is not in this build"); }

}  // namespace interpcore

#endif
