#include "huge_pages.h"
#include "pooling/cpu/lanes.h"
#include "pooling/cpu/regions.h"
#include "pooling/operators.h"

#include <algorithm>

namespace detector {
namespace {

constexpr int64_t kWorthAThread = 1 << 14;  // additions under which waking a thread costs more than it saves
constexpr int64_t kChannels = 4;  // whose planes a task sums at a time: they stay in the first-level cache

template <typename scalar_t>
struct Job {
  const Pooling& pooling;
  const Regions& regions;
  const std::vector<std::vector<int64_t>>& rois_of;  // for each image its RoIs, ascending
  const scalar_t* grad;
  const int32_t* argmax;
  int64_t channels;
  int64_t plane;  // cells
  scalar_t* out;
};

// The next RoI's part of the output lies far off, and is too short for the processor to see it coming.
template <typename scalar_t>
void prefetch(const Job<scalar_t>& job, int64_t at, int64_t count) {
  constexpr int64_t kLine = 64 / sizeof(int32_t);
  for (int64_t i = at; i < at + count; i += kLine) {
    __builtin_prefetch(job.grad + i);
    __builtin_prefetch(job.argmax + i);
  }
}

// Sends every gradient of image `image` and the given channels to the cell its value came from.
template <typename scalar_t>
void scatter(const Job<scalar_t>& job, int64_t image, int64_t first, int64_t count, Compute<scalar_t>* sums) {
  const std::vector<int64_t>& rois = job.rois_of[image];
  const int64_t stride = job.pooling.bins * job.channels;  // of a RoI in the output
  for (size_t i = 0; i < rois.size(); ++i)
    for (const Grid& grid : job.pooling.grids) {
      const int64_t bins = grid.height * grid.width, offset = grid.first_bin * job.channels + first * bins;
      const int64_t at = rois[i] * stride + offset;
      if (i + 1 < rois.size()) prefetch(job, rois[i + 1] * stride + offset, count * bins);
      for (int64_t c = 0; c < count; ++c) {
        const scalar_t* grad = job.grad + at + c * bins;
        const int32_t* cell = job.argmax + at + c * bins;
        Compute<scalar_t>* plane = sums + c * job.plane;
        for (int64_t bin = 0; bin < bins; ++bin)  // an empty bin's cell, -1, is out of the map as well
          if (static_cast<uint32_t>(cell[bin]) < static_cast<uint64_t>(job.plane))
            plane[cell[bin]] += static_cast<Compute<scalar_t>>(grad[bin]);
      }
    }
}

template <typename scalar_t>
void scatter_tasks(const Job<scalar_t>& job, int64_t begin, int64_t end) {
  using M = Compute<scalar_t>;
  constexpr bool direct = std::is_same_v<M, scalar_t>;
  const int64_t blocks = (job.channels + kChannels - 1) / kChannels;
  std::vector<M> scratch(direct ? 0 : kChannels * job.plane);
  for (int64_t task = begin; task < end; ++task) {
    const int64_t image = task / blocks, first = task % blocks * kChannels;
    const int64_t count = std::min(kChannels, job.channels - first);
    scalar_t* out = job.out + (image * job.channels + first) * job.plane;
    M* sums = scratch.data();
    if constexpr (direct) sums = out;
    std::fill(sums, sums + count * job.plane, M(0));
    scatter(job, image, first, count, sums);
    if constexpr (!direct)
      for (int64_t i = 0; i < count * job.plane; ++i) out[i] = static_cast<scalar_t>(sums[i]);
  }
}

// Adds to the sums (plane, kLanes) what one grid of one RoI gives: each bin's gradient, over its cells
// evenly.
template <typename M>
DETECTOR_INLINE void spread(const Grid& grid, const Edge* edges, int64_t map_width, const M* grads, M* sums) {
  const Edge* rows = edges + grid.first_edge;
  const Edge* columns = rows + grid.height;
  for (int64_t p = 0; p < grid.height; ++p)
    for (int64_t q = 0; q < grid.width; ++q) {
      if (is_empty(rows[p], columns[q])) continue;
      const M cells =
          static_cast<M>(int64_t(rows[p].end - rows[p].begin) * (columns[q].end - columns[q].begin));
      const Vector<M> share = load<Vector<M>>(grads + (p * grid.width + q) * kLanes) / cells;
      for (int64_t y = rows[p].begin; y < rows[p].end; ++y)
        for (int64_t x = columns[q].begin; x < columns[q].end; ++x) {
          M* sum = sums + (y * map_width + x) * kLanes;
          store(sum, load<Vector<M>>(sum) + share);
        }
    }
}

template <typename scalar_t>
DETECTOR_INLINE void spread_tasks(const Job<scalar_t>& job, int64_t begin, int64_t end) {
  using M = Compute<scalar_t>;
  const int64_t blocks = (job.channels + kLanes - 1) / kLanes;
  std::vector<M> sums(job.plane * kLanes), grads(job.pooling.bins * kLanes);
  for (int64_t task = begin; task < end; ++task) {
    const int64_t image = task / blocks, first = task % blocks * kLanes;
    const int64_t count = std::min(kLanes, job.channels - first);
    std::fill(sums.begin(), sums.end(), M(0));
    for (const int64_t roi : job.rois_of[image])
      for (const Grid& grid : job.pooling.grids) {
        const int64_t bins = grid.height * grid.width;
        const scalar_t* grad =
            job.grad + (roi * job.pooling.bins + grid.first_bin) * job.channels + first * bins;
        for (int64_t c = 0; c < count; ++c)
          for (int64_t bin = 0; bin < bins; ++bin)
            grads[bin * kLanes + c] = static_cast<M>(grad[c * bins + bin]);
        spread(grid, job.regions.of(roi), job.pooling.x.extent, grads.data(), sums.data());
      }
    scalar_t* out = job.out + (image * job.channels + first) * job.plane;
    for (int64_t c = 0; c < count; ++c)
      for (int64_t cell = 0; cell < job.plane; ++cell)
        out[c * job.plane + cell] = static_cast<scalar_t>(sums[cell * kLanes + c]);
  }
}

#define DETECTOR_SPREAD(scalar_t)                                                         \
  DETECTOR_CLONES void spread_all(const Job<scalar_t>& job, int64_t begin, int64_t end) { \
    spread_tasks(job, begin, end);                                                        \
  }
DETECTOR_SPREAD(float)
DETECTOR_SPREAD(double)
DETECTOR_SPREAD(Half)
DETECTOR_SPREAD(BFloat16)
#undef DETECTOR_SPREAD

}  // namespace

Tensor pool_backward(const Pooling& pooling, const Tensor& grad, const Tensor& rois, const Tensor& argmax,
                     int64_t batch, int64_t channels) {
  check_gradient(pooling, grad, rois, batch, channels);
  STD_TORCH_CHECK(
      pooling.reduction == Reduction::avg || (argmax.scalar_type() == ScalarType::Int &&
                                              argmax.numel() == grad.numel() && on_one_device(grad, argmax)),
      pooling.name, ": the gradient and the kept maxima do not belong together");
  const Regions regions = read_regions(pooling, grad, rois, batch);
  const Tensor grads = torch::stable::contiguous(grad), cells = torch::stable::contiguous(argmax);
  const bool average = pooling.reduction == Reduction::avg;
  const int64_t count = rois.size(0);
  std::vector<std::vector<int64_t>> rois_of(batch);
  for (int64_t roi = 0; roi < count; ++roi) rois_of[regions.images[roi]].push_back(roi);

  Tensor result = torch::stable::new_empty(grad, {batch, channels, pooling.y.extent, pooling.x.extent});
  if (result.numel() == 0) return result;
  advise_huge_pages(result);
  dispatch(grad.scalar_type(), [&]<typename scalar_t>() {
    const Job<scalar_t> job{
        pooling,
        regions,
        rois_of,
        static_cast<const scalar_t*>(grads.data_ptr()),
        average ? nullptr : static_cast<const int32_t*>(cells.data_ptr()),
        channels,
        pooling.y.extent * pooling.x.extent,
        static_cast<scalar_t*>(result.data_ptr()),
    };
    const int64_t width = average ? kLanes : kChannels;
    const int64_t work = width * (count * pooling.bins / batch + job.plane);  // additions a task makes, about
    torch::stable::parallel_for(0, batch * ((channels + width - 1) / width), 1 + kWorthAThread / (1 + work),
                                [&](int64_t begin, int64_t end) {
                                  average ? spread_all(job, begin, end) : scatter_tasks(job, begin, end);
                                });
  });
  return result;
}

}  // namespace detector
