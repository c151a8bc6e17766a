#include "bins.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/Dispatch_v2.h>

#include <cfloat>
#include <type_traits>
#include <vector>

namespace detector {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <typename scalar_t>
using Index = std::conditional_t<std::is_same_v<scalar_t, double>, double, float>;

template <typename scalar_t>
void forward(const scalar_t* map, const Index<scalar_t>* rois, int64_t count, int64_t channels, Axis y_axis, Axis x_axis,
             int64_t height, int64_t width, Rule rule, scalar_t* pooled, int32_t* argmax) {
  using T = Index<scalar_t>;
  const int64_t plane = y_axis.extent * x_axis.extent;
  torch::stable::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const T* roi = rois + 5 * r;
      const scalar_t* image = map + static_cast<int64_t>(roi[0]) * channels * plane;
      const Window rows = window_of<T>(rule, roi[2], roi[4], y_axis);
      const Window columns = window_of<T>(rule, roi[1], roi[3], x_axis);
      for (int64_t c = 0; c < channels; ++c)
        for (int64_t p = 0; p < height * width; ++p) {
          const Bin ys = bin_of<T>(rule, rows, p / width, height, y_axis.extent);
          const Bin xs = bin_of<T>(rule, columns, p % width, width, x_axis.extent);
          const bool empty = ys.begin >= ys.end || xs.begin >= xs.end;
          T best = empty ? T(0) : T(-FLT_MAX);
          int32_t where = -1;
          for (int64_t y = ys.begin; y < ys.end; ++y)
            for (int64_t x = xs.begin; x < xs.end; ++x) {
              const T value = static_cast<T>(image[c * plane + y * x_axis.extent + x]);
              if (value > best) {
                best = value;
                where = static_cast<int32_t>(y * x_axis.extent + x);
              }
            }
          const int64_t at = (r * channels + c) * height * width + p;
          pooled[at] = static_cast<scalar_t>(best);
          if (argmax) argmax[at] = where;
        }
    }
  });
}

std::tuple<Tensor, Tensor> roi_pool(const Tensor& features, const Tensor& rois, int64_t height, int64_t width,
                                    double spatial_scale, int64_t rule, bool with_argmax) {
  const Tensor map = torch::stable::contiguous(features);
  const Tensor boxes = torch::stable::contiguous(
      torch::stable::to(rois, features.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float));
  const int64_t count = rois.size(0), channels = features.size(1);
  Tensor pooled = torch::stable::new_empty(features, {count, channels, height, width});
  Tensor argmax = with_argmax ? torch::stable::new_empty(features, {count, channels, height, width}, ScalarType::Int)
                              : torch::stable::new_empty(features, {0}, ScalarType::Int);
  const Axis y_axis{spatial_scale, 1.0 / spatial_scale, 0, 0, features.size(2)};
  const Axis x_axis{spatial_scale, 1.0 / spatial_scale, 0, 0, features.size(3)};
  THO_DISPATCH_V2(features.scalar_type(), "roi_pool", AT_WRAP(([&] {
    forward<scalar_t>(static_cast<const scalar_t*>(map.data_ptr()),
                      static_cast<const Index<scalar_t>*>(boxes.data_ptr()), count, channels, y_axis, x_axis, height,
                      width, static_cast<Rule>(rule), static_cast<scalar_t*>(pooled.data_ptr()),
                      with_argmax ? static_cast<int32_t*>(argmax.data_ptr()) : nullptr);
  })), AT_EXPAND(AT_FLOATING_TYPES), ScalarType::Half, ScalarType::BFloat16);
  return {pooled, argmax};
}

Tensor roi_pool_backward(const Tensor& grad, const Tensor& rois, const Tensor& argmax, int64_t batch, int64_t height,
                         int64_t width) {
  const Tensor grads = torch::stable::contiguous(grad);
  const Tensor indices = torch::stable::contiguous(argmax);
  const Tensor images = torch::stable::contiguous(torch::stable::to(rois, ScalarType::Double));
  const int64_t count = grad.size(0), channels = grad.size(1), bins = grad.size(2) * grad.size(3), plane = height * width;
  Tensor result = torch::stable::new_empty(grad, {batch, channels, height, width});
  THO_DISPATCH_V2(grad.scalar_type(), "roi_pool_backward", AT_WRAP(([&] {
    using T = Index<scalar_t>;
    const auto* in = static_cast<const scalar_t*>(grads.data_ptr());
    const auto* where = static_cast<const int32_t*>(indices.data_ptr());
    const auto* roi = static_cast<const double*>(images.data_ptr());
    auto* out = static_cast<scalar_t*>(result.data_ptr());
    torch::stable::parallel_for(0, channels, 1, [&](int64_t begin, int64_t end) {
      std::vector<T> sums(plane);
      for (int64_t n = 0; n < batch; ++n)
        for (int64_t c = begin; c < end; ++c) {
          std::fill(sums.begin(), sums.end(), T(0));
          for (int64_t r = 0; r < count; ++r) {
            if (static_cast<int64_t>(roi[5 * r]) != n) continue;
            const int64_t at = (r * channels + c) * bins;
            for (int64_t p = at; p < at + bins; ++p)
              if (where[p] >= 0) sums[where[p]] += static_cast<T>(in[p]);
          }
          for (int64_t i = 0; i < plane; ++i) out[(n * channels + c) * plane + i] = static_cast<scalar_t>(sums[i]);
        }
    });
  })), AT_EXPAND(AT_FLOATING_TYPES), ScalarType::Half, ScalarType::BFloat16);
  return result;
}

STABLE_TORCH_LIBRARY_IMPL(detector, CPU, m) {
  m.impl("roi_pool", TORCH_BOX(&roi_pool));
  m.impl("roi_pool_backward", TORCH_BOX(&roi_pool_backward));
}

}  // namespace
}  // namespace detector
