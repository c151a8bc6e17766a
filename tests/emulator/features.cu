// Kernels for test_emulator.py, which checks the emulator itself: what they do right must work, and what they do
// wrong must be noticed. Written in as many ways as CUDA allows, for translate.py to understand.

#include <cuda_runtime.h>

#include <exception>
#include <string>
#include <vector>

extern "C" int aoti_torch_create_device_guard(int32_t, void**);
extern "C" int aoti_torch_delete_device_guard(void*);
extern "C" int aoti_torch_get_current_cuda_stream(int32_t, void**);

namespace {

enum class Mode { plain, doubled };

template <typename T>
struct Job {
  const T* in;
  T* out;
  int count;
};

template <typename T>
struct alignas(4 * sizeof(T)) Four {
  T at[4];
};

// ---- What must work

template <typename T, Mode mode, typename Index>
__global__ void __launch_bounds__(128, 2) scale(const __grid_constant__ Job<T> job) {
  const Index i = blockIdx.x * Index(blockDim.x) + threadIdx.x;
  if (i < job.count) job.out[i] = mode == Mode::doubled ? 2 * job.in[i] : job.in[i];
}

template <typename T, int n>
__global__ void sum_of_warp(const T* in, T* out) {
  const int lane = threadIdx.x % warpSize;
  T scan = in[threadIdx.x];
  for (int delta = 1; delta < warpSize; delta *= 2) {
    const T below = __shfl_up_sync(0xffffffffu, scan, delta);
    if (lane >= delta) scan += below;
  }
  const T total = __shfl_sync(0xffffffffu, scan, n);
  const T next = __shfl_down_sync(0xffffffffu, scan, 1);
  const T pair = __shfl_xor_sync(0xffffffffu, in[threadIdx.x], 1, 2);
  out[threadIdx.x] = total + (lane < 31 ? next - scan : T(0)) + pair;
}

__global__ void votes(unsigned* out) {
  const int lane = threadIdx.x % 32;
  out[0 * 32 + lane] = __ballot_sync(0xffffffffu, lane % 3 == 0);
  out[1 * 32 + lane] = __any_sync(0xffffffffu, lane == 5) + 2 * __all_sync(0xffffffffu, lane < 31);
  out[2 * 32 + lane] = __match_any_sync(0xffffffffu, lane / 4);
  out[3 * 32 + lane] = __popc(0xf0f0u) + 100 * __ffs(8) + 10000 * __clz(1);
  out[4 * 32 + lane] = __umulhi(0x80000000u, 6) + __float_as_int(1.0f) - __float_as_int(__int_as_float(0x3f800000));
  if (lane < 7) out[5 * 32 + lane] = __ballot_sync(0x7fu, lane != 2);
}

struct Entry {
  int begin, end;
};

template <typename T>
__global__ void shared_of_every_kind(T* out) {
  __shared__ T plain[32], /* two */ other[16 > 8 ? 2 : 1];
  __shared__ Entry table[4][8];
  __shared__ int total;
  __shared__ __align__(16) unsigned char bytes[sizeof(T) * 32];
  extern __shared__ __align__(16) unsigned char dynamic[];
  T* rest = reinterpret_cast<T*>(dynamic);
  const int i = threadIdx.x + threadIdx.y * blockDim.x;
  if (i == 0) total = 0;
  plain[i] = T(i);
  if (i < 2) other[i] = T(i);
  table[i / 8][i % 8] = {i, i + 1};
  reinterpret_cast<T*>(bytes)[31 - i] = T(i);
  rest[i] = T(1);
  __syncthreads();
  atomicAdd(&total, 1);
  const int odd = __syncthreads_count(i % 2), any = __syncthreads_or(i == 3);
  out[i] = plain[31 - i] + other[1] + T(table[i / 8][i % 8].end) + reinterpret_cast<T*>(bytes)[i] + rest[31 - i] +
           T(total) + T(odd) + T(any);
}

__global__ void wide(const float* in, float4* out) {
  float4 value = __ldg(reinterpret_cast<const float4*>(in) + threadIdx.x);
  value.x = fmaxf(value.x, -0.0f) + min(int64_t(3), 5) + max(2u, 1);
  out[threadIdx.x] = make_float4(value.x, value.y, value.z, value.w);
}

__global__ void grid_of_three(int* out) {
#if defined(__CUDA_ARCH__)
  asm volatile("never compiled here");
#else
  atomicAdd(out + blockIdx.z, int(blockIdx.x + 10 * blockIdx.y) + int(threadIdx.z));
#endif
}

__global__ void dynamic_bytes(int* out, int bytes) {
  extern __shared__ unsigned char memory[];
  memory[bytes - 1] = 1;
  out[0] = memory[bytes - 1];
}

// ---- What must be noticed

__global__ void misaligned(const float* in, float* out) {
  out[0] = reinterpret_cast<const Four<float>*>(in + 1)->at[0];
}
__global__ void no_barrier(int* out) {
  __shared__ int values[64];
  values[threadIdx.x] = threadIdx.x;
  out[threadIdx.x] = values[63 - threadIdx.x];
}
__global__ void diverged(int* out) {
  if (threadIdx.x % 32 < 16) __syncwarp();
  out[threadIdx.x] = __any_sync(0xffffffffu, 1);
}
__global__ void different_barriers(int* out) {
  if (threadIdx.x < 32)
    __syncthreads();
  else
    __syncthreads();
  out[threadIdx.x] = 1;
}
__global__ void left_alone(int* out) {
  if (threadIdx.x % 2) return;
  __syncthreads();
  out[threadIdx.x] = 1;
}
__global__ void missing_lane(int* out) { out[threadIdx.x] = __any_sync(0xffffffffu, 1); }
__global__ void beyond_shared(int* out, int at) {
  __shared__ int values[8];
  int* pointer = values;
  pointer[at] = 1;
  out[0] = values[0];
}
__global__ void beyond_array(int* out, int at) {
  __shared__ int values[8];
  out[0] = values[at];
}
__global__ void big_shift(unsigned* out, int by) { out[0] = 1u << by; }
__global__ void reads(const int* in, int* out) { out[0] = in[threadIdx.x]; }

template <typename T>
std::vector<T> up_to(int n) {
  std::vector<T> values(n);
  for (int i = 0; i < n; ++i) values[i] = T(i);
  return values;
}

void expect(bool holds, const char* what) {
  if (!holds) throw std::string(what);
}

template <typename T>
void launches(cudaStream_t stream) {
  const auto in = up_to<T>(300);
  std::vector<T> out(300);
  const Job<T> job{in.data(), out.data(), 300};
  const dim3 grid(3);
  const auto launch = [&](auto index) {
    using Index = decltype(index);
    scale<T, Mode::doubled, Index>
        <<<grid, 128, 0,
           stream>>>(job);
  };
  launch(int64_t(0));
  expect(out[299] == 598, "launch in a generic lambda");
  launch(int32_t(0));
  void (*kernel)(Job<T>) = scale<T, Mode::plain, int32_t>;
  (*kernel)<<<(300 + 127) / 128, 128, 0, stream>>>(job);
  expect(out[299] == 299, "launch through (*kernel)");
  const auto chosen = out[0] > 1 ? &scale<T, Mode::plain, int> : &scale<T, Mode::doubled, int>;
  chosen<<<grid, 128, 0, stream>>>(job);
  expect(out[299] == 598, "launch through a variable");
}

void run(const std::string& name, cudaStream_t stream) {
  std::vector<int> out(1024);
  const auto floats = up_to<float>(256);
  alignas(16) float aligned[132] = {};
  if (name == "launches") {
    launches<float>(stream);
    launches<double>(stream);
  } else if (name == "shuffles") {
    const auto in = up_to<double>(64);
    std::vector<double> sums(64);
    sum_of_warp<double, 31><<<1, 64, 0, stream>>>(in.data(), sums.data());
    expect(sums[0] == 496 + 1 + 1 && sums[31] == 496 + 30, "first warp");
    expect(sums[63] == 1520 + 62, "second warp");
  } else if (name == "votes") {
    std::vector<unsigned> words(6 * 32);
    votes<<<1, 32, 0, stream>>>(words.data());
    expect(words[0] == 0x49249249u && words[32] == 1 && words[64] == 0xfu && words[64 + 31] == 0xf0000000u, "votes");
    expect(words[96] == 8 + 400 + 310000 && words[128] == 3 && words[160] == 0x7bu, "bits");
  } else if (name == "shared") {
    std::vector<float> sums(32);
    shared_of_every_kind<<<1, dim3(8, 4), 32 * sizeof(float), stream>>>(sums.data());
    expect(sums[5] == 26 + 1 + 6 + 26 + 1 + 32 + 16 + 1, "float");
  } else if (name == "wide") {
    for (int i = 0; i < 128; ++i) aligned[i] = -float(i);
    wide<<<1, 32, 0, stream>>>(aligned, reinterpret_cast<float4*>(aligned));
    expect(aligned[4] == 5 && aligned[5] == -5, "float4");
  } else if (name == "grid") {
    grid_of_three<<<dim3(3, 2, 4), dim3(1, 1, 2), 0, stream>>>(out.data());
    expect(out[3] == 2 * (3 * 2 + 3 * 10) + 6 && out[4] == 0, "sums");
  } else if (name == "much shared memory") {
    constexpr int kBytes = 227 << 10;
    cudaFuncSetAttribute(dynamic_bytes, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
    dynamic_bytes<<<1, 1, kBytes, stream>>>(out.data(), kBytes);
    cudaMemsetAsync(out.data() + 1, 0xff, 4, stream);
    expect(out[0] == 1 && out[1] == -1, "227 KiB");
  } else if (name == "too much shared memory") {
    void (*kernel)(const int*, int*) = reads;
    const int* in = out.data();
    (*kernel)<<<1, 1, 50 << 10, stream>>>(in, out.data());
  } else if (name == "misaligned") {
    misaligned<<<1, 1, 0, stream>>>(aligned, aligned);
  } else if (name == "no barrier") {
    no_barrier<<<1, 64, 0, stream>>>(out.data());
    for (int i = 0; i < 64; ++i) expect(out[i] == 63 - i, "read before it was written");
  } else if (name == "diverged") {
    diverged<<<1, 32, 0, stream>>>(out.data());
  } else if (name == "different barriers") {
    different_barriers<<<1, 64, 0, stream>>>(out.data());
  } else if (name == "left alone") {
    left_alone<<<1, 64, 0, stream>>>(out.data());
  } else if (name == "missing lane") {
    missing_lane<<<1, 16, 0, stream>>>(out.data());
  } else if (name == "beyond shared") {
    beyond_shared<<<1, 1, 0, stream>>>(out.data(), 9);
  } else if (name == "beyond array") {
    beyond_array<<<1, 1, 0, stream>>>(out.data(), 8);
  } else if (name == "big shift") {
    big_shift<<<1, 1, 0, stream>>>(reinterpret_cast<unsigned*>(out.data()), 32);
  } else if (name == "not there") {
    reads<<<1, 1, 0, stream>>>(reinterpret_cast<const int*>(4096), out.data());
  } else if (name == "another stream") {
    grid_of_three<<<1, 1>>>(out.data());
  } else if (name == "nothing") {
    grid_of_three<<<0, 1, 0, stream>>>(out.data());
  } else {
    throw std::string("no such case");
  }
}

}  // namespace

// Returns what went wrong, or an empty string.
extern "C" __attribute__((visibility("default"))) const char* run_feature(const char* name) {
  static std::string message;
  message.clear();
  void *guard = nullptr, *stream = nullptr;
  aoti_torch_create_device_guard(0, &guard);
  aoti_torch_get_current_cuda_stream(0, &stream);
  try {
    run(name, stream);
  } catch (const std::exception& error) {
    message = error.what();
  } catch (const std::string& error) {
    message = error;
  }
  aoti_torch_delete_device_guard(guard);
  return message.c_str();
}
