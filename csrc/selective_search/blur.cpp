#include "blur.h"

#include <algorithm>
#include <cmath>

#include "portable_math.h"
#include "simd.h"

namespace detector::selective_search {
namespace {

constexpr int kKeptRows = 3;

// out[x] = taps[0] * centre[x] + sum over i of taps[i] * (before[i][x] + after[i][x]).
SELECTIVE_SEARCH_CLONES
void weighted_sum(const float* const* before, const float* centre, const float* const* after,
                  const float* taps, int radius, int width, float* out) {
  for (int x = 0; x < width; ++x) out[x] = taps[0] * centre[x];
  for (int i = 1; i <= radius; ++i) {
    const float* left = before[i];
    const float* right = after[i];
    const float tap = taps[i];
    for (int x = 0; x < width; ++x) out[x] += tap * (left[x] + right[x]);
  }
}

SELECTIVE_SEARCH_CLONES
void to_float(const uint8_t* from, int width, float* to) {
  for (int x = 0; x < width; ++x) to[x] = from[x];
}

}  // namespace

std::vector<float> gaussian_taps(float sigma) {
  sigma = std::max(sigma, 0.01f);
  std::vector<float> taps(static_cast<size_t>(std::ceil(sigma * 4.0f)) + 1);
  float sum = 0;
  for (size_t i = 0; i < taps.size(); ++i) {
    const float ratio = static_cast<float>(i) / sigma;
    taps[i] = static_cast<float>(portable_exp(std::max(-0.5 * (ratio * ratio), -700.0)));
    if (i > 0) sum += taps[i];
  }
  sum = 2 * sum + taps[0];
  for (float& tap : taps) tap /= sum;
  return taps;
}

SmoothedRows::SmoothedRows(const Planes& planes, float sigma)
    : planes_(planes),
      taps_(gaussian_taps(sigma)),
      radius_(static_cast<int>(taps_.size()) - 1),
      padded_(planes.width + 2 * static_cast<size_t>(radius_)),
      horizontal_(static_cast<size_t>(2 * radius_ + 1) * planes.channels * planes.width),
      smoothed_(static_cast<size_t>(kKeptRows) * planes.channels * planes.width) {}

float* SmoothedRows::horizontal(int y, int channel) {
  const size_t slot = static_cast<size_t>(y % (2 * radius_ + 1)) * planes_.channels + channel;
  return horizontal_.data() + slot * planes_.width;
}

const float* SmoothedRows::row(int y, int channel) const {
  const size_t slot = static_cast<size_t>(y % kKeptRows) * planes_.channels + channel;
  return smoothed_.data() + slot * planes_.width;
}

void SmoothedRows::advance(int y) {
  for (; next_ <= y; ++next_) {
    const int needed = std::min(next_ + radius_, planes_.height - 1);
    for (; next_horizontal_ <= needed; ++next_horizontal_) smooth_horizontally(next_horizontal_);
    smooth_vertically(next_);
  }
}

void SmoothedRows::smooth_horizontally(int y) {
  const int width = planes_.width;
  std::vector<const float*> before(radius_ + 1), after(radius_ + 1);
  float* centre = padded_.data() + radius_;
  for (int i = 0; i <= radius_; ++i) before[i] = centre - i, after[i] = centre + i;
  for (int c = 0; c < planes_.channels; ++c) {
    to_float(planes_.channel(c) + static_cast<int64_t>(y) * width, width, centre);
    std::fill_n(padded_.data(), radius_, centre[0]);
    std::fill_n(centre + width, radius_, centre[width - 1]);
    weighted_sum(before.data(), centre, after.data(), taps_.data(), radius_, width, horizontal(y, c));
  }
}

void SmoothedRows::smooth_vertically(int y) {
  const int last = planes_.height - 1;
  std::vector<const float*> before(radius_ + 1), after(radius_ + 1);
  for (int c = 0; c < planes_.channels; ++c) {
    for (int i = 0; i <= radius_; ++i) {
      before[i] = horizontal(std::max(y - i, 0), c);
      after[i] = horizontal(std::min(y + i, last), c);
    }
    float* out = const_cast<float*>(row(y, c));
    weighted_sum(before.data(), before[0], after.data(), taps_.data(), radius_, planes_.width, out);
  }
}

}  // namespace detector::selective_search
