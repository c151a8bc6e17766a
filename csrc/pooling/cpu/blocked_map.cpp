#include "pooling/cpu/blocked_map.h"

#include <algorithm>

namespace detector {
namespace {

constexpr int64_t kCells = kLanes;           // cells transposed at a time
constexpr int64_t kTaskCells = 32 * kCells;  // cells a task copies

// What to copy: channels of one image from `from` to `to`, where a cell's `width` channels lie side by side.
template <typename scalar_t>
struct Copy {
  const scalar_t* from;
  int64_t channel_stride;
  int64_t cell_stride;
  int64_t channels;
  int64_t width;
  size_t block;
  Compute<scalar_t>* to;
};

template <typename scalar_t>
DETECTOR_INLINE void copy_planes(const Copy<scalar_t>& copy, int64_t begin, int64_t end) {
  using M = Compute<scalar_t>;
  alignas(64) M rows[kWide * kCells];
  std::fill(rows, rows + copy.width * kCells, M(0));
  for (int64_t cell = begin; cell < end; cell += kCells) {
    const int64_t count = std::min(kCells, end - cell);
    for (int64_t c = 0; c < copy.channels; ++c) {
      const scalar_t* from = copy.from + c * copy.channel_stride + cell;
      if (count == kCells) {
        store(rows + c * kCells, widen(from));
      } else {
        for (int64_t i = 0; i < count; ++i) rows[c * kCells + i] = static_cast<M>(from[i]);
      }
    }
    M* to = copy.to + cell * copy.width;
    if (count == kCells) {
      transpose(rows, copy.width, kCells, kCells, to, copy.width);
    } else {
      for (int64_t i = 0; i < count; ++i)
        for (int64_t c = 0; c < copy.width; ++c) to[i * copy.width + c] = rows[c * kCells + i];
    }
  }
}

template <typename scalar_t>
DETECTOR_INLINE void copy_cells(const Copy<scalar_t>& copy, int64_t begin, int64_t end) {
  using M = Compute<scalar_t>;
  const int64_t whole = copy.channels - copy.channels % kLanes;
  for (int64_t cell = begin; cell < end; ++cell) {
    const scalar_t* from = copy.from + cell * copy.cell_stride;
    M* to = copy.to + cell * copy.width;
    for (int64_t c = 0; c < whole; c += kLanes) store(to + c, widen(from + c));
    for (int64_t c = whole; c < copy.width; ++c) to[c] = c < copy.channels ? static_cast<M>(from[c]) : M(0);
  }
}

#define DETECTOR_COPY(scalar_t)                                                              \
  DETECTOR_CLONES void run(const Copy<scalar_t>& copy, int64_t begin, int64_t end) {         \
    copy.channel_stride == 1 ? copy_cells(copy, begin, end) : copy_planes(copy, begin, end); \
  }
DETECTOR_COPY(float)
DETECTOR_COPY(double)
DETECTOR_COPY(Half)
DETECTOR_COPY(BFloat16)
#undef DETECTOR_COPY

bool cells_lie_apart_evenly(const Tensor& t) {
  return t.stride(1) == 1 && t.stride(2) == t.stride(3) * t.size(3) && t.stride(3) >= t.size(1);
}

std::vector<int64_t> block_widths(int64_t channels) {
  std::vector<int64_t> widths(channels / kWide, kWide);
  widths.resize(widths.size() + (channels % kWide + kLanes - 1) / kLanes, kLanes);
  return widths;
}

}  // namespace

template <typename scalar_t>
BlockedMap<Compute<scalar_t>> blocked(const Tensor& features) {
  using M = Compute<scalar_t>;
  const bool last = cells_lie_apart_evenly(features);
  const Tensor map = last ? features : torch::stable::contiguous(features);
  const int64_t images = map.size(0), channels = map.size(1), cells = map.size(2) * map.size(3);
  const int64_t image_stride = map.stride(0), channel_stride = last ? 1 : cells,
                cell_stride = last ? map.stride(3) : 1;
  const auto* data = static_cast<const scalar_t*>(map.data_ptr());

  BlockedMap<M> result;
  std::vector<Copy<scalar_t>> copies;
  int64_t first = 0, copied = 0;
  for (const int64_t width : block_widths(channels)) {
    const int64_t valid = std::min(width, channels - first);
    const scalar_t* from = data + first * channel_stride;
    if (last && std::is_same_v<scalar_t, M> && valid == width) {
      result.blocks.push_back(
          {reinterpret_cast<const M*>(from), image_stride, cell_stride, first, valid, width == kWide});
    } else {
      copies.push_back({from, channel_stride, cell_stride, valid, width, result.blocks.size(), nullptr});
      result.blocks.push_back({nullptr, cells * width, width, first, valid, width == kWide});
      copied += images * cells * width;
    }
    first += width;
  }
  if (copies.empty()) return result;

  result.copy = torch::stable::new_empty(features, {copied},
                                         std::is_same_v<M, double> ? ScalarType::Double : ScalarType::Float);
  M* to = static_cast<M*>(result.copy.data_ptr());
  for (Copy<scalar_t>& copy : copies) {
    result.blocks[copy.block].data = copy.to = to;
    to += images * cells * copy.width;
  }
  const int64_t parts = (cells + kTaskCells - 1) / kTaskCells;
  torch::stable::parallel_for(0, copies.size() * images * parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t image = task / parts % images, part = task % parts;
      Copy<scalar_t> copy = copies[task / (parts * images)];
      copy.from += image * image_stride;
      copy.to += image * cells * copy.width;
      run(copy, part * kTaskCells, std::min(cells, (part + 1) * kTaskCells));
    }
  });
  return result;
}

template BlockedMap<float> blocked<float>(const Tensor&);
template BlockedMap<double> blocked<double>(const Tensor&);
template BlockedMap<float> blocked<Half>(const Tensor&);
template BlockedMap<float> blocked<BFloat16>(const Tensor&);

}  // namespace detector
