// The colour spaces of selective search (Uijlings et al. 2013, section 3.2.1), each with 8 bits per channel.
#pragma once

#include "../enums.h"
#include "image.h"

namespace detector::selective_search {

// The numbers are the `color_space` and `color_spaces` arguments of the operators.
DETECTOR_ENUM(ColorSpace,
              hsv,              // hue over the whole 0..255
              lab,              // CIE L*a*b*, D50, ICC 8-bit encoding
              rgi,              // normalised r and g, each stretched over the image, and grey
              h,                // only the hue
              intensity,        // only grey
              rgb,              // the image's own channels
              opencv_hsv,       // hue in half degrees, 0..179
              opencv_lab,       // white point D65
              opencv_rgi,       // the image's red and green, and grey
              opencv_h,         // 0..179, counted once in colour distances
              opencv_intensity  // counted once in colour distances
)

// Fills `planes` with `image` in `space`.
void convert(const RgbView& image, ColorSpace space, Planes& planes);

}  // namespace detector::selective_search
