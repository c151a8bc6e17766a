// What the CUDA kernels of masked_pool share. A thread takes one channel: the channels of a cell lie side by
// side, so the threads of a warp read neighbours.

#pragma once

#include "pooling/cuda/pool.h"
#include "pooling/masked.h"

namespace detector {

constexpr int kChannels = 128;  // threads of a block

// A RoI as the kernels read it.
struct Region {
  Cover cover;
  Edge rows;  // of the map, that its bins may read
  Edge columns;
  int32_t image;  // -1 for a RoI or a window that cannot be used, which gives zeros
};

// The regions of a call, on the device: `edges`, (R, geometry.edges), are the cells that each row and each
// column of bins may read, with the bins clipped to the window of the mask.
struct Regions {
  Tensor memory;
  const Region* regions;
  const Edge* edges;
};

Regions read_regions(const MaskedPooling& masked, const Geometry& geometry, const Tensor& rois,
                     const Tensor& windows, const Tensor& cover, int64_t images);

inline unsigned channel_blocks(int64_t channels) {
  const int64_t blocks = (channels + kChannels - 1) / kChannels;
  STD_TORCH_CHECK(blocks <= UINT16_MAX, "masked_pool: on CUDA there are too many channels: ", channels);
  return static_cast<unsigned>(blocks);
}

// The grid of a bin.
__device__ __forceinline__ const Grid& grid_of(const Geometry& geometry, int bin) {
  int g = 0;
  while (g + 1 < geometry.grid_count && geometry.grids[g + 1].first_bin <= bin) ++g;
  return geometry.grids[g];
}

// The samples of a bin, along both axes.
template <typename T>
struct SampleGrid {
  Samples<T> rows;
  Samples<T> columns;

  __device__ __forceinline__ SampleGrid(const Geometry& geometry, const T* roi, int64_t ratio,
                                        const Grid& grid, int p, int q)
      : rows(samples_of<T>(roi[2], roi[4], geometry.y, ratio, p, grid.height)),
        columns(samples_of<T>(roi[1], roi[3], geometry.x, ratio, q, grid.width)) {}
  __device__ __forceinline__ int across() const { return columns.end - columns.begin; }
};

// One of the four cells that a sample reads, and the product of its weights.
template <typename T>
struct Read {
  int32_t y, x;
  T weight;

  __device__ __forceinline__ Read(const Sample<T>& row, const Sample<T>& column, int k)
      : y(k / 2 ? row.high : row.low),
        x(k % 2 ? column.high : column.low),
        weight((k / 2 ? row.high_weight : row.low_weight) * (k % 2 ? column.high_weight : column.low_weight)) {
  }
};

}  // namespace detector
