#include "boxes/filter.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

namespace detector::boxes {
namespace {

// The box as two words. Clipped boxes hold no -0, so that equal boxes have equal bits.
struct Words {
  uint64_t first, second;
};

Words words_of(const float* box) {
  Words words;
  std::memcpy(&words, box, sizeof(words));
  return words;
}

// Odd constants from the golden ratio and the square root of 2 (multiplicative hashing, Knuth, volume 3, 6.4).
uint64_t hash_of(const Words& words) {
  const uint64_t mixed = words.first * 0x9E3779B97F4A7C15u ^ std::rotl(words.second * 0x6A09E667F3BCC909u, 32);
  return mixed * 0x9E3779B97F4A7C15u >> 20;
}

float clip(float value, float most) {
  value = value > 0 ? value : 0.0f;  // also turns -0 into 0
  return value < most ? value : most;
}

}  // namespace

void Filter::run(const float* boxes, const float* scores, int64_t count, float height, float width,
                 const Limits& limits) {
  find_usable(boxes, scores, count, height, width, limits.min_size);
  if (scores != nullptr) rank(scores);
  keep(limits);
}

void Filter::find_usable(const float* boxes, const float* scores, int64_t count, float height, float width,
                         float min_size) {
  clipped_.resize(4 * count);
  rows_.clear();
  for (int64_t row = 0; row < count; ++row) {
    const float* box = boxes + 4 * row;
    float* clipped = clipped_.data() + 4 * row;
    clipped[0] = clip(box[0], width);
    clipped[1] = clip(box[1], height);
    clipped[2] = clip(box[2], width);
    clipped[3] = clip(box[3], height);
    // A number times 0 is 0 only if it is finite.
    const bool finite = (box[0] * 0 + box[1] * 0) + (box[2] * 0 + box[3] * 0) == 0;
    const bool large = clipped[2] - clipped[0] >= min_size && clipped[3] - clipped[1] >= min_size;
    if (finite && large && (scores == nullptr || !std::isnan(scores[row])))
      rows_.push_back(static_cast<int32_t>(row));
  }
}

void Filter::rank(const float* scores) {
  const auto better = [&](int32_t a, int32_t b) { return scores[a] > scores[b]; };
  if (!std::is_sorted(rows_.begin(), rows_.end(), better)) std::stable_sort(rows_.begin(), rows_.end(), better);
}

void Filter::keep(const Limits& limits) {
  if (limits.deduplicate) table_.assign(std::bit_ceil(2 * rows_.size() + 2), 0);
  kept_.resize(4 * rows_.size());
  size_t kept = 0;
  for (size_t i = 0; i < rows_.size() && static_cast<int64_t>(kept) < limits.top_k; ++i) {
    std::memcpy(kept_.data() + 4 * kept, clipped_.data() + 4 * rows_[i], 4 * sizeof(float));
    if (!limits.deduplicate || is_new(kept)) rows_[kept++] = rows_[i];
  }
  rows_.resize(kept);
  kept_.resize(4 * kept);
}

bool Filter::is_new(size_t place) {
  const Words words = words_of(kept_.data() + 4 * place);
  const size_t mask = table_.size() - 1;
  size_t slot = hash_of(words) & mask;
  for (; table_[slot] != 0; slot = (slot + 1) & mask) {
    const Words other = words_of(kept_.data() + 4 * (table_[slot] - 1));
    if (other.first == words.first && other.second == words.second) return false;
  }
  table_[slot] = static_cast<int32_t>(place) + 1;
  return true;
}

}  // namespace detector::boxes
