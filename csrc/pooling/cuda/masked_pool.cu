// A block takes one RoI and some channels, and every gridDim.z-th of its bins. For each bin all of its threads
// walk over the cells that the mask may cover, or over the samples.

#include "pooling/cuda/masked.h"

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>

#include <algorithm>

namespace detector {
namespace {

constexpr int kRegionThreads = 64;
constexpr int kMostParts = 8;  // blocks that share the bins of a RoI

template <typename T>
struct RegionJob {
  Geometry geometry;
  const T* rois;
  const int64_t* windows;
  int64_t entries;
  int64_t images;
  int64_t ratio;
  bool samples;
  Region* regions;
  Edge* edges;
};

template <typename T>
__device__ __forceinline__ Edge reads_of_edge(const RegionJob<T>& job, const T* roi, const Cover& cover,
                                              int edge) {
  const Geometry& geometry = job.geometry;
  int g = 0;
  while (g + 1 < geometry.grid_count && geometry.grids[g + 1].first_edge <= edge) ++g;
  const Grid& grid = geometry.grids[g];
  const int64_t index = edge - grid.first_edge;
  const bool row = index < grid.height;
  if (!job.samples) {
    const Edge bin = edge_of(geometry, roi, edge);
    return row ? cover.rows_of(bin) : cover.columns_of(bin);
  }
  return row ? reads_of(samples_of<T>(roi[2], roi[4], geometry.y, job.ratio, index, grid.height),
                        geometry.y.extent)
             : reads_of(samples_of<T>(roi[1], roi[3], geometry.x, job.ratio, index - grid.height, grid.width),
                        geometry.x.extent);
}

__device__ __forceinline__ Edge around(Edge all, Edge one) {
  if (one.begin >= one.end) return all;
  if (all.begin >= all.end) return one;
  return {min(all.begin, one.begin), max(all.end, one.end)};
}

template <typename T>
__global__ void __launch_bounds__(kRegionThreads) region_kernel(const __grid_constant__ RegionJob<T> job) {
  const int64_t number = blockIdx.x;
  const Geometry& geometry = job.geometry;
  const T* roi = job.rois + 5 * number;
  Edge* edges = job.edges + number * geometry.edges;
  Region region{};
  region.image = image_of(geometry.rule, roi, job.images);
  if (!read_cover(job.windows + 5 * number, job.entries, geometry.y.extent, geometry.x.extent,
                  &region.cover))
    region.image = -1;
  for (int i = threadIdx.x; i < geometry.edges; i += kRegionThreads)
    edges[i] = region.image < 0 ? Edge{0, 0} : reads_of_edge(job, roi, region.cover, i);
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int g = 0; g < geometry.grid_count; ++g) {
    const Edge* rows = edges + geometry.grids[g].first_edge;
    const Edge* columns = rows + geometry.grids[g].height;
    for (int p = 0; p < geometry.grids[g].height; ++p) region.rows = around(region.rows, rows[p]);
    for (int q = 0; q < geometry.grids[g].width; ++q) region.columns = around(region.columns, columns[q]);
  }
  job.regions[number] = region;
}

template <typename T>
void launch_regions(const MaskedPooling& masked, const Geometry& geometry, const Tensor& rois,
                    const Tensor& windows, int64_t entries, int64_t images, const Regions& regions) {
  const RegionJob<T> job{
      geometry,
      static_cast<const T*>(rois.data_ptr()),
      static_cast<const int64_t*>(windows.data_ptr()),
      entries,
      images,
      masked.ratio,
      masked.samples(),
      const_cast<Region*>(regions.regions),
      const_cast<Edge*>(regions.edges),
  };
  region_kernel<T><<<rois.size(0), kRegionThreads, 0, current_stream(rois)>>>(job);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

template <typename scalar_t>
struct Job {
  Geometry geometry;
  const Compute<scalar_t>* rois;
  const Region* regions;
  const Edge* edges;
  const void* cover;  // bool for maxima, float for averages
  int64_t ratio;
  bool samples;
  const scalar_t* cells;  // (N, H, W, C)
  int channels;
  scalar_t* pooled;
  void* kept;  // null, or as csrc/pooling/masked.h says
};

// One channel of a bin while it is pooled.
template <typename M, Mode mode>
struct Bin {
  using Number = std::conditional_t<mode == Mode::avg, float, unsigned char>;
  M value = mode == Mode::avg ? M(0) : M(kLowest);
  M total = M(0);  // of the weights; for maxima 1 once a cell or a sample counts
  int32_t place = -1;

  __device__ __forceinline__ void take(M number, M weight, int32_t at) {
    if constexpr (mode == Mode::avg) {
      value += number;
      total += weight;
    } else {
      total = M(1);
      if (number > value) {
        value = number;
        if constexpr (mode == Mode::argmax) place = at;
      }
    }
  }
};

// `rows` and `columns` lie within the window of the mask, if there is one. Four cells are read at a time.
template <typename M, Mode mode, typename scalar_t>
__device__ __forceinline__ void pool_cells(const Job<scalar_t>& job, const Cover& cover, Edge rows,
                                           Edge columns, const scalar_t* image, Bin<M, mode>& bin) {
  constexpr int kTogether = 4;
  using Number = typename Bin<M, mode>::Number;
  const Number* numbers = static_cast<const Number*>(job.cover) + cover.entry;
  const bool whole = cover.whole();
  const int width = static_cast<int>(job.geometry.x.extent);
  for (int y = rows.begin; y < rows.end; ++y)
    for (int first = columns.begin; first < columns.end; first += kTogether) {
      M weight[kTogether], value[kTogether];
#pragma unroll
      for (int i = 0; i < kTogether; ++i) {
        const int x = first + i;
        weight[i] = M(0), value[i] = M(0);
        if (x < columns.end)
          weight[i] = whole ? M(1) : static_cast<M>(numbers[int64_t(y) * cover.stride + x]);
        if (weight[i] > M(0))
          value[i] = static_cast<M>(image[(int64_t(y) * width + x) * job.channels]);
      }
#pragma unroll
      for (int i = 0; i < kTogether; ++i)
        if (weight[i] > M(0))
          bin.take(mode == Mode::avg ? value[i] * weight[i] : value[i], weight[i], y * width + first + i);
    }
}

// RoIAlign's mean divides by the number of all samples; those outside the map count as 0.
template <typename M, Mode mode, typename scalar_t>
__device__ __forceinline__ void pool_samples(const Job<scalar_t>& job, const Cover& cover,
                                             const SampleGrid<M>& samples, const scalar_t* image,
                                             Bin<M, mode>& bin) {
  using Number = typename Bin<M, mode>::Number;
  const Number* numbers = static_cast<const Number*>(job.cover);
  const bool whole = cover.whole();
  const int64_t height = job.geometry.y.extent, width = job.geometry.x.extent;
  for (int i = samples.rows.begin; i < samples.rows.end; ++i) {
    const Sample<M> y = sample_at(samples.rows, i, height);
    if (!y.on_map) continue;
    for (int j = samples.columns.begin; j < samples.columns.end; ++j) {
      const Sample<M> x = sample_at(samples.columns, j, width);
      if (!x.on_map) continue;
      if (mode != Mode::avg && !(cover.at<M>(numbers, y.cell, x.cell) > M(0))) continue;
      M weights[4], values[4];
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const Read<M> read(y, x, k);
        weights[k] = read.weight;
        if (mode == Mode::avg && !whole) weights[k] *= cover.at<M>(numbers, read.y, read.x);
        values[k] = static_cast<M>(image[(read.y * width + read.x) * job.channels]);
      }
      const M total = weights[0] + weights[1] + weights[2] + weights[3];
      if (mode == Mode::avg && !(total > M(0))) continue;
      bin.take(weights[0] * values[0] + weights[1] * values[1] + weights[2] * values[2] +
                   weights[3] * values[3],
               total, (i - samples.rows.begin) * samples.across() + j - samples.columns.begin);
    }
  }
  if (mode == Mode::avg && whole) bin.total = samples.rows.count * samples.columns.count;
}

template <typename scalar_t, Mode mode>
__global__ void __launch_bounds__(kChannels) pool_kernel(const __grid_constant__ Job<scalar_t> job) {
  using M = Compute<scalar_t>;
  const int64_t roi = blockIdx.x;
  const int channel = blockIdx.y * kChannels + threadIdx.x;
  if (channel >= job.channels) return;
  const Geometry& geometry = job.geometry;
  const Region& region = job.regions[roi];
  const Cover cover = region.cover;
  const int32_t image = region.image;
  const scalar_t* cells =
      job.cells + max(image, 0) * geometry.y.extent * geometry.x.extent * job.channels + channel;
  for (int number = blockIdx.z; number < geometry.bins; number += gridDim.z) {
    const Grid& grid = grid_of(geometry, number);
    const int index = number - static_cast<int>(grid.first_bin), across = static_cast<int>(grid.width);
    const int p = index / across, q = index % across;
    Bin<M, mode> bin;
    if (image >= 0 && job.samples) {
      pool_samples<M, mode>(job, cover, SampleGrid<M>(geometry, job.rois + 5 * roi, job.ratio, grid, p, q),
                            cells, bin);
    } else if (image >= 0) {
      const Edge* rows = job.edges + roi * geometry.edges + grid.first_edge;
      pool_cells<M, mode>(job, cover, rows[p], rows[grid.height + q], cells, bin);
    }
    M value = M(0);
    if (bin.total > M(0)) value = mode == Mode::avg ? bin.value / bin.total : bin.value + M(0);  // never -0
    const int64_t first = roi * geometry.bins + grid.first_bin, count = grid.height * grid.width;
    job.pooled[first * job.channels + channel * count + index] = static_cast<scalar_t>(value);
    if constexpr (mode == Mode::argmax)
      static_cast<int32_t*>(job.kept)[(first + index) * job.channels + channel] = bin.place;
    if (mode == Mode::avg && job.kept != nullptr && channel == 0)
      static_cast<M*>(job.kept)[first + index] = bin.total;
  }
}

template <typename scalar_t>
void run(const MaskedPooling& masked, const Geometry& geometry, const Tensor& features, const Tensor& rois,
         const Regions& regions, const Tensor& cover, const Tensor& pooled, const Tensor& kept, bool keep) {
  const Tensor cells = torch::stable::contiguous(features, torch::headeronly::MemoryFormat::ChannelsLast);
  const Job<scalar_t> job{
      geometry,
      static_cast<const Compute<scalar_t>*>(rois.data_ptr()),
      regions.regions,
      regions.edges,
      cover.data_ptr(),
      masked.ratio,
      masked.samples(),
      static_cast<const scalar_t*>(cells.data_ptr()),
      static_cast<int>(features.size(1)),
      static_cast<scalar_t*>(pooled.data_ptr()),
      keep ? kept.data_ptr() : nullptr,
  };
  const dim3 blocks(rois.size(0), channel_blocks(features.size(1)), std::min(geometry.bins, kMostParts));
  const cudaStream_t stream = current_stream(features);
  if (masked.weighted)
    pool_kernel<scalar_t, Mode::avg><<<blocks, kChannels, 0, stream>>>(job);
  else if (keep)
    pool_kernel<scalar_t, Mode::argmax><<<blocks, kChannels, 0, stream>>>(job);
  else
    pool_kernel<scalar_t, Mode::max><<<blocks, kChannels, 0, stream>>>(job);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace

Regions read_regions(const MaskedPooling& masked, const Geometry& geometry, const Tensor& rois,
                     const Tensor& windows, const Tensor& cover, int64_t images) {
  const int64_t count = rois.size(0), region_bytes = count * int64_t(sizeof(Region));
  static_assert(sizeof(Region) % sizeof(int64_t) == 0 && sizeof(Edge) == sizeof(int64_t));
  Regions regions{torch::stable::new_empty(
                      rois, {region_bytes / int64_t(sizeof(int64_t)) + count * geometry.edges},
                      ScalarType::Long),
                  nullptr, nullptr};
  auto* memory = static_cast<unsigned char*>(regions.memory.data_ptr());
  regions.regions = reinterpret_cast<const Region*>(memory);
  regions.edges = reinterpret_cast<const Edge*>(memory + region_bytes);
  if (count == 0) return regions;
  if (rois.scalar_type() == ScalarType::Double)
    launch_regions<double>(masked, geometry, rois, windows, cover.numel(), images, regions);
  else
    launch_regions<float>(masked, geometry, rois, windows, cover.numel(), images, regions);
  return regions;
}

std::tuple<Tensor, Tensor> pool_masked(const MaskedPooling& masked, const Tensor& features,
                                       const Tensor& rois, const Tensor& windows, const Tensor& cover,
                                       bool keep) {
  const torch::stable::accelerator::DeviceGuard guard(features.get_device_index());
  const Geometry geometry = geometry_of(masked.pooling);
  Tensor pooled = torch::stable::new_empty(features, {rois.size(0), features.size(1) * geometry.bins});
  Tensor kept = new_kept(masked, features, rois.size(0), keep);
  if (pooled.numel() == 0) {
    torch::stable::zero_(kept);
    return {pooled, kept};
  }
  const Regions regions = read_regions(masked, geometry, rois, windows, cover, features.size(0));
  dispatch(features.scalar_type(), [&]<typename scalar_t>() {
    run<scalar_t>(masked, geometry, features, rois, regions, cover, pooled, kept, keep);
  });
  return {pooled, kept};
}

}  // namespace detector
