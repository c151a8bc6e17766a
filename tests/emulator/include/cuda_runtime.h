// The part of CUDA's runtime header that kernels and their host code need, for a CPU. Every thread of a block is
// a fiber of scheduler.cpp; blocks run one after another. Launches and __shared__ declarations are not C++ and
// are rewritten by translate.py; everything else of a kernel compiles as it stands.
//
// __CUDACC__ and __CUDA_ARCH__ stay undefined: code between `#if defined(__CUDA_ARCH__)` and `#else` is not run.

#pragma once

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <tuple>
#include <type_traits>
#include <utility>

using std::ceil;
using std::floor;
using std::isfinite;
using std::isinf;
using std::isnan;
using std::round;

#define __global__
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(bytes) alignas(bytes)
#define __builtin_assume(condition)

// ---- Vector types

#define EMULATOR_VECTOR2(T, name, bytes)                  \
  struct alignas(bytes) name##2 {                         \
    T x, y;                                               \
  };                                                      \
  inline name##2 make_##name##2(T x, T y) { return {x, y}; }
#define EMULATOR_VECTOR4(T, name, bytes)                  \
  struct alignas(bytes) name##4 {                         \
    T x, y, z, w;                                         \
  };                                                      \
  inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }

EMULATOR_VECTOR2(signed char, char, 2)
EMULATOR_VECTOR2(unsigned char, uchar, 2)
EMULATOR_VECTOR2(short, short, 4)
EMULATOR_VECTOR2(unsigned short, ushort, 4)
EMULATOR_VECTOR2(int, int, 8)
EMULATOR_VECTOR2(unsigned, uint, 8)
EMULATOR_VECTOR2(float, float, 8)
EMULATOR_VECTOR2(double, double, 16)
EMULATOR_VECTOR2(long long, longlong, 16)
EMULATOR_VECTOR2(unsigned long long, ulonglong, 16)
EMULATOR_VECTOR4(signed char, char, 4)
EMULATOR_VECTOR4(unsigned char, uchar, 4)
EMULATOR_VECTOR4(short, short, 8)
EMULATOR_VECTOR4(unsigned short, ushort, 8)
EMULATOR_VECTOR4(int, int, 16)
EMULATOR_VECTOR4(unsigned, uint, 16)
EMULATOR_VECTOR4(float, float, 16)

struct uint3 {
  unsigned x, y, z;
};
struct int3 {
  int x, y, z;
};
inline uint3 make_uint3(unsigned x, unsigned y, unsigned z) { return {x, y, z}; }
inline int3 make_int3(int x, int y, int z) { return {x, y, z}; }
struct dim3 : uint3 {
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : uint3{x, y, z} {}
};

// ---- The scheduler's side

using cudaStream_t = void*;
using cudaError_t = int;
constexpr cudaError_t cudaSuccess = 0;

namespace emulator {

struct Place {  // where the running fiber is
  uint3 thread, block, block_dim, grid_dim;
};
extern Place* self;

// A place in the block's shared memory, the same for all its threads; `key` stands for the declaration.
void* static_shared(const void* key, size_t bytes, size_t align);
void* dynamic_shared();

// The closure of each declaration has a type of its own, in every instantiation of a template.
template <typename T, typename Declaration>
T& static_shared(Declaration) {
  static const char key = 0;
  return *static_cast<T*>(static_shared(&key, sizeof(T), alignof(T) > 4 ? alignof(T) : 4));
}

// Of a declaration with an alignment of its own.
template <typename T, int... alignments>
struct Aligned {
  alignas(alignments...) T value;
};

// __syncthreads and its votes: returns how many threads have a predicate that holds.
enum class Block : int { sync, count, any, all };
int meet_in_block(Block what, bool predicate, int line);

enum class Warp : int { sync, ballot, any, all, match, shuffle, up, down, across, max, min, add, either, both };
uint64_t meet_in_warp(Warp what, unsigned mask, uint64_t value, int argument, int width, int line);

template <typename T>
T shuffle(Warp what, unsigned mask, T value, int argument, int width, int line) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8, "CUDA shuffles 4 or 8 bytes");
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = meet_in_warp(what, mask, bits, argument, width, line);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

struct Configuration {
  dim3 grid, block;
  size_t shared = 0;
  cudaStream_t stream = nullptr;
};
using Body = void (*)(void*);
void launch(const char* name, const void* kernel, Body body, void* arguments, const Configuration& configuration);

// What `kernel<<<...>>>` becomes: called with the kernel's arguments. `address` gives the kernel's own address, by
// which cudaFuncSetAttribute knows it, or null where the arguments' types do not tell which kernel it is.
template <typename Call, typename Address>
struct Launch {
  const char* name;
  Call call;
  Address address;
  Configuration configuration;

  template <typename... Arguments>
  void operator()(Arguments... arguments) const {
    std::pair<Call, std::tuple<Arguments...>> bound{call, {arguments...}};
    const Body body = [](void* data) {
      auto& [kernel, values] = *static_cast<decltype(bound)*>(data);
      std::apply(kernel, values);
    };
    launch(name, address(arguments...), body, &bound, configuration);
  }
};

template <typename Call, typename Address>
Launch<Call, Address> prepare(const char* name, Call call, Address address, dim3 grid, dim3 block,
                              size_t shared = 0, cudaStream_t stream = nullptr) {
  return {name, call, address, {grid, block, shared, stream}};
}

void allow_shared(const void* kernel, int bytes);
void check_stream(const char* what, cudaStream_t stream);

// CUDA's maximum and minimum: a number wins over NaN, and 0.0 is greater than -0.0.
template <typename A, typename B>
std::common_type_t<A, B> greatest(A first, B second) {
  const std::common_type_t<A, B> a = first, b = second;
  if (a != a) return b;
  if (a == b) return std::signbit(a) ? b : a;
  return a < b ? b : a;
}
template <typename A, typename B>
std::common_type_t<A, B> least(A first, B second) {
  const std::common_type_t<A, B> a = first, b = second;
  if (a != a) return b;
  if (a == b) return std::signbit(a) ? a : b;
  return b < a ? b : a;
}
inline float fmaxf(float a, float b) { return greatest(a, b); }
inline float fminf(float a, float b) { return least(a, b); }
template <typename A, typename B>
auto fmax(A a, B b) { return greatest(a, b); }
template <typename A, typename B>
auto fmin(A a, B b) { return least(a, b); }

}  // namespace emulator

#define threadIdx (emulator::self->thread)
#define blockIdx (emulator::self->block)
#define blockDim (emulator::self->block_dim)
#define gridDim (emulator::self->grid_dim)
constexpr int warpSize = 32;

// ---- Barriers, votes and shuffles; the last argument is the line of the call

inline void __syncthreads(int line = __builtin_LINE()) { emulator::meet_in_block(emulator::Block::sync, false, line); }
inline int __syncthreads_count(int p, int line = __builtin_LINE()) {
  return emulator::meet_in_block(emulator::Block::count, p, line);
}
inline int __syncthreads_or(int p, int line = __builtin_LINE()) {
  return emulator::meet_in_block(emulator::Block::any, p, line);
}
inline int __syncthreads_and(int p, int line = __builtin_LINE()) {
  return emulator::meet_in_block(emulator::Block::all, p, line);
}

namespace emulator {
constexpr unsigned kWholeWarp = 0xffffffffu;
inline unsigned vote(Warp what, unsigned mask, bool predicate, int line) {
  return static_cast<unsigned>(meet_in_warp(what, mask, predicate, 0, 32, line));
}
}  // namespace emulator

inline void __syncwarp(unsigned mask = emulator::kWholeWarp, int line = __builtin_LINE()) {
  emulator::meet_in_warp(emulator::Warp::sync, mask, 0, 0, 32, line);
}
inline unsigned __ballot_sync(unsigned mask, int p, int line = __builtin_LINE()) {
  return emulator::vote(emulator::Warp::ballot, mask, p, line);
}
inline int __any_sync(unsigned mask, int p, int line = __builtin_LINE()) {
  return emulator::vote(emulator::Warp::any, mask, p, line);
}
inline int __all_sync(unsigned mask, int p, int line = __builtin_LINE()) {
  return emulator::vote(emulator::Warp::all, mask, p, line);
}
template <typename T>
unsigned __match_any_sync(unsigned mask, T value, int line = __builtin_LINE()) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8, "CUDA matches 4 or 8 bytes");
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  return static_cast<unsigned>(emulator::meet_in_warp(emulator::Warp::match, mask, bits, 0, 32, line));
}
template <typename T>
T __shfl_sync(unsigned mask, T value, int lane, int width = 32, int line = __builtin_LINE()) {
  return emulator::shuffle(emulator::Warp::shuffle, mask, value, lane, width, line);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, int line = __builtin_LINE()) {
  return emulator::shuffle(emulator::Warp::up, mask, value, static_cast<int>(delta), width, line);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, int line = __builtin_LINE()) {
  return emulator::shuffle(emulator::Warp::down, mask, value, static_cast<int>(delta), width, line);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32, int line = __builtin_LINE()) {
  return emulator::shuffle(emulator::Warp::across, mask, value, lanes, width, line);
}

namespace emulator {
// The __reduce_*_sync family: int or unsigned.
template <typename T>
T reduce(Warp what, unsigned mask, T value, int line) {
  static_assert(std::is_same_v<T, int> || std::is_same_v<T, unsigned>);
  return static_cast<T>(meet_in_warp(what, mask, static_cast<uint64_t>(static_cast<int64_t>(value)), 0, 32, line));
}
}  // namespace emulator

template <typename T>
T __reduce_max_sync(unsigned mask, T value, int line = __builtin_LINE()) {
  return emulator::reduce(emulator::Warp::max, mask, value, line);
}
template <typename T>
T __reduce_min_sync(unsigned mask, T value, int line = __builtin_LINE()) {
  return emulator::reduce(emulator::Warp::min, mask, value, line);
}
template <typename T>
T __reduce_add_sync(unsigned mask, T value, int line = __builtin_LINE()) {
  return emulator::reduce(emulator::Warp::add, mask, value, line);
}
inline unsigned __reduce_or_sync(unsigned mask, unsigned value, int line = __builtin_LINE()) {
  return emulator::reduce(emulator::Warp::either, mask, value, line);
}
inline unsigned __reduce_and_sync(unsigned mask, unsigned value, int line = __builtin_LINE()) {
  return emulator::reduce(emulator::Warp::both, mask, value, line);
}

// Fences order memory between threads that run at once; fibers never do.
inline void __threadfence() {}
inline void __threadfence_block() {}

// ---- Arithmetic

inline unsigned __umulhi(unsigned a, unsigned b) { return static_cast<unsigned>((uint64_t(a) * b) >> 32); }
inline int __mulhi(int a, int b) { return static_cast<int>((int64_t(a) * b) >> 32); }
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  return static_cast<unsigned long long>((static_cast<unsigned __int128>(a) * b) >> 64);
}
inline int __popc(unsigned value) { return std::popcount(value); }
inline int __popcll(unsigned long long value) { return std::popcount(value); }
inline int __ffs(int value) { return __builtin_ffs(value); }
inline int __ffsll(long long value) { return __builtin_ffsll(value); }
inline int __clz(int value) { return std::countl_zero(static_cast<unsigned>(value)); }
inline int __clzll(long long value) { return std::countl_zero(static_cast<unsigned long long>(value)); }
inline unsigned __brev(unsigned value) {
  unsigned result = 0;
  for (int bit = 0; bit < 32; ++bit) result = result << 1 | (value >> bit & 1);
  return result;
}
inline int __float_as_int(float value) { return std::bit_cast<int>(value); }
inline unsigned __float_as_uint(float value) { return std::bit_cast<unsigned>(value); }
inline float __int_as_float(int value) { return std::bit_cast<float>(value); }
inline float __uint_as_float(unsigned value) { return std::bit_cast<float>(value); }
inline long long __double_as_longlong(double value) { return std::bit_cast<long long>(value); }
inline double __longlong_as_double(long long value) { return std::bit_cast<double>(value); }
inline unsigned __byte_perm(unsigned low, unsigned high, unsigned selector) {
  const uint64_t bytes = uint64_t(high) << 32 | low;
  unsigned result = 0;
  for (int i = 0; i < 4; ++i) result |= unsigned(bytes >> 8 * (selector >> 4 * i & 7) & 0xff) << 8 * i;
  return result;
}
inline float __int2float_rn(int value) { return static_cast<float>(value); }
inline int __float2int_rz(float value) { return static_cast<int>(value); }
inline int __float2int_rd(float value) { return static_cast<int>(std::floor(value)); }
inline int __float2int_ru(float value) { return static_cast<int>(std::ceil(value)); }
inline int __float2int_rn(float value) { return static_cast<int>(std::nearbyint(value)); }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __ddiv_rn(double a, double b) { return a / b; }

template <typename A, typename B, typename = std::enable_if_t<std::is_arithmetic_v<A> && std::is_arithmetic_v<B>>>
std::common_type_t<A, B> max(A a, B b) {
  if constexpr (std::is_floating_point_v<std::common_type_t<A, B>>) return emulator::greatest(a, b);
  const std::common_type_t<A, B> first = a, second = b;
  return first < second ? second : first;
}
template <typename A, typename B, typename = std::enable_if_t<std::is_arithmetic_v<A> && std::is_arithmetic_v<B>>>
std::common_type_t<A, B> min(A a, B b) {
  if constexpr (std::is_floating_point_v<std::common_type_t<A, B>>) return emulator::least(a, b);
  const std::common_type_t<A, B> first = a, second = b;
  return second < first ? second : first;
}

// ---- Memory

// Loads and stores with a hint for the caches.
template <typename T>
T __ldg(const T* from) { return *from; }
template <typename T>
T __ldca(const T* from) { return *from; }
template <typename T>
T __ldcg(const T* from) { return *from; }
template <typename T>
T __ldcs(const T* from) { return *from; }
template <typename T>
void __stcg(T* to, T value) { *to = value; }
template <typename T>
void __stcs(T* to, T value) { *to = value; }
template <typename T>
void __stwt(T* to, T value) { *to = value; }

namespace emulator {
template <typename T, typename Change>
T change(T* at, Change new_value) {
  T old;
  __atomic_load(at, &old, __ATOMIC_RELAXED);
  T next = new_value(old);
  while (!__atomic_compare_exchange(at, &old, &next, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) next = new_value(old);
  return old;
}
}  // namespace emulator

// The type of the value follows from that of the place, as with CUDA's overloads.
template <typename T>
T atomicAdd(T* at, std::type_identity_t<T> value) {
  return emulator::change(at, [=](T old) { return static_cast<T>(old + value); });
}
template <typename T>
T atomicSub(T* at, std::type_identity_t<T> value) {
  return emulator::change(at, [=](T old) { return static_cast<T>(old - value); });
}
template <typename T>
T atomicMax(T* at, std::type_identity_t<T> value) {
  return emulator::change(at, [=](T old) { return old < value ? value : old; });
}
template <typename T>
T atomicMin(T* at, std::type_identity_t<T> value) {
  return emulator::change(at, [=](T old) { return value < old ? value : old; });
}
template <typename T>
T atomicOr(T* at, std::type_identity_t<T> value) {
  return emulator::change(at, [=](T old) { return old | value; });
}
template <typename T>
T atomicAnd(T* at, std::type_identity_t<T> value) {
  return emulator::change(at, [=](T old) { return old & value; });
}
template <typename T>
T atomicExch(T* at, std::type_identity_t<T> value) {
  return emulator::change(at, [=](T) { return value; });
}
template <typename T>
T atomicCAS(T* at, std::type_identity_t<T> expected, std::type_identity_t<T> value) {
  return emulator::change(at, [=](T old) { return old == expected ? value : old; });
}

// ---- Host functions

enum cudaFuncAttribute : int {
  cudaFuncAttributeMaxDynamicSharedMemorySize = 8,
  cudaFuncAttributePreferredSharedMemoryCarveout = 9,
};
template <typename Kernel>
cudaError_t cudaFuncSetAttribute(Kernel* kernel, cudaFuncAttribute attribute, int value) {
  if (attribute == cudaFuncAttributeMaxDynamicSharedMemorySize)
    emulator::allow_shared(reinterpret_cast<const void*>(kernel), value);
  return cudaSuccess;
}

enum cudaDeviceAttr : int {
  cudaDevAttrMaxThreadsPerBlock = 1,
  cudaDevAttrWarpSize = 10,
  cudaDevAttrMultiProcessorCount = 16,
  cudaDevAttrMaxSharedMemoryPerBlock = 8,
  cudaDevAttrComputeCapabilityMajor = 75,
  cudaDevAttrComputeCapabilityMinor = 76,
  cudaDevAttrMaxSharedMemoryPerMultiprocessor = 81,
  cudaDevAttrMaxSharedMemoryPerBlockOptin = 97,
};
extern "C" {
cudaError_t cudaGetLastError();
cudaError_t cudaPeekAtLastError();
const char* cudaGetErrorString(cudaError_t error);
cudaError_t cudaGetDevice(int* device);
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device);
}
template <typename Kernel>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, Kernel*, int threads, size_t) {
  *blocks = threads > 1024 ? 1 : 2048 / threads;
  return cudaSuccess;
}

enum cudaMemcpyKind : int { cudaMemcpyHostToHost, cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost, cudaMemcpyDeviceToDevice, cudaMemcpyDefault };
inline cudaError_t cudaMemsetAsync(void* at, int value, size_t bytes, cudaStream_t stream = nullptr) {
  emulator::check_stream("cudaMemsetAsync", stream);
  std::memset(at, value, bytes);
  return cudaSuccess;
}
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t stream = nullptr) {
  emulator::check_stream("cudaMemcpyAsync", stream);
  std::memcpy(to, from, bytes);
  return cudaSuccess;
}
