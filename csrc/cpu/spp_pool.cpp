#include "cpu/pool.h"
#include "operators.h"

#include <torch/csrc/stable/library.h>

namespace detector {
namespace {

using Numbers = std::vector<double>;

std::tuple<Tensor, Tensor> spp_pool(const Tensor& features, const Tensor& rois,
                                    const std::vector<int64_t>& levels, const Numbers& scale,
                                    const Numbers& center, const Numbers& shrink, int64_t rule,
                                    int64_t reduction, bool with_argmax) {
  check_inputs("spp_pool", features, rois);
  const Pooling pooling =
      spp_pooling(levels, scale, center, shrink, rule, reduction, features.size(2), features.size(3));
  return pool(pooling, features, rois, {rois.size(0), features.size(1) * pooling.bins}, with_argmax);
}

Tensor spp_pool_backward(const Tensor& grad, const Tensor& rois, const Tensor& argmax,
                         const std::vector<int64_t>& levels, const Numbers& scale, const Numbers& center,
                         const Numbers& shrink, int64_t rule, int64_t reduction, int64_t batch,
                         int64_t channels, int64_t height, int64_t width) {
  const Pooling pooling = spp_pooling(levels, scale, center, shrink, rule, reduction, height, width);
  return pool_backward(pooling, grad, rois, argmax, batch, channels);
}

STABLE_TORCH_LIBRARY_IMPL(detector, CPU, m) {
  m.impl("spp_pool", TORCH_BOX(&spp_pool));
  m.impl("spp_pool_backward", TORCH_BOX(&spp_pool_backward));
}

}  // namespace
}  // namespace detector
