// All strategies of one image: colour spaces x scales x similarities.
#pragma once

#include <vector>

#include "color.h"
#include "edges.h"
#include "ranking.h"
#include "similarity.h"

namespace detector::selective_search {

struct SearchConfig {
  std::vector<ColorSpace> color_spaces;
  std::vector<float> scales;   // k of the segmentation
  std::vector<int> min_sizes;  // of the segmentation, one per scale
  std::vector<Similarity> similarities;
  float sigma;
  Connectivity connectivity;  // of the segmentation's graph
  bool diagonal_neighbours;   // regions that touch down and right count as neighbours, as in OpenCV
  bool all_texture_channels;  // false: only the first channel, as in the authors' release
  double pixels_per_size;     // 3 in the authors' release, 1 in the paper
  int num_threads;
};

// Returns the boxes of all strategies in a fixed order: scale by scale, in each colour by colour, in each the
// merged regions of every similarity, then the regions of the segmentation. Neither the number of threads nor
// their timing changes the result.
std::vector<RankedBox> search(const RgbView& image, const SearchConfig& config);

}  // namespace detector::selective_search
