// The sorted edges of the pixel graph.
#pragma once

#include "image.h"

namespace detector::selective_search {

// An edge in 64 bits: the float32 weight's bits above, 4 * pixel + direction below. Weights are never
// negative, so that integer order is the order by weight and, among equals, by place in the raster scan.
using Edge = uint64_t;

// Directions in the reference's order: right, down, down and right, up and right.
inline uint32_t edge_pixel(Edge edge) {
  return static_cast<uint32_t>(edge) >> 2;
}

// From an edge's pixel to its other end.
inline int32_t edge_offset(Edge edge, int32_t width) {
  const int32_t direction = static_cast<int32_t>(edge & 3);
  const int32_t right = direction != 1, down = (direction != 0) - 2 * (direction == 3);
  return right + down * width;
}

// The pixels that edges join: those that share a side (4) or also those that share a corner (8).
enum class Connectivity : int { four = 4, eight = 8 };

// Fills `edges` with the graph of `planes` smoothed by `sigma`, ascending. The weight of an edge is the
// Euclidean distance of the two smoothed colours, in 0..255 units, float32.
void sorted_edges(const Planes& planes, float sigma, Connectivity connectivity, Buffer<Edge>& edges);

}  // namespace detector::selective_search
