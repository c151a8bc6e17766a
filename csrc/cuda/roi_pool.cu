#include "cuda/pool.h"
#include "operators.h"

#include <torch/csrc/stable/library.h>

namespace detector {
namespace {

std::tuple<Tensor, Tensor> roi_pool(const Tensor& features, const Tensor& rois, int64_t height, int64_t width,
                                    double scale, int64_t rule, bool with_argmax) {
  check_inputs("roi_pool", features, rois);
  const Pooling pooling = roi_pooling(height, width, scale, rule, features.size(2), features.size(3));
  return pool(pooling, features, rois, {rois.size(0), features.size(1), height, width}, with_argmax);
}

Tensor roi_pool_backward(const Tensor& grad, const Tensor& rois, const Tensor& argmax, int64_t batch,
                         int64_t height, int64_t width) {
  return pool_backward(roi_pooling_backward(grad, height, width), grad, rois, argmax, batch, grad.size(1));
}

STABLE_TORCH_LIBRARY_IMPL(detector, CUDA, m) {
  m.impl("roi_pool", TORCH_BOX(&roi_pool));
  m.impl("roi_pool_backward", TORCH_BOX(&roi_pool_backward));
}

}  // namespace
}  // namespace detector
