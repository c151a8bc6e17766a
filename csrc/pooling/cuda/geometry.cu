#include "pooling/cuda/pool.h"

namespace detector {

Geometry geometry_of(const Pooling& pooling) {
  STD_TORCH_CHECK(pooling.grids.size() <= kMaxGrids, pooling.name, ": on CUDA a pyramid has at most ",
                  kMaxGrids, " levels, not ", pooling.grids.size());
  STD_TORCH_CHECK(pooling.edges <= kMaxEdges, pooling.name, ": on CUDA a RoI has at most ", kMaxEdges,
                  " bin edges, not ", pooling.edges);
  STD_TORCH_CHECK(pooling.y.extent <= INT16_MAX && pooling.x.extent <= INT16_MAX, pooling.name,
                  ": on CUDA a map has at most ", INT16_MAX, " cells a side, not ", pooling.y.extent, " x ",
                  pooling.x.extent);
  Geometry geometry{pooling.rule,      pooling.y,         pooling.x, {}, int(pooling.grids.size()),
                    int(pooling.bins), int(pooling.edges)};
  for (size_t i = 0; i < pooling.grids.size(); ++i) geometry.grids[i] = pooling.grids[i];
  return geometry;
}

}  // namespace detector
