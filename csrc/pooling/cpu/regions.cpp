#include "pooling/cpu/regions.h"

namespace detector {
namespace {

template <typename T>
void check_row(const Pooling& pooling, const T* roi, int64_t row, int64_t images) {
  for (int64_t i = 0; i < 5; ++i)
    STD_TORCH_CHECK(std::isfinite(roi[i]), pooling.name, ": row ", row, " of rois holds ", roi[i],
                    "; every number must be finite");
  // As in Caffe a fraction of the index is dropped, so -0.5 is image 0.
  STD_TORCH_CHECK(images > 0 && roi[0] > T(-1) && roi[0] < static_cast<T>(images), pooling.name, ": row ",
                  row, " of rois has batch index ", roi[0], ", but features hold ", images, " image(s)");
  if (pooling.rule != Rule::cells) return;
  for (int64_t i = 1; i < 5; ++i)
    STD_TORCH_CHECK(roi[i] == std::floor(roi[i]), pooling.name, ": row ", row, " of rois holds ", roi[i],
                    "; with window=\"cells\" corners are whole cells");
}

template <typename T>
void write_edges(const Pooling& pooling, const T* roi, Edge* edges) {
  const Window rows = window_of<T>(pooling.rule, roi[2], roi[4], pooling.y);
  const Window columns = window_of<T>(pooling.rule, roi[1], roi[3], pooling.x);
  const auto cut = [&](const Window& window, int64_t n, int64_t extent) {
    for (int64_t p = 0; p < n; ++p) *edges++ = bin_of<T>(pooling.rule, window, p, n, extent);
  };
  for (const Grid& grid : pooling.grids) {
    cut(rows, grid.height, pooling.y.extent);
    cut(columns, grid.width, pooling.x.extent);
  }
}

template <typename T>
Regions read(const Pooling& pooling, const T* rois, int64_t count, int64_t images) {
  Regions regions{std::vector<int64_t>(count), std::vector<Edge>(count * pooling.edges)};
  for (int64_t row = 0; row < count; ++row) {
    check_row(pooling, rois + 5 * row, row, images);
    regions.images[row] = static_cast<int64_t>(rois[5 * row]);
  }
  torch::stable::parallel_for(0, count, 64, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row)
      write_edges(pooling, rois + 5 * row, regions.edges.data() + row * pooling.edges);
  });
  return regions;
}

}  // namespace

Regions read_regions(const Pooling& pooling, const Tensor& features, const Tensor& rois, int64_t images) {
  const Tensor rows = index_rois(features, rois);
  if (rows.scalar_type() == ScalarType::Double)
    return read(pooling, static_cast<const double*>(rows.data_ptr()), rows.size(0), images);
  return read(pooling, static_cast<const float*>(rows.data_ptr()), rows.size(0), images);
}

}  // namespace detector
