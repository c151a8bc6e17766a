// The filter for the proposals of one image. detector/proposals/filtering.py says what it keeps.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace detector::boxes {

struct Limits {
  float min_size;    // the shorter side in pixels that a box must have
  int64_t top_k;     // how many boxes are kept at most
  bool deduplicate;  // whether only the first of equal boxes is kept
};

// Keeps its working memory from image to image.
class Filter {
 public:
  // Filters `boxes` (count, 4), ranked by `scores` (count) unless that is null, for an image of this size.
  void run(const float* boxes, const float* scores, int64_t count, float height, float width,
           const Limits& limits);

  // The rows of the kept boxes, best first.
  const std::vector<int32_t>& rows() const { return rows_; }
  // The kept boxes (rows().size(), 4), clipped to the image, in the order of the rows.
  const std::vector<float>& boxes() const { return kept_; }

 private:
  void find_usable(const float* boxes, const float* scores, int64_t count, float height, float width,
                   float min_size);
  void rank(const float* scores);
  void keep(const Limits& limits);
  bool is_new(size_t place);  // whether no box before `place` in kept_ equals that one

  std::vector<float> clipped_;
  std::vector<float> kept_;
  std::vector<int32_t> rows_;
  std::vector<int32_t> table_;  // an open hash table of places in kept_, each plus one
};

}  // namespace detector::boxes
