// Eight values of a row, as they are stored: loads of 16 bytes, packed extremes and counts.
// nvcc compiles this for the device, and the tests compile it for a grid that a CPU emulates.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#ifdef __CUDACC__
#include <cuda_bf16.h>
#define INTERPCORE_BODY __device__ __forceinline__
#else
#define INTERPCORE_BODY inline
#endif

namespace interpcore {

constexpr int kLane = 8;  // values of a lane

struct Float32 {
  using Stored = float;
  static constexpr int words = 8;  // of 32 bits, for a lane's values
};
struct BFloat16 {
  using Stored = uint16_t;
  static constexpr int words = 4;
};

template <typename T>
struct alignas(16) Eight {
  uint32_t word[T::words];
};

INTERPCORE_BODY float as_float(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

INTERPCORE_BODY uint32_t as_bits(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

INTERPCORE_BODY float widen(Float32, uint32_t word, int) { return as_float(word); }

INTERPCORE_BODY float widen(BFloat16, uint32_t word, int half) {
  return as_float(half ? word & 0xffff0000u : word << 16);
}

template <typename T>
INTERPCORE_BODY float value_of(const Eight<T>& v, int i) {
  return widen(T{}, v.word[i * T::words / kLane], i * T::words % kLane ? 1 : 0);
}

// A pair of values, the first in the low half.
INTERPCORE_BODY uint32_t narrow(Float32, float first, float) { return as_bits(first); }

INTERPCORE_BODY uint32_t narrow(BFloat16, float first, float second) {
#ifdef __CUDACC__
  const __nv_bfloat162 pair = __floats2bfloat162_rn(first, second);
  uint32_t word;
  memcpy(&word, &pair, sizeof word);
  return word;
#else
  uint32_t half[2] = {as_bits(first), as_bits(second)};
  for (uint32_t& bits : half)
    bits = std::isnan(as_float(bits)) ? 0x7fffu : (bits + 0x7fffu + (bits >> 16 & 1)) >> 16;
  return half[0] | half[1] << 16;
#endif
}

// The smaller or larger value of each place; NaN where either is. float32 passes over NaN: its sums keep it.
#ifdef __CUDACC__
#define INTERPCORE_PAIRED(NAME, TYPE, PAIR, OPERATION) \
  INTERPCORE_BODY uint32_t NAME(TYPE, uint32_t a, uint32_t b) { \
    PAIR x, y; \
    memcpy(&x, &a, sizeof x), memcpy(&y, &b, sizeof y); \
    const PAIR z = OPERATION(x, y); \
    uint32_t word; \
    memcpy(&word, &z, sizeof word); \
    return word; \
  }
INTERPCORE_PAIRED(least, BFloat16, __nv_bfloat162, __hmin2_nan)
INTERPCORE_PAIRED(most, BFloat16, __nv_bfloat162, __hmax2_nan)
INTERPCORE_PAIRED(add, BFloat16, __nv_bfloat162, __hadd2)
INTERPCORE_PAIRED(exceeds, BFloat16, __nv_bfloat162, __hgt2)
#undef INTERPCORE_PAIRED
#else
template <typename T, typename Operation>
inline uint32_t paired(T type, uint32_t a, uint32_t b, Operation operation) {
  return narrow(type, operation(widen(type, a, 0), widen(type, b, 0)), operation(widen(type, a, 1), widen(type, b, 1)));
}
inline float least_or_nan(float a, float b) { return std::isnan(a) || std::isnan(b) ? NAN : a < b ? a : b; }
inline float most_or_nan(float a, float b) { return std::isnan(a) || std::isnan(b) ? NAN : a > b ? a : b; }
template <typename T>
inline uint32_t least(T type, uint32_t a, uint32_t b) { return paired(type, a, b, least_or_nan); }
template <typename T>
inline uint32_t most(T type, uint32_t a, uint32_t b) { return paired(type, a, b, most_or_nan); }
template <typename T>
inline uint32_t add(T type, uint32_t a, uint32_t b) { return paired(type, a, b, [](float x, float y) { return x + y; }); }
template <typename T>
inline uint32_t exceeds(T type, uint32_t a, uint32_t b) {
  return paired(type, a, b, [](float x, float y) { return x > y ? 1.0f : 0.0f; });
}
#endif
INTERPCORE_BODY uint32_t least(Float32, uint32_t a, uint32_t b) { return as_bits(fminf(as_float(a), as_float(b))); }
INTERPCORE_BODY uint32_t most(Float32, uint32_t a, uint32_t b) { return as_bits(fmaxf(as_float(a), as_float(b))); }
INTERPCORE_BODY uint32_t add(Float32, uint32_t a, uint32_t b) { return as_bits(as_float(a) + as_float(b)); }
INTERPCORE_BODY uint32_t exceeds(Float32, uint32_t a, uint32_t b) {
  return as_bits(as_float(a) > as_float(b) ? 1.0f : 0.0f);
}

// A number in every place, and the largest number of the stored kind up to it: a stored value exceeds both or neither.
template <typename T>
INTERPCORE_BODY uint32_t everywhere(T type, float value) {
  return narrow(type, value, value);
}

template <typename T>
INTERPCORE_BODY uint32_t limit_of(T type, float threshold) {
  uint32_t word = everywhere(type, threshold);
  if (T::words == kLane || widen(type, word, 0) <= threshold) return word;
  // One step down: of positive numbers the bits before, of negative ones the bits after; below 0 the smallest.
  uint32_t half = word & 0xffffu;
  half = half == 0 || half == 0x8000u ? 0x8001u : half & 0x8000u ? half + 1 : half - 1;
  return half | half << 16;
}

// `width` values from an address on, 0 in the other places; VECTOR: all eight, by loads of 16 bytes.
template <typename T, bool VECTOR>
INTERPCORE_BODY Eight<T> load(const void* base, int64_t at, int width) {
  const auto* from = static_cast<const typename T::Stored*>(base) + at;
  Eight<T> v;
  if constexpr (VECTOR) {
#ifdef __CUDACC__
    const auto* source = reinterpret_cast<const uint4*>(from);
    auto* target = reinterpret_cast<uint4*>(v.word);
#pragma unroll
    for (int i = 0; i < T::words / 4; ++i) target[i] = __ldg(source + i);
#else
    memcpy(v.word, from, sizeof v.word);
#endif
  } else {
#pragma unroll
    for (int i = 0; i < T::words; ++i) {
      const int first = i * kLane / T::words;
      uint32_t word = 0;
      if (first < width) {
        typename T::Stored one = from[first];
        memcpy(&word, &one, sizeof one);
        if (T::words < kLane && first + 1 < width) word |= static_cast<uint32_t>(from[first + 1]) << 16;
      }
      v.word[i] = word;
    }
  }
  return v;
}

template <typename T, bool VECTOR>
INTERPCORE_BODY void store(void* base, int64_t at, int width, const Eight<T>& v) {
  auto* to = static_cast<typename T::Stored*>(base) + at;
  if constexpr (VECTOR) {
#ifdef __CUDACC__
#pragma unroll
    for (int i = 0; i < T::words / 4; ++i) reinterpret_cast<uint4*>(to)[i] = reinterpret_cast<const uint4*>(v.word)[i];
#else
    memcpy(to, v.word, sizeof v.word);
#endif
  } else {
#pragma unroll
    for (int i = 0; i < kLane; ++i) {
      const uint32_t word = v.word[i * T::words / kLane] >> (i * T::words % kLane ? 16 : 0);
      if (i < width) memcpy(to + i, &word, sizeof *to);
    }
  }
}

}  // namespace interpcore
