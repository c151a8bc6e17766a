// Where the samples of RoIAlign lie. Every backend computes them with this file, step by step as torchvision
// does with aligned=True, so that the numbers are the same.

#pragma once

#include "pooling/bins.h"

namespace detector {

// The samples of one bin along one axis: sample i lies at origin + (i + 0.5) * size / count, and cell k at k.
// Only samples [begin, end) can lie on the map.
template <typename T>
struct Samples {
  T origin;
  T size;
  T count;
  int32_t begin;
  int32_t end;

  DETECTOR_HOST_DEVICE T place(int32_t i) const {
    return origin + (static_cast<T>(i) + T(0.5)) * size / count;
  }
};

// What a sample reads along one axis: two cells, which may be the same one, and their weights. It lies in
// `cell`.
template <typename T>
struct Sample {
  bool on_map;
  int32_t low;
  int32_t high;
  int32_t cell;
  T low_weight;
  T high_weight;
};

// The most samples of a bin along an axis that can lie on the map. Where their number is adaptive they lie at
// least half a cell apart, or the bin has only one.
constexpr int64_t samples_within(int64_t extent, int64_t ratio) {
  return ratio > 0 ? ratio : 2 * extent + 8;
}

// Bin p of n. `ratio` is the number of samples; 0 takes as many as the bin has cells, rounded up. A RoI whose
// corners are reversed has no extent.
template <typename T>
DETECTOR_HOST_DEVICE Samples<T> samples_of(T first, T last, const Axis& axis, int64_t ratio, int64_t p,
                                           int64_t n) {
  const T scale = static_cast<T>(axis.scale);
  const T start = first * scale - T(0.5), end = (last < first ? first : last) * scale - T(0.5);
  const T size = (end - start) / static_cast<T>(n);
  Samples<T> samples{start + static_cast<T>(p) * size, size,
                     ratio > 0 ? static_cast<T>(ratio) : std::ceil(size), 0, 0};
  const double origin = samples.origin, count = samples.count;
  if (axis.extent == 0 || !(origin >= -1e30 && origin <= 1e30 && size >= T(0) && size <= T(1e30)))
    return samples;
  const double most = count < 2147483647.0 ? count : 2147483647.0, step = size / count;
  double from = 0, to = most;
  if (step > 0) {  // one more on each side, for rounding
    from = std::floor((-1 - origin) / step - 0.5) - 1;
    to = std::ceil((axis.extent - origin) / step - 0.5) + 2;
  }
  samples.begin = static_cast<int32_t>(from < 0 ? 0 : (from < most ? from : most));
  samples.end = static_cast<int32_t>(to < 0 ? 0 : (to < most ? to : most));
  return samples;
}

template <typename T>
DETECTOR_HOST_DEVICE Sample<T> sample_at(const Samples<T>& samples, int32_t i, int64_t extent) {
  T place = samples.place(i);
  if (!(place >= T(-1) && place <= static_cast<T>(extent))) return {};
  const int32_t last = static_cast<int32_t>(extent) - 1;
  if (place <= T(0)) place = T(0);
  int32_t low = static_cast<int32_t>(place), high = low + 1;
  if (low >= last) {
    low = high = last;
    place = static_cast<T>(last);
  }
  const T beyond = place - static_cast<T>(low);
  return {true, low, high, static_cast<int32_t>(place + T(0.5)), T(1) - beyond, beyond};
}

// The cells that the samples of a bin may read: from the cell before the first sample to the one after the
// last, where samples beside the map count as at its edge.
template <typename T>
DETECTOR_HOST_DEVICE Edge reads_of(const Samples<T>& samples, int64_t extent) {
  if (samples.begin >= samples.end) return {0, 0};
  const auto before = [&](int32_t i) {
    return clamp(to_cell(std::floor(samples.place(i))), 0, extent - 1);
  };
  const int64_t last = before(samples.end - 1) + 2;
  return {static_cast<int32_t>(before(samples.begin)), static_cast<int32_t>(last < extent ? last : extent)};
}

}  // namespace detector
