// How alike two regions are (Uijlings et al. 2013, section 3.2.2).
//
// Sums over histograms are exact for images of up to 2^26 pixels.
#pragma once

#include "../enums.h"
#include "regions.h"

namespace detector::selective_search {

// Each is the mean of the terms in its name.
DETECTOR_ENUM(Similarity, color_texture_size_fill, texture_size_fill, fill, size)

inline bool uses_histograms(Similarity similarity) {
  return similarity == Similarity::color_texture_size_fill || similarity == Similarity::texture_size_fill;
}

// One region while it is grouped. `histogram` may be null where the similarity does not use it.
struct RegionView {
  uint32_t size;
  Box box;
  const uint32_t* histogram;
};

// Computes one similarity between regions of one image.
class SimilarityMeasure {
 public:
  // `pixels_per_size` divides region sizes in the size and fill terms: 3 as the authors' release does, 1 as
  // the paper says.
  SimilarityMeasure(Similarity similarity, const Regions& regions, int64_t image_pixels,
                    double pixels_per_size)
      : similarity_(similarity),
        color_length_(regions.color_length()),
        texture_length_(regions.texture_length()),
        color_channels_(regions.color_channels),
        texture_maps_(kTextureMaps * regions.texture_channels),
        image_size_(static_cast<double>(image_pixels)),
        pixels_per_size_(pixels_per_size) {}

  double operator()(const RegionView& a, const RegionView& b) const;

 private:
  double size_term(const RegionView& a, const RegionView& b) const;
  double fill_term(const RegionView& a, const RegionView& b) const;

  Similarity similarity_;
  int color_length_;
  int texture_length_;
  int color_channels_;
  int texture_maps_;
  double image_size_;
  double pixels_per_size_;
};

}  // namespace detector::selective_search
