#include "huge_pages.h"
#include "pooling/cpu/lanes.h"
#include "pooling/cpu/masks.h"
#include "pooling/cpu/regions.h"

#include <algorithm>

namespace detector {
namespace {

template <typename scalar_t>
struct Job {
  const MaskedPooling& masked;
  const Regions& regions;
  const std::vector<Cover>& covers;
  const std::vector<std::vector<int64_t>>& rois_of;  // for each image its RoIs, ascending
  const Compute<scalar_t>* rois;
  const float* coverage;
  const scalar_t* grad;
  const int32_t* places;
  const Compute<scalar_t>* totals;
  int64_t channels;
  int64_t height;
  int64_t width;
  scalar_t* out;
};

// The channels of a task: their gradients of one grid, (bins, kLanes), and their sums, (cells, kLanes).
template <typename M>
struct Work {
  std::vector<M> grads, sums;
  int64_t first, count;
};

// Where a bin of a RoI lies: its number in the output and, for samples, those of both axes.
template <typename M>
struct Place {
  int64_t bin;
  const Cover& cover;
  Edge y, x;
  Samples<M> rows, columns;
};

template <typename M>
DETECTOR_INLINE void add(Work<M>& work, int64_t cell, Vector<M> value) {
  M* sum = work.sums.data() + cell * kLanes;
  store(sum, load<Vector<M>>(sum) + value);
}

// Sends each gradient to the cell, or to the four cells, that its maximum came from.
template <typename scalar_t, typename M>
DETECTOR_INLINE void scatter(const Job<scalar_t>& job, const Place<M>& place, const M* grads,
                             Work<M>& work) {
  const int32_t* kept = job.places + place.bin * job.channels + work.first;
  const int64_t cells = job.height * job.width;
  for (int64_t c = 0; c < work.count; ++c) {
    M* sums = work.sums.data() + c;
    if (!job.masked.samples()) {
      if (kept[c] >= 0 && kept[c] < cells) sums[kept[c] * kLanes] += grads[c];
      continue;
    }
    const int32_t across = place.columns.end - place.columns.begin;
    if (kept[c] < 0 || across <= 0 || kept[c] / across >= place.rows.end - place.rows.begin) continue;
    const Sample<M> y = sample_at(place.rows, place.rows.begin + kept[c] / across, job.height);
    const Sample<M> x = sample_at(place.columns, place.columns.begin + kept[c] % across, job.width);
    if (!y.on_map || !x.on_map) continue;
    sums[(y.low * job.width + x.low) * kLanes] += grads[c] * (y.low_weight * x.low_weight);
    sums[(y.low * job.width + x.high) * kLanes] += grads[c] * (y.low_weight * x.high_weight);
    sums[(y.high * job.width + x.low) * kLanes] += grads[c] * (y.high_weight * x.low_weight);
    sums[(y.high * job.width + x.high) * kLanes] += grads[c] * (y.high_weight * x.high_weight);
  }
}

// Gives each cell of an average its share.
template <typename scalar_t, typename M>
DETECTOR_INLINE void spread(const Job<scalar_t>& job, const Place<M>& place, const M* grads, Work<M>& work) {
  const M total = job.totals[place.bin];
  if (!(total > 0)) return;
  const Vector<M> share = load<Vector<M>>(grads) / total;
  const Cover& cover = place.cover;
  if (!job.masked.samples()) {
    const Edge rows = cover.rows_of(place.y), columns = cover.columns_of(place.x);
    for (int32_t y = rows.begin; y < rows.end; ++y)
      for (int32_t x = columns.begin; x < columns.end; ++x) {
        const M weight = cover.at<M>(job.coverage, y, x);
        if (weight > 0) add(work, y * job.width + x, share * weight);
      }
    return;
  }
  for (int32_t i = place.rows.begin; i < place.rows.end; ++i) {
    const Sample<M> y = sample_at(place.rows, i, job.height);
    if (!y.on_map) continue;
    for (int32_t j = place.columns.begin; j < place.columns.end; ++j) {
      const Sample<M> x = sample_at(place.columns, j, job.width);
      if (!x.on_map) continue;
      for (int k = 0; k < 4; ++k) {
        const int32_t row = k / 2 ? y.high : y.low, column = k % 2 ? x.high : x.low;
        const M weight = (k / 2 ? y.high_weight : y.low_weight) * (k % 2 ? x.high_weight : x.low_weight) *
                         cover.at<M>(job.coverage, row, column);
        if (weight > 0) add(work, row * job.width + column, share * weight);
      }
    }
  }
}

template <typename scalar_t, typename M>
DETECTOR_INLINE void add_grid(const Job<scalar_t>& job, int64_t roi, const Grid& grid, Work<M>& work) {
  const Pooling& pooling = job.masked.pooling;
  const int64_t bins = grid.height * grid.width, first_bin = roi * pooling.bins + grid.first_bin;
  const scalar_t* grad = job.grad + first_bin * job.channels + work.first * bins;
  for (int64_t c = 0; c < work.count; ++c)
    for (int64_t bin = 0; bin < bins; ++bin)
      work.grads[bin * kLanes + c] = static_cast<M>(grad[c * bins + bin]);
  const M* corners = job.rois + 5 * roi;
  const Edge* rows = job.regions.of(roi) + grid.first_edge;
  const Edge* columns = rows + grid.height;
  for (int64_t p = 0; p < grid.height; ++p)
    for (int64_t q = 0; q < grid.width; ++q) {
      const int64_t bin = p * grid.width + q;
      Place<M> place{first_bin + bin, job.covers[roi], rows[p], columns[q], {}, {}};
      if (job.masked.samples()) {
        place.rows = samples_of(corners[2], corners[4], pooling.y, job.masked.ratio, p, grid.height);
        place.columns = samples_of(corners[1], corners[3], pooling.x, job.masked.ratio, q, grid.width);
      }
      if (job.masked.weighted)
        spread(job, place, work.grads.data() + bin * kLanes, work);
      else
        scatter(job, place, work.grads.data() + bin * kLanes, work);
    }
}

template <typename scalar_t>
DETECTOR_INLINE void add_tasks(const Job<scalar_t>& job, int64_t begin, int64_t end) {
  using M = Compute<scalar_t>;
  const int64_t blocks = (job.channels + kLanes - 1) / kLanes, cells = job.height * job.width;
  Work<M> work{std::vector<M>(job.masked.pooling.bins * kLanes), std::vector<M>(cells * kLanes), 0, 0};
  for (int64_t task = begin; task < end; ++task) {
    const int64_t image = task / blocks;
    work.first = task % blocks * kLanes;
    work.count = std::min(kLanes, job.channels - work.first);
    std::fill(work.sums.begin(), work.sums.end(), M(0));
    for (const int64_t roi : job.rois_of[image])
      for (const Grid& grid : job.masked.pooling.grids) add_grid(job, roi, grid, work);
    scalar_t* out = job.out + (image * job.channels + work.first) * cells;
    for (int64_t c = 0; c < work.count; ++c)
      for (int64_t cell = 0; cell < cells; ++cell)
        out[c * cells + cell] = static_cast<scalar_t>(work.sums[cell * kLanes + c]);
  }
}

#define DETECTOR_ADD(scalar_t)                                                         \
  DETECTOR_CLONES void add_all(const Job<scalar_t>& job, int64_t begin, int64_t end) { \
    add_tasks(job, begin, end);                                                        \
  }
DETECTOR_ADD(float)
DETECTOR_ADD(double)
DETECTOR_ADD(Half)
DETECTOR_ADD(BFloat16)
#undef DETECTOR_ADD

}  // namespace

Tensor pool_masked_backward(const MaskedPooling& masked, const Tensor& grad, const Tensor& rois,
                            const Tensor& windows, const Tensor& cover, const Tensor& kept, int64_t batch,
                            int64_t channels) {
  const Regions regions = read_regions(masked.pooling, grad, rois, batch);
  const std::vector<Cover> covers = read_covers(masked, windows, cover);
  std::vector<std::vector<int64_t>> rois_of(batch);
  for (size_t roi = 0; roi < covers.size(); ++roi) rois_of[regions.images[roi]].push_back(roi);
  const int64_t height = masked.pooling.y.extent, width = masked.pooling.x.extent;
  Tensor result = torch::stable::new_empty(grad, {batch, channels, height, width});
  if (result.numel() == 0) return result;
  advise_huge_pages(result);
  dispatch(grad.scalar_type(), [&]<typename scalar_t>() {
    using M = Compute<scalar_t>;
    const Job<scalar_t> job{
        masked,
        regions,
        covers,
        rois_of,
        static_cast<const M*>(rois.data_ptr()),
        masked.weighted ? static_cast<const float*>(cover.data_ptr()) : nullptr,
        static_cast<const scalar_t*>(grad.data_ptr()),
        masked.weighted ? nullptr : static_cast<const int32_t*>(kept.data_ptr()),
        masked.weighted ? static_cast<const M*>(kept.data_ptr()) : nullptr,
        channels,
        height,
        width,
        static_cast<scalar_t*>(result.data_ptr()),
    };
    torch::stable::parallel_for(0, batch * ((channels + kLanes - 1) / kLanes), 1,
                                [&](int64_t begin, int64_t end) { add_all(job, begin, end); });
  });
  return result;
}

}  // namespace detector
