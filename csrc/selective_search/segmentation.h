// Efficient graph-based image segmentation (Felzenszwalb and Huttenlocher, IJCV 2004).
#pragma once

#include <cstddef>

#include "edges.h"

namespace detector::selective_search {

// The forest of joined pixels: a pixel's parent, or at a root the size of its component, negative.
struct Forest {
  Buffer<int32_t> parent;
  Buffer<float> last_weight;  // at a root: the weight of the join that made the component, 0 for one pixel
  size_t blocks = 0;          // how many blocks of edges are done
};

// Joins along the `edges` of an image for as long as every join passes the test for `smallest_k`. Until then
// a larger k would have joined the same, so that all scales of a colour space can go on from here.
//
// Does nothing for images of more than 2^22 pixels, where 8 bytes per pixel matter more than the time.
void start_segmentation(const Buffer<Edge>& edges, int height, int width, float smallest_k, Forest& forest);

// Cuts images into regions; keeps its working arrays for the next one.
class Segmenter {
 public:
  // Cuts an image of `height` x `width` along its `edges`, which are in ascending order, from `start` on.
  //
  // First pass: two components join when the edge is no heavier than either's threshold, which is k for a
  // single pixel and (weight of the join) + k / size afterwards. Second pass over the same edges: components
  // smaller than `min_size` pixels join their neighbour. Fills `labels` with 0..n-1 by first appearance in
  // the raster scan and returns n.
  int segment(const Buffer<Edge>& edges, const Forest& start, int height, int width, float k, int min_size,
              Buffer<int32_t>& labels);

 private:
  void join_similar(const Buffer<Edge>& edges, size_t first_block, float k);
  void join_small(const Buffer<Edge>& edges, size_t first_block, int min_size);
  int number_components();

  int width_ = 0;
  int pixels_ = 0;
  int32_t* parent_ = nullptr;
  Buffer<float> threshold_;    // at a root; infinite elsewhere
  Buffer<uint64_t> rejected_;  // a bit for each edge that the first pass looked at and did not join
};

}  // namespace detector::selective_search
