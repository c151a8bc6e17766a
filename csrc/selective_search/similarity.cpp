#include "similarity.h"

#include <algorithm>

#include "simd.h"

namespace detector::selective_search {
namespace {

// Sum over bins of min(a / size_a, b / size_b), times size_a * size_b. Whole numbers below 2^26 times 2^26
// times the number of maps: exact in 64 bits, in whatever order a processor adds them.
SELECTIVE_SEARCH_CLONES
uint64_t shared_counts(const uint32_t* a, const uint32_t* b, uint32_t size_a, uint32_t size_b, int length) {
  uint64_t sum = 0;
  for (int i = 0; i < length; ++i) {
    const uint64_t left = static_cast<uint64_t>(a[i]) * size_b, right = static_cast<uint64_t>(b[i]) * size_a;
    sum += left < right ? left : right;
  }
  return sum;
}

// Histogram intersection of two L1-normalised histograms whose maps each hold every pixel once.
double intersection(const RegionView& a, const RegionView& b, int offset, int length, int maps) {
  const uint64_t shared = shared_counts(a.histogram + offset, b.histogram + offset, a.size, b.size, length);
  const double whole = static_cast<double>(static_cast<uint64_t>(a.size) * b.size) * maps;
  return static_cast<double>(shared) / whole;
}

}  // namespace

double SimilarityMeasure::size_term(const RegionView& a, const RegionView& b) const {
  return (image_size_ - a.size / pixels_per_size_ - b.size / pixels_per_size_) / image_size_;
}

double SimilarityMeasure::fill_term(const RegionView& a, const RegionView& b) const {
  const Box box = enclose(a.box, b.box);
  const double area = (box.x2 - box.x1 + 1.0) * (box.y2 - box.y1 + 1.0);
  return 1 - (area - a.size / pixels_per_size_ - b.size / pixels_per_size_) / image_size_;
}

double SimilarityMeasure::operator()(const RegionView& a, const RegionView& b) const {
  if (similarity_ == Similarity::fill) return fill_term(a, b);
  if (similarity_ == Similarity::size) return size_term(a, b);
  const double texture = intersection(a, b, color_length_, texture_length_, texture_maps_);
  if (similarity_ == Similarity::texture_size_fill) return (texture + size_term(a, b) + fill_term(a, b)) / 3;
  const double color = intersection(a, b, 0, color_length_, color_channels_);
  return (color + texture + size_term(a, b) + fill_term(a, b)) / 4;
}

}  // namespace detector::selective_search
