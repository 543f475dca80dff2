// Vectors of floats as wide as the instruction set's registers, and loads that widen half precision. Included by
// sources that are compiled once per instruction set; no standard-library templates, as in those.
#pragma once

#include <cstdint>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace interpcore {
namespace INTERPCORE_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif
typedef float Vec __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));
typedef int32_t IntVec __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));
typedef uint32_t BitVec __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));
typedef uint16_t HalfVec __attribute__((vector_size(2 * kLanes), aligned(2), may_alias));

inline Vec& vec(float* at) { return *reinterpret_cast<Vec*>(at); }
inline const Vec& vec(const float* at) { return *reinterpret_cast<const Vec*>(at); }
inline IntVec& vec(int32_t* at) { return *reinterpret_cast<IntVec*>(at); }

struct Bf16 { uint16_t bits; };
struct Fp16 { uint16_t bits; };

inline Vec widened(const float* at) { return vec(at); }

#if defined(__AVX512F__)
inline Vec widened(const Bf16* at) {
  const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)));
  return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}

inline Vec widened(const Fp16* at) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(at)));
}
#elif defined(__AVX2__)
inline Vec widened(const Bf16* at) {
  const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at)));
  return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}

inline Vec widened(const Fp16* at) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at)));
}
#else
inline BitVec half_bits(const void* at) {
  return __builtin_convertvector(*static_cast<const HalfVec*>(at), BitVec);
}

inline Vec widened(const Bf16* at) {
  const BitVec bits = half_bits(at) << 16;
  return reinterpret_cast<const Vec&>(bits);
}

inline Vec widened(const Fp16* at) {
  // The product moves the exponent's bias, subnormal numbers included; infinities and NaNs keep their full exponent.
  const BitVec half = half_bits(at), rest = half & 0x7fffu, moved = rest << 13;
  const Vec magnitude = reinterpret_cast<const Vec&>(moved) * 0x1p112f;
  const BitVec finite = reinterpret_cast<const BitVec&>(magnitude);
  const BitVec bits = (half & 0x8000u) << 16 | (rest >= 0x7c00u ? 0x7f800000u | moved : finite);
  return reinterpret_cast<const Vec&>(bits);
}
#endif

inline float widen(float x) { return x; }

template <typename T>
float widen(T x) {
  T several[kLanes] = {x};
  const Vec wide = widened(several);
  return wide[0];
}

}  // namespace
}  // namespace INTERPCORE_ISA
}  // namespace interpcore
