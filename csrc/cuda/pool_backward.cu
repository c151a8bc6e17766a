// A warp takes one channel of one image, or a part of its cells, and adds up in shared memory. It walks RoIs
// and bins in order; where several of its lanes meet in one cell they take turns. So no sum depends on
// timing.

#include "cuda/pool.h"

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>
#include <torch/headeronly/core/Dispatch_v2.h>

namespace detector {
namespace {

constexpr int64_t kWarps = 4;  // of a block; each has its own cells
constexpr int64_t kSharedBytes = 48 << 10;
constexpr unsigned kAll = 0xffffffffu;

template <typename scalar_t>
struct Job {
  Geometry geometry;
  const scalar_t* grad;
  const int32_t* argmax;
  const Compute<scalar_t>* rois;
  const int32_t* images;
  int64_t roi_count;
  int64_t batch;
  int64_t channels;
  int64_t plane;       // cells
  int64_t tile;        // cells a warp sums
  int64_t tile_count;  // of a plane
  scalar_t* out;
};

// Adds each lane's gradient to its cell of `sums`, lower lanes first; a cell outside [0, tile) is left out.
template <typename M>
__device__ void add_in_order(M* sums, int64_t tile, int64_t cell, M grad) {
  const unsigned lane = threadIdx.x % kWarp;
  const bool inside = cell >= 0 && cell < tile;
  const unsigned same = __match_any_sync(kAll, inside ? static_cast<int>(cell) : -1 - static_cast<int>(lane));
  const int turn = __popc(same & ((1u << lane) - 1));
  for (int now = 0; __any_sync(kAll, inside && turn >= now); ++now) {
    if (inside && turn == now) sums[cell] += grad;
    __syncwarp();
  }
}

template <typename scalar_t>
__device__ void scatter_roi(const Job<scalar_t>& job, int64_t roi, int64_t channel, int64_t first_cell,
                            Compute<scalar_t>* sums) {
  const int64_t lane = threadIdx.x % kWarp;
  for (int64_t l = 0; l < job.geometry.level_count; ++l) {
    const Level& level = job.geometry.levels[l];
    const int64_t bins = level.height * level.width;
    const int64_t at = (roi * job.geometry.bins + level.first_bin) * job.channels + channel * bins;
    for (int64_t begin = 0; begin < bins; begin += kWarp) {
      const bool mine = begin + lane < bins;
      const int64_t cell = mine ? job.argmax[at + begin + lane] : -1;
      const auto grad = static_cast<Compute<scalar_t>>(mine ? job.grad[at + begin + lane] : scalar_t(0));
      add_in_order(sums, job.tile, cell < 0 ? -1 : cell - first_cell, grad);
    }
  }
}

template <typename scalar_t>
__device__ void spread_roi(const Job<scalar_t>& job, int64_t roi, int64_t channel, int64_t first_cell,
                           Compute<scalar_t>* sums) {
  using M = Compute<scalar_t>;
  const M* box = job.rois + 5 * roi;
  for (int64_t l = 0; l < job.geometry.level_count; ++l) {
    const Level& level = job.geometry.levels[l];
    const int64_t bins = level.height * level.width;
    const int64_t at = (roi * job.geometry.bins + level.first_bin) * job.channels + channel * bins;
    for (int64_t bin = 0; bin < bins; ++bin) {
      const Edge row = edge_of(job.geometry, level, box, bin / level.width);
      const Edge column = edge_of(job.geometry, level, box, level.height + bin % level.width);
      if (row.begin >= row.end || column.begin >= column.end) continue;
      const int64_t width = column.end - column.begin, cells = (row.end - row.begin) * width;
      const M share = static_cast<M>(job.grad[at + bin]) / static_cast<M>(cells);
      for (int64_t i = threadIdx.x % kWarp; i < cells; i += kWarp) {
        const int64_t cell =
            (row.begin + i / width) * job.geometry.x.extent + column.begin + i % width - first_cell;
        if (cell >= 0 && cell < job.tile) sums[cell] += share;
      }
      __syncwarp();
    }
  }
}

template <typename scalar_t, bool average>
__global__ void __launch_bounds__(kWarps* kWarp) backward_kernel(const __grid_constant__ Job<scalar_t> job) {
  using M = Compute<scalar_t>;
  extern __shared__ unsigned char shared[];
  const int64_t warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  M* sums = reinterpret_cast<M*>(shared) + warp * job.tile;
  const int64_t task = blockIdx.x * kWarps + warp;
  if (task >= job.batch * job.channels * job.tile_count)
    return;  // whole warps: no barrier of a block follows
  const int64_t part = task % job.tile_count, channel = task / job.tile_count % job.channels;
  const int64_t image = task / job.tile_count / job.channels, first_cell = part * job.tile;

  for (int64_t i = lane; i < job.tile; i += kWarp) sums[i] = M(0);
  __syncwarp();
  for (int64_t begin = 0; begin < job.roi_count; begin += kWarp) {
    const bool ours = begin + lane < job.roi_count && job.images[begin + lane] == image;
    for (unsigned left = __ballot_sync(kAll, ours); left != 0; left &= left - 1) {
      const int64_t roi = begin + __ffs(left) - 1;
      average ? spread_roi(job, roi, channel, first_cell, sums)
              : scatter_roi(job, roi, channel, first_cell, sums);
    }
  }
  __syncwarp();
  scalar_t* out = job.out + (image * job.channels + channel) * job.plane + first_cell;
  for (int64_t i = lane; i < min(job.tile, job.plane - first_cell); i += kWarp)
    out[i] = static_cast<scalar_t>(sums[i]);
}

template <typename scalar_t>
void run(const Pooling& pooling, const Tensor& grad, const Tensor& rois, const Tensor& images,
         const Tensor& argmax, const Tensor& result) {
  const bool average = pooling.reduction == Reduction::average;
  const int64_t plane = pooling.y.extent * pooling.x.extent;
  const int64_t fits = kSharedBytes / kWarps / int64_t(sizeof(Compute<scalar_t>));
  const int64_t tile = plane < fits ? plane : fits;
  const Job<scalar_t> job{
      geometry_of(pooling),
      static_cast<const scalar_t*>(grad.data_ptr()),
      average ? nullptr : static_cast<const int32_t*>(argmax.data_ptr()),
      static_cast<const Compute<scalar_t>*>(rois.data_ptr()),
      static_cast<const int32_t*>(images.data_ptr()),
      rois.size(0),
      result.size(0),
      result.size(1),
      plane,
      tile,
      (plane + tile - 1) / tile,
      static_cast<scalar_t*>(result.data_ptr()),
  };
  const int64_t blocks = (job.batch * job.channels * job.tile_count + kWarps - 1) / kWarps;
  const size_t shared = kWarps * tile * sizeof(Compute<scalar_t>);
  const cudaStream_t stream = current_stream(result);
  if (average)
    backward_kernel<scalar_t, true><<<blocks, kWarps * kWarp, shared, stream>>>(job);
  else
    backward_kernel<scalar_t, false><<<blocks, kWarps * kWarp, shared, stream>>>(job);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace

Tensor pool_backward(const Pooling& pooling, const Tensor& grad, const Tensor& rois, const Tensor& argmax,
                     int64_t batch, int64_t channels) {
  check_gradient(pooling, grad, rois, argmax, batch, channels);
  const torch::stable::accelerator::DeviceGuard guard(grad.get_device_index());
  const Tensor grads = torch::stable::contiguous(grad), cells = torch::stable::contiguous(argmax);
  Tensor result = torch::stable::new_empty(grad, {batch, channels, pooling.y.extent, pooling.x.extent});
  if (result.numel() == 0) return result;
  const Tensor boxes = index_rois(grad, rois);
  const Tensor images = images_of(pooling, boxes, batch);
  THO_DISPATCH_V2(grad.scalar_type(), "region pooling",
                  AT_WRAP(([&] { run<scalar_t>(pooling, grads, boxes, images, cells, result); })),
                  AT_EXPAND(AT_FLOATING_TYPES), ScalarType::Half, ScalarType::BFloat16);
  return result;
}

}  // namespace detector
