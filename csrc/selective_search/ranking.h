// From the boxes of all strategies to one ranked list.
#pragma once

#include <vector>

#include "regions.h"

namespace detector::selective_search {

// A box and its place in its hierarchy: 1 is the whole image, higher is earlier.
struct RankedBox {
  Box box;
  int priority;
};

struct RankingRule {
  uint64_t seed;
  int min_side;       // boxes with a shorter side are dropped
  int64_t max_boxes;  // negative for no limit
};

// Orders `boxes` by priority times a uniform random number, ascending (Uijlings et al. 2013, section 4.2: it
// favours large regions and lets no strategy come first as a whole), drops small boxes, and keeps the best
// copy of each box.
std::vector<Box> rank(const std::vector<RankedBox>& boxes, const RankingRule& rule);

}  // namespace detector::selective_search
