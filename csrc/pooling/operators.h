// The operators, the same for every backend: they turn their arguments into a Pooling and call the kernels.

#pragma once

#include "pooling/pooling.h"

#include <torch/csrc/stable/library.h>

#include <tuple>

namespace detector {

// Each backend implements the next two functions. pool() pools every RoI; the result has `shape`, whose
// elements are (R, then for each grid: C, height, width). The second result says where the maxima came from,
// in a form that only the backend's pool_backward() reads; it is empty unless the mode is argmax.
std::tuple<Tensor, Tensor> pool(const Pooling& pooling, const Tensor& features, const Tensor& rois,
                                torch::headeronly::IntHeaderOnlyArrayRef shape, Mode mode);

// The gradient of the features, (batch, C, H, W), from that of the output. Sums run over RoIs and bins in
// ascending order for every cell, so the bits are the same on every run and at any number of threads, and
// those of another backend.
Tensor pool_backward(const Pooling& pooling, const Tensor& grad, const Tensor& rois, const Tensor& argmax,
                     int64_t batch, int64_t channels);

using Numbers = std::vector<double>;

inline Mode mode_of(Reduction reduction, bool with_argmax) {
  if (reduction == Reduction::avg) return Mode::avg;
  return with_argmax ? Mode::argmax : Mode::max;
}

inline Pooling roi_pooling(int64_t height, int64_t width, double scale, int64_t rule, int64_t map_height,
                           int64_t map_width) {
  STD_TORCH_CHECK(rule >= 0 && rule <= static_cast<int64_t>(Rule::partition), "roi_pool: unknown rule ",
                  rule);
  Pooling pooling{
      "roi_pool",
      static_cast<Rule>(rule),
      Reduction::max,
      {scale, 1 / scale, 0, 0, map_height},
      {scale, 1 / scale, 0, 0, map_width},
      {},
  };
  pooling.add_grid(height, width);
  return pooling;
}

inline Pooling spp_pooling(const std::vector<int64_t>& levels, const Numbers& scale, const Numbers& center,
                           const Numbers& shrink, int64_t rule, int64_t reduction, int64_t map_height,
                           int64_t map_width) {
  STD_TORCH_CHECK(scale.size() == 2 && center.size() == 2 && shrink.size() == 2,
                  "spp_pool: scale, center and shrink are pairs (y, x)");
  STD_TORCH_CHECK(rule >= static_cast<int64_t>(Rule::exact) && rule <= static_cast<int64_t>(Rule::cells),
                  "spp_pool: unknown rule ", rule);
  STD_TORCH_CHECK(reduction >= 0 && reduction < count_of(Reduction{}), "spp_pool: unknown reduction ",
                  reduction);
  STD_TORCH_CHECK(!levels.empty(), "spp_pool: a pyramid has at least one level");
  Pooling pooling{
      "spp_pool",
      static_cast<Rule>(rule),
      static_cast<Reduction>(reduction),
      {scale[0], 1 / scale[0], center[0], shrink[0], map_height},
      {scale[1], 1 / scale[1], center[1], shrink[1], map_width},
      {},
  };
  for (const int64_t n : levels) pooling.add_grid(n, n);
  return pooling;
}

inline std::tuple<Tensor, Tensor> roi_pool(const Tensor& features, const Tensor& rois, int64_t height,
                                           int64_t width, double scale, int64_t rule, bool with_argmax) {
  check_inputs("roi_pool", features, rois);
  const Pooling pooling = roi_pooling(height, width, scale, rule, features.size(2), features.size(3));
  return pool(pooling, features, rois, {rois.size(0), features.size(1), height, width},
              mode_of(pooling.reduction, with_argmax));
}

inline Tensor roi_pool_backward(const Tensor& grad, const Tensor& rois, const Tensor& argmax, double scale,
                                int64_t rule, int64_t batch, int64_t height, int64_t width) {
  STD_TORCH_CHECK(grad.dim() == 4, "roi_pool_backward: the gradient must have 4 dimensions, not ",
                  grad.dim());
  const Pooling pooling = roi_pooling(grad.size(2), grad.size(3), scale, rule, height, width);
  return pool_backward(pooling, grad, rois, argmax, batch, grad.size(1));
}

inline std::tuple<Tensor, Tensor> spp_pool(const Tensor& features, const Tensor& rois,
                                           const std::vector<int64_t>& levels, const Numbers& scale,
                                           const Numbers& center, const Numbers& shrink, int64_t rule,
                                           int64_t reduction, bool with_argmax) {
  check_inputs("spp_pool", features, rois);
  const Pooling pooling =
      spp_pooling(levels, scale, center, shrink, rule, reduction, features.size(2), features.size(3));
  return pool(pooling, features, rois, {rois.size(0), features.size(1) * pooling.bins},
              mode_of(pooling.reduction, with_argmax));
}

inline Tensor spp_pool_backward(const Tensor& grad, const Tensor& rois, const Tensor& argmax,
                                const std::vector<int64_t>& levels, const Numbers& scale,
                                const Numbers& center, const Numbers& shrink, int64_t rule, int64_t reduction,
                                int64_t batch, int64_t channels, int64_t height, int64_t width) {
  const Pooling pooling = spp_pooling(levels, scale, center, shrink, rule, reduction, height, width);
  return pool_backward(pooling, grad, rois, argmax, batch, channels);
}

// Registers the operators for a backend, within STABLE_TORCH_LIBRARY_IMPL.
template <typename Library>
void register_pooling(Library& library) {
  library.impl("roi_pool", TORCH_BOX(&roi_pool));
  library.impl("roi_pool_backward", TORCH_BOX(&roi_pool_backward));
  library.impl("spp_pool", TORCH_BOX(&spp_pool));
  library.impl("spp_pool_backward", TORCH_BOX(&spp_pool_backward));
}

}  // namespace detector
