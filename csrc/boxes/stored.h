// The boxes and scores of one image in the files of a proposal store (detector/proposals/segments.py).
#pragma once

#include <cstdint>
#include <vector>

namespace detector::boxes {

// Where they lie, as detector/proposals/segments.py writes it: six numbers.
struct Place {
  int64_t boxes_file;     // the descriptor of the open file, -1 where the store has no such image
  int64_t boxes_offset;   // in bytes
  int64_t scores_file;    // -1 without scores
  int64_t scores_offset;  // in bytes
  int64_t count;          // of boxes
  int64_t checksum;       // the CRC-32 of the boxes and then of the scores, -1 if it need not be compared
};

// Keeps its memory from image to image.
class Stored {
 public:
  // Returns false where the files do not hold what `place` says.
  bool read(const Place& place);

  const float* boxes() const { return boxes_.data(); }
  const float* scores() const { return scored_ ? scores_.data() : nullptr; }
  int64_t count() const { return count_; }

 private:
  std::vector<float> boxes_;
  std::vector<float> scores_;
  int64_t count_ = 0;
  bool scored_ = false;
};

}  // namespace detector::boxes
