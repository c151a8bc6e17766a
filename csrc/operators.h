// From an operator's arguments to a Pooling: the same for every backend.

#pragma once

#include "pooling.h"

namespace detector {

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
  pooling.add_level(height, width);
  return pooling;
}

// What the backward pass of a maximum needs: the argmax says the rest.
inline Pooling roi_pooling_backward(const Tensor& grad, int64_t map_height, int64_t map_width) {
  STD_TORCH_CHECK(grad.dim() == 4, "roi_pool_backward: the gradient must have 4 dimensions, not ",
                  grad.dim());
  return roi_pooling(grad.size(2), grad.size(3), 1, static_cast<int64_t>(Rule::exact), map_height, map_width);
}

inline Pooling spp_pooling(const std::vector<int64_t>& levels, const std::vector<double>& scale,
                           const std::vector<double>& center, const std::vector<double>& shrink, int64_t rule,
                           int64_t reduction, int64_t map_height, int64_t map_width) {
  STD_TORCH_CHECK(scale.size() == 2 && center.size() == 2 && shrink.size() == 2,
                  "spp_pool: scale, center and shrink are pairs (y, x)");
  STD_TORCH_CHECK(rule >= static_cast<int64_t>(Rule::exact) && rule <= static_cast<int64_t>(Rule::cells),
                  "spp_pool: unknown rule ", rule);
  STD_TORCH_CHECK(reduction == 0 || reduction == 1, "spp_pool: unknown reduction ", reduction);
  Pooling pooling{
      "spp_pool",
      static_cast<Rule>(rule),
      static_cast<Reduction>(reduction),
      {scale[0], 1 / scale[0], center[0], shrink[0], map_height},
      {scale[1], 1 / scale[1], center[1], shrink[1], map_width},
      {},
  };
  for (const int64_t n : levels) pooling.add_level(n, n);
  return pooling;
}

}  // namespace detector
