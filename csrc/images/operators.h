// The operator, the same for every backend: it checks its arguments and calls the backend's kernel.

#pragma once

#include "tensors.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <cstdint>
#include <vector>

namespace detector {

constexpr int64_t kChannels = 3;
constexpr int64_t kLevels = 256;  // values of a pixel in one channel

// Each backend implements this function. It writes the network input (N, H, W, 3) of the uint8 images
// (N, H, W, 3): value c of a pixel is entry `level` of row c of the table (3, 256), where `level` is the
// image's value c, or value 2 - c if `bgr`. Pixels to the right of an image's width or below its height are
// 0.0. `sizes` holds height and width of each image, one after the other.
void write_inputs(const Tensor& images, const Tensor& table, const std::vector<int64_t>& sizes, bool bgr,
                  Tensor& inputs);

inline void check_sizes(const std::vector<int64_t>& sizes, int64_t images, int64_t height, int64_t width) {
  STD_TORCH_CHECK(static_cast<int64_t>(sizes.size()) == 2 * images, "normalize_images: ", images,
                  " images have ", 2 * images, " heights and widths, not ", sizes.size());
  for (int64_t i = 0; i < images; ++i)
    STD_TORCH_CHECK(
        sizes[2 * i] >= 0 && sizes[2 * i] <= height && sizes[2 * i + 1] >= 0 && sizes[2 * i + 1] <= width,
        "normalize_images: the size of image ", i, ", ", sizes[2 * i], " x ", sizes[2 * i + 1],
        ", is outside the batch of ", height, " x ", width, " pixels");
}

// A table on another device or of another type would be read as if it were one of these.
inline void check_images(const Tensor& images, const Tensor& table) {
  STD_TORCH_CHECK(images.dim() == 4 && images.size(3) == kChannels,
                  "normalize_images: images must have shape (N, H, W, 3)");
  STD_TORCH_CHECK(images.scalar_type() == ScalarType::Byte && images.is_contiguous(),
                  "normalize_images: images must be contiguous and uint8");
  STD_TORCH_CHECK(images.size(1) <= INT32_MAX && images.size(2) <= INT32_MAX,
                  "normalize_images: a side may have at most 2^31 - 1 pixels");
  STD_TORCH_CHECK(table.dim() == 2 && table.size(0) == kChannels && table.size(1) == kLevels,
                  "normalize_images: the table must have shape (3, 256)");
  STD_TORCH_CHECK(table.scalar_type() == ScalarType::Float && table.is_contiguous(),
                  "normalize_images: the table must be contiguous and float32");
  STD_TORCH_CHECK(on_one_device(images, table), "normalize_images: images and table must be on one device");
}

inline Tensor normalize_images(const Tensor& images, const Tensor& table, const std::vector<int64_t>& sizes,
                               bool bgr) {
  check_images(images, table);
  check_sizes(sizes, images.size(0), images.size(1), images.size(2));
  Tensor inputs = torch::stable::new_empty(
      images, {images.size(0), images.size(1), images.size(2), kChannels}, ScalarType::Float);
  if (inputs.numel() > 0) write_inputs(images, table, sizes, bgr, inputs);
  return inputs;
}

}  // namespace detector
