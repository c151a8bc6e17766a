// The feature map as the kernels read it: all channels of a cell side by side.
//
// Channels are split into wide blocks of 64 and, for what is left, narrow ones of 16. In a channels-last map
// of float or double the blocks are views; else the map is copied once, block by block, and half types are
// widened to float on the way. A last block of fewer than 16 channels is always a copy, padded with zeros.

#pragma once

#include "pooling/cpu/lanes.h"
#include "pooling/pooling.h"

#include <vector>

namespace detector {

constexpr int64_t kWide = 4 * kLanes;

template <typename M>
struct Block {
  const M* data;  // of image 0
  int64_t image_stride;
  int64_t cell_stride;
  int64_t first_channel;
  int64_t channels;  // that exist: at most kWide in a wide block, at most kLanes in a narrow one
  bool wide;
};

template <typename M>
struct BlockedMap {
  Tensor copy;  // keeps the copied blocks alive
  std::vector<Block<M>> blocks;
};

// `features` is (N, C, H, W) of a type whose type of arithmetic is M.
template <typename scalar_t>
BlockedMap<Compute<scalar_t>> blocked(const Tensor& features);

}  // namespace detector
