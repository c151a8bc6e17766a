#include "ranking.h"

#include <algorithm>
#include <unordered_set>

namespace detector::selective_search {
namespace {

// SplitMix64 (Steele, Lea and Flood, OOPSLA 2014): a few whole-number operations, the same everywhere.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}

  // Uniform in (0, 1), 53 bits.
  double uniform() {
    state_ += 0x9e3779b97f4a7c15ull;
    uint64_t z = state_;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return (static_cast<double>((z ^ (z >> 31)) >> 12) + 0.5) * 0x1.0p-52;
  }

 private:
  uint64_t state_;
};

struct BoxHash {
  size_t operator()(const Box& box) const {
    const uint64_t start = static_cast<uint64_t>(box.x1) << 32 | static_cast<uint32_t>(box.y1);
    const uint64_t end = static_cast<uint64_t>(box.x2) << 32 | static_cast<uint32_t>(box.y2);
    const uint64_t mixed = (start * 0x9e3779b97f4a7c15ull ^ end) * 0xbf58476d1ce4e5b9ull;
    return static_cast<size_t>(mixed ^ (mixed >> 32));
  }
};

bool large_enough(const Box& box, int min_side) {
  return box.x2 - box.x1 + 1 >= min_side && box.y2 - box.y1 + 1 >= min_side;
}

}  // namespace

std::vector<Box> rank(const std::vector<RankedBox>& boxes, const RankingRule& rule) {
  struct Entry {
    double value;
    size_t index;
  };
  std::vector<Entry> order;
  order.reserve(boxes.size());
  Random random(rule.seed);
  for (size_t i = 0; i < boxes.size(); ++i) {
    const double value = random.uniform() * boxes[i].priority;
    if (large_enough(boxes[i].box, rule.min_side)) order.push_back({value, i});
  }
  std::sort(order.begin(), order.end(), [](const Entry& a, const Entry& b) {
    return a.value != b.value ? a.value < b.value : a.index < b.index;
  });

  const size_t limit = rule.max_boxes < 0 ? order.size() : static_cast<size_t>(rule.max_boxes);
  std::unordered_set<Box, BoxHash> seen(2 * order.size());
  std::vector<Box> kept;
  for (const Entry& entry : order) {
    if (kept.size() >= limit) break;
    if (seen.insert(boxes[entry.index].box).second) kept.push_back(boxes[entry.index].box);
  }
  return kept;
}

}  // namespace detector::selective_search
