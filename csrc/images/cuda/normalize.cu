// A block copies 1024 pixels, which may belong to several images, and the table into shared memory. Then each
// thread looks up four values at a time, those of two pixels, and writes them with one store of 16 bytes.
// Neighbouring threads write neighbouring values.

#include "cuda_stream.h"
#include "images/operators.h"

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>

#include <algorithm>

namespace detector {
namespace {

constexpr int kThreads = 256;
constexpr int kPixels = 1024;  // of a block
constexpr int kValues = 3 * kPixels;
constexpr int kTable = static_cast<int>(kChannels * kLevels);
constexpr int kWide = 16;     // bytes of a load
constexpr int kImages = 256;  // of a launch: their sizes are kernel arguments, of which CUDA grants 4 KiB

struct Job {
  const uint8_t* images;
  const float* table;
  float* inputs;
  int64_t pixels;  // of all images
  uint32_t height;
  uint32_t width;
  uint32_t heights[kImages];
  uint32_t widths[kImages];
};

__device__ __forceinline__ void read_block(const uint8_t* from, int count, uint8_t* tile) {
  const bool aligned = reinterpret_cast<uintptr_t>(from) % kWide == 0;
  const int whole = aligned ? count / kWide : 0;
  for (int i = threadIdx.x; i < whole; i += kThreads)
    reinterpret_cast<uint4*>(tile)[i] = reinterpret_cast<const uint4*>(from)[i];
  for (int i = whole * kWide + threadIdx.x; i < count; i += kThreads) tile[i] = from[i];
}

// Where the block's first pixel lies.
struct Start {
  uint32_t image, y, x;
};

__device__ __forceinline__ Start start_of(const Job& job, int64_t pixel) {
  const int64_t row = pixel / job.width, image = row / job.height;
  return {static_cast<uint32_t>(image), static_cast<uint32_t>(row - image * job.height),
          static_cast<uint32_t>(pixel - row * job.width)};
}

// Whether a pixel, counted from the first of the block, belongs to an image and not to the padding.
__device__ __forceinline__ bool is_inside(const Job& job, const Start& start, int pixel) {
  const uint32_t x = start.x + pixel, y = start.y + x / job.width;
  const uint32_t image = start.image + y / job.height;
  return y % job.height < job.heights[image] && x % job.width < job.widths[image];
}

template <bool bgr>
__global__ void __launch_bounds__(kThreads) normalize_kernel(const __grid_constant__ Job job) {
  __shared__ float table[kTable];
  __shared__ __align__(16) uint8_t tile[kValues];
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kPixels;
  const int64_t left = job.pixels - first;
  const int pixels = left < kPixels ? static_cast<int>(left) : kPixels, count = 3 * pixels;
  read_block(job.images + 3 * first, count, tile);
  for (int i = threadIdx.x; i < kTable; i += kThreads) table[i] = job.table[i];
  const Start start = start_of(job, first);
  float* const to = job.inputs + 3 * first;
  __syncthreads();
  for (int at = 4 * threadIdx.x; at < count; at += 4 * kThreads) {
    const int pixel = at / 3, channel = at - 3 * pixel;
    const bool here = is_inside(job, start, pixel);
    const bool next = pixel + 1 < pixels && is_inside(job, start, pixel + 1);
    float values[4];
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const bool second = channel + k >= 3;
      const int c = second ? channel + k - 3 : channel + k;
      const int source = 3 * (pixel + second) + (bgr ? 2 - c : c);
      values[k] = (second ? next : here) ? table[c * kLevels + tile[source]] : 0.0f;
    }
    if (at + 4 <= count) {
      *reinterpret_cast<float4*>(to + at) = make_float4(values[0], values[1], values[2], values[3]);
    } else {
#pragma unroll
      for (int k = 0; k < 4; ++k)
        if (at + k < count) to[at + k] = values[k];
    }
  }
}

}  // namespace

void write_inputs(const Tensor& images, const Tensor& table, const std::vector<int64_t>& sizes, bool bgr,
                  Tensor& inputs) {
  const torch::stable::accelerator::DeviceGuard guard(images.get_device_index());
  const int64_t count = images.size(0), height = images.size(1), width = images.size(2);
  const int64_t values = 3 * height * width;
  for (int64_t first = 0; first < count; first += kImages) {
    const int64_t some = std::min<int64_t>(count - first, kImages);
    Job job{images.const_data_ptr<uint8_t>() + first * values,
            table.const_data_ptr<float>(),
            inputs.mutable_data_ptr<float>() + first * values,
            some * height * width,
            static_cast<uint32_t>(height),
            static_cast<uint32_t>(width),
            {},
            {}};
    for (int64_t i = 0; i < some; ++i) {
      job.heights[i] = static_cast<uint32_t>(sizes[2 * (first + i)]);
      job.widths[i] = static_cast<uint32_t>(sizes[2 * (first + i) + 1]);
    }
    const int64_t blocks = (job.pixels + kPixels - 1) / kPixels;
    STD_TORCH_CHECK(blocks <= INT32_MAX, "normalize_images: on CUDA the batch is too large for one call");
    const auto kernel = bgr ? normalize_kernel<true> : normalize_kernel<false>;
    kernel<<<static_cast<unsigned>(blocks), kThreads, 0, current_stream(images)>>>(job);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }
}

}  // namespace detector

STABLE_TORCH_LIBRARY_IMPL(detector, CUDA, library) {
  library.impl("normalize_images", TORCH_BOX(&detector::normalize_images));
}
