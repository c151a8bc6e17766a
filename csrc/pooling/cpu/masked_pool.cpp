#include "huge_pages.h"
#include "pooling/cpu/blocked_map.h"
#include "pooling/cpu/lanes.h"
#include "pooling/cpu/masks.h"
#include "pooling/cpu/output.h"
#include "pooling/cpu/regions.h"

#include <algorithm>

namespace detector {
namespace {

// `cover` and `kept` are of the types that go with the mode.
template <typename M>
struct Job {
  const MaskedPooling& masked;
  const Regions& regions;
  const std::vector<Cover>& covers;
  const M* rois;
  const void* cover;
  const std::vector<Block<M>>& blocks;
  int64_t channels;
  int64_t height;
  int64_t width;
  Writer<M> write;
  void* pooled;
  void* kept;
};

template <typename M>
struct Scratch {
  std::vector<M> values, values_out;
};

// A bin while it is pooled, for one block of channels.
template <typename M, int64_t V>
struct Bin {
  Vector<M> value[V];
  Vector<IndexOf<M>> place[V];
  M total;  // of the weights; for maxima 1 once a cell or a sample counts
};

template <Mode mode>
using Number = std::conditional_t<mode == Mode::avg, float, uint8_t>;

template <Mode mode, typename M, int64_t V>
DETECTOR_INLINE void reset(Bin<M, V>& bin) {
  bin.total = M(0);
  for (int64_t v = 0; v < V; ++v) {
    bin.value[v] = Vector<M>{} + (mode == Mode::avg ? M(0) : M(kLowest));
    if (mode == Mode::argmax) bin.place[v] = Vector<IndexOf<M>>{} - 1;
  }
}

template <Mode mode, typename M, int64_t V>
DETECTOR_INLINE void take(Bin<M, V>& bin, int64_t v, Vector<M> value, int64_t place) {
  if (mode == Mode::avg) {
    bin.value[v] += value;
  } else {
    const auto greater = value > bin.value[v];
    bin.value[v] = greater ? value : bin.value[v];
    if (mode == Mode::argmax)
      bin.place[v] = greater ? Vector<IndexOf<M>>{} + static_cast<IndexOf<M>>(place) : bin.place[v];
  }
}

template <Mode mode, typename M, int64_t V>
DETECTOR_INLINE void pool_cells(const Job<M>& job, const Cover& cover, Edge rows, Edge columns,
                                const M* image, int64_t cell_stride, Bin<M, V>& bin) {
  const auto* numbers = static_cast<const Number<mode>*>(job.cover) + cover.entry;
  const bool whole = cover.whole();
  rows = cover.rows_of(rows), columns = cover.columns_of(columns);
  for (int64_t y = rows.begin; y < rows.end; ++y)
    for (int64_t x = columns.begin; x < columns.end; ++x) {
      const M weight = whole ? M(1) : static_cast<M>(numbers[y * cover.stride + x]);
      if (!(weight > 0)) continue;
      bin.total = mode == Mode::avg ? bin.total + weight : M(1);
      const int64_t cell = y * job.width + x;
      for (int64_t v = 0; v < V; ++v) {
        const Vector<M> value = load<Vector<M>>(image + cell * cell_stride + v * kLanes);
        take<mode>(bin, v, mode == Mode::avg ? value * weight : value, cell);
      }
    }
}

// RoIAlign's mean divides by the number of all samples; those outside the map count as 0.
template <Mode mode, typename M, int64_t V>
DETECTOR_INLINE void pool_samples(const Job<M>& job, const Cover& cover, const Samples<M>& rows,
                                  const Samples<M>& columns, const M* image, int64_t cell_stride,
                                  Bin<M, V>& bin) {
  const auto* numbers = static_cast<const Number<mode>*>(job.cover);
  const int64_t across = columns.end - columns.begin;
  for (int32_t i = rows.begin; i < rows.end; ++i) {
    const Sample<M> y = sample_at(rows, i, job.height);
    if (!y.on_map) continue;
    for (int32_t j = columns.begin; j < columns.end; ++j) {
      const Sample<M> x = sample_at(columns, j, job.width);
      if (!x.on_map || (mode != Mode::avg && !(cover.at<M>(numbers, y.cell, x.cell) > 0))) continue;
      M weights[4] = {y.low_weight * x.low_weight, y.low_weight * x.high_weight,
                      y.high_weight * x.low_weight, y.high_weight * x.high_weight};
      if (mode == Mode::avg && !cover.whole()) {
        weights[0] *= cover.at<M>(numbers, y.low, x.low);
        weights[1] *= cover.at<M>(numbers, y.low, x.high);
        weights[2] *= cover.at<M>(numbers, y.high, x.low);
        weights[3] *= cover.at<M>(numbers, y.high, x.high);
      }
      const M total = weights[0] + weights[1] + weights[2] + weights[3];
      if (mode == Mode::avg && !(total > 0)) continue;
      bin.total = mode == Mode::avg ? bin.total + total : M(1);
      const M* upper = image + y.low * job.width * cell_stride;
      const M* lower = image + y.high * job.width * cell_stride;
      const int64_t left = x.low * cell_stride, right = x.high * cell_stride;
      const int64_t place = (i - rows.begin) * across + j - columns.begin;
      for (int64_t v = 0; v < V; ++v) {
        const int64_t at = v * kLanes;
        const Vector<M> value = weights[0] * load<Vector<M>>(upper + left + at) +
                                weights[1] * load<Vector<M>>(upper + right + at) +
                                weights[2] * load<Vector<M>>(lower + left + at) +
                                weights[3] * load<Vector<M>>(lower + right + at);
        take<mode>(bin, v, value, place);
      }
    }
  }
  if (mode == Mode::avg && cover.whole()) bin.total = rows.count * columns.count;
}

// Writes a bin to the scratch, and what is kept of it.
template <Mode mode, typename M, int64_t V>
DETECTOR_INLINE void put(const Job<M>& job, const Bin<M, V>& bin, const Block<M>& block, int64_t number,
                         M* to) {
  const bool counts = bin.total > 0;
  for (int64_t v = 0; v < V; ++v) {
    Vector<M> value = mode == Mode::avg ? bin.value[v] / bin.total : bin.value[v] + M(0);  // never -0
    if (!counts) value = Vector<M>{};
    store(to + v * kLanes, value);
  }
  if (mode == Mode::avg && job.kept != nullptr && block.first_channel == 0)
    static_cast<M*>(job.kept)[number] = bin.total;
  if (mode != Mode::argmax) return;
  int32_t* kept = static_cast<int32_t*>(job.kept) + number * job.channels + block.first_channel;
  for (int64_t v = 0; v < V; ++v) {
    const auto place = __builtin_convertvector(bin.place[v], Vector<int32_t>);
    const int64_t rest = std::min(kLanes, block.channels - v * kLanes);
    if (rest == kLanes) {
      store(kept + v * kLanes, place);
    } else {
      for (int64_t c = 0; c < rest; ++c) kept[v * kLanes + c] = place[c];
    }
  }
}

template <Mode mode, int64_t V, typename M>
DETECTOR_INLINE void pool_roi(const Job<M>& job, int64_t roi, const Block<M>& block, Scratch<M>& scratch) {
  const Pooling& pooling = job.masked.pooling;
  const Cover& cover = job.covers[roi];
  const Edge* edges = job.regions.of(roi);
  const M* corners = job.rois + 5 * roi;
  const M* image = block.data + job.regions.images[roi] * block.image_stride;
  for (const Grid& grid : pooling.grids) {
    const Edge* rows = edges + grid.first_edge;
    const Edge* columns = rows + grid.height;
    int64_t number = 0;
    for (int64_t p = 0; p < grid.height; ++p)
      for (int64_t q = 0; q < grid.width; ++q, ++number) {
        Bin<M, V> bin;
        reset<mode>(bin);
        if (job.masked.samples())
          pool_samples<mode>(
              job, cover, samples_of(corners[2], corners[4], pooling.y, job.masked.ratio, p, grid.height),
              samples_of(corners[1], corners[3], pooling.x, job.masked.ratio, q, grid.width), image,
              block.cell_stride, bin);
        else
          pool_cells<mode>(job, cover, rows[p], columns[q], image, block.cell_stride, bin);
        put<mode>(job, bin, block, roi * pooling.bins + grid.first_bin + number,
                  scratch.values.data() + number * V * kLanes);
      }
    const int64_t to = (roi * pooling.bins + grid.first_bin) * job.channels + block.first_channel * number;
    const Shape shape{number, V * kLanes, block.channels};
    job.write(scratch.values.data(), shape, scratch.values_out.data(), job.pooled, to);
  }
}

// As in pool.cpp: RoIs a few at a time, each few through all blocks.
constexpr int64_t kTile = 32;

template <Mode mode, typename M>
DETECTOR_INLINE void pool_tasks(const Job<M>& job, int64_t begin, int64_t end) {
  int64_t bins = 0;
  for (const Grid& grid : job.masked.pooling.grids) bins = std::max(bins, grid.height * grid.width);
  Scratch<M> scratch{std::vector<M>(bins * kWide), std::vector<M>(bins * kWide)};
  const int64_t count = job.covers.size(), per_tile = kTile * job.blocks.size();
  for (int64_t task = begin; task < end; ++task) {
    const int64_t tile = task / per_tile, rest = task % per_tile;
    const int64_t rois = std::min(kTile, count - tile * kTile);
    const Block<M>& block = job.blocks[rest / rois];
    const int64_t roi = tile * kTile + rest % rois;
    if (block.wide)
      pool_roi<mode, 4>(job, roi, block, scratch);
    else
      pool_roi<mode, 1>(job, roi, block, scratch);
  }
  order_copies();
}

#define DETECTOR_POOL(M)                                                             \
  DETECTOR_CLONES void pool_max(const Job<M>& job, int64_t begin, int64_t end) {     \
    pool_tasks<Mode::max>(job, begin, end);                                          \
  }                                                                                  \
  DETECTOR_CLONES void pool_argmax(const Job<M>& job, int64_t begin, int64_t end) {  \
    pool_tasks<Mode::argmax>(job, begin, end);                                       \
  }                                                                                  \
  DETECTOR_CLONES void pool_average(const Job<M>& job, int64_t begin, int64_t end) { \
    pool_tasks<Mode::avg>(job, begin, end);                                          \
  }
DETECTOR_POOL(float)
DETECTOR_POOL(double)
#undef DETECTOR_POOL

template <typename scalar_t>
void run(const MaskedPooling& masked, const Tensor& features, const Tensor& rois, const Regions& regions,
         const std::vector<Cover>& covers, const Tensor& cover, const Tensor& pooled, const Tensor& kept,
         bool keep) {
  const auto map = blocked<scalar_t>(features);
  const Job<Compute<scalar_t>> job{
      masked,
      regions,
      covers,
      static_cast<const Compute<scalar_t>*>(rois.data_ptr()),
      cover.data_ptr(),
      map.blocks,
      features.size(1),
      features.size(2),
      features.size(3),
      write_as<scalar_t>,
      pooled.data_ptr(),
      keep ? kept.data_ptr() : nullptr,
  };
  torch::stable::parallel_for(0, map.blocks.size() * covers.size(), kTile, [&](int64_t begin, int64_t end) {
    if (masked.weighted)
      pool_average(job, begin, end);
    else if (keep)
      pool_argmax(job, begin, end);
    else
      pool_max(job, begin, end);
  });
}

}  // namespace

std::tuple<Tensor, Tensor> pool_masked(const MaskedPooling& masked, const Tensor& features,
                                       const Tensor& rois, const Tensor& windows, const Tensor& cover,
                                       bool keep) {
  const Regions regions = read_regions(masked.pooling, features, rois, features.size(0));
  const std::vector<Cover> covers = read_covers(masked, windows, cover);
  Tensor pooled =
      torch::stable::new_empty(features, {rois.size(0), features.size(1) * masked.pooling.bins});
  Tensor kept = new_kept(masked, features, rois.size(0), keep);
  if (pooled.numel() == 0) {
    torch::stable::zero_(kept);
    return {pooled, kept};
  }
  advise_huge_pages(pooled);
  if (keep) advise_huge_pages(kept);
  dispatch(features.scalar_type(), [&]<typename scalar_t>() {
    run<scalar_t>(masked, features, rois, regions, covers, cover, pooled, kept, keep);
  });
  return {pooled, kept};
}

}  // namespace detector
