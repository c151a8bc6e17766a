#include "edges.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "blur.h"
#include "simd.h"

namespace detector::selective_search {
namespace {

// The first sort step splits by the sign, the exponent and 7 bits of the mantissa. The largest weight is
// 255 * sqrt(3), so that fewer than 0x4400 buckets occur.
constexpr int kBucketShift = 16;
constexpr size_t kBuckets = 0x4400;
constexpr size_t kSmallBucket = 48;

// sqrt of the squared distance of `from[c][x]` and `to[c][x]`, as float bits.
SELECTIVE_SEARCH_CLONES
void distances(const float* const* from, const float* const* to, int channels, int copies, int count,
               uint32_t* __restrict out) {
  if (channels == 3) {
    for (int x = 0; x < count; ++x) {
      const float r = from[0][x] - to[0][x], g = from[1][x] - to[1][x], b = from[2][x] - to[2][x];
      const float weight = std::sqrt(r * r + g * g + b * b);
      std::memcpy(out + x, &weight, sizeof weight);
    }
    return;
  }
  for (int x = 0; x < count; ++x) {
    const float d = from[0][x] - to[0][x];
    const float square = d * d;
    const float weight = std::sqrt(copies == 3 ? square + square + square : square);
    std::memcpy(out + x, &weight, sizeof weight);
  }
}

// Computes the weights of one row's four edge directions after another.
class WeightRows {
 public:
  WeightRows(const Planes& planes, float sigma)
      : planes_(planes), rows_(planes, sigma), weights_(4 * static_cast<size_t>(planes.width)) {}

  // Calls visit(pixel * 4 + direction, weight bits) for every edge in raster order.
  template <class Visit>
  void for_each(Visit visit) {
    const int width = planes_.width, height = planes_.height;
    for (int y = 0; y < height; ++y) {
      compute(y);
      const bool down = y + 1 < height, up = y > 0;
      const uint32_t first = static_cast<uint32_t>(y) * width * 4;
      for (int x = 0; x + 1 < width; ++x) {
        const uint32_t edge = first + 4 * x;
        visit(edge, row(0)[x]);
        if (down) visit(edge + 1, row(1)[x]), visit(edge + 2, row(2)[x]);
        if (up) visit(edge + 3, row(3)[x]);
      }
      if (down) visit(first + 4 * (width - 1) + 1, row(1)[width - 1]);
    }
  }

 private:
  uint32_t* row(int direction) { return weights_.data() + static_cast<size_t>(direction) * planes_.width; }

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
    distances(here, right, channels, copies, width - 1, row(0));
    if (y < last) {
      distances(here, below, channels, copies, width, row(1));
      distances(here, below_right, channels, copies, width - 1, row(2));
    }
    if (y > 0) distances(here, above_right, channels, copies, width - 1, row(3));
  }

  const Planes& planes_;
  SmoothedRows rows_;
  Buffer<uint32_t> weights_;
};

// Sorts a bucket by the weight's low 16 bits, two stable passes of 8 bits.
void radix_sort(Edge* edges, size_t count, Edge* scratch) {
  uint32_t low[256] = {}, high[256] = {};
  for (size_t i = 0; i < count; ++i) {
    ++low[(edges[i] >> 32) & 255];
    ++high[(edges[i] >> 40) & 255];
  }
  uint32_t low_sum = 0, high_sum = 0;
  for (int digit = 0; digit < 256; ++digit) {
    const uint32_t low_count = low[digit], high_count = high[digit];
    low[digit] = low_sum, high[digit] = high_sum;
    low_sum += low_count, high_sum += high_count;
  }
  for (size_t i = 0; i < count; ++i) scratch[low[(edges[i] >> 32) & 255]++] = edges[i];
  for (size_t i = 0; i < count; ++i) edges[high[(scratch[i] >> 40) & 255]++] = scratch[i];
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

void sorted_edges(const Planes& planes, float sigma, Buffer<Edge>& edges) {
  const int64_t width = planes.width, height = planes.height;
  edges.resize(width * (height - 1) + (width - 1) * height + 2 * (width - 1) * (height - 1));
  std::vector<uint32_t> starts(kBuckets + 1);
  WeightRows(planes, sigma).for_each([&](uint32_t, uint32_t weight) { ++starts[(weight >> kBucketShift) + 1]; });
  for (size_t i = 1; i <= kBuckets; ++i) starts[i] += starts[i - 1];

  std::vector<uint32_t> ends(starts.begin(), starts.end() - 1);
  WeightRows(planes, sigma).for_each([&](uint32_t edge, uint32_t weight) {
    edges[ends[weight >> kBucketShift]++] = static_cast<Edge>(weight) << 32 | edge;
  });
  Buffer<Edge> scratch;
  for (size_t i = 0; i < kBuckets; ++i) {
    if (ends[i] > starts[i]) sort_bucket(edges.data() + starts[i], ends[i] - starts[i], scratch);
  }
}

}  // namespace detector::selective_search
