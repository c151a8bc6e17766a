// The masks of a call, checked.

#pragma once

#include "pooling/masked.h"

#include <cstdint>
#include <vector>

namespace detector {

// Reads `windows`, (R, 5); throws an error that names the first row without its cells in `cover`.
std::vector<Cover> read_covers(const MaskedPooling& masked, const Tensor& windows, const Tensor& cover);

}  // namespace detector
