// Greedy hierarchical grouping (Uijlings et al. 2013, algorithm 1).
#pragma once

#include <vector>

#include "similarity.h"

namespace detector::selective_search {

// Merges the most similar neighbours until one region is left and returns the boxes of the n - 1 merged
// regions, first merge first. Of equal similarities the one computed last wins; at the start, and among the
// new region's neighbours, they are computed by ascending labels.
std::vector<Box> group(const Regions& regions, Similarity similarity, int64_t image_pixels,
                       double pixels_per_size);

}  // namespace detector::selective_search
