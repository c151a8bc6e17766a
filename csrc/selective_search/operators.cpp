// The operators: selective search itself, and its steps one by one, for tests and for other uses of them.
// Arguments are checked in detector/ops/selective_search.py; the checks here only protect memory.

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <tuple>
#include <vector>

#include "resize.h"
#include "search.h"
#include "segmentation.h"

namespace detector::selective_search {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Beyond this, sums over histograms would not be exact (similarity.h).
constexpr int64_t kMaxPixels = int64_t{1} << 26;

RgbView view(const Tensor& image) {
  STD_TORCH_CHECK(image.dim() == 3 && image.size(2) == 3, "image must have shape (H, W, 3)");
  STD_TORCH_CHECK(image.scalar_type() == ScalarType::Byte, "image must be uint8");
  STD_TORCH_CHECK(image.is_contiguous(), "image must be contiguous");
  STD_TORCH_CHECK(image.size(0) > 0 && image.size(1) > 0, "image must not be empty");
  return {image.const_data_ptr<uint8_t>(), static_cast<int>(image.size(0)), static_cast<int>(image.size(1))};
}

RgbView bounded_view(const Tensor& image) {
  const RgbView rgb = view(image);
  STD_TORCH_CHECK(rgb.pixels() <= kMaxPixels, "image has more than ", kMaxPixels, " pixels");
  return rgb;
}

template <class Enum>
Enum checked(int64_t value) {
  STD_TORCH_CHECK(value >= 0 && value < count_of(Enum{}), value, " is none of 0 .. ", count_of(Enum{}) - 1,
                  ", ", names_of(Enum{}));
  return static_cast<Enum>(value);
}

Connectivity checked_connectivity(int64_t value) {
  STD_TORCH_CHECK(value == 4 || value == 8, "connectivity must be 4 or 8, not ", value);
  return static_cast<Connectivity>(value);
}

template <class T>
Tensor copy_of(const Tensor& like, std::vector<int64_t> shape, ScalarType type, const T* data) {
  Tensor out = torch::stable::new_empty(like, shape, type);
  std::copy_n(data, out.numel(), out.mutable_data_ptr<T>());
  return out;
}

SearchConfig make_config(const std::vector<int64_t>& color_spaces, const std::vector<double>& scales,
                         const std::vector<int64_t>& min_sizes, const std::vector<int64_t>& similarities,
                         double sigma, int64_t connectivity, bool diagonal_neighbours,
                         bool all_texture_channels, double pixels_per_size, int64_t num_threads) {
  STD_TORCH_CHECK(scales.size() == min_sizes.size(), "scales and min_sizes differ in length");
  SearchConfig config;
  for (int64_t space : color_spaces) config.color_spaces.push_back(checked<ColorSpace>(space));
  for (int64_t term : similarities) config.similarities.push_back(checked<Similarity>(term));
  config.scales.assign(scales.begin(), scales.end());
  config.min_sizes.assign(min_sizes.begin(), min_sizes.end());
  config.sigma = static_cast<float>(sigma);
  config.connectivity = checked_connectivity(connectivity);
  config.diagonal_neighbours = diagonal_neighbours;
  config.all_texture_channels = all_texture_channels;
  config.pixels_per_size = pixels_per_size;
  config.num_threads = static_cast<int>(num_threads);
  return config;
}

// Half-open boxes (P, 4) of the working image, times the scale factors.
Tensor to_tensor(const std::vector<Box>& boxes, const Tensor& like, double scale_x, double scale_y) {
  Tensor out = torch::stable::new_empty(like, {static_cast<int64_t>(boxes.size()), 4}, ScalarType::Float);
  float* row = out.mutable_data_ptr<float>();
  for (const Box& box : boxes) {
    *row++ = static_cast<float>(box.x1 * scale_x);
    *row++ = static_cast<float>(box.y1 * scale_y);
    *row++ = static_cast<float>((box.x2 + 1) * scale_x);
    *row++ = static_cast<float>((box.y2 + 1) * scale_y);
  }
  return out;
}

Tensor run(const Tensor& image, int64_t height, int64_t width, std::vector<int64_t> color_spaces,
           std::vector<double> scales, std::vector<int64_t> min_sizes, std::vector<int64_t> similarities,
           double sigma, int64_t connectivity, bool diagonal_neighbours, bool all_texture_channels,
           double pixels_per_size, int64_t min_side, int64_t seed, int64_t max_proposals,
           int64_t num_threads) {
  const RgbView original = view(image);
  STD_TORCH_CHECK(height > 0 && width > 0 && height * width <= kMaxPixels, "bad working size");
  const SearchConfig config =
      make_config(color_spaces, scales, min_sizes, similarities, sigma, connectivity, diagonal_neighbours,
                  all_texture_channels, pixels_per_size, num_threads);
  Buffer<uint8_t> resized;
  RgbView working = original;
  if (height != original.height || width != original.width) {
    resized = resize(original, static_cast<int>(height), static_cast<int>(width));
    working = {resized.data(), static_cast<int>(height), static_cast<int>(width)};
  }
  const RankingRule rule{static_cast<uint64_t>(seed), static_cast<int>(min_side), max_proposals};
  const std::vector<Box> boxes = rank(search(working, config), rule);
  return to_tensor(boxes, image, static_cast<double>(original.width) / working.width,
                   static_cast<double>(original.height) / working.height);
}

std::tuple<Tensor, Tensor> hierarchies(const Tensor& image, std::vector<int64_t> color_spaces,
                                       std::vector<double> scales, std::vector<int64_t> min_sizes,
                                       std::vector<int64_t> similarities, double sigma, int64_t connectivity,
                                       bool diagonal_neighbours, bool all_texture_channels,
                                       double pixels_per_size, int64_t num_threads) {
  const SearchConfig config =
      make_config(color_spaces, scales, min_sizes, similarities, sigma, connectivity, diagonal_neighbours,
                  all_texture_channels, pixels_per_size, num_threads);
  std::vector<Box> boxes;
  std::vector<int64_t> priorities;
  for (const RankedBox& ranked : search(bounded_view(image), config)) {
    boxes.push_back(ranked.box);
    priorities.push_back(ranked.priority);
  }
  const int64_t count = static_cast<int64_t>(boxes.size());
  return {to_tensor(boxes, image, 1, 1), copy_of(image, {count}, ScalarType::Long, priorities.data())};
}

Tensor color_planes(const Tensor& image, int64_t color_space) {
  Planes planes;
  convert(bounded_view(image), checked<ColorSpace>(color_space), planes);
  return copy_of(image, {planes.channels, planes.height, planes.width}, ScalarType::Byte, planes.data.data());
}

Tensor texture(const Tensor& plane) {
  STD_TORCH_CHECK(plane.dim() == 2 && plane.is_contiguous() && plane.scalar_type() == ScalarType::Byte,
                  "plane must be a contiguous uint8 tensor of shape (H, W)");
  const int height = static_cast<int>(plane.size(0)), width = static_cast<int>(plane.size(1));
  STD_TORCH_CHECK(height > 0 && width > 0, "plane must not be empty");
  Buffer<uint8_t> bins(static_cast<size_t>(kTextureAxes * plane.numel()));
  Buffer<double> scratch;
  texture_bins(plane.const_data_ptr<uint8_t>(), height, width, scratch, bins.data());
  return copy_of(plane, {kTextureAxes, height, width}, ScalarType::Byte, bins.data());
}

Tensor segment(const Tensor& image, int64_t color_space, double sigma, double k, int64_t min_size,
               int64_t connectivity) {
  Planes planes;
  Buffer<Edge> edges;
  Buffer<int32_t> labels;
  convert(bounded_view(image), checked<ColorSpace>(color_space), planes);
  sorted_edges(planes, static_cast<float>(sigma), checked_connectivity(connectivity), edges);
  const float scale = static_cast<float>(k);
  Forest start;
  start_segmentation(edges, planes.height, planes.width, scale, start);
  Segmenter().segment(edges, start, planes.height, planes.width, scale, static_cast<int>(min_size), labels);
  return copy_of(image, {planes.height, planes.width}, ScalarType::Int, labels.data());
}

Tensor resize_image(const Tensor& image, int64_t height, int64_t width) {
  STD_TORCH_CHECK(height > 0 && width > 0, "bad size");
  const auto resized = resize(view(image), static_cast<int>(height), static_cast<int>(width));
  return copy_of(image, {height, width, 3}, ScalarType::Byte, resized.data());
}

STABLE_TORCH_LIBRARY_FRAGMENT(detector, m) {
  m.def(
      "selective_search(Tensor image, int height, int width, int[] color_spaces, float[] scales, "
      "int[] min_sizes, int[] similarities, float sigma, int connectivity, bool diagonal_neighbours, "
      "bool all_texture_channels, float pixels_per_size, int min_side, int seed, int max_proposals, "
      "int num_threads) -> Tensor");
  m.def(
      "selective_search_hierarchies(Tensor image, int[] color_spaces, float[] scales, int[] min_sizes, "
      "int[] similarities, float sigma, int connectivity, bool diagonal_neighbours, bool "
      "all_texture_channels, "
      "float pixels_per_size, int num_threads) -> (Tensor boxes, Tensor priorities)");
  m.def("selective_search_color_planes(Tensor image, int color_space) -> Tensor");
  m.def("selective_search_texture(Tensor plane) -> Tensor");
  m.def(
      "selective_search_segment(Tensor image, int color_space, float sigma, float k, int min_size, "
      "int connectivity=8) -> Tensor");
  m.def("selective_search_resize(Tensor image, int height, int width) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(detector, CPU, m) {
  m.impl("selective_search", TORCH_BOX(&run));
  m.impl("selective_search_hierarchies", TORCH_BOX(&hierarchies));
  m.impl("selective_search_color_planes", TORCH_BOX(&color_planes));
  m.impl("selective_search_texture", TORCH_BOX(&texture));
  m.impl("selective_search_segment", TORCH_BOX(&segment));
  m.impl("selective_search_resize", TORCH_BOX(&resize_image));
}

}  // namespace
}  // namespace detector::selective_search
