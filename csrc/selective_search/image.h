// The images that pass between the parts.
#pragma once

#include <cstdint>

#include "buffer.h"

namespace detector::selective_search {

// 8-bit RGB pixels of a caller, interleaved, rows without gaps.
struct RgbView {
  const uint8_t* data;
  int height;
  int width;

  int64_t pixels() const { return static_cast<int64_t>(height) * width; }
};

// An image in one colour space, channel after channel.
//
// Spaces that repeat one channel three times (H, intensity) hold it once; `copies` says how often it counts
// in the colour distance of two pixels. Their normalised histograms do not depend on the repetition.
struct Planes {
  Buffer<uint8_t> data;
  int height = 0;
  int width = 0;
  int channels = 0;
  int copies = 1;

  int64_t pixels() const { return static_cast<int64_t>(height) * width; }
  const uint8_t* channel(int index) const { return data.data() + index * pixels(); }
  uint8_t* channel(int index) { return data.data() + index * pixels(); }
};

}  // namespace detector::selective_search
