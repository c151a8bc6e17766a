// What the CPU and the CUDA kernels share: the description of a call, its plan and its checks.

#pragma once

#include "pooling/bins.h"
#include "tensors.h"

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/Dispatch_v2.h>

#include <algorithm>
#include <cfloat>
#include <type_traits>
#include <vector>

namespace detector {

DETECTOR_ENUM(Reduction, max, avg)

// What the kernels compute: maxima, maxima with the places they came from, or averages.
enum class Mode { max, argmax, avg };

// The type of arithmetic: double for double features, float for all others.
template <typename scalar_t>
using Compute = std::conditional_t<std::is_same_v<scalar_t, double>, double, float>;

// Calls f.operator()<scalar_t>() with the C++ type of the features.
template <typename F>
void dispatch(ScalarType type, const F& f) {
  THO_DISPATCH_V2(type, "region pooling", AT_WRAP([&] { f.template operator()<scalar_t>(); }),
                  AT_EXPAND(AT_FLOATING_TYPES), ScalarType::Half, ScalarType::BFloat16);
}

// One grid of a pyramid. The output of a RoI holds the grids one after another, each (C, height, width).
struct Grid {
  int64_t height;
  int64_t width;
  int64_t first_bin;   // bins of the grids before this one
  int64_t first_edge;  // edges of the grids before this one: height rows, then width columns
};

struct Pooling {
  const char* name;  // of the operator, for messages
  Rule rule;
  Reduction reduction;
  Axis y;
  Axis x;
  std::vector<Grid> grids;
  int64_t bins = 0;
  int64_t edges = 0;

  void add_grid(int64_t height, int64_t width) {
    STD_TORCH_CHECK(height > 0 && width > 0, name, ": a grid must have at least one bin, not ", height, " x ",
                    width);
    STD_TORCH_CHECK(height <= INT32_MAX / width, name, ": a grid may have at most 2^31 - 1 bins, not ",
                    height, " x ", width);
    grids.push_back({height, width, bins, edges});
    bins += height * width;
    edges += height + width;
  }
};

// The source of a grid's bins: the map, or the index of the grid whose bins they are unions of.
constexpr int64_t kFromMap = -1;

struct Step {
  int64_t grid;
  int64_t source;
};

// The grids from fine to coarse. A grid that divides a finer one evenly is the maximum over that one's
// bins, since floor(p h / 3) is floor(2 p h / 6), and so for every integer edge; it never reads the map. Of
// several finer grids the coarsest is the cheapest source.
inline std::vector<Step> plan(const Pooling& pooling) {
  std::vector<Step> steps;
  for (size_t i = 0; i < pooling.grids.size(); ++i) steps.push_back({int64_t(i), kFromMap});
  const auto grid = [&](size_t i) -> const Grid& { return pooling.grids[steps[i].grid]; };
  std::stable_sort(steps.begin(), steps.end(), [&](const Step& a, const Step& b) {
    const Grid &first = pooling.grids[a.grid], &second = pooling.grids[b.grid];
    return first.height * first.width > second.height * second.width;
  });
  if (pooling.reduction == Reduction::avg || pooling.rule == Rule::caffe || pooling.rule == Rule::partition)
    return steps;
  for (size_t i = 0; i < steps.size(); ++i)
    for (size_t j = 0; j < i; ++j)
      if (grid(j).height % grid(i).height == 0 && grid(j).width % grid(i).width == 0)
        steps[i].source = steps[j].grid;
  return steps;
}

// A maximum starts here and only a greater value replaces it, so NaN is never a maximum. double starts at
// float's limit too, as in torchvision.
constexpr float kLowest = -FLT_MAX;

// `values` are the features or their gradient.
inline void check_rois(const char* name, const Tensor& values, const Tensor& rois) {
  STD_TORCH_CHECK(rois.dim() == 2 && rois.size(1) == 5, name, ": rois must have shape (R, 5)");
  STD_TORCH_CHECK(on_one_device(values, rois), name, ": features and rois must be on one device");
  const ScalarType type = rois.scalar_type();
  STD_TORCH_CHECK(
      type == ScalarType::Float || (type == ScalarType::Double && values.scalar_type() == ScalarType::Double),
      name, ": rois must be float32, or float64 with float64 features");
}

inline void check_map(const char* name, int64_t height, int64_t width) {
  STD_TORCH_CHECK(height >= 0 && width >= 0 && height <= INT32_MAX / (width > 0 ? width : 1), name,
                  ": a map may have at most 2^31 - 1 cells, not ", height, " x ", width);
}

inline void check_inputs(const char* name, const Tensor& features, const Tensor& rois) {
  STD_TORCH_CHECK(features.dim() == 4, name, ": features must have 4 dimensions, not ", features.dim());
  check_rois(name, features, rois);
  check_map(name, features.size(2), features.size(3));
}

// Checks the arguments of the backward operators, which anyone may call.
inline void check_gradient(const Pooling& pooling, const Tensor& grad, const Tensor& rois, int64_t batch,
                           int64_t channels) {
  check_rois(pooling.name, grad, rois);
  check_map(pooling.name, pooling.y.extent, pooling.x.extent);
  STD_TORCH_CHECK(batch >= 0 && channels >= 0 && grad.numel() == rois.size(0) * channels * pooling.bins,
                  pooling.name, ": the gradient, the RoIs and the map do not belong together");
}

// The RoIs in the type of index arithmetic.
inline Tensor index_rois(const Tensor& features, const Tensor& rois) {
  const ScalarType type =
      features.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  const Tensor same = rois.scalar_type() == type ? rois : torch::stable::to(rois, type);
  return same.is_contiguous() ? same : torch::stable::contiguous(same);
}

}  // namespace detector
