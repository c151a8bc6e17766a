// The Gaussian smoothing of Felzenszwalb and Huttenlocher's segmentation, row by row.
#pragma once

#include <vector>

#include "image.h"

namespace detector::selective_search {

// Half of a normalised Gaussian kernel, centre first: ceil(4 sigma) + 1 float32 taps. A sigma under 0.01
// counts as 0.01, which leaves the image as it is.
std::vector<float> gaussian_taps(float sigma);

// Hands out the smoothed rows of an image from top to bottom and remembers the last three.
//
// Streaming instead of whole smoothed planes saves 12 bytes per pixel. Horizontal pass first, then vertical,
// clamped borders, float32 sums from the centre outwards: the order of the reference, which decides ties.
class SmoothedRows {
 public:
  SmoothedRows(const Planes& planes, float sigma);

  // Makes rows up to `y` available; `y` never falls by more than two below the highest so far.
  void advance(int y);

  // Row `y` of `channel`, `width` values.
  const float* row(int y, int channel) const;

 private:
  void smooth_horizontally(int y);
  void smooth_vertically(int y);
  float* horizontal(int y, int channel);

  const Planes& planes_;
  std::vector<float> taps_;
  int radius_;
  int next_horizontal_ = 0;
  int next_ = 0;
  Buffer<float> padded_;
  Buffer<float> horizontal_;
  Buffer<float> smoothed_;
};

}  // namespace detector::selective_search
