// The CPU kernels behind roi_pool and spp_pool.

#pragma once

#include "pooling.h"

#include <tuple>

namespace detector {

// Pools every RoI; both results have `shape`, whose elements are (R, then for each level: C, height, width).
std::tuple<Tensor, Tensor> pool(const Pooling& pooling, const Tensor& features, const Tensor& rois,
                                torch::headeronly::IntHeaderOnlyArrayRef shape, bool with_argmax);

// The gradient of the features, (batch, C, H, W), from that of the output. Sums run over RoIs and bins in
// ascending order for every cell, so the bits are the same on every run and at any number of threads.
Tensor pool_backward(const Pooling& pooling, const Tensor& grad, const Tensor& rois, const Tensor& argmax,
                     int64_t batch, int64_t channels);

}  // namespace detector
