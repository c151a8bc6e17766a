#include "pooling/cpu/output.h"

namespace detector {
namespace {

template <typename M, typename scalar_t>
DETECTOR_INLINE void write_grid(const M* values, const Shape& shape, M* scratch, scalar_t* to) {
  transpose(values, shape.bins, shape.width, shape.width, scratch, shape.bins);
  const int64_t count = shape.channels * shape.bins;
  // In place: no number is overwritten before it is read.
  scalar_t* narrowed = reinterpret_cast<scalar_t*>(scratch);
  if constexpr (!std::is_same_v<M, scalar_t>) {
    int64_t i = 0;
    if constexpr (!std::is_integral_v<M>)
      for (; i + kLanes <= count; i += kLanes) narrow(narrowed + i, load<Vector<M>>(scratch + i));
    for (; i < count; ++i) store(narrowed + i, static_cast<scalar_t>(load<M>(scratch + i)));
  }
  copy_past_caches(narrowed, count * sizeof(scalar_t), to);
}

}  // namespace

#define DETECTOR_WRITE(M, scalar_t)                                                                  \
  DETECTOR_CLONES void write_values(const M* values, const Shape& shape, M* scratch, scalar_t* to) { \
    write_grid(values, shape, scratch, to);                                                          \
  }
DETECTOR_WRITE(float, float)
DETECTOR_WRITE(double, double)
DETECTOR_WRITE(float, Half)
DETECTOR_WRITE(float, BFloat16)
DETECTOR_WRITE(int32_t, int32_t)
DETECTOR_WRITE(int64_t, int32_t)
#undef DETECTOR_WRITE

}  // namespace detector
