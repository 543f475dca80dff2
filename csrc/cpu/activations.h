// Activations of a vector of floats. Polynomials: least squares towards minimax, by us.
#pragma once

#include "lanes.h"

namespace interpcore {
namespace INTERPCORE_ISA {
namespace {

// e^x within 1 ulp from -86 on and overflowing to infinity; e^-86 below.
inline Vec exponential(Vec x) {
  const Vec zero = {}, low = zero - 86.0f, high = zero + 89.0f, round = zero + 0x1.8p23f;
  x = x < low ? low : x;
  x = x > high ? high : x;
  const Vec shifted = x * 1.44269504f + round, n = shifted - round;
  const Vec r = x - n * 0.693359375f + n * 2.12194440e-4f;
  Vec p = r * 1.38144672e-3f + 8.36878084e-3f;
  p = p * r + 4.16683927e-2f;
  p = p * r + 1.66665196e-1f;
  p = p * r + 0.49999994f;
  p = (p * r) * r + r + 1.0f;
  // Twice p and half the power of two: at x = 88.7 the power alone is out of range.
  const IntVec power = (__builtin_convertvector(n, IntVec) + 126) << 23;
  return (p + p) * reinterpret_cast<const Vec&>(power);
}

struct Relu {
  static Vec of(Vec x) {
    const Vec zero = {};
    return x < zero ? zero : x;  // NaN stays
  }
};

struct Silu {
  static Vec of(Vec x) { return x / (exponential(-x) + 1.0f); }
};

// x / 2 (1 + tanh u) = x / (1 + e^-2u), u = sqrt(2 / pi) (x + 0.044715 x^3).
struct GeluTanh {
  static Vec of(Vec x) {
    const Vec u = x * (x * x * 0.0713548163f + 1.59576912f);
    const Vec e = exponential(-u), sum = e + 1.0f, y = x / sum;
    // torch's own error is up to 1.8 units in the last place: the rounding of 1 + e is made good where it shows.
    const Vec lost = e - (sum - 1.0f), reciprocal = 1.0f - 0.5f * e;
    return (e < 2.0f) & (e > 0x1p-30f) ? y - y * lost * reciprocal : y;
  }
};

}  // namespace
}  // namespace INTERPCORE_ISA
}  // namespace interpcore
