// A block takes a tile of 2 x 8 cells and some channels, two per thread. It lists the bins that reach into
// the tile, RoI by RoI in ascending order, and walks through the list; every thread adds to its own channels'
// cells. So each cell is summed in one order, that of the CPU, and no two threads write to one cell.

#include "pooling/cuda/pool.h"

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>

namespace detector {
namespace {

constexpr int kHeight = kTileHeight;
constexpr int kWidth = kTileWidth;
constexpr int kCells = kTileCells;
constexpr int kThreads = 128;
constexpr int kPerThread = 2;  // channels
constexpr int kSlots = kThreads * kPerThread;
constexpr int kList = 1024;  // bins listed at a time
constexpr int kTurnThreads = 256;

template <typename scalar_t>
struct TurnJob {
  Geometry geometry;
  const Compute<scalar_t>* rois;
  int64_t images;
  int slots;
  int channels;
  int tile_bins;
  const scalar_t* grad;
  void* turned;
  Edge* edges;            // (R, geometry.edges)
  int32_t* image_of_roi;  // (R,)
};

// Writes the gradient with the channels innermost, from (R, then for each grid C, bins) to (R, bins, slots);
// of an average each bin's share per cell, in the type of arithmetic. Also writes the RoIs' edges and images.
template <typename scalar_t, bool average>
__global__ void __launch_bounds__(kTurnThreads) turn_kernel(const __grid_constant__ TurnJob<scalar_t> job) {
  using Share = std::conditional_t<average, Compute<scalar_t>, scalar_t>;
  extern __shared__ __align__(16) unsigned char shared[];
  const Geometry& geometry = job.geometry;
  Edge* edges = reinterpret_cast<Edge*>(shared);
  scalar_t* tile = reinterpret_cast<scalar_t*>(shared + edge_bytes(geometry));
  const int64_t roi = blockIdx.x;
  const int group = blockIdx.y * kGroup<scalar_t>, channels = min(kGroup<scalar_t>, job.channels - group);
  const int first = blockIdx.z * job.tile_bins, last = min(first + job.tile_bins, geometry.bins);
  for_each_part<scalar_t>(geometry, first, last, [&](int g, int begin, int end, int offset, int row) {
    const Grid& grid = geometry.grids[g];
    const int64_t count = grid.height * grid.width;
    auto* from = const_cast<scalar_t*>(job.grad) + (roi * geometry.bins + grid.first_bin) * job.channels;
    move_rows<false>(from + group * count + begin, count, tile + offset, row, channels, end - begin);
  });
  const bool leads = blockIdx.y == 0 && blockIdx.z == 0;  // among the blocks of this RoI
  if (average || leads) {
    const int32_t image = read_roi(geometry, job.rois + 5 * roi, job.images, edges);
    if (leads) {
      for (int i = threadIdx.x; i < geometry.edges; i += kTurnThreads)
        job.edges[roi * geometry.edges + i] = edges[i];
      if (threadIdx.x == 0) job.image_of_roi[roi] = image;
    }
  } else {
    __syncthreads();  // the other way has one in read_roi
  }
  const int lane = threadIdx.x % kWarp;
  auto* to =
      static_cast<Share*>(job.turned) + roi * geometry.bins * job.slots + group + lane * kPack<scalar_t>;
  for_each_part<scalar_t>(geometry, first, last, [&](int g, int begin, int end, int offset, int row) {
    const Grid& grid = geometry.grids[g];
    const Edge* rows = edges + grid.first_edge;
    each_bin_of_warp(grid, begin, end, [&](int bin, int p, int q) {
      Pack<Share, kPack<scalar_t>> value{};
#pragma unroll
      for (int k = 0; k < kPack<scalar_t>; ++k)
        if (lane + k * kWarp < channels)
          value.at[k] = static_cast<Share>(tile[offset + (lane + k * kWarp) * row + bin - begin]);
      if constexpr (average) {
        const Edge y = rows[p], x = rows[grid.height + q];
        const auto cells = static_cast<Share>((y.end - y.begin) * (x.end - x.begin));
#pragma unroll
        for (int k = 0; k < kPack<scalar_t>; ++k) value.at[k] /= cells;
      }
      store(to + (grid.first_bin + bin) * job.slots, value);
    });
  });
}

template <typename scalar_t, typename share_t, typename place_t>
struct Job {
  Geometry geometry;
  const share_t* shares;  // (R, bins, slots)
  const place_t* places;  // likewise
  const Edge* edges;
  const int32_t* images;
  int rois;
  int channels;
  int slots;
  scalar_t* out;
};

struct Tile {
  int y, x;
};

// A run of neighbours [begin, end).
struct Run {
  int begin, end;
  __device__ __forceinline__ int size() const { return max(end - begin, 0); }
};

// Which of n bins of an axis reach into cells begin .. end. Their edges ascend, so the bins are neighbours;
// some of them may be empty.
__device__ __forceinline__ Run reaching(const Edge* edges, int n, int begin, int end) {
  constexpr int kTogether = 4;
  Run run{n, 0};
  for (int i = 0; i < n; i += kTogether) {
    Edge some[kTogether];
#pragma unroll
    for (int j = 0; j < kTogether; ++j) some[j] = edges[min(i + j, n - 1)];
#pragma unroll
    for (int j = 0; j < kTogether; ++j)
      if (some[j].begin < some[j].end && some[j].begin < end && some[j].end > begin) {
        run.begin = min(run.begin, i + j);
        run.end = min(i + j, n - 1) + 1;
      }
  }
  return run;
}

// Calls f(grid, rows, columns) for the grids of a RoI with bins that reach into a tile, which are those of
// the given rows and columns.
template <typename F>
__device__ __forceinline__ void each_grid_in_tile(const Geometry& geometry, const Edge* edges, Tile tile,
                                                  const F& f) {
  for (int g = 0; g < geometry.grid_count; ++g) {
    const Grid& grid = geometry.grids[g];
    const int height = static_cast<int>(grid.height), width = static_cast<int>(grid.width);
    const Edge* rows = edges + grid.first_edge;
    const Edge* columns = rows + height;
    if (rows[height - 1].end <= tile.y || rows[0].begin >= tile.y + kHeight) continue;
    if (columns[width - 1].end <= tile.x || columns[0].begin >= tile.x + kWidth) continue;
    f(grid, reaching(rows, height, tile.y, tile.y + kHeight),
      reaching(columns, width, tile.x, tile.x + kWidth));
  }
}

// The cells of an axis of a tile that lie in a bin, one bit each.
__device__ __forceinline__ unsigned cells_of(Edge edge, int begin, int size) {
  const int first = max(edge.begin - begin, 0), last = min(edge.end - begin, size);
  return first < last ? (1u << last) - (1u << first) : 0;
}

// A bin that reaches into a tile: its row of the shares, and the tile's cells in it, one bit each.
struct Entry {
  int32_t bin;
  uint32_t cells;
};

__device__ __forceinline__ Entry entry_of(Tile tile, int bin, Edge row, Edge column) {
  const unsigned columns = cells_of(column, tile.x, kWidth), rows = cells_of(row, tile.y, kHeight);
  unsigned cells = 0;
  for (int y = 0; y < kHeight; ++y)
    if (rows >> y & 1) cells |= columns << y * kWidth;
  return {bin, cells};
}

// The sum over the threads before this one, and over all.
__device__ __forceinline__ int sum_before(int value, int* total) {
  __shared__ int of_warp[kThreads / kWarp];
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  int sum = value;
#pragma unroll
  for (int step = 1; step < kWarp; step *= 2) {
    const int below = __shfl_up_sync(0xffffffffu, sum, step);
    if (lane >= step) sum += below;
  }
  if (lane == kWarp - 1) of_warp[warp] = sum;
  __syncthreads();
  int before = sum - value;
  *total = 0;
  for (int w = 0; w < kThreads / kWarp; ++w) {
    if (w < warp) before += of_warp[w];
    *total += of_warp[w];
  }
  __syncthreads();
  return before;
}

// Sums of a thread's channels in shared memory: each gradient goes to the cell that its maximum came from.
// Gradients of cells outside the tile go to one extra cell, so that all threads do the same.
template <typename scalar_t, typename share_t, typename place_t>
struct Scatter {
  using M = Compute<scalar_t>;
  using Listed = int32_t;
  using Places = Pack<place_t, kPerThread>;
  using Shares = Pack<share_t, kPerThread>;
  static constexpr size_t kShared = (kCells + 1) * kSlots * sizeof(M);
  static constexpr int kAhead = 8;  // bins whose gradients and places are loaded together

  M* sums;         // (cell, channel of a thread, thread)
  unsigned first;  // place in the tile

  __device__ __forceinline__ Scatter(unsigned char* shared, Tile tile)
      : sums(reinterpret_cast<M*>(shared) + threadIdx.x), first(by_tile(place_at<place_t>(tile.y, tile.x))) {
    for (int i = 0; i < (kCells + 1) * kPerThread; ++i) sums[i * kThreads] = M(0);
  }

  static __device__ __forceinline__ Listed entry(Tile, int bin, Edge, Edge) { return bin; }

  // What kAhead listed bins give to the thread's channels.
  struct Batch {
    Places places[kAhead];
    Shares shares[kAhead];

    __device__ __forceinline__ void read(const Job<scalar_t, share_t, place_t>& job, const Listed* list,
                                         int begin, int count, int slot) {
#pragma unroll
      for (int i = 0; i < kAhead; ++i) {
        const int64_t bin = list[min(begin + i, count - 1)];
        places[i] = load<Places>(job.places + slot + bin * job.slots);
        shares[i] = load<Shares>(job.shares + slot + bin * job.slots);
      }
    }
  };

  __device__ __forceinline__ void add(const Batch& batch, const Listed*, int begin, int count) {
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const unsigned from = begin + i < count ? first : first ^ 1u << 31;  // beyond every map
      M* at[kPerThread];
      M sum[kPerThread];
#pragma unroll
      for (int v = 0; v < kPerThread; ++v) {
        at[v] = sums + min(batch.places[i].at[v] ^ from, unsigned(kCells)) * kSlots + v * kThreads;
        sum[v] = *at[v] + static_cast<M>(batch.shares[i].at[v]);
      }
#pragma unroll
      for (int v = 0; v < kPerThread; ++v) *at[v] = sum[v];
    }
  }

  __device__ __forceinline__ void finish() const {}
};

// Sums of a thread's channels in registers: each bin gives its share to all of its cells.
template <typename scalar_t, typename share_t, typename place_t>
struct Spread {
  using M = Compute<scalar_t>;
  using Listed = Entry;
  using Shares = Pack<share_t, kPerThread>;
  static constexpr size_t kShared = kCells * kSlots * sizeof(M);
  static constexpr int kAhead = 4;  // bins whose shares are loaded together

  M* sums;
  M sum[kCells][kPerThread];

  __device__ __forceinline__ Spread(unsigned char* shared, Tile)
      : sums(reinterpret_cast<M*>(shared) + threadIdx.x) {
#pragma unroll
    for (int cell = 0; cell < kCells; ++cell)
#pragma unroll
      for (int v = 0; v < kPerThread; ++v) sum[cell][v] = M(0);
  }

  static __device__ __forceinline__ Listed entry(Tile tile, int bin, Edge row, Edge column) {
    return entry_of(tile, bin, row, column);
  }

  // What kAhead listed bins give to each of their cells.
  struct Batch {
    Shares shares[kAhead];

    __device__ __forceinline__ void read(const Job<scalar_t, share_t, place_t>& job, const Listed* list,
                                         int begin, int count, int slot) {
#pragma unroll
      for (int i = 0; i < kAhead; ++i)
        shares[i] =
            load<Shares>(job.shares + int64_t(list[min(begin + i, count - 1)].bin) * job.slots + slot);
    }
  };

  __device__ __forceinline__ void add(const Batch& batch, const Listed* list, int begin, int count) {
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const unsigned cells = begin + i < count ? list[begin + i].cells : 0;
#pragma unroll
      for (int cell = 0; cell < kCells; ++cell)
        if (cells >> cell & 1)
#pragma unroll
          for (int v = 0; v < kPerThread; ++v) sum[cell][v] += batch.shares[i].at[v];
    }
  }

  __device__ __forceinline__ void finish() const {
#pragma unroll
    for (int cell = 0; cell < kCells; ++cell)
#pragma unroll
      for (int v = 0; v < kPerThread; ++v) sums[cell * kSlots + v * kThreads] = sum[cell][v];
  }
};

// Adds the listed bins to a thread's sums. Each batch of bins is read while the one before it is added.
template <typename Sums, typename Job>
__device__ __forceinline__ void add_all(Sums& sums, const Job& job, const typename Sums::Listed* list,
                                        int count, int slot) {
  typename Sums::Batch now, next;
  now.read(job, list, 0, count, slot);
  for (int begin = 0; begin < count; begin += Sums::kAhead) {
    next.read(job, list, begin + Sums::kAhead, count, slot);
    sums.add(now, list, begin, count);
    now = next;
  }
}

template <typename scalar_t, typename share_t, typename place_t, typename Sums>
__global__ void __launch_bounds__(kThreads)
    backward_kernel(const __grid_constant__ Job<scalar_t, share_t, place_t> job) {
  using M = Compute<scalar_t>;
  using Listed = typename Sums::Listed;
  extern __shared__ __align__(16) unsigned char shared[];
  __shared__ Listed list[kList];
  const Geometry& geometry = job.geometry;
  const int height = static_cast<int>(geometry.y.extent), width = static_cast<int>(geometry.x.extent);
  const int across = (width + kWidth - 1) / kWidth, down = (height + kHeight - 1) / kHeight;
  const Tile tile{static_cast<int>(blockIdx.x / across % down) * kHeight,
                  static_cast<int>(blockIdx.x % across) * kWidth};
  const int image = blockIdx.x / across / down;
  const int first_slot = blockIdx.y * kSlots, slot = first_slot + threadIdx.x * kPerThread;
  Sums sums(shared, tile);
  for (int first_roi = 0; first_roi < job.rois; first_roi += kThreads) {
    const int roi = first_roi + threadIdx.x;
    const Edge* edges = job.edges + int64_t(roi) * geometry.edges;
    const bool mine = roi < job.rois && job.images[roi] == image;
    int count = 0, total;
    if (mine)
      each_grid_in_tile(geometry, edges, tile,
                        [&](const Grid&, Run p, Run q) { count += p.size() * q.size(); });
    const int before = sum_before(count, &total);
    for (int base = 0; base < total; base += kList) {
      if (count > 0 && before < base + kList && before + count > base) {
        int at = before - base;
        each_grid_in_tile(geometry, edges, tile, [&](const Grid& grid, Run rows, Run columns) {
          const Edge* row_edges = edges + grid.first_edge;
          for (int p = rows.begin; p < rows.end; ++p)
            for (int q = columns.begin; q < columns.end; ++q, ++at) {
              if (at < 0 || at >= kList) continue;
              const int bin = roi * geometry.bins + static_cast<int>(grid.first_bin + p * grid.width + q);
              list[at] = Sums::entry(tile, bin, row_edges[p], row_edges[grid.height + q]);
            }
        });
      }
      __syncthreads();
      if (slot < job.slots) add_all(sums, job, list, min(total - base, kList), slot);
      __syncthreads();
    }
  }
  sums.finish();
  __syncthreads();
  const M* all = reinterpret_cast<const M*>(shared);
  const int column = threadIdx.x % kWidth, x = tile.x + column;
  if (x >= width) return;
#pragma unroll 4
  for (int s = threadIdx.x / kWidth; s < kSlots; s += kThreads / kWidth) {
    const int channel = channel_of<scalar_t>(first_slot + s);
    if (channel >= job.channels) continue;
    const M* from = all + column * kSlots + s % kPerThread * kThreads + s / kPerThread;
    scalar_t* to = job.out + ((int64_t(image) * job.channels + channel) * height + tile.y) * width + x;
#pragma unroll
    for (int row = 0; row < kHeight; ++row)
      if (tile.y + row < height) to[row * width] = static_cast<scalar_t>(from[row * kWidth * kSlots]);
  }
}

template <typename scalar_t, typename place_t, bool average>
void run(const Geometry& geometry, const Tensor& grad, const Tensor& rois, const Tensor& places,
         const Tensor& result) {
  using Share = std::conditional_t<average, Compute<scalar_t>, scalar_t>;
  using Sums =
      std::conditional_t<average, Spread<scalar_t, Share, place_t>, Scatter<scalar_t, Share, place_t>>;
  const int64_t count = rois.size(0);
  const int channels = static_cast<int>(result.size(1)), slots = slots_of<scalar_t>(channels);
  const Tensor turned = torch::stable::new_empty(grad, {count, geometry.bins, slots},
                                                 average ? rois.scalar_type() : grad.scalar_type());
  const Tensor regions = torch::stable::new_empty(rois, {count * (2 * geometry.edges + 1)}, ScalarType::Int);
  auto* edges = static_cast<Edge*>(regions.data_ptr());
  auto* images = static_cast<int32_t*>(regions.data_ptr()) + 2 * count * geometry.edges;
  const cudaStream_t stream = current_stream(result);
  if (count > 0) {
    const Split split = split_of<scalar_t>(geometry, count, slots);
    const TurnJob<scalar_t> job{
        geometry,
        static_cast<const Compute<scalar_t>*>(rois.data_ptr()),
        result.size(0),
        slots,
        channels,
        split.tile_bins,
        static_cast<const scalar_t*>(grad.data_ptr()),
        turned.data_ptr(),
        edges,
        images,
    };
    turn_kernel<scalar_t, average><<<split.blocks, kTurnThreads, split.shared, stream>>>(job);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }
  const Job<scalar_t, Share, place_t> job{
      geometry,
      static_cast<const Share*>(turned.data_ptr()),
      average ? nullptr : static_cast<const place_t*>(places.data_ptr()),
      edges,
      images,
      static_cast<int>(count),
      channels,
      slots,
      static_cast<scalar_t*>(result.data_ptr()),
  };
  const int64_t tiles = result.size(0) * ((geometry.y.extent + kHeight - 1) / kHeight) *
                        ((geometry.x.extent + kWidth - 1) / kWidth);
  STD_TORCH_CHECK(tiles <= INT32_MAX, "region pooling: the features are too large for one call");
  const dim3 blocks(tiles, (slots + kSlots - 1) / kSlots);
  backward_kernel<scalar_t, Share, place_t, Sums><<<blocks, kThreads, Sums::kShared, stream>>>(job);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace

Tensor pool_backward(const Pooling& pooling, const Tensor& grad, const Tensor& rois, const Tensor& places,
                     int64_t batch, int64_t channels) {
  check_gradient(pooling, grad, rois, batch, channels);
  const torch::stable::accelerator::DeviceGuard guard(grad.get_device_index());
  const Geometry geometry = geometry_of(pooling);
  const int64_t count = rois.size(0);
  STD_TORCH_CHECK(count * geometry.bins <= INT32_MAX, pooling.name,
                  ": on CUDA all RoIs together have at most 2^31 - 1 bins, not ", count * geometry.bins);
  const bool average = pooling.reduction == Reduction::avg, small = has_short_places(pooling);
  Tensor result = torch::stable::new_empty(grad, {batch, channels, pooling.y.extent, pooling.x.extent});
  dispatch(grad.scalar_type(), [&]<typename scalar_t>() {
    STD_TORCH_CHECK(average || (places.scalar_type() == (small ? ScalarType::Short : ScalarType::Int) &&
                                places.numel() == count * geometry.bins * slots_of<scalar_t>(channels) &&
                                on_one_device(grad, places)),
                    pooling.name, ": the gradient and the kept maxima do not belong together");
    if (result.numel() == 0) return;
    const Tensor grads = torch::stable::contiguous(grad), kept = torch::stable::contiguous(places);
    const Tensor rows = index_rois(grad, rois);
    if (average)
      run<scalar_t, uint16_t, true>(geometry, grads, rows, kept, result);
    else if (small)
      run<scalar_t, uint16_t, false>(geometry, grads, rows, kept, result);
    else
      run<scalar_t, uint32_t, false>(geometry, grads, rows, kept, result);
  });
  return result;
}

}  // namespace detector
