#include "pooling/operators.h"

STABLE_TORCH_LIBRARY_IMPL(detector, CUDA, library) {
  detector::register_pooling(library);
}
