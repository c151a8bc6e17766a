// What the grouping knows about each region of a segmentation.
#pragma once

#include <algorithm>
#include <utility>
#include <vector>

#include "image.h"
#include "texture.h"

namespace detector::selective_search {

constexpr int kColorBins = 25;

// Pixels from (x1, y1) to (x2, y2), both inside.
struct Box {
  int32_t x1, y1, x2, y2;

  friend bool operator==(const Box&, const Box&) = default;
};

inline Box enclose(const Box& a, const Box& b) {
  return {std::min(a.x1, b.x1), std::min(a.y1, b.y1), std::max(a.x2, b.x2), std::max(a.y2, b.y2)};
}

// The n regions of a segmentation.
//
// Histograms are counts of pixels: `color_length` values for colour, then `texture_length` for texture,
// region after region. Counts instead of normalised values make merging and similarity exact.
struct Regions {
  int count = 0;
  int color_channels = 0;
  int texture_channels = 0;
  std::vector<uint32_t> size;
  std::vector<Box> box;
  Buffer<uint32_t> histograms;
  std::vector<std::pair<int, int>> neighbours;  // (smaller, larger) label, ascending

  int color_length() const { return kColorBins * color_channels; }
  int texture_length() const { return kTextureMaps * kTextureBins * texture_channels; }
  int histogram_length() const { return color_length() + texture_length(); }
};

// Measures regions 0..count-1 of `labels`. `texture` holds the bins of `texture_channels` channels, or none
// where no similarity asks for histograms. Neighbours share a side of a pixel; with `diagonal_neighbours`
// also the corner between a pixel and the next one down and right.
void measure_regions(const Planes& planes, const uint8_t* texture, int texture_channels,
                     bool diagonal_neighbours, const int32_t* labels, int count, Regions& regions);

}  // namespace detector::selective_search
