// The feature map as the forward kernels read it.

#pragma once

#include "pooling/cuda/pool.h"

namespace detector {

// Both maps are (N, H, W, slots). `windows` holds at each cell the maximum of it and of its neighbours to the
// right, below, and below right: 2 x 2 cells, so that a maximum over a bin needs a quarter of the reads. No
// zero in either is negative. Empty where they were not asked for: windows, and places (N, H, W, slots), the
// place of each window's maximum, the first of equals in row-major order.
struct PackedMap {
  Tensor memory;
  Tensor place_memory;
  int slots;
  const void* cells;
  const void* windows;
  const void* places;
};

enum class Windows { none, values, places };

PackedMap pack_map(const Pooling& pooling, const Tensor& features, Windows windows);

}  // namespace detector
