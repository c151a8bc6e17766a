#include "texture.h"

#include <algorithm>
#include <cmath>

#include "portable_math.h"
#include "recursive_gaussian.h"
#include "simd.h"

namespace detector::selective_search {
namespace {

constexpr double kSigma = 0.8;
constexpr int kRadius = 4;
constexpr double kLargestResponse = 0.43;

// From a byte's step to bins: responses are computed in bins from the start.
constexpr double kBinsPerLevel = (kTextureBins - 1) / kLargestResponse / 255;

// Taps from the centre outwards: the sampled Gaussian, sum 1, and its derivative x g(x) / sigma^2, in bins.
struct Taps {
  double smooth[kRadius + 1];
  double derivative[kRadius + 1];
};

Taps gaussian_derivative_taps() {
  Taps taps;
  double sum = 0;
  for (int i = 0; i <= kRadius; ++i) {
    taps.smooth[i] = portable_exp(-0.5 * i * i / (kSigma * kSigma));
    sum += i == 0 ? taps.smooth[i] : 2 * taps.smooth[i];
  }
  for (int i = 0; i <= kRadius; ++i) {
    taps.smooth[i] /= sum;
    taps.derivative[i] = kBinsPerLevel * i * taps.smooth[i] / (kSigma * kSigma);
  }
  return taps;
}

inline uint8_t signed_bin(double response) {
  const double magnitude = std::min(std::abs(response), kTextureBins - 1.0);
  const int bin = static_cast<int>(magnitude + 0.5);
  return static_cast<uint8_t>(kTextureBins - 1 + (response < 0 ? -bin : bin));
}

// One row, smoothed and differentiated across the rows around it; rows[kRadius] is the row itself.
SELECTIVE_SEARCH_CLONES
void across_rows(const uint8_t* const* rows, int width, const Taps& taps, double* __restrict smooth,
                 double* __restrict derivative) {
  const uint8_t* centre = rows[kRadius];
  for (int x = 0; x < width; ++x) {
    double sum = taps.smooth[0] * centre[x], difference = 0;
    for (int i = 1; i <= kRadius; ++i) {
      const int above = rows[kRadius - i][x], below = rows[kRadius + i][x];
      sum += taps.smooth[i] * (above + below);
      difference += taps.derivative[i] * (below - above);
    }
    smooth[x] = sum;
    derivative[x] = difference;
  }
}

// Finishes the two axis responses along the row. Both inputs reach kRadius samples beyond each end.
SELECTIVE_SEARCH_CLONES
void along_row(const double* smooth, const double* derivative, int width, const Taps& taps,
               uint8_t* __restrict bins_x, uint8_t* __restrict bins_y) {
  for (int x = 0; x < width; ++x) {
    double gx = 0, gy = taps.smooth[0] * derivative[x];
    for (int i = 1; i <= kRadius; ++i) {
      gx += taps.derivative[i] * (smooth[x + i] - smooth[x - i]);
      gy += taps.smooth[i] * (derivative[x - i] + derivative[x + i]);
    }
    bins_x[x] = signed_bin(gx);
    bins_y[x] = signed_bin(gy);
  }
}

void axis_bins(const uint8_t* channel, int height, int width, uint8_t* bins_x, uint8_t* bins_y) {
  const Taps taps = gaussian_derivative_taps();
  Buffer<double> padded(2 * (static_cast<size_t>(width) + 2 * kRadius));
  double* smooth = padded.data() + kRadius;
  double* derivative = smooth + width + 2 * kRadius;
  for (int y = 0; y < height; ++y) {
    const uint8_t* rows[2 * kRadius + 1];
    for (int i = -kRadius; i <= kRadius; ++i) {
      rows[kRadius + i] = channel + static_cast<size_t>(std::clamp(y + i, 0, height - 1)) * width;
    }
    across_rows(rows, width, taps, smooth, derivative);
    for (double* row : {smooth, derivative}) {
      std::fill_n(row - kRadius, kRadius, row[0]);
      std::fill_n(row + width, kRadius, row[width - 1]);
    }
    const size_t start = static_cast<size_t>(y) * width;
    along_row(smooth, derivative, width, taps, bins_x + start, bins_y + start);
  }
}

// The diagonal responses along the smoothed `row` between its neighbours, borders clamped.
SELECTIVE_SEARCH_CLONES
void diagonal_row(const double* above, const double* row, const double* below, int width,
                  uint8_t* __restrict bins_45, uint8_t* __restrict bins_135) {
  constexpr double scale = 0.5 * 0.70710678118654752440;  // of the central difference, and of the rotation
  const auto at = [&](int x, int left, int right) __attribute__((always_inline)) {
    const double dx = row[right] - row[left], dy = below[x] - above[x];
    bins_45[x] = signed_bin((dx - dy) * scale);
    bins_135[x] = signed_bin((dx + dy) * scale);
  };
  for (int x = 1; x + 1 < width; ++x) at(x, x - 1, x + 1);
  at(0, 0, std::min(1, width - 1));
  at(width - 1, std::max(width - 2, 0), width - 1);
}

SELECTIVE_SEARCH_CLONES
void scale_to_bins(const uint8_t* from, int64_t count, double* to) {
  for (int64_t i = 0; i < count; ++i) to[i] = from[i] * kBinsPerLevel;
}

}  // namespace

void texture_bins(const uint8_t* channel, int height, int width, Buffer<double>& scratch, uint8_t* bins) {
  const int64_t pixels = static_cast<int64_t>(height) * width;
  axis_bins(channel, height, width, bins, bins + pixels);
  scratch.resize(pixels);
  scale_to_bins(channel, pixels, scratch.data());
  recursive_gaussian(scratch.data(), height, width, kSigma);
  uint8_t* bins_45 = bins + 2 * pixels;
  for (int y = 0; y < height; ++y) {
    const int64_t start = static_cast<int64_t>(y) * width;
    const double* row = scratch.data() + start;
    diagonal_row(y > 0 ? row - width : row, row, y + 1 < height ? row + width : row, width, bins_45 + start,
                 bins_45 + pixels + start);
  }
}

}  // namespace detector::selective_search
