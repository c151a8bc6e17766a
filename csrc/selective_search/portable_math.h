// exp, cube root and fifth root from the four basic operations.
//
// The mathematical library's functions may differ in the last bit between systems and processors, and one
// bit can move a rounding; the basic operations are exact everywhere (IEEE 754).
#pragma once

#include <cstdint>
#include <cstring>

namespace detector::selective_search {

// exp(x) for x in [-700, 0], relative error under 1e-13: a Taylor series at x / 1024, squared ten times.
inline double portable_exp(double x) {
  const double reduced = x / 1024;
  double term = 1, sum = 1;
  for (int i = 1; i <= 12; ++i) {
    term = term * reduced / i;
    sum += term;
  }
  for (int i = 0; i < 10; ++i) sum *= sum;
  return sum;
}

// Cube root of a positive normal number: a guess from the exponent bits, then Halley's iteration, which
// triples the number of right digits each time.
inline double portable_cbrt(double x) {
  uint64_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  // High 32 bits over 3, in a form that vectorises; the constant re-biases the exponent.
  bits = (static_cast<uint64_t>(static_cast<uint32_t>(bits >> 32) / 3 + 715094163u)) << 32;
  double y;
  std::memcpy(&y, &bits, sizeof y);
  for (int i = 0; i < 3; ++i) {
    const double cube = y * y * y;
    y = y * (cube + 2 * x) / (2 * cube + x);
  }
  return y;
}

// x^2.4 for x in (0, 1], as x^2 times the fifth root of x^2 (Newton from above, which cannot diverge).
inline double portable_pow_2_4(double x) {
  const double square = x * x;
  double root = 1;
  for (int i = 0; i < 60; ++i) {
    const double fourth = root * root * root * root;
    root = (4 * root + square / fourth) / 5;
  }
  return square * root;
}

}  // namespace detector::selective_search
