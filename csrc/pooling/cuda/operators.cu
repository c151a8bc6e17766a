#include "pooling/operators.h"

#include <torch/csrc/stable/library.h>

namespace detector {

STABLE_TORCH_LIBRARY_IMPL(detector, CUDA, m) {
  m.impl("roi_pool", TORCH_BOX(&roi_pool));
  m.impl("roi_pool_backward", TORCH_BOX(&roi_pool_backward));
  m.impl("spp_pool", TORCH_BOX(&spp_pool));
  m.impl("spp_pool_backward", TORCH_BOX(&spp_pool_backward));
}

}  // namespace detector
