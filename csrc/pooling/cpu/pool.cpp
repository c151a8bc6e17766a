#include "huge_pages.h"
#include "pooling/cpu/blocked_map.h"
#include "pooling/cpu/lanes.h"
#include "pooling/cpu/output.h"
#include "pooling/cpu/regions.h"
#include "pooling/operators.h"

#include <algorithm>

namespace detector {
namespace {

template <typename M>
struct Job {
  const Pooling& pooling;
  const std::vector<Step>& steps;
  const Regions& regions;
  const std::vector<Block<M>>& blocks;
  int64_t channels;
  int64_t map_width;
  Writer<M> write;
  void* pooled;
  int32_t* argmax;
};

// A thread's working memory: one RoI's bins for one block of channels, then the same with bins innermost.
template <typename M>
struct Scratch {
  std::vector<M> values, values_out;
  std::vector<IndexOf<M>> indices, indices_out;

  Scratch(int64_t size, bool with_argmax)
      : values(size),
        values_out(size),
        indices(with_argmax ? size : 0),
        indices_out(with_argmax ? size : 0) {}
};

template <typename M, int64_t V>
struct Cells {
  Vector<M> value[V];
  Vector<IndexOf<M>> index[V];
};

template <Mode mode, typename M, int64_t V>
DETECTOR_INLINE void reset(Cells<M, V>& best) {
  for (int64_t v = 0; v < V; ++v) {
    best.value[v] = Vector<M>{} + (mode == Mode::avg ? M(0) : M(kLowest));
    if (mode == Mode::argmax) best.index[v] = Vector<IndexOf<M>>{} - 1;
  }
}

template <Mode mode, typename M, int64_t V>
DETECTOR_INLINE void take(Cells<M, V>& best, const M* cell, Vector<IndexOf<M>> index) {
  for (int64_t v = 0; v < V; ++v) {
    const Vector<M> value = load<Vector<M>>(cell + v * kLanes);
    if (mode == Mode::avg) {
      best.value[v] += value;
    } else {
      const auto greater = value > best.value[v];
      best.value[v] = greater ? value : best.value[v];
      if (mode == Mode::argmax) best.index[v] = greater ? index : best.index[v];
    }
  }
}

// Takes a bin of a finer grid. Bins come in another order than cells, so among equals the lower index wins.
template <Mode mode, typename M, int64_t V>
DETECTOR_INLINE void take_bin(Cells<M, V>& best, const M* values, const IndexOf<M>* indices) {
  for (int64_t v = 0; v < V; ++v) {
    const Vector<M> value = load<Vector<M>>(values + v * kLanes);
    if (mode == Mode::argmax) {
      const auto index = load<Vector<IndexOf<M>>>(indices + v * kLanes);
      const auto first = (value > best.value[v]) | ((value == best.value[v]) & (index < best.index[v]));
      best.index[v] = first ? index : best.index[v];
      best.value[v] = first ? value : best.value[v];
    } else {
      best.value[v] = value > best.value[v] ? value : best.value[v];
    }
  }
}

template <Mode mode, typename M, int64_t V>
DETECTOR_INLINE void put(const Cells<M, V>& best, Scratch<M>& scratch, int64_t bin) {
  for (int64_t v = 0; v < V; ++v) {
    store(scratch.values.data() + (bin * V + v) * kLanes, best.value[v] + M(0));  // a zero is never -0
    if (mode == Mode::argmax) store(scratch.indices.data() + (bin * V + v) * kLanes, best.index[v]);
  }
}

template <Mode mode, typename M, int64_t V>
DETECTOR_INLINE void pool_from_map(const Grid& grid, const Edge* edges, const M* image, int64_t cell_stride,
                                   int64_t map_width, Scratch<M>& scratch) {
  const Edge* rows = edges + grid.first_edge;
  const Edge* columns = rows + grid.height;
  int64_t bin = grid.first_bin;
  for (int64_t p = 0; p < grid.height; ++p)
    for (int64_t q = 0; q < grid.width; ++q, ++bin) {
      Cells<M, V> best;
      reset<mode>(best);
      for (int64_t y = rows[p].begin; y < rows[p].end; ++y) {
        int64_t cell = y * map_width + columns[q].begin;
        auto index = Vector<IndexOf<M>>{} + static_cast<IndexOf<M>>(cell);
        for (int64_t x = columns[q].begin; x < columns[q].end; ++x, ++cell, index += 1)
          take<mode>(best, image + cell * cell_stride, index);
      }
      if (mode == Mode::avg && !is_empty(rows[p], columns[q])) {
        const M count =
            static_cast<M>(int64_t(rows[p].end - rows[p].begin) * (columns[q].end - columns[q].begin));
        for (int64_t v = 0; v < V; ++v) best.value[v] /= count;
      }
      put<mode>(best, scratch, bin);
    }
}

template <Mode mode, typename M, int64_t V>
DETECTOR_INLINE void pool_from_grid(const Grid& grid, const Grid& source, Scratch<M>& scratch) {
  const int64_t tall = source.height / grid.height, wide = source.width / grid.width;
  int64_t bin = grid.first_bin;
  for (int64_t p = 0; p < grid.height; ++p)
    for (int64_t q = 0; q < grid.width; ++q, ++bin) {
      Cells<M, V> best;
      reset<mode>(best);
      for (int64_t i = p * tall; i < (p + 1) * tall; ++i)
        for (int64_t j = q * wide; j < (q + 1) * wide; ++j) {
          const int64_t at = (source.first_bin + i * source.width + j) * V * kLanes;
          take_bin<mode>(best, scratch.values.data() + at,
                         mode == Mode::argmax ? scratch.indices.data() + at : nullptr);
        }
      put<mode>(best, scratch, bin);
    }
}

template <typename M, int64_t V>
DETECTOR_INLINE void clear_empty(const Grid& grid, const Edge* edges, Scratch<M>& scratch) {
  const Edge* rows = edges + grid.first_edge;
  const Edge* columns = rows + grid.height;
  for (int64_t p = 0; p < grid.height; ++p)
    for (int64_t q = 0; q < grid.width; ++q)
      if (is_empty(rows[p], columns[q])) {
        M* bin = scratch.values.data() + (grid.first_bin + p * grid.width + q) * V * kLanes;
        std::fill(bin, bin + V * kLanes, M(0));
      }
}

template <Mode mode, int64_t V, typename M>
DETECTOR_INLINE void pool_roi(const Job<M>& job, int64_t roi, const Block<M>& block, Scratch<M>& scratch) {
  const Edge* edges = job.regions.of(roi);
  const M* image = block.data + job.regions.images[roi] * block.image_stride;
  const std::vector<Grid>& grids = job.pooling.grids;
  for (const Step& step : job.steps)
    if (step.source == kFromMap)
      pool_from_map<mode, M, V>(grids[step.grid], edges, image, block.cell_stride, job.map_width, scratch);
    else
      pool_from_grid<mode, M, V>(grids[step.grid], grids[step.source], scratch);
  for (const Grid& grid : grids) {
    clear_empty<M, V>(grid, edges, scratch);
    const int64_t bins = grid.height * grid.width, from = grid.first_bin * V * kLanes;
    const int64_t to = (roi * job.pooling.bins + grid.first_bin) * job.channels + block.first_channel * bins;
    const Shape shape{bins, V * kLanes, block.channels};
    job.write(scratch.values.data() + from, shape, scratch.values_out.data(), job.pooled, to);
    if (mode == Mode::argmax)
      write_values(scratch.indices.data() + from, shape, scratch.indices_out.data(), job.argmax + to);
  }
}

// RoIs are taken a few at a time, each few through all blocks: their output and a block's part of the map
// stay in cache together.
constexpr int64_t kTile = 32;

template <Mode mode, typename M>
DETECTOR_INLINE void pool_tasks(const Job<M>& job, int64_t begin, int64_t end) {
  Scratch<M> scratch(job.pooling.bins * kWide, mode == Mode::argmax);
  const int64_t count = job.regions.images.size(), per_tile = kTile * job.blocks.size();
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
void run(const Pooling& pooling, const Tensor& features, const Regions& regions, const Tensor& pooled,
         const Tensor& argmax, Mode mode) {
  const auto map = blocked<scalar_t>(features);
  const std::vector<Step> steps = plan(pooling);
  const Job<Compute<scalar_t>> job{
      pooling,
      steps,
      regions,
      map.blocks,
      features.size(1),
      features.size(3),
      write_as<scalar_t>,
      pooled.data_ptr(),
      mode == Mode::argmax ? static_cast<int32_t*>(argmax.data_ptr()) : nullptr,
  };
  const int64_t tasks = map.blocks.size() * regions.images.size();
  torch::stable::parallel_for(0, tasks, kTile, [&](int64_t begin, int64_t end) {
    if (mode == Mode::avg)
      pool_average(job, begin, end);
    else if (mode == Mode::argmax)
      pool_argmax(job, begin, end);
    else
      pool_max(job, begin, end);
  });
}

}  // namespace

std::tuple<Tensor, Tensor> pool(const Pooling& pooling, const Tensor& features, const Tensor& rois,
                                torch::headeronly::IntHeaderOnlyArrayRef shape, Mode mode) {
  const Regions regions = read_regions(pooling, features, rois, features.size(0));
  const bool with_argmax = mode == Mode::argmax;
  Tensor pooled = torch::stable::new_empty(features, shape);
  Tensor argmax = with_argmax ? torch::stable::new_empty(pooled, pooled.sizes(), ScalarType::Int)
                              : torch::stable::new_empty(pooled, {0}, ScalarType::Int);
  if (pooled.numel() == 0) return {pooled, argmax};
  advise_huge_pages(pooled);
  if (with_argmax) advise_huge_pages(argmax);
  dispatch(features.scalar_type(),
           [&]<typename scalar_t>() { run<scalar_t>(pooling, features, regions, pooled, argmax, mode); });
  return {pooled, argmax};
}

}  // namespace detector
