#include "resize.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "simd.h"

namespace detector::selective_search {
namespace {

double cubic(double x) {
  x = std::abs(x);
  if (x <= 1) return (1.5 * x - 2.5) * x * x + 1;
  if (x < 2) return ((-0.5 * x + 2.5) * x - 4) * x + 2;
  return 0;
}

// Which samples each output sample is made of: `length` indices and weights for each, the weights' sum 1.
struct Kernel {
  int length;
  std::vector<int> index;
  std::vector<float> weight;
};

// Mirrors an index at the borders, the border sample counting twice: -1 is 0, -2 is 1.
int mirror(int index, int size) {
  const int period = 2 * size;
  index = ((index % period) + period) % period;
  return index < size ? index : period - 1 - index;
}

Kernel make_kernel(int from, int to) {
  const double scale = static_cast<double>(to) / from, stretch = std::max(1.0, 1 / scale);
  Kernel kernel;
  kernel.length = static_cast<int>(std::ceil(4 * stretch)) + 1;
  for (int i = 0; i < to; ++i) {
    const double centre = (i + 0.5) / scale - 0.5;
    const int first = static_cast<int>(std::floor(centre - 2 * stretch)) + 1;
    std::vector<double> weights(kernel.length);
    double sum = 0;
    for (int j = 0; j < kernel.length; ++j) sum += weights[j] = cubic((first + j - centre) / stretch);
    for (int j = 0; j < kernel.length; ++j) {
      kernel.index.push_back(mirror(first + j, from));
      kernel.weight.push_back(static_cast<float>(weights[j] / sum));
    }
  }
  return kernel;
}

SELECTIVE_SEARCH_CLONES
void add_weighted(const uint8_t* row, float weight, int count, float* __restrict sum) {
  for (int i = 0; i < count; ++i) sum[i] += weight * row[i];
}

// Shrinks one row of `sums` (RGB floats) along x and rounds it.
void resize_row(const float* sums, const Kernel& kernel, int width, uint8_t* out) {
  for (int x = 0; x < width; ++x) {
    const int* index = kernel.index.data() + static_cast<size_t>(x) * kernel.length;
    const float* weight = kernel.weight.data() + static_cast<size_t>(x) * kernel.length;
    float color[3] = {};
    for (int j = 0; j < kernel.length; ++j) {
      for (int c = 0; c < 3; ++c) color[c] += weight[j] * sums[3 * static_cast<size_t>(index[j]) + c];
    }
    for (int c = 0; c < 3; ++c) {
      out[3 * static_cast<size_t>(x) + c] = static_cast<uint8_t>(std::clamp(color[c], 0.0f, 255.0f) + 0.5f);
    }
  }
}

}  // namespace

Buffer<uint8_t> resize(const RgbView& image, int height, int width) {
  const Kernel down = make_kernel(image.height, height), across = make_kernel(image.width, width);
  const int count = 3 * image.width;
  Buffer<uint8_t> out(3 * static_cast<size_t>(height) * width);
  Buffer<float> sums(count);
  for (int y = 0; y < height; ++y) {
    std::fill(sums.begin(), sums.end(), 0.0f);
    for (int j = 0; j < down.length; ++j) {
      const size_t entry = static_cast<size_t>(y) * down.length + j;
      if (down.weight[entry] == 0) continue;
      add_weighted(image.data + static_cast<size_t>(down.index[entry]) * count, down.weight[entry], count,
                   sums.data());
    }
    resize_row(sums.data(), across, width, out.data() + 3 * static_cast<size_t>(y) * width);
  }
  return out;
}

}  // namespace detector::selective_search
