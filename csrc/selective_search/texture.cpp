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

// Taps from the centre outwards: the sampled Gaussian, sum 1, and its derivative x g(x) / sigma^2.
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
    taps.derivative[i] = i * taps.smooth[i] / (kSigma * kSigma);
  }
  return taps;
}

inline uint8_t signed_bin(double response) {
  constexpr double bins_per_unit = (kTextureBins - 1) / kLargestResponse;
  const double magnitude = std::min(std::abs(response) * bins_per_unit, kTextureBins - 1.0);
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
    smooth[x] = sum / 255;
    derivative[x] = difference / 255;
  }
}

// Finishes the two axis responses along the row. Both inputs reach kRadius samples beyond each end.
SELECTIVE_SEARCH_CLONES
void along_row(const double* smooth, const double* derivative, int width, const Taps& taps, TextureCell* cells) {
  for (int x = 0; x < width; ++x) {
    double gx = 0, gy = taps.smooth[0] * derivative[x];
    for (int i = 1; i <= kRadius; ++i) {
      gx += taps.derivative[i] * (smooth[x + i] - smooth[x - i]);
      gy += taps.smooth[i] * (derivative[x - i] + derivative[x + i]);
    }
    cells[x].bin[0] = signed_bin(gx);
    cells[x].bin[1] = signed_bin(gy);
  }
}

void axis_bins(const uint8_t* channel, int height, int width, TextureCell* cells) {
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
    along_row(smooth, derivative, width, taps, cells + static_cast<size_t>(y) * width);
  }
}

// The diagonal responses of pixels x = 0..width-1 from the smoothed row and its neighbours, whose pixels at
// -1 and width are `left` and `right` of the row's own ends.
inline void diagonal_cell(double dx, double dy, TextureCell& cell) {
  constexpr double root_half = 0.70710678118654752440;
  cell.bin[2] = signed_bin((dx - dy) * root_half);
  cell.bin[3] = signed_bin((dx + dy) * root_half);
}

SELECTIVE_SEARCH_CLONES
void diagonal_row(const double* above, const double* row, const double* below, int width, TextureCell* cells) {
  for (int x = 1; x + 1 < width; ++x) {
    diagonal_cell(0.5 * (row[x + 1] - row[x - 1]), 0.5 * (below[x] - above[x]), cells[x]);
  }
  for (int x : {0, width - 1}) {
    const double dx = 0.5 * (row[std::min(x + 1, width - 1)] - row[std::max(x - 1, 0)]);
    diagonal_cell(dx, 0.5 * (below[x] - above[x]), cells[x]);
  }
}

SELECTIVE_SEARCH_CLONES
void to_unit(const uint8_t* from, int64_t count, double* to) {
  for (int64_t i = 0; i < count; ++i) to[i] = from[i] / 255.0;
}

}  // namespace

void texture_cells(const uint8_t* channel, int height, int width, Buffer<double>& scratch, TextureCell* cells) {
  axis_bins(channel, height, width, cells);
  const int64_t pixels = static_cast<int64_t>(height) * width;
  scratch.resize(pixels);
  to_unit(channel, pixels, scratch.data());
  recursive_gaussian(scratch.data(), height, width, kSigma);
  for (int y = 0; y < height; ++y) {
    const double* row = scratch.data() + static_cast<int64_t>(y) * width;
    diagonal_row(y > 0 ? row - width : row, row, y + 1 < height ? row + width : row, width,
                 cells + static_cast<int64_t>(y) * width);
  }
}

}  // namespace detector::selective_search
