// The RoIs of a call, checked, and the edges of all their bins.

#pragma once

#include "pooling/pooling.h"

#include <cmath>
#include <cstdint>
#include <vector>

namespace detector {

struct Regions {
  std::vector<int64_t> images;  // (R,) the image each RoI lies in
  std::vector<Edge> edges;      // (R, pooling.edges): for each grid its rows, then its columns

  const Edge* of(int64_t roi) const { return edges.data() + roi * (edges.size() / images.size()); }
};

// Reads `rois`; throws an error that names the first row no kernel could use.
Regions read_regions(const Pooling& pooling, const Tensor& features, const Tensor& rois, int64_t images);

}  // namespace detector
