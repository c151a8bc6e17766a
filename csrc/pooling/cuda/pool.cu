// A block takes one RoI and one group of channels, a warp one bin at a time. Maxima are taken over windows of
// 2 x 2 cells, four windows at a time. A grid of a pyramid whose bins are unions of a finer grid's bins is
// made of those. Bins gather in a tile in shared memory in the order of the output, and leave it together.

#include "pooling/cuda/packed_map.h"

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>

#include <algorithm>

namespace detector {
namespace {

constexpr int kMaxWarps = 16;
constexpr int kFewWarps = 5;  // of a block, where many blocks share a multiprocessor

template <typename scalar_t, typename place_t>
struct Job {
  Geometry geometry;
  const Compute<scalar_t>* rois;
  int64_t images;
  const scalar_t* cells;  // (N, H, W, slots)
  const scalar_t* windows;
  const place_t* window_places;
  int64_t image_stride;
  int slots;
  int channels;
  int tile_bins;          // of a block
  int source[kMaxGrids];  // as plan() says
  int depths[kMaxGrids];  // 0 for a grid from the map, else one more than its source's
  int depth;              // the largest
  scalar_t* pooled;
  place_t* places;  // (R, bins, slots)
};

template <typename scalar_t>
__device__ __forceinline__ void take(Channels<scalar_t>& best, const Channels<scalar_t>& value) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  if constexpr (sizeof(scalar_t) == 2) {  // two at a time
    auto* to = reinterpret_cast<unsigned*>(&best);
    const auto* from = reinterpret_cast<const unsigned*>(&value);
#pragma unroll
    for (int k = 0; k < kPack<scalar_t> / 2; ++k) {
      if constexpr (std::is_same_v<scalar_t, c10::Half>)
        asm("max.f16x2 %0, %0, %1;" : "+r"(to[k]) : "r"(from[k]));
      else
        asm("max.bf16x2 %0, %0, %1;" : "+r"(to[k]) : "r"(from[k]));
    }
    return;
  }
#endif
#pragma unroll
  for (int k = 0; k < kPack<scalar_t>; ++k) {
    if constexpr (std::is_same_v<scalar_t, float>)
      best.at[k] = fmaxf(best.at[k], value.at[k]);
    else
      best.at[k] = value.at[k] > best.at[k] ? value.at[k] : best.at[k];
  }
}

// Maxima of a lane's channels and the first places in row-major order that hold them.
template <typename scalar_t, typename place_t>
struct Maxima {
  using M = Compute<scalar_t>;
  static constexpr int n = kPack<scalar_t>;
  using Places = Pack<place_t, n>;
  Channels<scalar_t> value;
  uint32_t place[n];

  __device__ __forceinline__ Maxima() {
#pragma unroll
    for (int k = 0; k < n; ++k) {
      value.at[k] = static_cast<scalar_t>(kLowest);
      place[k] = kNowhere<place_t>;
    }
  }

  // Takes more values; for their places asks place_of(which of the values, which channel).
  template <bool with_places, int count, typename F>
  __device__ __forceinline__ void take_all(const Channels<scalar_t> (&values)[count], const F& place_of) {
    const Channels<scalar_t> before = value;
#pragma unroll
    for (int i = 0; i < count; ++i) take<scalar_t>(value, values[i]);
    if constexpr (with_places) {
#pragma unroll
      for (int k = 0; k < n; ++k) {
        const M greatest = static_cast<M>(value.at[k]);
        if (greatest > static_cast<M>(before.at[k])) place[k] = kNowhere<place_t>;
#pragma unroll
        for (int i = 0; i < count; ++i)
          if (static_cast<M>(values[i].at[k]) == greatest) place[k] = min(place[k], uint32_t(place_of(i, k)));
      }
    }
  }

  // The places as they are kept; only a value greater than the lowest has one.
  __device__ __forceinline__ Places places() const {
    Places result;
#pragma unroll
    for (int k = 0; k < n; ++k)
      result.at[k] = static_cast<M>(value.at[k]) > M(static_cast<scalar_t>(kLowest))
                         ? by_tile(static_cast<place_t>(place[k]))
                         : kNowhere<place_t>;
    return result;
  }
};

// A lane's channels of the RoI's image. Offsets within an image fit into an int.
template <typename scalar_t, typename place_t>
struct Image {
  const scalar_t* cells;
  const scalar_t* windows;
  const place_t* window_places;
  int slots;
  int line;  // elements of a row

  template <bool with_places>
  __device__ __forceinline__ Maxima<scalar_t, place_t> maxima(Edge row, Edge column) const {
    using Places = Pack<place_t, kPack<scalar_t>>;
    const bool windowed = windows != nullptr && row.end - row.begin > 1 && column.end - column.begin > 1;
    const int step = windowed ? 2 : 1, last_y = row.end - step, last_x = column.end - step;
    const scalar_t* map = windowed ? windows : cells;
    Maxima<scalar_t, place_t> best;
    for (int y = row.begin; y < row.end; y += 2 * step) {
      const int ys[2] = {min(y, last_y), min(y + step, last_y)};
      for (int x = column.begin; x < column.end; x += 2 * step) {
        const int xs[2] = {min(x, last_x), min(x + step, last_x)};
        int at[4];
        Channels<scalar_t> values[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          at[i] = ys[i / 2] * line + xs[i % 2] * slots;
          values[i] = load<Channels<scalar_t>>(map + at[i]);
        }
        if (with_places && windowed) {
          Places places[4];
#pragma unroll
          for (int i = 0; i < 4; ++i) places[i] = load<Places>(window_places + at[i]);
          best.template take_all<with_places>(values, [&](int i, int k) { return places[i].at[k]; });
        } else {
          best.template take_all<with_places>(
              values, [&](int i, int) { return place_at<place_t>(ys[i / 2], xs[i % 2]); });
        }
      }
    }
    return best;
  }

  // Summed cell by cell in row-major order, as on the CPU.
  __device__ __forceinline__ Channels<scalar_t> average(Edge row, Edge column) const {
    using M = Compute<scalar_t>;
    M sum[kPack<scalar_t>] = {};
    for (int y = row.begin; y < row.end; ++y) {
#pragma unroll 4
      for (int x = column.begin; x < column.end; ++x) {
        const auto value = load<Channels<scalar_t>>(cells + y * line + x * slots);
#pragma unroll
        for (int k = 0; k < kPack<scalar_t>; ++k) sum[k] += static_cast<M>(value.at[k]);
      }
    }
    const M count = static_cast<M>((row.end - row.begin) * (column.end - column.begin));
    Channels<scalar_t> result;
#pragma unroll
    for (int k = 0; k < kPack<scalar_t>; ++k) result.at[k] = static_cast<scalar_t>(sum[k] / count);
    return result;
  }
};

// A lane's channels in a part of a tile: rows of the tile kWarp apart.
template <typename scalar_t>
struct Column {
  scalar_t* first;
  int step;

  __device__ __forceinline__ Column(scalar_t* part, int row)
      : first(part + threadIdx.x % kWarp * row), step(kWarp * row) {}
  __device__ __forceinline__ void put(int bin, const Channels<scalar_t>& value) const {
#pragma unroll
    for (int k = 0; k < kPack<scalar_t>; ++k) first[bin + k * step] = value.at[k];
  }
  __device__ __forceinline__ Channels<scalar_t> get(int bin) const {
    Channels<scalar_t> value;
#pragma unroll
    for (int k = 0; k < kPack<scalar_t>; ++k) value.at[k] = first[bin + k * step];
    return value;
  }
};

template <typename scalar_t, Mode mode, typename place_t>
__device__ __forceinline__ void pool_from_map(const Job<scalar_t, place_t>& job, const Grid& grid,
                                              const Edge* edges, const Image<scalar_t, place_t>& image,
                                              int begin, int end, const Column<scalar_t>& column,
                                              place_t* places) {
  const Edge* rows = edges + grid.first_edge;
  const Edge* columns = rows + grid.height;
  each_bin_of_warp(grid, begin, end, [&](int bin, int p, int q) {
    const Edge y = rows[p], x = columns[q];
    Channels<scalar_t> value;
    if constexpr (mode == Mode::avg) {
      value = image.average(y, x);
    } else {
      const auto best = image.template maxima<mode == Mode::argmax>(y, x);
      value = best.value;
      if constexpr (mode == Mode::argmax) store(places + (grid.first_bin + bin) * job.slots, best.places());
    }
    // Coarser grids are made of the maxima as they are.
    column.put(bin - begin, job.depth == 0 && is_empty(y, x) ? Channels<scalar_t>{} : value);
  });
}

template <typename scalar_t, Mode mode, typename place_t>
__device__ __forceinline__ void pool_from_grid(const Job<scalar_t, place_t>& job, const Grid& grid,
                                               const Grid& source, const Column<scalar_t>& from, int begin,
                                               int end, const Column<scalar_t>& to, place_t* places) {
  using Places = Pack<place_t, kPack<scalar_t>>;
  const int tall = int(source.height) / int(grid.height), wide = int(source.width) / int(grid.width);
  each_bin_of_warp(grid, begin, end, [&](int bin, int p, int q) {
    Maxima<scalar_t, place_t> best;
    for (int i = p * tall; i < (p + 1) * tall; ++i)
#pragma unroll 3
      for (int j = q * wide; j < (q + 1) * wide; ++j) {
        const int at = i * int(source.width) + j;
        const Channels<scalar_t> values[1] = {from.get(at)};
        Places place{};
        if constexpr (mode == Mode::argmax)
          place = load<Places>(places + (source.first_bin + at) * job.slots);
        best.template take_all<mode == Mode::argmax>(values, [&](int, int k) { return by_row(place.at[k]); });
      }
    if constexpr (mode == Mode::argmax) store(places + (grid.first_bin + bin) * job.slots, best.places());
    to.put(bin, best.value);
  });
}

template <typename scalar_t, Mode mode, typename place_t>
__global__ void __launch_bounds__(kMaxWarps* kWarp)
    pool_kernel(const __grid_constant__ Job<scalar_t, place_t> job) {
  extern __shared__ __align__(16) unsigned char shared[];
  const Geometry& geometry = job.geometry;
  Edge* edges = reinterpret_cast<Edge*>(shared);
  scalar_t* tile = reinterpret_cast<scalar_t*>(shared + edge_bytes(geometry));
  const int64_t roi = blockIdx.x;
  const int group = blockIdx.y * kGroup<scalar_t>, lane = group + threadIdx.x % kWarp * kPack<scalar_t>;
  const int first = blockIdx.z * job.tile_bins, last = min(first + job.tile_bins, geometry.bins);

  const int64_t image =
      max(read_roi(geometry, job.rois + 5 * roi, job.images, edges), 0) * job.image_stride + lane;
  const Image<scalar_t, place_t> map{job.cells + image,
                                     job.windows == nullptr ? nullptr : job.windows + image,
                                     mode == Mode::argmax ? job.window_places + image : nullptr, job.slots,
                                     static_cast<int>(geometry.x.extent) * job.slots};
  place_t* places = mode == Mode::argmax ? job.places + roi * geometry.bins * job.slots + lane : nullptr;
  for_each_part<scalar_t>(geometry, first, last, [&](int g, int begin, int end, int offset, int row) {
    if (mode != Mode::avg && job.depths[g] > 0) return;
    pool_from_map<scalar_t, mode>(job, geometry.grids[g], edges, map, begin, end,
                                  Column<scalar_t>(tile + offset, row), places);
  });
  __syncthreads();
  if constexpr (mode != Mode::avg) {
    for (int depth = 1; depth <= job.depth; ++depth) {  // then one tile holds all bins
      for_each_part<scalar_t>(geometry, first, last, [&](int g, int begin, int end, int offset, int row) {
        if (job.depths[g] != depth) return;
        for_each_part<scalar_t>(geometry, first, last, [&](int source, int, int, int from, int from_row) {
          if (source == job.source[g])
            pool_from_grid<scalar_t, mode>(job, geometry.grids[g], geometry.grids[source],
                                           Column<scalar_t>(tile + from, from_row), begin, end,
                                           Column<scalar_t>(tile + offset, row), places);
        });
      });
      __syncthreads();
    }
    if (job.depth > 0) {
      for_each_part<scalar_t>(geometry, first, last, [&](int g, int begin, int end, int offset, int row) {
        const Grid& grid = geometry.grids[g];
        const Edge* rows = edges + grid.first_edge;
        each_bin_of_warp(grid, begin, end, [&](int bin, int p, int q) {
          if (is_empty(rows[p], rows[grid.height + q])) Column<scalar_t>(tile + offset, row).put(bin, {});
        });
      });
      __syncthreads();
    }
  }
  for_each_part<scalar_t>(geometry, first, last, [&](int g, int begin, int end, int offset, int row) {
    const Grid& grid = geometry.grids[g];
    const int64_t count = grid.height * grid.width;
    scalar_t* out =
        job.pooled + (roi * geometry.bins + grid.first_bin) * job.channels + group * count + begin;
    move_rows<true>(out, count, tile + offset, row, min(kGroup<scalar_t>, job.channels - group), end - begin);
  });
}

// Coarse grids are made of fine ones only where one tile holds them all.
template <typename scalar_t, typename place_t>
void set_sources(const Pooling& pooling, Job<scalar_t, place_t>& job) {
  if (pooling.bins > job.tile_bins) return;
  for (const Step& step : plan(pooling)) {  // sources before what is made of them
    if (step.source == kFromMap) continue;
    job.source[step.grid] = static_cast<int>(step.source);
    job.depths[step.grid] = job.depths[step.source] + 1;
    job.depth = std::max(job.depth, job.depths[step.grid]);
  }
}

template <typename scalar_t, Mode mode, typename place_t>
void run(const Pooling& pooling, const Geometry& geometry, const Tensor& features, const Tensor& rois,
         const Tensor& pooled, const Tensor& places) {
  const int64_t count = rois.size(0), map_cells = pooling.y.extent * pooling.x.extent;
  // Making a window costs about as much as pooling a bin.
  const bool windows = mode != Mode::avg && count * pooling.bins >= features.size(0) * map_cells;
  const PackedMap map =
      pack_map(pooling, features,
               !windows ? Windows::none : (mode == Mode::argmax ? Windows::places : Windows::values));
  const Split split = split_of<scalar_t>(geometry, count, map.slots);
  Job<scalar_t, place_t> job{
      geometry,
      static_cast<const Compute<scalar_t>*>(rois.data_ptr()),
      features.size(0),
      static_cast<const scalar_t*>(map.cells),
      static_cast<const scalar_t*>(map.windows),
      static_cast<const place_t*>(map.places),
      map_cells * map.slots,
      map.slots,
      static_cast<int>(features.size(1)),
      split.tile_bins,
      {},
      {},
      0,
      static_cast<scalar_t*>(pooled.data_ptr()),
      mode == Mode::argmax ? static_cast<place_t*>(places.data_ptr()) : nullptr,
  };
  set_sources(pooling, job);
  int widest = 0;  // bins that a block takes from the map, of one grid
  for (int g = 0; g < geometry.grid_count; ++g)
    if (job.depths[g] == 0)
      widest = std::max(widest,
                        std::min(split.tile_bins, int(geometry.grids[g].height * geometry.grids[g].width)));
  // As many warps as share the bins evenly; where there are few blocks, more of them.
  const int64_t blocks = int64_t(split.blocks.x) * split.blocks.y * split.blocks.z;
  const int most = blocks < 1024 ? kMaxWarps : kFewWarps, rounds = (widest + most - 1) / most;
  const int warps = (widest + rounds - 1) / rounds;
  pool_kernel<scalar_t, mode, place_t>
      <<<split.blocks, warps * kWarp, split.shared, current_stream(features)>>>(job);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace

std::tuple<Tensor, Tensor> pool(const Pooling& pooling, const Tensor& features, const Tensor& rois,
                                torch::headeronly::IntHeaderOnlyArrayRef shape, Mode mode) {
  const torch::stable::accelerator::DeviceGuard guard(features.get_device_index());
  const Geometry geometry = geometry_of(pooling);
  const bool small = has_short_places(pooling), with_argmax = mode == Mode::argmax;
  Tensor pooled = torch::stable::new_empty(features, shape), places;
  dispatch(features.scalar_type(), [&]<typename scalar_t>() {
    const ScalarType type = small ? ScalarType::Short : ScalarType::Int;
    const int64_t slots = slots_of<scalar_t>(features.size(1));
    places = with_argmax ? torch::stable::new_empty(pooled, {rois.size(0), geometry.bins, slots}, type)
                         : torch::stable::new_empty(pooled, {0}, ScalarType::Int);
    if (pooled.numel() == 0) return;
    const Tensor rows = index_rois(features, rois);
    if (mode == Mode::avg)
      run<scalar_t, Mode::avg, uint16_t>(pooling, geometry, features, rows, pooled, places);
    else if (mode == Mode::max)
      run<scalar_t, Mode::max, uint16_t>(pooling, geometry, features, rows, pooled, places);
    else if (small)
      run<scalar_t, Mode::argmax, uint16_t>(pooling, geometry, features, rows, pooled, places);
    else
      run<scalar_t, Mode::argmax, uint32_t>(pooling, geometry, features, rows, pooled, places);
  });
  return {pooled, places};
}

}  // namespace detector
