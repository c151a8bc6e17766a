#include "cuda/pool.h"

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/macros.h>
#include <torch/headeronly/util/shim_utils.h>

namespace detector {
namespace {

template <typename T>
__global__ void find_images(Rule rule, const T* rois, int64_t count, int64_t images, int32_t* out) {
  const int64_t row = blockIdx.x * int64_t(blockDim.x) + threadIdx.x;
  if (row >= count) return;
  const T* roi = rois + 5 * row;
  bool usable = roi[0] > T(-1) && roi[0] < static_cast<T>(images);
  for (int i = 1; i < 5; ++i) usable &= isfinite(roi[i]) && (rule != Rule::cells || roi[i] == floor(roi[i]));
  out[row] = usable ? static_cast<int32_t>(roi[0]) : -1;
}

}  // namespace

Geometry geometry_of(const Pooling& pooling) {
  STD_TORCH_CHECK(pooling.levels.size() <= kMaxLevels, pooling.name, ": on CUDA a pyramid has at most ",
                  kMaxLevels, " levels, not ", pooling.levels.size());
  Geometry geometry{pooling.rule, pooling.y,    pooling.x, {}, int64_t(pooling.levels.size()),
                    pooling.bins, pooling.edges};
  for (size_t i = 0; i < pooling.levels.size(); ++i) geometry.levels[i] = pooling.levels[i];
  return geometry;
}

Tensor images_of(const Pooling& pooling, const Tensor& rois, int64_t images) {
  const int64_t count = rois.size(0);
  Tensor result = torch::stable::new_empty(rois, {count}, ScalarType::Int);
  if (count == 0) return result;
  const auto launch = [&](auto* data) {
    constexpr int64_t kThreads = 256;
    find_images<<<(count + kThreads - 1) / kThreads, kThreads, 0, current_stream(rois)>>>(
        pooling.rule, data, count, images, static_cast<int32_t*>(result.data_ptr()));
  };
  if (rois.scalar_type() == ScalarType::Double)
    launch(static_cast<const double*>(rois.data_ptr()));
  else
    launch(static_cast<const float*>(rois.data_ptr()));
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return result;
}

cudaStream_t current_stream(const Tensor& tensor) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

}  // namespace detector
