#include "grouping.h"

#include <algorithm>

#include "simd.h"

namespace detector::selective_search {
namespace {

struct Candidate {
  double similarity;
  uint32_t sequence;
  int first;
  int second;

  // The heap's order: the largest similarity, then the latest, comes out first.
  bool operator<(const Candidate& other) const {
    return similarity != other.similarity ? similarity < other.similarity : sequence < other.sequence;
  }
};

SELECTIVE_SEARCH_CLONES
void add(const uint32_t* from, int length, uint32_t* to) {
  for (int i = 0; i < length; ++i) to[i] += from[i];
}

class Grouping {
 public:
  Grouping(const Regions& regions, Similarity similarity, int64_t image_pixels, double pixels_per_size)
      : measure_(similarity, regions, image_pixels, pixels_per_size),
        length_(uses_histograms(similarity) ? regions.histogram_length() : 0),
        histograms_(static_cast<size_t>(regions.count) * length_) {
    const int total = 2 * regions.count - 1;
    regions_.reserve(total);
    neighbours_.resize(total);
    merged_into_.assign(total, -1);
    std::copy_n(regions.histograms.data(), histograms_.size(), histograms_.data());
    for (int i = 0; i < regions.count; ++i) {
      regions_.push_back(
          {regions.size[i], regions.box[i], histograms_.data() + static_cast<size_t>(i) * length_});
    }
    for (const auto& [first, second] : regions.neighbours) {
      neighbours_[first].push_back(second);
      neighbours_[second].push_back(first);
      heap_.push_back(candidate(first, second));
    }
    std::make_heap(heap_.begin(), heap_.end());
  }

  std::vector<Box> run(int count) {
    std::vector<Box> boxes;
    boxes.reserve(count - 1);
    while (static_cast<int>(boxes.size()) < count - 1) {
      std::pop_heap(heap_.begin(), heap_.end());
      const Candidate best = heap_.back();
      heap_.pop_back();
      if (merged_into_[best.first] >= 0 || merged_into_[best.second] >= 0) continue;
      merge(best.first, best.second);
      boxes.push_back(regions_.back().box);
    }
    return boxes;
  }

 private:
  Candidate candidate(int first, int second) {
    return {measure_(regions_[first], regions_[second]), sequence_++, first, second};
  }

  // The region that `region` is part of by now; shortens the way for the next time.
  int current(int region) {
    int last = region;
    while (merged_into_[last] >= 0) last = merged_into_[last];
    while (merged_into_[region] >= 0) {
      const int next = merged_into_[region];
      merged_into_[region] = last;
      region = next;
    }
    return last;
  }

  // Adds the union of two regions under the next label; its histogram takes the place of the first's. Lists
  // of neighbours keep the old labels, which `current` resolves when they are next read.
  void merge(int first, int second) {
    const int merged = static_cast<int>(regions_.size());
    const RegionView a = regions_[first], b = regions_[second];
    add(b.histogram, length_, const_cast<uint32_t*>(a.histogram));
    regions_.push_back({a.size + b.size, enclose(a.box, b.box), a.histogram});
    merged_into_[first] = merged_into_[second] = merged;
    collect_neighbours(first, second, merged);
    for (int neighbour : neighbours_[merged]) {
      heap_.push_back(candidate(neighbour, merged));
      std::push_heap(heap_.begin(), heap_.end());
    }
  }

  void collect_neighbours(int first, int second, int merged) {
    std::vector<int>& all = neighbours_[merged];
    all.reserve(neighbours_[first].size() + neighbours_[second].size());
    for (int old : {first, second}) {
      for (int neighbour : neighbours_[old]) {
        const int region = current(neighbour);
        if (region != merged) all.push_back(region);
      }
      std::vector<int>().swap(neighbours_[old]);
    }
    std::sort(all.begin(), all.end());
    all.erase(std::unique(all.begin(), all.end()), all.end());
  }

  SimilarityMeasure measure_;
  int length_;
  Buffer<uint32_t> histograms_;
  std::vector<RegionView> regions_;
  std::vector<std::vector<int>> neighbours_;
  std::vector<int> merged_into_;
  std::vector<Candidate> heap_;
  uint32_t sequence_ = 0;
};

}  // namespace

std::vector<Box> group(const Regions& regions, Similarity similarity, int64_t image_pixels,
                       double pixels_per_size) {
  return Grouping(regions, similarity, image_pixels, pixels_per_size).run(regions.count);
}

}  // namespace detector::selective_search
