#include "segmentation.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "simd.h"

namespace detector::selective_search {
namespace {

constexpr size_t kBlock = 64;

inline float edge_weight(Edge edge) {
  const uint32_t bits = static_cast<uint32_t>(edge >> 32);
  float weight;
  std::memcpy(&weight, &bits, sizeof weight);
  return weight;
}

// Sets a byte for each edge whose ends have different parents. One step up the tree, without branches,
// settles most of the edges inside a component; a full search of two unpredictable depths costs ten times as
// much.
SELECTIVE_SEARCH_CLONES
void compare_parents(const Edge* edges, const int32_t* parent, const int* offsets, uint8_t* __restrict out) {
  for (size_t i = 0; i < kBlock; ++i) {
    const int32_t from = static_cast<int32_t>(edge_pixel(edges[i]));
    const int32_t to = from + offsets[edge_direction(edges[i])];
    const int32_t up_from = parent[from], up_to = parent[to];
    out[i] = (up_from < 0 ? from : up_from) != (up_to < 0 ? to : up_to);
  }
}

// The eight bytes of `flags`, each 0 or 1, as eight bits.
inline uint64_t pack(const uint8_t* flags) {
  uint64_t bytes;
  std::memcpy(&bytes, flags, sizeof bytes);
  return (bytes * 0x0102040810204080ull) >> 56;
}

}  // namespace

// The bits of those of `count` edges whose ends may lie in different components.
uint64_t Segmenter::apart(const Edge* edges, int count) const {
  if (count < static_cast<int>(kBlock)) return (uint64_t{1} << count) - 1;
  uint8_t flags[kBlock];
  compare_parents(edges, parent_, offsets_, flags);
  uint64_t bits = 0;
  for (int i = 0; i < 8; ++i) bits |= pack(flags + 8 * i) << (8 * i);
  return bits;
}

// The root of `pixel`; halves the path on the way.
int Segmenter::root(int pixel) {
  while (parent_[pixel] >= 0) {
    const int up = parent_[pixel];
    if (parent_[up] < 0) return up;
    parent_[pixel] = parent_[up];
    pixel = parent_[up];
  }
  return pixel;
}

// Joins two roots, the smaller under the larger, and returns the root of both.
int Segmenter::join(int first, int second) {
  if (parent_[first] > parent_[second]) std::swap(first, second);
  parent_[first] += parent_[second];
  parent_[second] = first;
  return first;
}

void Segmenter::join_similar(const Buffer<Edge>& edges, float k) {
  for (size_t start = 0; start < edges.size(); start += kBlock) {
    const int count = static_cast<int>(std::min(kBlock, edges.size() - start));
    uint64_t rejected = 0;
    for (uint64_t bits = apart(edges.data() + start, count); bits; bits &= bits - 1) {
      const Edge edge = edges[start + __builtin_ctzll(bits)];
      const int first = root(static_cast<int>(edge_pixel(edge))), second = root(other_end(edge));
      if (first == second) continue;
      const float weight = edge_weight(edge);
      if (weight <= threshold_[first] && weight <= threshold_[second]) {
        const int joined = join(first, second);
        threshold_[joined] = weight + k / static_cast<float>(-parent_[joined]);
      } else {
        rejected |= bits & -bits;
      }
    }
    rejected_[start / kBlock] = rejected;
  }
}

void Segmenter::join_small(const Buffer<Edge>& edges, int min_size) {
  for (size_t block = 0; block < rejected_.size(); ++block) {
    for (uint64_t bits = rejected_[block]; bits; bits &= bits - 1) {
      const Edge edge = edges[block * kBlock + __builtin_ctzll(bits)];
      const int first = root(static_cast<int>(edge_pixel(edge))), second = root(other_end(edge));
      if (first != second && (-parent_[first] < min_size || -parent_[second] < min_size)) join(first, second);
    }
  }
}

// Replaces the trees by labels, in place: a root holds -1 until its first pixel in the raster scan gives it
// the number n, then -2 - n until all pixels below it have read that.
int Segmenter::number_components(int pixels) {
  for (int p = 0; p < pixels; ++p) parent_[p] = parent_[p] < 0 ? -1 : root(p);
  int count = 0;
  for (int p = 0; p < pixels; ++p) {
    int32_t& number = parent_[p] < 0 ? parent_[p] : parent_[parent_[p]];
    if (number == -1) number = -2 - count++;
    if (parent_[p] >= 0) parent_[p] = -2 - number;
  }
  for (int p = 0; p < pixels; ++p) {
    if (parent_[p] < 0) parent_[p] = -2 - parent_[p];
  }
  return count;
}

int Segmenter::segment(const Buffer<Edge>& edges, int height, int width, float k, int min_size,
                       Buffer<int32_t>& labels) {
  const int pixels = height * width;
  const int offsets[4] = {1, width, width + 1, 1 - width};
  std::copy_n(offsets, 4, offsets_);
  labels.resize(pixels);
  parent_ = labels.data();
  std::fill_n(parent_, pixels, -1);
  threshold_.resize(pixels);
  std::fill_n(threshold_.data(), pixels, k);
  rejected_.resize((edges.size() + kBlock - 1) / kBlock);
  join_similar(edges, k);
  join_small(edges, min_size);

  return number_components(pixels);
}

}  // namespace detector::selective_search
