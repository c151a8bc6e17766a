// Efficient graph-based image segmentation (Felzenszwalb and Huttenlocher, IJCV 2004).
#pragma once

#include "edges.h"

namespace detector::selective_search {

// Cuts images into regions; keeps its working arrays for the next one.
class Segmenter {
 public:
  // Cuts an image of `height` x `width` along its `edges`, which are in ascending order.
  //
  // First pass: two components join when the edge is no heavier than either's threshold, which is k for a
  // single pixel and (weight of the join) + k / size afterwards. Second pass over the same edges: components
  // smaller than `min_size` pixels join their neighbour. Fills `labels` with 0..n-1 by first appearance in
  // the raster scan and returns n.
  int segment(const Buffer<Edge>& edges, int height, int width, float k, int min_size, Buffer<int32_t>& labels);

 private:
  void join_similar(const Buffer<Edge>& edges, float k);
  void join_small(const Buffer<Edge>& edges, int min_size);
  uint64_t apart(const Edge* edges, int count) const;
  int root(int pixel);
  int other_end(Edge edge) const { return static_cast<int>(edge_pixel(edge)) + offsets_[edge_direction(edge)]; }
  int join(int first, int second);
  int number_components(int pixels);

  int offsets_[4] = {};
  int32_t* parent_ = nullptr;  // a root holds its component's size, negative
  Buffer<float> threshold_;
  Buffer<uint64_t> rejected_;  // a bit for each edge that the first pass looked at and did not join
};

}  // namespace detector::selective_search
