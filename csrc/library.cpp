// The operators' schemas. Implementations register themselves from cpu/ and cuda/; autograd formulas and
// fake kernels are in detector/ops/, beside the Python functions.

#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(detector, m) {
  m.def(
      "roi_pool(Tensor features, Tensor rois, SymInt height, SymInt width, float spatial_scale, int rule, "
      "bool with_argmax) -> (Tensor pooled, Tensor argmax)");
  m.def(
      "roi_pool_backward(Tensor grad, Tensor rois, Tensor argmax, SymInt batch, SymInt height, SymInt width) "
      "-> Tensor");
}
