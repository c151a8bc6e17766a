#include "edges.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#if defined(__SSE2__)
#include <emmintrin.h>
#endif

#include "blur.h"
#include "simd.h"

namespace detector::selective_search {
namespace {

// The first sort step splits by the exponent and 5 bits of the mantissa: few enough buckets for their ends to
// stay in the nearest cache, small enough ones to be sorted there. The largest weight is 255 * sqrt(3), so
// that fewer than 0x1100 buckets occur. The rest of the bits are sorted in two digits.
constexpr int kBucketShift = 18;
constexpr size_t kBuckets = 0x1100;
constexpr int kDigitBits = kBucketShift / 2;
constexpr size_t kDigits = size_t{1} << kDigitBits;
constexpr size_t kSmallBucket = 48;

// Replaces squares by their roots. std::sqrt would not vectorise: it sets errno for negative arguments.
void square_roots(float* values, int count) {
  int i = 0;
#if defined(__SSE2__)
  for (; i + 4 <= count; i += 4) _mm_storeu_ps(values + i, _mm_sqrt_ps(_mm_loadu_ps(values + i)));
#endif
  for (; i < count; ++i) values[i] = std::sqrt(values[i]);
}

// The squared distances of `from[c][x]` and `to[c][x]`.
SELECTIVE_SEARCH_CLONES
void squared_distances(const float* const* from, const float* const* to, int channels, int copies, int count,
                       float* __restrict out) {
  if (channels == 3) {
    for (int x = 0; x < count; ++x) {
      const float r = from[0][x] - to[0][x], g = from[1][x] - to[1][x], b = from[2][x] - to[2][x];
      out[x] = r * r + g * g + b * b;
    }
    return;
  }
  for (int x = 0; x < count; ++x) {
    const float difference = from[0][x] - to[0][x], square = difference * difference;
    out[x] = copies == 3 ? square + square + square : square;
  }
}

// Computes the weights of one row's edges after another, direction by direction.
class WeightRows {
 public:
  WeightRows(const Planes& planes, float sigma, Connectivity connectivity)
      : planes_(planes),
        rows_(planes, sigma),
        weights_(4 * static_cast<size_t>(planes.width)),
        diagonals_(connectivity == Connectivity::eight) {}

  // Calls visit(pixel * 4 + direction, weight's bits) for every edge in raster order.
  template <class Visit>
  void for_each(Visit visit) {
    const int width = planes_.width, height = planes_.height;
    for (int y = 0; y < height; ++y) {
      compute(y);
      const bool down = y + 1 < height, up = y > 0;
      const uint32_t first = static_cast<uint32_t>(y) * width * 4;
      for (int x = 0; x + 1 < width; ++x) {
        const uint32_t edge = first + 4 * x;
        visit(edge, bits(0, x));
        if (down) visit(edge + 1, bits(1, x));
        if (down && diagonals_) visit(edge + 2, bits(2, x));
        if (up && diagonals_) visit(edge + 3, bits(3, x));
      }
      if (down) visit(first + 4 * (width - 1) + 1, bits(1, width - 1));
    }
  }

 private:
  float* row(int direction) { return weights_.data() + static_cast<size_t>(direction) * planes_.width; }

  uint32_t bits(int direction, int x) {
    uint32_t value;
    std::memcpy(&value, row(direction) + x, sizeof value);
    return value;
  }

  void compute(int y) {
    const int width = planes_.width, last = planes_.height - 1;
    rows_.advance(std::min(y + 1, last));
    const float *here[3], *below[3], *right[3], *below_right[3], *above_right[3];
    for (int c = 0; c < planes_.channels; ++c) {
      here[c] = rows_.row(y, c);
      below[c] = rows_.row(std::min(y + 1, last), c);
      right[c] = here[c] + 1;
      below_right[c] = below[c] + 1;
      above_right[c] = rows_.row(std::max(y - 1, 0), c) + 1;
    }
    const int channels = planes_.channels, copies = planes_.copies;
    squared_distances(here, right, channels, copies, width - 1, row(0));
    squared_distances(here, below, channels, copies, width, row(1));
    square_roots(row(0), width - 1);
    square_roots(row(1), width);
    if (!diagonals_) return;
    squared_distances(here, below_right, channels, copies, width - 1, row(2));
    squared_distances(here, above_right, channels, copies, width - 1, row(3));
    square_roots(row(2), width - 1);
    square_roots(row(3), width - 1);
  }

  const Planes& planes_;
  SmoothedRows rows_;
  Buffer<float> weights_;
  bool diagonals_;
};

inline size_t low_digit(Edge edge) {
  return (edge >> 32) & (kDigits - 1);
}
inline size_t high_digit(Edge edge) {
  return (edge >> (32 + kDigitBits)) & (kDigits - 1);
}

// Sorts a bucket by the weight's low bits, in two stable passes.
void radix_sort(Edge* edges, size_t count, Edge* scratch) {
  uint32_t low[kDigits] = {}, high[kDigits] = {};
  for (size_t i = 0; i < count; ++i) {
    ++low[low_digit(edges[i])];
    ++high[high_digit(edges[i])];
  }
  uint32_t low_sum = 0, high_sum = 0;
  for (size_t digit = 0; digit < kDigits; ++digit) {
    const uint32_t low_count = low[digit], high_count = high[digit];
    low[digit] = low_sum, high[digit] = high_sum;
    low_sum += low_count, high_sum += high_count;
  }
  for (size_t i = 0; i < count; ++i) scratch[low[low_digit(edges[i])]++] = edges[i];
  for (size_t i = 0; i < count; ++i) edges[high[high_digit(scratch[i])]++] = scratch[i];
}

void sort_bucket(Edge* edges, size_t count, Buffer<Edge>& scratch) {
  if (count <= kSmallBucket) return std::sort(edges, edges + count);
  const Edge differing = (edges[0] ^ edges[count - 1]) >> 32;
  const bool equal = differing == 0 && std::all_of(edges, edges + count, [&](Edge edge) {
                       return (edge >> 32) == (edges[0] >> 32);
                     });
  if (equal) return;  // already in raster order; flat images would need a second array of full size
  if (scratch.size() < count) scratch.resize(count);
  radix_sort(edges, count, scratch.data());
}

}  // namespace

void sorted_edges(const Planes& planes, float sigma, Connectivity connectivity, Buffer<Edge>& edges) {
  const int64_t width = planes.width, height = planes.height;
  const int64_t diagonals = connectivity == Connectivity::eight ? 2 * (width - 1) * (height - 1) : 0;
  edges.resize(width * (height - 1) + (width - 1) * height + diagonals);
  std::vector<uint32_t> starts(kBuckets + 1);
  WeightRows(planes, sigma, connectivity).for_each([&](uint32_t, uint32_t weight) {
    ++starts[(weight >> kBucketShift) + 1];
  });
  for (size_t i = 1; i <= kBuckets; ++i) starts[i] += starts[i - 1];

  std::vector<uint32_t> ends(starts.begin(), starts.end() - 1);
  WeightRows(planes, sigma, connectivity).for_each([&](uint32_t edge, uint32_t weight) {
    edges[ends[weight >> kBucketShift]++] = static_cast<Edge>(weight) << 32 | edge;
  });
  Buffer<Edge> scratch;
  for (size_t i = 0; i < kBuckets; ++i) {
    if (ends[i] > starts[i]) sort_bucket(edges.data() + starts[i], ends[i] - starts[i], scratch);
  }
}

}  // namespace detector::selective_search
