// Pooling over what masks cover: the operators, the same for every backend, and what the kernels share.
//
// A RoI's mask has a window of cells, and for each of them a number in `cover`: bool says which cells the mask
// covers, float32 how much of each it fills. Bool pools by maxima over covered cells, float by averages that
// the numbers weigh. A RoI whose window has no cell on the map has no mask: all cells count, equally. The bins
// are those of the RoI without a mask.
//
// With a sampling ratio of 0 or more it is RoIAlign: a maximum is that of the samples that lie in covered
// cells, and in an average a cell counts with its number times the weight with which the samples read it.

#pragma once

#include "pooling/operators.h"
#include "pooling/samples.h"

namespace detector {

constexpr int64_t kNoSamples = -1;  // the sampling ratio of pooling over cells

struct MaskedPooling {
  Pooling pooling;
  int64_t ratio;
  bool weighted;

  bool samples() const { return ratio != kNoSamples; }
};

// What is kept for the gradient, made by the forward pass and read by the backward pass of the same backend:
// for maxima (R, bins, C) int32, the cell or the number of the sample that each came from, -1 for none; for
// averages (R, bins), what the weights of each bin sum up to, in the type of arithmetic.
std::tuple<Tensor, Tensor> pool_masked(const MaskedPooling& masked, const Tensor& features,
                                       const Tensor& rois, const Tensor& windows, const Tensor& cover,
                                       bool keep);

// Sums run over RoIs and bins in ascending order for every cell, as in pool_backward().
Tensor pool_masked_backward(const MaskedPooling& masked, const Tensor& grad, const Tensor& rois,
                            const Tensor& windows, const Tensor& cover, const Tensor& kept, int64_t batch,
                            int64_t channels);

// How a RoI's mask lies on the map.
struct Cover {
  int64_t entry;  // that cell (0, 0) would have; cell (y, x) has entry + y * stride + x
  int32_t stride;
  Edge rows;  // of the window, clipped to the map; without a mask both are empty
  Edge columns;

  DETECTOR_HOST_DEVICE bool whole() const { return is_empty(rows, columns); }
  DETECTOR_HOST_DEVICE bool holds(int32_t y, int32_t x) const {
    return y >= rows.begin && y < rows.end && x >= columns.begin && x < columns.end;
  }
  // The cells of a bin that may count.
  DETECTOR_HOST_DEVICE Edge rows_of(Edge bin) const { return whole() ? bin : within(bin, rows); }
  DETECTOR_HOST_DEVICE Edge columns_of(Edge bin) const { return whole() ? bin : within(bin, columns); }
  // The number of a cell of the map; T is the type of the numbers.
  template <typename M, typename T>
  DETECTOR_HOST_DEVICE M at(const T* cover, int32_t y, int32_t x) const {
    if (whole()) return M(1);
    return holds(y, x) ? static_cast<M>(cover[entry + int64_t(y) * stride + x]) : M(0);
  }

  static DETECTOR_HOST_DEVICE Edge within(Edge a, Edge b) {
    return {a.begin > b.begin ? a.begin : b.begin, a.end < b.end ? a.end : b.end};
  }
};

// Reads a row (x1, y1, x2, y2, first entry) of the windows; returns whether `entries` numbers have its cells.
DETECTOR_HOST_DEVICE bool read_cover(const int64_t* row, int64_t entries, int64_t height, int64_t width,
                                     Cover* cover) {
  *cover = {0, 0, {0, 0}, {0, 0}};
  constexpr int64_t limit = int64_t(1) << 30;  // beyond every map, so that products cannot overflow
  for (int i = 0; i < 4; ++i)
    if (row[i] < -limit || row[i] > limit) return false;
  const int64_t wide = row[2] - row[0], high = row[3] - row[1];
  if (wide <= 0 || high <= 0) return true;
  if (row[4] < 0 || row[4] > entries || wide * high > entries - row[4]) return false;
  const Edge rows{static_cast<int32_t>(clamp(row[1], 0, height)),
                  static_cast<int32_t>(clamp(row[3], 0, height))};
  const Edge columns{static_cast<int32_t>(clamp(row[0], 0, width)),
                     static_cast<int32_t>(clamp(row[2], 0, width))};
  if (is_empty(rows, columns)) return true;
  *cover = {row[4] - row[1] * wide - row[0], static_cast<int32_t>(wide), rows, columns};
  return true;
}

inline MaskedPooling masked_pooling(const std::vector<int64_t>& levels, const Numbers& scale,
                                    const Numbers& center, const Numbers& shrink, int64_t rule, int64_t ratio,
                                    const Tensor& cover, int64_t height, int64_t width) {
  constexpr const char* name = "masked_pool";
  STD_TORCH_CHECK(scale.size() == 2 && center.size() == 2 && shrink.size() == 2, name,
                  ": scale, center and shrink are pairs (y, x)");
  STD_TORCH_CHECK(rule >= 0 && rule < count_of(Rule{}), name, ": unknown rule ", rule);
  STD_TORCH_CHECK(!levels.empty(), name, ": a pyramid has at least one level");
  const ScalarType type = cover.scalar_type();
  STD_TORCH_CHECK(type == ScalarType::Bool || type == ScalarType::Float, name,
                  ": cover must be bool or float32");
  MaskedPooling masked{{name,
                        ratio == kNoSamples ? static_cast<Rule>(rule) : Rule::caffe,  // else of no meaning
                        type == ScalarType::Float ? Reduction::avg : Reduction::max,
                        {scale[0], 1 / scale[0], center[0], shrink[0], height},
                        {scale[1], 1 / scale[1], center[1], shrink[1], width},
                        {}},
                       ratio,
                       type == ScalarType::Float};
  for (const int64_t n : levels) masked.pooling.add_grid(n, n);
  check_map(name, height, width);
  STD_TORCH_CHECK(ratio >= kNoSamples && ratio <= INT16_MAX, name, ": a sampling ratio is from 0 to ",
                  INT16_MAX, ", not ", ratio);
  STD_TORCH_CHECK(!masked.samples() || samples_within(height, ratio) <=
                                           INT32_MAX / samples_within(width, ratio),
                  name, ": the map is too large for samples: ", height, " x ", width);
  return masked;
}

inline void check_masks(const Tensor& rois, const Tensor& windows, const Tensor& cover) {
  STD_TORCH_CHECK(windows.dim() == 2 && windows.size(0) == rois.size(0) && windows.size(1) == 5 &&
                      windows.scalar_type() == ScalarType::Long && on_one_device(rois, windows),
                  "masked_pool: windows must have shape (R, 5), be int64, and lie beside the rois");
  STD_TORCH_CHECK(cover.dim() == 1 && on_one_device(rois, cover),
                  "masked_pool: cover must have one dimension and lie beside the rois");
}

inline std::tuple<Tensor, Tensor> masked_pool(const Tensor& features, const Tensor& rois,
                                              const Tensor& windows, const Tensor& cover,
                                              const std::vector<int64_t>& levels, const Numbers& scale,
                                              const Numbers& center, const Numbers& shrink, int64_t rule,
                                              int64_t sampling_ratio, bool keep) {
  check_inputs("masked_pool", features, rois);
  check_masks(rois, windows, cover);
  const MaskedPooling masked = masked_pooling(levels, scale, center, shrink, rule, sampling_ratio, cover,
                                              features.size(2), features.size(3));
  return pool_masked(masked, features, index_rois(features, rois), torch::stable::contiguous(windows),
                     torch::stable::contiguous(cover), keep);
}

inline Tensor masked_pool_backward(const Tensor& grad, const Tensor& rois, const Tensor& windows,
                                   const Tensor& cover, const Tensor& kept,
                                   const std::vector<int64_t>& levels, const Numbers& scale,
                                   const Numbers& center, const Numbers& shrink, int64_t rule,
                                   int64_t sampling_ratio, int64_t batch, int64_t channels, int64_t height,
                                   int64_t width) {
  const MaskedPooling masked =
      masked_pooling(levels, scale, center, shrink, rule, sampling_ratio, cover, height, width);
  check_gradient(masked.pooling, grad, rois, batch, channels);
  check_masks(rois, windows, cover);
  const ScalarType type = grad.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  const int64_t count = rois.size(0) * masked.pooling.bins * (masked.weighted ? 1 : channels);
  STD_TORCH_CHECK(kept.numel() == count && on_one_device(grad, kept) &&
                      kept.scalar_type() == (masked.weighted ? type : ScalarType::Int),
                  "masked_pool: the gradient and what was kept for it do not belong together");
  return pool_masked_backward(masked, torch::stable::contiguous(grad), index_rois(grad, rois),
                              torch::stable::contiguous(windows), torch::stable::contiguous(cover),
                              torch::stable::contiguous(kept), batch, channels);
}

// The kept tensor of a forward call, without values.
inline Tensor new_kept(const MaskedPooling& masked, const Tensor& features, int64_t rois, bool keep) {
  if (!keep) return torch::stable::new_empty(features, {0}, ScalarType::Int);
  const int64_t bins = masked.pooling.bins;
  if (!masked.weighted)
    return torch::stable::new_empty(features, {rois, bins, features.size(1)}, ScalarType::Int);
  return torch::stable::new_empty(
      features, {rois, bins},
      features.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float);
}

// Registers the operators for a backend, within STABLE_TORCH_LIBRARY_IMPL.
template <typename Library>
void register_masked_pooling(Library& library) {
  library.impl("masked_pool", TORCH_BOX(&masked_pool));
  library.impl("masked_pool_backward", TORCH_BOX(&masked_pool_backward));
}

}  // namespace detector
