// Sixteen channels at a time: portable vector types, the conversions of half types, a small transpose.
//
// Compilers' vector extensions instead of intrinsics: one source serves AVX-512 (one register a vector), AVX2
// (two), SSE2 and NEON (four). Everything here is inlined into functions marked DETECTOR_CLONES, which exist
// once for each level of the x86-64 instruction set and are chosen when the library is loaded.

#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#include <cstdint>
#include <cstring>
#include <type_traits>

#define DETECTOR_INLINE inline __attribute__((always_inline))

#if defined(__SANITIZE_ADDRESS__)
#define DETECTOR_CLONES  // the sanitizer is not up yet when the loader chooses a clone
#elif defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 12
#define DETECTOR_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define DETECTOR_CLONES
#endif

namespace detector {

using c10::BFloat16;
using c10::Half;

constexpr int64_t kLanes = 16;

template <typename T, int64_t n = kLanes>
struct VectorOf {
  typedef T type __attribute__((vector_size(n * sizeof(T))));
};
template <typename T, int64_t n = kLanes>
using Vector = typename VectorOf<T, n>::type;

// An integer as wide as T: what comparing two Vector<T> gives, and what holds a cell's index beside it.
template <typename T>
using IndexOf = std::conditional_t<sizeof(T) == 8, int64_t, int32_t>;

template <typename V, typename T>
DETECTOR_INLINE V load(const T* from) {
  V vector;
  std::memcpy(&vector, from, sizeof(V));
  return vector;
}

template <typename V, typename T>
DETECTOR_INLINE void store(T* to, V vector) {
  std::memcpy(to, &vector, sizeof(V));
}

template <typename To, typename From>
DETECTOR_INLINE To reinterpret(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(To));
  return to;
}

// Copies to memory that is written once and read much later: around the caches, where that can be had, so
// that lines need not be read before they are overwritten.
DETECTOR_INLINE void copy_past_caches(const void* from, int64_t bytes, void* to) {
  const char* source = static_cast<const char*>(from);
  char* target = static_cast<char*>(to);
  int64_t done = 0;
#if defined(__SSE2__)
  if (reinterpret_cast<uintptr_t>(to) % sizeof(__m128i) == 0)
    for (; done + int64_t(sizeof(__m128i)) <= bytes; done += sizeof(__m128i))
      _mm_stream_si128(reinterpret_cast<__m128i*>(target + done), load<__m128i>(source + done));
#endif
  std::memcpy(target + done, source + done, bytes - done);
}

// Such copies become visible to other threads no later than this.
DETECTOR_INLINE void order_copies() {
#if defined(__SSE2__)
  _mm_sfence();
#endif
}

using Floats = Vector<float>;
using Words = Vector<uint32_t>;
using Shorts = Vector<uint16_t>;

// widen: sixteen numbers in the type they are stored in, to the type of arithmetic. Exact.

DETECTOR_INLINE Floats widen(const float* from) {
  return load<Floats>(from);
}

DETECTOR_INLINE Vector<double> widen(const double* from) {
  return load<Vector<double>>(from);
}

DETECTOR_INLINE Floats widen(const BFloat16* from) {
  return reinterpret<Floats>(__builtin_convertvector(load<Shorts>(from), Words) << 16);
}

DETECTOR_INLINE Floats widen(const Half* from) {
  const Words half = __builtin_convertvector(load<Shorts>(from), Words);
  const Words sign = (half & 0x8000u) << 16, magnitude = half & 0x7fffu;
  const Words normal = (magnitude << 13) + (112u << 23);
  const Words infinite = normal + (112u << 23);
  // Subnormals as an integer times 2^-24: no step of it is a subnormal float, which the processor may flush.
  const Floats small = __builtin_convertvector(reinterpret<Vector<int32_t>>(magnitude), Floats) * 0x1p-24f;
  const Words bits =
      magnitude < 0x400u ? reinterpret<Words>(small) : (magnitude < 0x7c00u ? normal : infinite);
  return reinterpret<Floats>(bits | sign);
}

// narrow: back to the stored type, to nearest even; a NaN stays a NaN.

DETECTOR_INLINE void narrow(float* to, Floats value) {
  store(to, value);
}

DETECTOR_INLINE void narrow(double* to, Vector<double> value) {
  store(to, value);
}

DETECTOR_INLINE void narrow(BFloat16* to, Floats value) {
  const Words bits = reinterpret<Words>(value);
  const Words rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const Words result = (bits & 0x7fffffffu) > 0x7f800000u ? (bits & 0u) + 0x7fc0u : rounded;
  store(to, __builtin_convertvector(result, Shorts));
}

DETECTOR_INLINE void narrow(Half* to, Floats value) {
  const Words bits = reinterpret<Words>(value);
  const Words sign = (bits >> 16) & 0x8000u, magnitude = bits & 0x7fffffffu;
  const Words normal = ((magnitude + 0xfffu + ((magnitude >> 13) & 1u)) >> 13) - (112u << 10);
  // Below 2^-14 one unit of the result is 2^-24, the last place of numbers from 0.5 on: adding 0.5 rounds.
  const Words small = reinterpret<Words>(reinterpret<Floats>(magnitude) + 0.5f) - 0x3f000000u;
  const Words zero = bits & 0u;
  const Words special = magnitude > 0x7f800000u ? zero + 0x7e00u : zero + 0x7c00u;
  const Words result = magnitude < 0x38800000u ? small : (magnitude < 0x477ff000u ? normal : special);
  store(to, __builtin_convertvector(result | sign, Shorts));
}

#if defined(__clang__) || __GNUC__ >= 12
#define DETECTOR_SHUFFLE(T, a, b, i, j, k, l) __builtin_shufflevector(a, b, i, j, k, l)
#else
#define DETECTOR_SHUFFLE(T, a, b, i, j, k, l) __builtin_shuffle(a, b, Vector<IndexOf<T>, 4>{i, j, k, l})
#endif

// Writes the 4 x 4 block at `from` (rows `from_stride` apart) to `to`, rows and columns exchanged.
template <typename T>
DETECTOR_INLINE void transpose4(const T* from, int64_t from_stride, T* to, int64_t to_stride) {
  using V = Vector<T, 4>;
  const V a = load<V>(from), b = load<V>(from + from_stride);
  const V c = load<V>(from + 2 * from_stride), d = load<V>(from + 3 * from_stride);
  const V ab_low = DETECTOR_SHUFFLE(T, a, b, 0, 4, 1, 5), ab_high = DETECTOR_SHUFFLE(T, a, b, 2, 6, 3, 7);
  const V cd_low = DETECTOR_SHUFFLE(T, c, d, 0, 4, 1, 5), cd_high = DETECTOR_SHUFFLE(T, c, d, 2, 6, 3, 7);
  store(to, DETECTOR_SHUFFLE(T, ab_low, cd_low, 0, 1, 4, 5));
  store(to + to_stride, DETECTOR_SHUFFLE(T, ab_low, cd_low, 2, 3, 6, 7));
  store(to + 2 * to_stride, DETECTOR_SHUFFLE(T, ab_high, cd_high, 0, 1, 4, 5));
  store(to + 3 * to_stride, DETECTOR_SHUFFLE(T, ab_high, cd_high, 2, 3, 6, 7));
}

// Writes the transpose of a rows x columns matrix; columns of `from` must be a multiple of four, rows need
// not.
template <typename T>
DETECTOR_INLINE void transpose(const T* from, int64_t rows, int64_t columns, int64_t from_stride, T* to,
                               int64_t to_stride) {
  const int64_t whole = rows - rows % 4;
  for (int64_t row = 0; row < whole; row += 4)
    for (int64_t column = 0; column < columns; column += 4)
      transpose4(from + row * from_stride + column, from_stride, to + column * to_stride + row, to_stride);
  for (int64_t row = whole; row < rows; ++row)
    for (int64_t column = 0; column < columns; ++column)
      to[column * to_stride + row] = from[row * from_stride + column];
}

}  // namespace detector
