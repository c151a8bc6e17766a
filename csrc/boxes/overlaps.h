// Intersection over union of boxes, with the bits of detector/core/boxes.py: iou in float32.
#pragma once

#include <cstdint>
#include <vector>

namespace detector::boxes {

// Boxes (x1, y1, x2, y2) of one image as columns. Keeps its memory from image to image.
class Candidates {
 public:
  void clear() { resize(0); }
  // Adds `boxes` (count, 4), which must be finite.
  void add(const float* boxes, int64_t count);

  int64_t count() const { return static_cast<int64_t>(area_.size()); }
  void copy(int64_t row, float* box) const;

  // For each of `counts`, in rising order: the greatest IoU of `object` with any of the first so many
  // candidates, 0 without any.
  void best_of_first(const float* object, const std::vector<int64_t>& counts, float* best);

  // For each candidate: its greatest IoU with any of `objects` (count, 4), and the first object that has it.
  // There must be an object. The arrays are valid until the next call.
  void match(const float* objects, int64_t count);
  const std::vector<float>& best() const { return best_; }
  const std::vector<int32_t>& matched() const { return matched_; }

 private:
  void resize(int64_t count);

  std::vector<float> x1_, y1_, x2_, y2_, area_, iou_, best_;
  std::vector<int32_t> matched_;
};

}  // namespace detector::boxes
