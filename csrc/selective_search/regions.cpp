#include "regions.h"

#include <algorithm>
#include <array>

namespace detector::selective_search {
namespace {

// The colour bin of each byte: round(24 * value / 255), which has no ties.
std::array<uint8_t, 256> color_bins() {
  std::array<uint8_t, 256> bins;
  for (int value = 0; value < 256; ++value) {
    bins[value] = static_cast<uint8_t>((2 * (kColorBins - 1) * value + 255) / (2 * 255));
  }
  return bins;
}

// Pixels begin..end-1 in raster order, in one row and of one label.
struct Run {
  int32_t label;
  int32_t begin;
  int32_t end;
};

std::vector<Run> find_runs(const int32_t* labels, int height, int width) {
  std::vector<Run> runs;
  for (int y = 0; y < height; ++y) {
    const int32_t row = y * width, row_end = row + width;
    for (int32_t begin = row, end; begin < row_end; begin = end) {
      for (end = begin + 1; end < row_end && labels[end] == labels[begin]; ++end) {
      }
      runs.push_back({labels[begin], begin, end});
    }
  }
  return runs;
}

void measure_boxes(const std::vector<Run>& runs, int height, int width, Regions& regions) {
  regions.size.assign(regions.count, 0);
  regions.box.assign(regions.count, {width, height, 0, 0});
  for (const auto& [label, begin, end] : runs) {
    const int y = begin / width, row = y * width;
    regions.size[label] += end - begin;
    regions.box[label] = enclose(regions.box[label], {begin - row, y, end - 1 - row, y});
  }
}

// Neighbouring pixels count in two tables: most fall into the same bin, and adding to a number that was
// written just before waits for that write.
void count_colors(const Planes& planes, const std::vector<Run>& runs, Regions& regions) {
  static const std::array<uint8_t, 256> bins = color_bins();
  const int length = regions.histogram_length();
  std::vector<uint32_t> counts(static_cast<size_t>(regions.count) * 2 * kColorBins);
  for (int c = 0; c < planes.channels; ++c) {
    const uint8_t* values = planes.channel(c);
    std::fill(counts.begin(), counts.end(), 0u);
    for (const auto [label, begin, end] : runs) {
      uint32_t* even = counts.data() + static_cast<size_t>(label) * 2 * kColorBins;
      for (int32_t p = begin; p < end; ++p) ++even[(p & 1) * kColorBins + bins[values[p]]];
    }
    const uint32_t* from = counts.data();
    for (int label = 0; label < regions.count; ++label, from += 2 * kColorBins) {
      uint32_t* to = regions.histograms.data() + static_cast<size_t>(label) * length + c * kColorBins;
      for (int bin = 0; bin < kColorBins; ++bin) to[bin] = from[bin] + from[kColorBins + bin];
    }
  }
}

// Adds the texture of one channel. A pixel counts in one bin an axis and so in one of the axis' two maps; in
// the other map it counts as no gradient, as every pixel counts once in every map.
//
// Counts in two tables, as colours do.
void count_texture(const uint8_t* texture, int64_t pixels, const std::vector<Run>& runs, int offset,
                   Regions& regions) {
  const int length = regions.histogram_length();
  constexpr size_t table = kTextureAxes * kSignedTextureBins;
  std::vector<uint32_t> counts(regions.count * 2 * table);
  for (const auto [label, begin, end] : runs) {
    uint32_t* even = counts.data() + label * 2 * table;
    for (int32_t p = begin; p < end; ++p) {
      uint32_t* histogram = even + (p & 1) * table;
      for (int axis = 0; axis < kTextureAxes; ++axis) {
        ++histogram[axis * kSignedTextureBins + texture[axis * pixels + p]];
      }
    }
  }
  for (int label = 0; label < regions.count; ++label) {
    uint32_t* from = counts.data() + label * 2 * table;
    for (size_t i = 0; i < table; ++i) from[i] += from[table + i];
    uint32_t* to = regions.histograms.data() + static_cast<size_t>(label) * length + offset;
    for (int axis = 0; axis < kTextureAxes; ++axis, from += kSignedTextureBins, to += 2 * kTextureBins) {
      uint32_t* rising = to;
      uint32_t* falling = to + kTextureBins;
      rising[0] = falling[0] = regions.size[label];
      for (int bin = 1; bin < kTextureBins; ++bin) {
        rising[bin] = from[kTextureBins - 1 + bin];
        falling[bin] = from[kTextureBins - 1 - bin];
        rising[0] -= rising[bin];
        falling[0] -= falling[bin];
      }
    }
  }
}

// Collects pairs of different labels; most repetitions are left out at once, by the larger label's last pair.
class Pairs {
 public:
  explicit Pairs(int count) : latest_(count, -1) {}

  void add(int a, int b) {
    const auto [small, large] = std::minmax(a, b);
    if (small == large || latest_[large] == small) return;
    latest_[large] = small;
    pairs_.push_back({small, large});
  }

  std::vector<std::pair<int, int>> sorted() && {
    std::sort(pairs_.begin(), pairs_.end());
    pairs_.erase(std::unique(pairs_.begin(), pairs_.end()), pairs_.end());
    return std::move(pairs_);
  }

 private:
  std::vector<int> latest_;
  std::vector<std::pair<int, int>> pairs_;
};

// Pairs of labels across a side of a pixel: a run and the next in its row, a run and those it touches below.
// With `diagonal`, a run's last pixel also touches the one below and to its right.
std::vector<std::pair<int, int>> find_neighbours(const std::vector<Run>& runs, int width, int count,
                                                 bool diagonal) {
  Pairs pairs(count);
  size_t below = 0;
  for (size_t i = 0; i < runs.size(); ++i) {
    const Run& run = runs[i];
    if (i + 1 < runs.size() && run.end % width != 0) pairs.add(run.label, runs[i + 1].label);
    while (below < runs.size() && runs[below].end <= run.begin + width) ++below;
    const int32_t end_below = run.end + width + (diagonal && run.end % width != 0);
    for (size_t j = below; j < runs.size() && runs[j].begin < end_below; ++j) {
      pairs.add(run.label, runs[j].label);
    }
  }
  return std::move(pairs).sorted();
}

}  // namespace

void measure_regions(const Planes& planes, const uint8_t* texture, int texture_channels,
                     bool diagonal_neighbours, const int32_t* labels, int count, Regions& regions) {
  regions.count = count;
  regions.color_channels = planes.channels;
  regions.texture_channels = texture_channels;
  const std::vector<Run> runs = find_runs(labels, planes.height, planes.width);
  measure_boxes(runs, planes.height, planes.width, regions);
  regions.neighbours = find_neighbours(runs, planes.width, count, diagonal_neighbours);
  if (texture_channels == 0) return;
  regions.histograms.resize(static_cast<size_t>(count) * regions.histogram_length());
  std::fill(regions.histograms.begin(), regions.histograms.end(), 0u);
  count_colors(planes, runs, regions);
  for (int c = 0; c < texture_channels; ++c) {
    const int offset = regions.color_length() + c * kTextureMaps * kTextureBins;
    count_texture(texture + c * kTextureAxes * planes.pixels(), planes.pixels(), runs, offset, regions);
  }
}

}  // namespace detector::selective_search
