#include "recursive_gaussian.h"

#include <algorithm>
#include <cstddef>

#include "buffer.h"
#include "simd.h"

namespace detector::selective_search {
namespace {

struct Coefficients {
  double a[3];      // w[n] = x[n] + a0 w[n-1] + a1 w[n-2] + a2 w[n-3]
  double gain;      // 1 - a0 - a1 - a2
  double start[9];  // Triggs and Sdika's matrix: the last three causal values to the first anti-causal ones
};

Coefficients coefficients(double sigma) {
  constexpr double m0 = 1.16680, m1 = 1.10783, m2 = 1.40586;
  const double q = -0.2568 + 0.5784 * sigma + 0.0561 * sigma * sigma;
  const double scale = (m0 + q) * (m1 * m1 + m2 * m2 + 2 * m1 * q + q * q);
  Coefficients c;
  c.a[0] = q * (2 * m0 * m1 + m1 * m1 + m2 * m2 + (2 * m0 + 4 * m1) * q + 3 * q * q) / scale;
  c.a[1] = -q * q * (m0 + 2 * m1 + 3 * q) / scale;
  c.a[2] = q * q * q / scale;
  c.gain = 1 - c.a[0] - c.a[1] - c.a[2];
  const double a = c.a[0], b = c.a[1], d = c.a[2];
  const double norm = 1 / ((1 + a - b + d) * (1 - a - b - d) * (1 + b + (a - d) * d));
  const double start[9] = {norm * (-d * a + 1 - d * d - b),
                           norm * (d + a) * (b + d * a),
                           norm * d * (a + d * b),
                           norm * (a + d * b),
                           norm * -(b - 1) * (b + d * a),
                           norm * -(d * a + d * d + b - 1) * d,
                           norm * (d * a + b + a * a - b * b),
                           norm * (a * b + d * b * b - a * d * d - d * d * d - d * b + d),
                           norm * d * (a + d * b)};
  std::copy_n(start, 9, c.start);
  return c;
}

constexpr int kLanes = 32;

// Filters up to kLanes neighbouring signals at once: `count` samples each, `step` apart, in place.
SELECTIVE_SEARCH_CLONES
void filter(double* data, int count, size_t step, int lanes, const Coefficients& c) {
  const double a = c.a[0], b = c.a[1], d = c.a[2], square = c.gain * c.gain;
  double first[kLanes], final[kLanes], beyond[kLanes], far_beyond[kLanes];
  double* last = data + (count - 1) * step;
  for (int i = 0; i < lanes; ++i) {  // the steady states for the border values going on without end
    first[i] = data[i] / c.gain;
    final[i] = last[i] / c.gain;
  }
  for (int n = 0; n < count; ++n) {
    double* now = data + n * step;
    const double* one = n > 0 ? now - step : first;
    const double* two = n > 1 ? now - 2 * step : first;
    const double* three = n > 2 ? now - 3 * step : first;
    for (int i = 0; i < lanes; ++i) now[i] = now[i] + a * one[i] + b * two[i] + d * three[i];
  }
  const double* before = count > 1 ? last - step : first;
  const double* long_before = count > 2 ? last - 2 * step : first;
  const double* m = c.start;
  for (int i = 0; i < lanes; ++i) {
    const double u0 = last[i] - final[i], u1 = before[i] - final[i], u2 = long_before[i] - final[i];
    const double steady = final[i] / c.gain;
    last[i] = square * (m[0] * u0 + m[1] * u1 + m[2] * u2 + steady);
    beyond[i] = square * (m[3] * u0 + m[4] * u1 + m[5] * u2 + steady);
    far_beyond[i] = square * (m[6] * u0 + m[7] * u1 + m[8] * u2 + steady);
  }
  for (int n = count - 2; n >= 0; --n) {
    double* now = data + n * step;
    const double* one = now + step;
    const double* two = n + 2 < count ? now + 2 * step : beyond;
    const double* three = n + 3 < count ? now + 3 * step : n + 3 == count ? beyond : far_beyond;
    for (int i = 0; i < lanes; ++i) now[i] = square * now[i] + a * one[i] + b * two[i] + d * three[i];
  }
}

// Copies `rows` rows of `width` samples to columns of a block with kLanes columns, or back.
void transpose(double* rows_start, int rows, int width, double* block, bool back) {
  for (int y = 0; y < rows; ++y) {
    double* row = rows_start + static_cast<size_t>(y) * width;
    if (back) {
      for (int x = 0; x < width; ++x) row[x] = block[static_cast<size_t>(x) * kLanes + y];
    } else {
      for (int x = 0; x < width; ++x) block[static_cast<size_t>(x) * kLanes + y] = row[x];
    }
  }
}

}  // namespace

void recursive_gaussian(double* plane, int height, int width, double sigma) {
  const Coefficients c = coefficients(sigma);
  for (int x = 0; x < width; x += kLanes) filter(plane + x, height, width, std::min(kLanes, width - x), c);
  Buffer<double> block(static_cast<size_t>(width) * kLanes);
  for (int y = 0; y < height; y += kLanes) {
    double* rows = plane + static_cast<size_t>(y) * width;
    const int count = std::min(kLanes, height - y);
    transpose(rows, count, width, block.data(), false);
    filter(block.data(), width, kLanes, count, c);
    transpose(rows, count, width, block.data(), true);
  }
}

}  // namespace detector::selective_search
