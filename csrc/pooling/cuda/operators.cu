#include "pooling/masked.h"

STABLE_TORCH_LIBRARY_IMPL(detector, CUDA, library) {
  detector::register_pooling(library);
  detector::register_masked_pooling(library);
}
