// The schema of the operator on images. cpu/ and cuda/ register the implementations; the fake kernel is in
// detector/ops/normalize.py, beside the Python function.
//
// `sizes` holds the height and the width of each image, one after the other.

#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY_FRAGMENT(detector, m) {
  m.def("normalize_images(Tensor images, Tensor table, SymInt[] sizes, bool bgr) -> Tensor");
}
