// Smaller (or larger) copies of an image.
#pragma once

#include "image.h"

namespace detector::selective_search {

// Returns `image` at `height` x `width`: Keys' bicubic kernel (a = -0.5), widened when shrinking so that it
// averages, mirrored borders; what MATLAB's imresize does. Interleaved RGB, rounded to bytes.
Buffer<uint8_t> resize(const RgbView& image, int height, int width);

}  // namespace detector::selective_search
