// What the CUDA kernels of roi_pool and spp_pool share.
//
// Inside the operators the channels of a cell or of a bin lie side by side, in "slots". A lane moves 16 bytes
// at a time, a pack: 4 channels of float32, 8 of the half types, 2 of float64. A warp's packs are a group of
// channels, and lane i of it holds channels i, i + 32, i + 64, ... of the group. So when a warp writes one
// bin of its channels into a tile (channel, bin) whose rows have an odd length, every lane writes to a bank
// of its own.

#pragma once

#include "cuda_stream.h"
#include "pooling/operators.h"

#include <cuda_runtime.h>

#include <type_traits>

namespace detector {

constexpr int kWarp = 32;
constexpr int64_t kMaxGrids = 16;

template <typename scalar_t>
constexpr int kPack = 16 / sizeof(scalar_t);

template <typename scalar_t>
constexpr int kGroup = kWarp * kPack<scalar_t>;

template <typename T, int n>
struct alignas(n * sizeof(T)) Pack {
  T at[n];
};

template <typename scalar_t>
using Channels = Pack<scalar_t, kPack<scalar_t>>;

template <typename V, typename T>
__device__ __forceinline__ V load(const T* from) {
  return *reinterpret_cast<const V*>(from);
}

template <typename T, int n>
__device__ __forceinline__ void store(T* to, const Pack<T, n>& pack) {
  *reinterpret_cast<Pack<T, n>*>(to) = pack;
}

// Channels rounded up to whole groups.
template <typename scalar_t>
DETECTOR_HOST_DEVICE int slots_of(int64_t channels) {
  return static_cast<int>((channels + kGroup<scalar_t> - 1) / kGroup<scalar_t> * kGroup<scalar_t>);
}

template <typename scalar_t>
DETECTOR_HOST_DEVICE int channel_of(int slot) {
  const int within = slot % kGroup<scalar_t>;
  return slot - within + within % kPack<scalar_t> * kWarp + within / kPack<scalar_t>;
}

// The place of a maximum on the map: its row in the high half of the bits, its column in the low half. Places
// compare in row-major order. No map has a cell whose bits are all set; that stands for a bin without a
// maximum.
template <typename place_t>
constexpr int kPlaceBits = 4 * sizeof(place_t);

template <typename place_t>
constexpr place_t kNowhere = static_cast<place_t>(~place_t(0));

template <typename place_t>
DETECTOR_HOST_DEVICE constexpr place_t place_at(unsigned y, unsigned x) {
  return static_cast<place_t>(y << kPlaceBits<place_t> | x);
}

// The backward pass sums a tile of cells at a time. For it places are kept with their bits in another order:
// the tile's row and column, then the cell within the tile.
constexpr unsigned kTileHeight = 2;  // powers of two
constexpr unsigned kTileWidth = 8;
constexpr unsigned kTileCells = kTileHeight * kTileWidth;

template <typename place_t>
DETECTOR_HOST_DEVICE constexpr place_t by_tile(place_t place) {
  const unsigned y = place >> kPlaceBits<place_t>, x = place & (1u << kPlaceBits<place_t>)-1;
  return static_cast<place_t>(y / kTileHeight * (kTileHeight << kPlaceBits<place_t>)+x / kTileWidth *
                                  kTileCells +
                              y % kTileHeight * kTileWidth + x % kTileWidth);
}

// The inverse of by_tile.
template <typename place_t>
DETECTOR_HOST_DEVICE constexpr place_t by_row(place_t kept) {
  constexpr unsigned kRowOfTiles = kTileHeight << kPlaceBits<place_t>;
  const unsigned y = kept / kRowOfTiles * kTileHeight + kept % kTileCells / kTileWidth;
  const unsigned x = kept % kRowOfTiles / kTileCells * kTileWidth + kept % kTileWidth;
  return place_at<place_t>(y, x);
}

// Maps of up to 255 cells per side keep places in 16 bits; detector/ops/_pooling.py relies on this limit.
inline bool has_short_places(const Pooling& pooling) {
  return pooling.y.extent <= 255 && pooling.x.extent <= 255;
}

// A Pooling as kernels take it: by value, without pointers into host memory.
struct Geometry {
  Rule rule;
  Axis y;
  Axis x;
  Grid grids[kMaxGrids];
  int grid_count;
  int bins;
  int edges;
};

Geometry geometry_of(const Pooling& pooling);

// The image of a RoI; -1 for an unusable RoI, which gives zeros: the host would have to wait for the device
// to raise an error.
template <typename T>
__device__ __forceinline__ int32_t image_of(Rule rule, const T* roi, int64_t images) {
  bool usable = images > 0 && roi[0] > T(-1) && roi[0] < static_cast<T>(images);
  for (int i = 1; i < 5; ++i) usable &= isfinite(roi[i]) && (rule != Rule::cells || roi[i] == floor(roi[i]));
  return usable ? static_cast<int32_t>(roi[0]) : -1;
}

template <typename T>
__device__ __noinline__ Edge edge_of(const Geometry& geometry, const T* roi, int edge) {
  int g = 0;
  while (g + 1 < geometry.grid_count && geometry.grids[g + 1].first_edge <= edge) ++g;
  const Grid& grid = geometry.grids[g];
  const int64_t index = edge - grid.first_edge;
  const bool row = index < grid.height;
  const Axis& axis = row ? geometry.y : geometry.x;
  const Window window = row ? window_of<T>(geometry.rule, roi[2], roi[4], axis)
                            : window_of<T>(geometry.rule, roi[1], roi[3], axis);
  return bin_of<T>(geometry.rule, window, row ? index : index - grid.height, row ? grid.height : grid.width,
                   axis.extent);
}

// Writes the edges of all bins of a RoI to shared memory, by the whole block, and returns the RoI's image. A
// RoI that has none gets empty bins only.
template <typename T>
__device__ __forceinline__ int32_t read_roi(const Geometry& geometry, const T* roi, int64_t images,
                                            Edge* edges) {
  const int32_t image = image_of(geometry.rule, roi, images);
  for (int i = threadIdx.x; i < geometry.edges; i += blockDim.x)
    edges[i] = image < 0 ? Edge{0, 0} : edge_of(geometry, roi, i);
  __syncthreads();
  return image;
}

// A block's shared memory: the edges of its RoI and a tile. The tile holds bins [first, last) and one group
// of channels, grid by grid, each grid's part as (channel, bin) with rows of an odd length.
constexpr int kMaxEdges = 1024;
constexpr int kTileBins = 64;  // with kMaxEdges and kMaxGrids within the 48 KiB that every device grants

DETECTOR_HOST_DEVICE int edge_bytes(const Geometry& geometry) {
  return (geometry.edges * int(sizeof(Edge)) + 15) / 16 * 16;
}

// Calls f(grid's index, its bins begin .. end, offset of its part in elements, length of a row).
template <typename scalar_t, typename F>
__device__ __forceinline__ void for_each_part(const Geometry& geometry, int first, int last, const F& f) {
  int offset = 0;
  for (int g = 0; g < geometry.grid_count; ++g) {
    const Grid& grid = geometry.grids[g];
    const int below = static_cast<int>(grid.first_bin), count = static_cast<int>(grid.height * grid.width);
    const int begin = max(first - below, 0), end = min(last - below, count);
    if (begin >= end) continue;
    const int row = (end - begin) | 1;
    f(g, begin, end, offset, row);
    offset += row * kGroup<scalar_t>;
  }
}

// Calls f(bin, its row p and column q in the grid) for the warp's bins among begin .. end of a grid.
template <typename F>
__device__ __forceinline__ void each_bin_of_warp(const Grid& grid, int begin, int end, const F& f) {
  const int width = static_cast<int>(grid.width), warps = blockDim.x / kWarp;
  int bin = begin + threadIdx.x / kWarp;
  int p = bin / width, q = bin % width;
  for (; bin < end; bin += warps) {
    f(bin, p, q);
    q += warps;
    while (q >= width) q -= width, ++p;
  }
}

// How blocks share the work on RoIs: a block takes one RoI, one group of channels and some of its bins.
struct Split {
  int tile_bins;
  size_t shared;
  dim3 blocks;
};

template <typename scalar_t>
Split split_of(const Geometry& geometry, int64_t rois, int slots) {
  const int tile_bins = geometry.bins < kTileBins ? geometry.bins : kTileBins;
  const size_t rows = tile_bins + geometry.grid_count;  // at most, made odd
  return {tile_bins, edge_bytes(geometry) + rows * kGroup<scalar_t> * sizeof(scalar_t),
          dim3(rois, slots / kGroup<scalar_t>, (geometry.bins + tile_bins - 1) / tile_bins)};
}

// Moves rows x count elements between memory, whose rows are memory_row apart, and a tile, by the whole
// block: many at a time where nothing lies between the rows and they are aligned.
template <bool to_memory, typename T, int n>
__device__ __forceinline__ void move_packs(T* memory, T* tile, int tile_row, int rows, int count) {
  using V = Pack<T, n>;
  const int packs = count / n, step_row = blockDim.x / packs, step = blockDim.x % packs;
  int row = threadIdx.x / packs, at = threadIdx.x % packs;
  while (row < rows) {
    V* there = reinterpret_cast<V*>(memory + (row * packs + at) * n);
    T* here = tile + row * tile_row + at * n;
    V pack;
    if constexpr (to_memory) {
#pragma unroll
      for (int k = 0; k < n; ++k) pack.at[k] = here[k];
      *there = pack;
    } else {
      pack = *there;
#pragma unroll
      for (int k = 0; k < n; ++k) here[k] = pack.at[k];
    }
    row += step_row;
    at += step;
    if (at >= packs) at -= packs, ++row;
  }
}

template <bool to_memory, typename T>
__device__ __forceinline__ void move_rows(T* memory, int64_t memory_row, T* tile, int tile_row, int rows,
                                          int count) {
  constexpr int n = 16 / sizeof(T);
  const auto address = reinterpret_cast<uintptr_t>(memory);
  if (memory_row == count && tile_row == count && address % 16 == 0) {  // one piece
    const int total = rows * count, whole = total / n;
    T* from = to_memory ? tile : memory;
    T* to = to_memory ? memory : tile;
#pragma unroll 4
    for (int i = threadIdx.x; i < whole; i += blockDim.x) store(to + i * n, load<Pack<T, n>>(from + i * n));
    for (int i = whole * n + threadIdx.x; i < total; i += blockDim.x) to[i] = from[i];
    return;
  }
  if (memory_row == count && count % n == 0 && address % 16 == 0)
    return move_packs<to_memory, T, n>(memory, tile, tile_row, rows, count);
  if (memory_row == count && count % (n / 2) == 0 && address % 8 == 0)
    return move_packs<to_memory, T, n / 2>(memory, tile, tile_row, rows, count);
  const int step_row = blockDim.x / count, step = blockDim.x % count;
  int row = threadIdx.x / count, at = threadIdx.x % count;
  while (row < rows) {
    T& there = memory[row * memory_row + at];
    T& here = tile[row * tile_row + at];
    to_memory ? there = here : here = there;
    row += step_row;
    at += step;
    if (at >= count) at -= count, ++row;
  }
}

}  // namespace detector
