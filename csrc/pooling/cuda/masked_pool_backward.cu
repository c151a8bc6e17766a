// A block takes a part of a row of the map and some channels, one per thread. It walks over the RoIs of its
// image and their bins in ascending order, and every thread adds to its own channel's cells. So each cell is
// summed in one order, that of the CPU, and no two threads write to one cell.

#include "pooling/cuda/masked.h"

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>

namespace detector {
namespace {

constexpr int kColumns = 32;  // cells of a block

template <typename scalar_t>
struct Job {
  Geometry geometry;
  const Compute<scalar_t>* rois;
  const Region* regions;
  const Edge* edges;
  const float* coverage;
  const int32_t* places;  // of maxima
  const Compute<scalar_t>* totals;  // of averages
  int64_t ratio;
  bool samples;
  int count;  // of RoIs
  const scalar_t* grad;
  int channels;
  scalar_t* out;
};

// The cells of a block and the sums of a thread's channel.
template <typename M>
struct Row {
  int32_t y;
  Edge columns;
  M* sums;

  __device__ __forceinline__ bool meets(Edge rows, Edge other) const {
    return rows.begin <= y && y < rows.end && other.begin < columns.end && other.end > columns.begin;
  }
  __device__ __forceinline__ void add(int32_t row, int32_t x, M value) const {
    if (row == y && x >= columns.begin && x < columns.end) sums[(x - columns.begin) * kChannels] += value;
  }
};

// Sends a gradient to the cell, or to the four cells, that its maximum came from.
template <typename scalar_t, typename M>
__device__ __forceinline__ void scatter(const Job<scalar_t>& job, const Row<M>& row, const M* roi,
                                        const Grid& grid, int p, int q, int32_t place, M grad) {
  const int width = static_cast<int>(job.geometry.x.extent);
  if (place < 0) return;
  if (!job.samples) return row.add(place / width, place % width, grad);
  const SampleGrid<M> samples(job.geometry, roi, job.ratio, grid, p, q);
  const int across = samples.across();
  if (across <= 0 || place / across >= samples.rows.end - samples.rows.begin) return;
  const Sample<M> y = sample_at(samples.rows, samples.rows.begin + place / across, job.geometry.y.extent);
  const Sample<M> x = sample_at(samples.columns, samples.columns.begin + place % across, width);
  if (!y.on_map || !x.on_map) return;
#pragma unroll
  for (int k = 0; k < 4; ++k) {
    const Read<M> read(y, x, k);
    row.add(read.y, read.x, grad * read.weight);
  }
}

// Gives each cell of an average its share.
template <typename scalar_t, typename M>
__device__ __forceinline__ void spread(const Job<scalar_t>& job, const Row<M>& row, const Cover& cover,
                                       const M* roi, const Grid& grid, int p, int q, Edge columns, M share) {
  if (!job.samples) {
    const int begin = max(columns.begin, row.columns.begin), end = min(columns.end, row.columns.end);
    for (int x = begin; x < end; ++x) {
      const M weight = cover.at<M>(job.coverage, row.y, x);
      if (weight > M(0)) row.add(row.y, x, share * weight);
    }
    return;
  }
  const SampleGrid<M> samples(job.geometry, roi, job.ratio, grid, p, q);
  for (int i = samples.rows.begin; i < samples.rows.end; ++i) {
    const Sample<M> y = sample_at(samples.rows, i, job.geometry.y.extent);
    if (!y.on_map || (y.low != row.y && y.high != row.y)) continue;
    for (int j = samples.columns.begin; j < samples.columns.end; ++j) {
      const Sample<M> x = sample_at(samples.columns, j, job.geometry.x.extent);
      if (!x.on_map || x.high < row.columns.begin || x.low >= row.columns.end) continue;
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const Read<M> read(y, x, k);
        const M weight = read.weight * cover.at<M>(job.coverage, read.y, read.x);
        if (weight > M(0)) row.add(read.y, read.x, share * weight);
      }
    }
  }
}

template <typename scalar_t, bool weighted, typename M>
__device__ __forceinline__ void add_region(const Job<scalar_t>& job, const Row<M>& row, int64_t number,
                                           int channel) {
  const Geometry& geometry = job.geometry;
  const Cover cover = job.regions[number].cover;
  const M* roi = job.rois + 5 * number;
  for (int g = 0; g < geometry.grid_count; ++g) {
    const Grid& grid = geometry.grids[g];
    const int high = static_cast<int>(grid.height), wide = static_cast<int>(grid.width);
    const Edge* rows = job.edges + number * geometry.edges + grid.first_edge;
    const Edge* columns = rows + high;
    const int64_t first = number * geometry.bins + grid.first_bin;
    const scalar_t* grads = job.grad + first * job.channels + int64_t(channel) * high * wide;
    for (int p = 0; p < high; ++p) {
      const Edge reach = rows[p];
      if (row.y < reach.begin || row.y >= reach.end) continue;
      for (int q = 0; q < wide; ++q) {
        const Edge across = columns[q];
        if (!row.meets(reach, across)) continue;
        const int index = p * wide + q;
        if constexpr (weighted) {
          const M total = job.totals[first + index];
          if (total > M(0))
            spread(job, row, cover, roi, grid, p, q, across, static_cast<M>(grads[index]) / total);
        } else {
          scatter(job, row, roi, grid, p, q, job.places[(first + index) * job.channels + channel],
                  static_cast<M>(grads[index]));
        }
      }
    }
  }
}

template <typename scalar_t, bool weighted>
__global__ void __launch_bounds__(kChannels) backward_kernel(const __grid_constant__ Job<scalar_t> job) {
  using M = Compute<scalar_t>;
  __shared__ M sums[kColumns * kChannels];  // each thread has a column of its own
  const int height = static_cast<int>(job.geometry.y.extent), width = static_cast<int>(job.geometry.x.extent);
  const int parts = (width + kColumns - 1) / kColumns;
  const int image = blockIdx.x / parts / height, left = static_cast<int>(blockIdx.x % parts) * kColumns;
  const int lane = threadIdx.x % kWarp, channel = blockIdx.y * kChannels + threadIdx.x;
  const Row<M> row{static_cast<int32_t>(blockIdx.x / parts % height), {left, min(left + kColumns, width)},
                   sums + threadIdx.x};
  for (int i = 0; i < kColumns; ++i) row.sums[i * kChannels] = M(0);
  for (int base = 0; base < job.count; base += kWarp) {
    bool mine = base + lane < job.count;
    if (mine) {
      const Region& region = job.regions[base + lane];
      mine = region.image == image && row.meets(region.rows, region.columns);
    }
    for (unsigned found = __ballot_sync(0xffffffffu, mine); found != 0; found &= found - 1) {
      if (channel < job.channels)
        add_region<scalar_t, weighted>(job, row, base + __ffs(static_cast<int>(found)) - 1, channel);
    }
  }
  if (channel >= job.channels) return;
  scalar_t* out = job.out + ((int64_t(image) * job.channels + channel) * height + row.y) * width + left;
  for (int i = 0; i < row.columns.end - left; ++i) out[i] = static_cast<scalar_t>(row.sums[i * kChannels]);
}

template <typename scalar_t>
void run(const MaskedPooling& masked, const Geometry& geometry, const Tensor& grad, const Tensor& rois,
         const Regions& regions, const Tensor& cover, const Tensor& kept, const Tensor& result) {
  using M = Compute<scalar_t>;
  const Job<scalar_t> job{
      geometry,
      static_cast<const M*>(rois.data_ptr()),
      regions.regions,
      regions.edges,
      masked.weighted ? static_cast<const float*>(cover.data_ptr()) : nullptr,
      masked.weighted ? nullptr : static_cast<const int32_t*>(kept.data_ptr()),
      masked.weighted ? static_cast<const M*>(kept.data_ptr()) : nullptr,
      masked.ratio,
      masked.samples(),
      static_cast<int>(rois.size(0)),
      static_cast<const scalar_t*>(grad.data_ptr()),
      static_cast<int>(result.size(1)),
      static_cast<scalar_t*>(result.data_ptr()),
  };
  const int64_t rows = result.size(0) * geometry.y.extent * ((geometry.x.extent + kColumns - 1) / kColumns);
  STD_TORCH_CHECK(rows <= INT32_MAX && rois.size(0) <= INT32_MAX - kWarp,
                  "masked_pool: on CUDA the features or the RoIs are too many for one call");
  const dim3 blocks(rows, channel_blocks(result.size(1)));
  if (masked.weighted)
    backward_kernel<scalar_t, true><<<blocks, kChannels, 0, current_stream(result)>>>(job);
  else
    backward_kernel<scalar_t, false><<<blocks, kChannels, 0, current_stream(result)>>>(job);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace

Tensor pool_masked_backward(const MaskedPooling& masked, const Tensor& grad, const Tensor& rois,
                            const Tensor& windows, const Tensor& cover, const Tensor& kept, int64_t batch,
                            int64_t channels) {
  const torch::stable::accelerator::DeviceGuard guard(grad.get_device_index());
  const Geometry geometry = geometry_of(masked.pooling);
  Tensor result =
      torch::stable::new_empty(grad, {batch, channels, masked.pooling.y.extent, masked.pooling.x.extent});
  if (result.numel() == 0) return result;
  const Regions regions = read_regions(masked, geometry, rois, windows, cover, batch);
  dispatch(grad.scalar_type(), [&]<typename scalar_t>() {
    run<scalar_t>(masked, geometry, grad, rois, regions, cover, kept, result);
  });
  return result;
}

}  // namespace detector
