// The operators' schemas. cpu/ and cuda/ register the implementations; autograd formulas and fake kernels are
// in detector/ops/, beside the Python functions.
//
// `rule` is detector::Rule, `reduction` detector::Reduction; pairs are (y, x). A backward operator takes the
// forward's arguments and the shape of the map.

#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(detector, m) {
  m.def(
      "roi_pool(Tensor features, Tensor rois, SymInt height, SymInt width, float scale, int rule, "
      "bool with_argmax) -> (Tensor pooled, Tensor argmax)");
  m.def(
      "roi_pool_backward(Tensor grad, Tensor rois, Tensor argmax, float scale, int rule, SymInt batch, "
      "SymInt height, SymInt width) -> Tensor");
  m.def(
      "spp_pool(Tensor features, Tensor rois, int[] levels, float[] scale, float[] center, float[] shrink, "
      "int rule, int reduction, bool with_argmax) -> (Tensor pooled, Tensor argmax)");
  m.def(
      "spp_pool_backward(Tensor grad, Tensor rois, Tensor argmax, int[] levels, float[] scale, float[] "
      "center, "
      "float[] shrink, int rule, int reduction, SymInt batch, SymInt channels, SymInt height, SymInt width) "
      "-> Tensor");
  m.def(
      "masked_pool(Tensor features, Tensor rois, Tensor windows, Tensor cover, int[] levels, float[] scale, "
      "float[] center, float[] shrink, int rule, int sampling_ratio, bool keep) -> (Tensor pooled, Tensor "
      "kept)");
  m.def(
      "masked_pool_backward(Tensor grad, Tensor rois, Tensor windows, Tensor cover, Tensor kept, int[] "
      "levels, "
      "float[] scale, float[] center, float[] shrink, int rule, int sampling_ratio, SymInt batch, SymInt "
      "channels, SymInt height, SymInt width) -> Tensor");
}
