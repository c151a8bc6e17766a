// From a kernel's working memory to the output.

#pragma once

#include "pooling/cpu/lanes.h"
#include "pooling/pooling.h"

namespace detector {

// A grid of one RoI and one block of channels, as it lies in Scratch: (bins, width), of which the first
// `channels` are written as (channels, bins).
struct Shape {
  int64_t bins;
  int64_t width;
  int64_t channels;
};

// Writes `values`, (bins, width), as (channels, bins) in the type of `to`; `scratch` is as large as `values`.
void write_values(const float* values, const Shape& shape, float* scratch, float* to);
void write_values(const double* values, const Shape& shape, double* scratch, double* to);
void write_values(const float* values, const Shape& shape, float* scratch, Half* to);
void write_values(const float* values, const Shape& shape, float* scratch, BFloat16* to);
void write_values(const int32_t* values, const Shape& shape, int32_t* scratch, int32_t* to);
void write_values(const int64_t* values, const Shape& shape, int64_t* scratch, int32_t* to);

// Writes at element `at` of the output, whatever its type.
template <typename M>
using Writer = void (*)(const M* values, const Shape& shape, M* scratch, void* pooled, int64_t at);

template <typename scalar_t>
void write_as(const Compute<scalar_t>* values, const Shape& shape, Compute<scalar_t>* scratch, void* pooled,
              int64_t at) {
  write_values(values, shape, scratch, static_cast<scalar_t*>(pooled) + at);
}

}  // namespace detector
