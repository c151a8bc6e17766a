#include "segmentation.h"

#include <algorithm>
#include <cstring>
#include <limits>

#include "simd.h"

namespace detector::selective_search {
namespace {

constexpr size_t kBlock = 64;
constexpr size_t kFlattenings = 6;  // of all trees in the first pass
constexpr int kMaxSharedPixels = 1 << 22;
constexpr uint8_t kMayJoin = 1;
constexpr uint8_t kRejected = 2;

inline float edge_weight(Edge edge) {
  const uint32_t bits = static_cast<uint32_t>(edge >> 32);
  float weight;
  std::memcpy(&weight, &bits, sizeof weight);
  return weight;
}

// The pixel one step above `pixel`, whose entry is `parent`: itself for a root. Arithmetic instead of a
// choice, which the compiler would not vectorise around the loads.
inline int32_t one_up(int32_t parent, int32_t pixel) {
  const int32_t is_root = parent >> 31;
  return (pixel & is_root) | (parent & ~is_root);
}

// Finds the edges of a block whose ends may lie in different components, by one step up the trees and
// without branches. What a single step cannot settle is left to the search for the roots, which costs ten
// times as much, because the depths it follows are unpredictable.
SELECTIVE_SEARCH_CLONES
void compare_ends(const Edge* edges, const int32_t* parent, int width, uint8_t* __restrict out) {
  for (size_t i = 0; i < kBlock; ++i) {
    const int32_t from = static_cast<int32_t>(edge_pixel(edges[i]));
    const int32_t to = from + edge_offset(edges[i], width);
    out[i] = static_cast<uint8_t>((one_up(parent[from], from) != one_up(parent[to], to)) * kMayJoin);
  }
}

// The same, and tells apart the edges that cannot join because one end's component has a threshold below the
// block's lightest edge: no later edge can change such a component in the first pass.
SELECTIVE_SEARCH_CLONES
void classify(const Edge* edges, const int32_t* parent, const float* threshold, int width,
              uint8_t* __restrict out) {
  const float lightest = edge_weight(edges[0]);
  for (size_t i = 0; i < kBlock; ++i) {
    const int32_t from = static_cast<int32_t>(edge_pixel(edges[i]));
    const int32_t to = from + edge_offset(edges[i], width);
    const int32_t up_from = one_up(parent[from], from), up_to = one_up(parent[to], to);
    const int fits = (lightest <= threshold[up_from]) & (lightest <= threshold[up_to]);
    out[i] = static_cast<uint8_t>((up_from != up_to) * (fits * kMayJoin + (1 - fits) * kRejected));
  }
}

// One step of path halving for every pixel. Reads a block before it writes it: the vector loads may not
// overlap the stores.
SELECTIVE_SEARCH_CLONES
void flatten(int32_t* parent, size_t pixels) {
  int32_t block[kBlock];
  for (size_t start = 0; start < pixels; start += kBlock) {
    const size_t count = std::min(kBlock, pixels - start);
    for (size_t i = 0; i < count; ++i) {
      const int32_t entry = parent[start + i];
      const int32_t above = parent[one_up(entry, static_cast<int32_t>(start + i))];
      const int32_t stays = (entry | above) >> 31;  // a root's size, or the way to a root
      block[i] = (entry & stays) | (above & ~stays);
    }
    std::copy_n(block, count, parent + start);
  }
}

SELECTIVE_SEARCH_CLONES
void set_thresholds(const int32_t* parent, const float* last_weight, float k, size_t pixels,
                    float* threshold) {
  constexpr float infinity = std::numeric_limits<float>::infinity();
  for (size_t p = 0; p < pixels; ++p) {
    const float value = last_weight[p] + k / static_cast<float>(-parent[p]);
    threshold[p] = parent[p] < 0 ? value : infinity;
  }
}

// The flags equal to `flag` as bits.
uint64_t pack(const uint8_t* flags, uint8_t flag) {
  uint64_t bits = 0;
  for (size_t i = 0; i < kBlock; i += 8) {
    uint64_t bytes;
    std::memcpy(&bytes, flags + i, sizeof bytes);
    bytes = (bytes / flag) & 0x0101010101010101ull;
    bits |= ((bytes * 0x0102040810204080ull) >> 56) << i;
  }
  return bits;
}

// The edges of the last, shorter block.
inline uint64_t all_of(size_t count) {
  return (uint64_t{1} << count) - 1;
}

// The root of `pixel`. The first step has no branch: most pixels are one step below their root.
inline int root(int32_t* parent, int pixel) {
  const int up = parent[pixel];
  int top = up < 0 ? pixel : up;
  while (parent[top] >= 0) top = parent[top];
  parent[pixel] = up < 0 ? up : top;
  return top;
}

// Joins two roots, the smaller under the larger, and returns the root of both.
inline int join(int32_t* parent, int first, int second) {
  const bool swap = parent[first] > parent[second];
  const int large = swap ? second : first, small = swap ? first : second;
  parent[large] += parent[small];
  parent[small] = large;
  return large;
}

}  // namespace

void start_segmentation(const Buffer<Edge>& edges, int height, int width, float smallest_k, Forest& forest) {
  forest.blocks = 0;
  const int pixels = height * width;
  if (pixels > kMaxSharedPixels) return;
  forest.parent.resize(pixels);
  forest.last_weight.resize(pixels);
  std::fill_n(forest.parent.data(), pixels, -1);
  std::fill_n(forest.last_weight.data(), pixels, 0.0f);
  int32_t* parent = forest.parent.data();
  float* last = forest.last_weight.data();
  const size_t blocks = edges.size() / kBlock, period = std::max<size_t>(blocks / kFlattenings, 1);
  for (; forest.blocks < blocks; ++forest.blocks) {
    const Edge* start = edges.data() + forest.blocks * kBlock;
    uint8_t flags[kBlock];
    compare_ends(start, parent, width, flags);
    for (uint64_t bits = pack(flags, kMayJoin); bits; bits &= bits - 1) {
      const Edge edge = start[__builtin_ctzll(bits)];
      const int from = static_cast<int>(edge_pixel(edge));
      const int first = root(parent, from), second = root(parent, from + edge_offset(edge, width));
      if (first == second) continue;
      const float weight = edge_weight(edge);
      // The block is looked at again by every scale; what it has joined so far is then one component.
      if (!(weight <= last[first] + smallest_k / static_cast<float>(-parent[first]) &&
            weight <= last[second] + smallest_k / static_cast<float>(-parent[second]))) {
        return flatten(parent, pixels);
      }
      last[join(parent, first, second)] = weight;
    }
    if (forest.blocks % period == period - 1) flatten(parent, pixels);
  }
}

void Segmenter::join_similar(const Buffer<Edge>& edges, size_t first_block, float k) {
  constexpr float infinity = std::numeric_limits<float>::infinity();
  const size_t blocks = rejected_.size(), full = edges.size() / kBlock;
  const size_t period = std::max<size_t>(blocks / kFlattenings, 1);
  for (size_t block = first_block; block < blocks; ++block) {
    const Edge* start = edges.data() + block * kBlock;
    uint64_t candidates = all_of(edges.size() % kBlock), rejected = 0;
    if (block < full) {
      uint8_t flags[kBlock];
      classify(start, parent_, threshold_.data(), width_, flags);
      candidates = pack(flags, kMayJoin);
      rejected = pack(flags, kRejected);
    }
    for (; candidates; candidates &= candidates - 1) {
      const Edge edge = start[__builtin_ctzll(candidates)];
      const int from = static_cast<int>(edge_pixel(edge));
      const int first = root(parent_, from), second = root(parent_, from + edge_offset(edge, width_));
      if (first == second) continue;
      const float weight = edge_weight(edge);
      if (weight <= threshold_[first] && weight <= threshold_[second]) {
        const int joined = join(parent_, first, second);
        threshold_[first] = threshold_[second] = infinity;
        threshold_[joined] = weight + k / static_cast<float>(-parent_[joined]);
      } else {
        rejected |= candidates & -candidates;
      }
    }
    rejected_[block] = rejected;
    if (block % period == period - 1) flatten(parent_, pixels_);
  }
}

void Segmenter::join_small(const Buffer<Edge>& edges, size_t first_block, int min_size) {
  int small = 0;
  for (int p = 0; p < pixels_; ++p) {
    if (parent_[p] >= 0) parent_[p] = root(parent_, p);
    small += parent_[p] < 0 && -parent_[p] < min_size;
  }
  for (size_t block = first_block; block < rejected_.size() && small > 0; ++block) {
    for (uint64_t bits = rejected_[block]; bits; bits &= bits - 1) {
      const Edge edge = edges[block * kBlock + __builtin_ctzll(bits)];
      const int from = static_cast<int>(edge_pixel(edge));
      const int first = root(parent_, from), second = root(parent_, from + edge_offset(edge, width_));
      const int first_size = -parent_[first], second_size = -parent_[second];
      if ((first_size >= min_size && second_size >= min_size) || first == second) continue;
      join(parent_, first, second);
      small -= (first_size < min_size) + (second_size < min_size) - (first_size + second_size < min_size);
    }
  }
}

// Replaces the trees by labels, in place: a root holds -1 until its first pixel in the raster scan gives it
// the number n, then -2 - n until all pixels below it have read that.
int Segmenter::number_components() {
  for (int p = 0; p < pixels_; ++p) parent_[p] = parent_[p] < 0 ? -1 : root(parent_, p);
  int count = 0;
  for (int p = 0; p < pixels_; ++p) {
    int32_t& number = parent_[p] < 0 ? parent_[p] : parent_[parent_[p]];
    if (number == -1) number = -2 - count++;
    if (parent_[p] >= 0) parent_[p] = -2 - number;
  }
  for (int p = 0; p < pixels_; ++p) {
    if (parent_[p] < 0) parent_[p] = -2 - parent_[p];
  }
  return count;
}

int Segmenter::segment(const Buffer<Edge>& edges, const Forest& start, int height, int width, float k,
                       int min_size, Buffer<int32_t>& labels) {
  width_ = width;
  pixels_ = height * width;
  labels.resize(pixels_);
  parent_ = labels.data();
  threshold_.resize(pixels_);
  if (start.blocks > 0) {
    std::copy_n(start.parent.data(), pixels_, parent_);
    set_thresholds(parent_, start.last_weight.data(), k, pixels_, threshold_.data());
  } else {
    std::fill_n(parent_, pixels_, -1);
    std::fill_n(threshold_.data(), pixels_, k);
  }
  rejected_.resize((edges.size() + kBlock - 1) / kBlock);
  join_similar(edges, start.blocks, k);
  join_small(edges, start.blocks, min_size);
  return number_components();
}

}  // namespace detector::selective_search
