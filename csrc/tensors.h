// What all operators on tensors share.

#pragma once

#include <torch/csrc/stable/tensor.h>

namespace detector {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline bool on_one_device(const Tensor& a, const Tensor& b) {
  return a.get_device_index() == b.get_device_index() && a.is_cpu() == b.is_cpu();
}

}  // namespace detector
