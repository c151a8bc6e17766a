// A value is looked up: that is as fast as writing the output, and the division in float32 that the table
// replaces takes nearly twice as long.

#include "huge_pages.h"
#include "images/operators.h"

#include <algorithm>

namespace detector {
namespace {

constexpr int64_t kWorthAThread = 1 << 15;  // pixels

template <bool bgr>
void write_row(const uint8_t* row, int64_t pixels, const float* table, float* to) {
  constexpr int kFirst = bgr ? 2 : 0, kLast = 2 - kFirst;
  const float *first = table, *second = table + kLevels, *third = table + 2 * kLevels;
  for (int64_t x = 0; x < kChannels * pixels; x += kChannels) {
    to[x] = first[row[x + kFirst]];
    to[x + 1] = second[row[x + 1]];
    to[x + 2] = third[row[x + kLast]];
  }
}

}  // namespace

void write_inputs(const Tensor& images, const Tensor& table, const std::vector<int64_t>& sizes, bool bgr,
                  Tensor& inputs) {
  const int64_t height = images.size(1), width = images.size(2), stride = kChannels * width;
  const auto* const from = images.const_data_ptr<uint8_t>();
  const auto* const values = table.const_data_ptr<float>();
  auto* const to = inputs.mutable_data_ptr<float>();
  const auto write = bgr ? write_row<true> : write_row<false>;
  advise_huge_pages(inputs);
  torch::stable::parallel_for(
      0, images.size(0) * height, 1 + kWorthAThread / width, [&](int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row) {
          const int64_t image = row / height;
          const int64_t inside = row % height < sizes[2 * image] ? sizes[2 * image + 1] : 0;
          write(from + row * stride, inside, values, to + row * stride);
          std::fill(to + row * stride + kChannels * inside, to + (row + 1) * stride, 0.0f);
        }
      });
}

}  // namespace detector

STABLE_TORCH_LIBRARY_IMPL(detector, CPU, library) {
  library.impl("normalize_images", TORCH_BOX(&detector::normalize_images));
}
