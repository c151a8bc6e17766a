// What the CUDA kernels behind roi_pool and spp_pool share.

#pragma once

#include "operators.h"

#include <cuda_runtime.h>

#include <type_traits>

namespace detector {

constexpr int64_t kWarp = 32;
constexpr int64_t kMaxLevels = 16;

// The type of arithmetic: double for double features, float for all others.
template <typename scalar_t>
using Compute = std::conditional_t<std::is_same_v<scalar_t, double>, double, float>;

struct Edge {
  int32_t begin;
  int32_t end;
};

// A Pooling as kernels take it: by value, without pointers into host memory.
struct Geometry {
  Rule rule;
  Axis y;
  Axis x;
  Level levels[kMaxLevels];
  int64_t level_count;
  int64_t bins;
  int64_t edges;
};

Geometry geometry_of(const Pooling& pooling);

// The image (R,) of each RoI as int32; -1 for a RoI no kernel can use, which therefore gives zeros: a device
// cannot raise an error without waiting for it.
Tensor images_of(const Pooling& pooling, const Tensor& rois, int64_t images);

cudaStream_t current_stream(const Tensor& tensor);

// The bins of one axis of a level, computed by whoever asks.
template <typename T>
DETECTOR_HOST_DEVICE Edge edge_of(const Geometry& geometry, const Level& level, const T* roi, int64_t index) {
  const bool row = index < level.height;
  const Axis& axis = row ? geometry.y : geometry.x;
  const Window window = row ? window_of<T>(geometry.rule, roi[2], roi[4], axis)
                            : window_of<T>(geometry.rule, roi[1], roi[3], axis);
  const Bin bin = bin_of<T>(geometry.rule, window, row ? index : index - level.height,
                            row ? level.height : level.width, axis.extent);
  return {static_cast<int32_t>(bin.begin), static_cast<int32_t>(bin.end)};
}

}  // namespace detector
