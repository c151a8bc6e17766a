// The colour spaces of selective search (Uijlings et al. 2013, section 3.2.1), each with 8 bits a channel.
#pragma once

#include "image.h"

namespace detector::selective_search {

// Values are the op's arguments; detector/ops/selective_search.py lists them in the same order.
enum class ColorSpace : int64_t {
  kHsv = 0,              // hue over the whole 0..255
  kLab = 1,              // CIE L*a*b*, D50, ICC 8-bit encoding
  kRgi = 2,              // normalised r and g, each stretched over the image, and grey
  kH = 3,                // the hue alone
  kIntensity = 4,        // grey alone
  kRgb = 5,              // as given
  kOpencvHsv = 6,        // hue in half degrees, 0..179
  kOpencvLab = 7,        // white point D65
  kOpencvRgi = 8,        // red and green as given, and grey
  kOpencvH = 9,          // 0..179, counted once in colour distances
  kOpencvIntensity = 10  // counted once in colour distances
};
constexpr int64_t kColorSpaceCount = 11;

// Fills `planes` with `image` in `space`.
void convert(const RgbView& image, ColorSpace space, Planes& planes);

}  // namespace detector::selective_search
