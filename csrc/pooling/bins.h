// Where the bins of a RoI lie on the map. Every backend computes them with this file.
//
// Along one axis a RoI (first, last) becomes a Window, a run of cells that may reach beyond the map, and the
// window is cut into n bins [begin, end), clipped to the map. T is the type of index arithmetic: double for
// double features, float for all others, as Caffe and torchvision compute.

#pragma once

#include "enums.h"

#include <cmath>
#include <cstdint>

#if defined(__CUDACC__)
#define DETECTOR_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define DETECTOR_HOST_DEVICE inline
#endif

namespace detector {

// How a RoI becomes a window and a window becomes bins. The numbers are the operators' `rule` argument.
DETECTOR_ENUM(Rule,
              caffe,      // rounded inclusive window, bin edges in T: may overshoot by one cell, as Caffe's
              exact,      // the same window, bin edges in integers
              partition,  // rounded half-open window, bins that do not overlap
              spp,        // SPP-net's projection: a window shrunk to the cells whose centre lies well inside
              cells       // the RoI is written in cells, half-open
)

// What projection needs to know of one axis of the map.
struct Axis {
  double scale;    // cells per pixel
  double stride;   // pixels per cell
  double center;   // receptive-field centre of the first cell, pixels
  double shrink;   // how far inside the RoI a cell's centre must lie, pixels
  int64_t extent;  // cells
};

struct Window {
  int64_t start;
  int64_t size;
};

// The cells of a row or a column of bins along its axis: [begin, end), none where begin >= end.
struct alignas(8) Edge {
  int32_t begin;
  int32_t end;
};

// Whether the bin in this row and this column holds no cell.
DETECTOR_HOST_DEVICE bool is_empty(Edge row, Edge column) {
  return row.begin >= row.end || column.begin >= column.end;
}

// Converts a whole number to an integer, clamped to +-2^31, beyond every map, so that sums cannot overflow.
// NaN, the product of 0 and a scale that overflowed to infinity, becomes the lower limit.
template <typename T>
DETECTOR_HOST_DEVICE int64_t to_cell(T value) {
  constexpr T limit = T(2147483648.0);
  return static_cast<int64_t>(value > limit ? limit : (value >= -limit ? value : -limit));
}

// floor(numerator / denominator) for a positive denominator.
DETECTOR_HOST_DEVICE int64_t floor_divide(int64_t numerator, int64_t denominator) {
  int64_t quotient = numerator / denominator;
  return quotient - (numerator % denominator < 0);
}

DETECTOR_HOST_DEVICE int64_t clamp(int64_t value, int64_t low, int64_t high) {
  return value < low ? low : (value > high ? high : value);
}

// SPP-net's rule for half-open boxes in pixels, as in the released MATLAB code but counted from 0. A window
// without a cell becomes the one cell in its middle.
DETECTOR_HOST_DEVICE Window spp_window(double first, double last, const Axis& axis) {
  int64_t left = to_cell(std::floor((first - axis.center + axis.shrink) / axis.stride + 0.5));
  int64_t right = to_cell(std::ceil((last - 1.0 - axis.center - axis.shrink) / axis.stride - 0.5));
  if (left > right) left = right = floor_divide(left + right, 2);
  left = clamp(left, 0, axis.extent - 1);
  right = clamp(right, 0, axis.extent - 1);
  return {left, right - left + 1};
}

template <typename T>
DETECTOR_HOST_DEVICE Window window_of(Rule rule, T first, T last, const Axis& axis) {
  if (rule == Rule::spp) return spp_window(first, last, axis);
  const T scale = rule == Rule::cells ? T(1) : static_cast<T>(axis.scale);
  const int64_t start = to_cell(std::round(first * scale));  // halves go away from zero
  const int64_t end = to_cell(std::round(last * scale));
  if (rule == Rule::caffe || rule == Rule::exact) return {start, end < start ? 1 : end - start + 1};
  return {start, end < start ? 0 : end - start};
}

// Bin p of n of a window, clipped to the map.
template <typename T>
DETECTOR_HOST_DEVICE Edge bin_of(Rule rule, const Window& window, int64_t p, int64_t n, int64_t extent) {
  int64_t begin, end;
  if (rule == Rule::caffe) {
    const T size = static_cast<T>(window.size) / static_cast<T>(n);
    begin = static_cast<int64_t>(std::floor(static_cast<T>(p) * size));
    end = static_cast<int64_t>(std::ceil(static_cast<T>(p + 1) * size));
  } else {
    begin = p * window.size / n;
    end = (p + 1) * window.size / n + (rule != Rule::partition && (p + 1) * window.size % n != 0);
  }
  return {static_cast<int32_t>(clamp(window.start + begin, 0, extent)),
          static_cast<int32_t>(clamp(window.start + end, 0, extent))};
}

}  // namespace detector
