// A block takes one RoI and 64 channels. The map is channels-last, so a warp reads 32 channels of a cell at
// once; bins gather in shared memory and leave it transposed, so that writes are whole lines as well.

#include "cuda/pool.h"

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>
#include <torch/headeronly/core/Dispatch_v2.h>

namespace detector {
namespace {

enum class Mode { max, argmax, average };

constexpr int64_t kThreads = 256;
constexpr int64_t kPerLane = 2;                  // channels a lane holds, a warp's width apart
constexpr int64_t kChannels = kPerLane * kWarp;  // channels of a block
constexpr int64_t kRow = kChannels + 1;          // a tile's row, padded: its columns lie in different banks
constexpr int64_t kMaxEdges = 1024;              // that fit beside the tile in 48 KiB of shared memory

// Bins held in shared memory at a time.
template <typename M>
constexpr int64_t kTileBins = 256 / sizeof(M);

template <typename scalar_t>
struct Job {
  Geometry geometry;
  const scalar_t* map;  // (N, H, W, C), images `image_stride` and cells `cell_stride` apart
  int64_t image_stride;
  int64_t cell_stride;
  int64_t channels;
  const Compute<scalar_t>* rois;
  const int32_t* images;
  scalar_t* pooled;
  int32_t* argmax;
};

// One bin of all the block's channels, by one warp.
template <typename scalar_t, Mode mode>
__device__ void pool_bin(const Job<scalar_t>& job, const scalar_t* image, Edge row, Edge column,
                         int64_t channels, Compute<scalar_t>* values, int32_t* indices) {
  using M = Compute<scalar_t>;
  const int lane = threadIdx.x % kWarp;
  M best[kPerLane];
  int32_t where[kPerLane];
  for (int v = 0; v < kPerLane; ++v) best[v] = mode == Mode::average ? M(0) : M(kLowest), where[v] = -1;
  for (int64_t y = row.begin; y < row.end; ++y)
    for (int64_t x = column.begin; x < column.end; ++x) {
      const int64_t cell = y * job.geometry.x.extent + x;
#pragma unroll
      for (int v = 0; v < kPerLane; ++v) {
        if (lane + v * kWarp >= channels) continue;
        const M value = static_cast<M>(image[cell * job.cell_stride + lane + v * kWarp]);
        if (mode == Mode::average) {
          best[v] += value;
        } else if (value > best[v]) {
          best[v] = value;
          where[v] = static_cast<int32_t>(cell);
        }
      }
    }
  const bool empty = row.begin >= row.end || column.begin >= column.end;
  const M count = static_cast<M>(int64_t(row.end - row.begin) * (column.end - column.begin));
  for (int v = 0; v < kPerLane; ++v) {
    values[lane + v * kWarp] = empty ? M(0) : (mode == Mode::average ? best[v] / count : best[v]);
    if (mode == Mode::argmax) indices[lane + v * kWarp] = where[v];
  }
}

__device__ const Level& level_of(const Geometry& geometry, int64_t bin) {
  int64_t level = 0;
  while (level + 1 < geometry.level_count && geometry.levels[level + 1].first_bin <= bin) ++level;
  return geometry.levels[level];
}

// Writes the bins first .. last of a level: threads run over bins, the innermost axis of the output.
template <typename scalar_t, Mode mode>
__device__ void write_level(const Job<scalar_t>& job, const Level& level, int64_t first, int64_t last,
                            int64_t roi, int64_t first_channel, int64_t channels,
                            const Compute<scalar_t>* values, const int32_t* indices) {
  const int64_t bins = level.height * level.width, count = last - first;
  const int64_t out = (roi * job.geometry.bins + level.first_bin) * job.channels + first_channel * bins;
  for (int64_t i = threadIdx.x; i < channels * count; i += blockDim.x) {
    const int64_t channel = i / count, bin = i % count;
    const int64_t to = out + channel * bins + first - level.first_bin + bin;
    job.pooled[to] = static_cast<scalar_t>(values[bin * kRow + channel]);
    if (mode == Mode::argmax) job.argmax[to] = indices[bin * kRow + channel];
  }
}

template <typename scalar_t, Mode mode>
__global__ void __launch_bounds__(kThreads) pool_kernel(const __grid_constant__ Job<scalar_t> job) {
  using M = Compute<scalar_t>;
  __shared__ M values[kTileBins<M> * kRow];
  __shared__ int32_t indices[mode == Mode::argmax ? kTileBins<M> * kRow : 1];
  extern __shared__ Edge edges[];
  const Geometry& geometry = job.geometry;
  const int64_t roi = blockIdx.x, first_channel = blockIdx.y * kChannels;
  const int64_t channels = min(kChannels, job.channels - first_channel);
  const int32_t image_index = job.images[roi];

  for (int64_t l = 0; l < geometry.level_count; ++l) {
    const Level& level = geometry.levels[l];
    for (int64_t i = threadIdx.x; i < level.height + level.width; i += blockDim.x)
      edges[level.first_edge + i] =
          image_index < 0 ? Edge{0, 0} : edge_of(geometry, level, job.rois + 5 * roi, i);
  }
  __syncthreads();
  const scalar_t* image = job.map + (image_index < 0 ? 0 : image_index) * job.image_stride + first_channel;
  for (int64_t begin = 0; begin < geometry.bins; begin += kTileBins<M>) {
    const int64_t end = min(begin + kTileBins<M>, geometry.bins);
    for (int64_t bin = begin + threadIdx.x / kWarp; bin < end; bin += kThreads / kWarp) {
      const Level& level = level_of(geometry, bin);
      const int64_t at = bin - level.first_bin, tile = (bin - begin) * kRow;
      const Edge* rows = edges + level.first_edge;
      pool_bin<scalar_t, mode>(job, image, rows[at / level.width], rows[level.height + at % level.width],
                               channels, values + tile, indices + (mode == Mode::argmax ? tile : 0));
    }
    __syncthreads();
    for (int64_t l = 0; l < geometry.level_count; ++l) {
      const Level& level = geometry.levels[l];
      const int64_t first = max(begin, level.first_bin);
      const int64_t last = min(end, level.first_bin + level.height * level.width);
      if (first < last)
        write_level<scalar_t, mode>(job, level, first, last, roi, first_channel, channels,
                                    values + (first - begin) * kRow,
                                    indices + (mode == Mode::argmax ? (first - begin) * kRow : 0));
    }
    __syncthreads();
  }
}

template <typename scalar_t>
void run(const Pooling& pooling, const Tensor& map, const Tensor& rois, const Tensor& images,
         const Tensor& pooled, const Tensor& argmax, bool with_argmax) {
  const Job<scalar_t> job{
      geometry_of(pooling),
      static_cast<const scalar_t*>(map.data_ptr()),
      map.stride(0),
      map.stride(3),
      map.size(1),
      static_cast<const Compute<scalar_t>*>(rois.data_ptr()),
      static_cast<const int32_t*>(images.data_ptr()),
      static_cast<scalar_t*>(pooled.data_ptr()),
      with_argmax ? static_cast<int32_t*>(argmax.data_ptr()) : nullptr,
  };
  const dim3 grid(rois.size(0), (job.channels + kChannels - 1) / kChannels);
  const size_t shared = pooling.edges * sizeof(Edge);
  const cudaStream_t stream = current_stream(map);
  if (pooling.reduction == Reduction::average)
    pool_kernel<scalar_t, Mode::average><<<grid, kThreads, shared, stream>>>(job);
  else if (with_argmax)
    pool_kernel<scalar_t, Mode::argmax><<<grid, kThreads, shared, stream>>>(job);
  else
    pool_kernel<scalar_t, Mode::max><<<grid, kThreads, shared, stream>>>(job);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

// The map with the channels of a cell side by side: itself where they are so already, else one copy.
Tensor channels_last(const Tensor& features) {
  const bool already = features.stride(1) == 1 && features.stride(2) == features.stride(3) * features.size(3);
  return already ? features
                 : torch::stable::contiguous(features, torch::headeronly::MemoryFormat::ChannelsLast);
}

}  // namespace

std::tuple<Tensor, Tensor> pool(const Pooling& pooling, const Tensor& features, const Tensor& rois,
                                torch::headeronly::IntHeaderOnlyArrayRef shape, bool with_argmax) {
  const torch::stable::accelerator::DeviceGuard guard(features.get_device_index());
  STD_TORCH_CHECK(pooling.edges <= kMaxEdges, pooling.name, ": on CUDA a RoI has at most ", kMaxEdges,
                  " bin edges, not ", pooling.edges);
  with_argmax = with_argmax && pooling.reduction == Reduction::max;
  Tensor pooled = torch::stable::new_empty(features, shape);
  Tensor argmax = new_argmax(pooled, with_argmax);
  if (pooled.numel() == 0) return {pooled, argmax};
  const Tensor boxes = index_rois(features, rois);
  const Tensor images = images_of(pooling, boxes, features.size(0));
  const Tensor map = channels_last(features);
  THO_DISPATCH_V2(features.scalar_type(), "region pooling",
                  AT_WRAP(([&] { run<scalar_t>(pooling, map, boxes, images, pooled, argmax, with_argmax); })),
                  AT_EXPAND(AT_FLOATING_TYPES), ScalarType::Half, ScalarType::BFloat16);
  return {pooled, argmax};
}

}  // namespace detector
