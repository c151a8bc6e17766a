// A block takes some channels of 2 rows x 32 cells. It reads them, and one row and one column more, into shared memory
// in the order in which they lie, and writes cells and windows with the channels side by side.

#include "cuda/packed_map.h"

#include <torch/csrc/stable/macros.h>
#include <torch/headeronly/core/Dispatch_v2.h>

namespace detector {
namespace {

constexpr int kWarps = 8;
constexpr int kRows = 2;
constexpr int kColumns = kWarp;
constexpr int kTileCells = (kRows + 1) * (kColumns + 1);

// Slots of a lane: 4 bytes, or one double.
template <typename scalar_t>
constexpr int kPerLane = sizeof(scalar_t) < 4 ? 4 / sizeof(scalar_t) : 1;

template <typename scalar_t>
constexpr int kSlots = kWarp * kPerLane<scalar_t>;

// A cell's slots in the tile, padded, so that the cells of a row lie in different banks.
template <typename scalar_t>
constexpr int kCell = kSlots<scalar_t> + kPerLane<scalar_t>;

template <typename scalar_t, typename place_t>
struct Job {
  const scalar_t* features;
  int64_t strides[4];
  int channels;
  int height;
  int width;
  int slots;
  scalar_t* cells;
  scalar_t* windows;
  place_t* places;
};

// The block's part of the map.
struct Part {
  int64_t image;
  int y, x, slot;
};

template <typename scalar_t, typename place_t>
__device__ __forceinline__ void read_cell(const Job<scalar_t, place_t>& job, const Part& part, int row, int column,
                                          int which, scalar_t* tile) {
  constexpr int kLanes = kSlots<scalar_t> / kPack<scalar_t>;  // of the kernels that read the map
  const int within = part.slot % kGroup<scalar_t>;
  const int pack = which / kLanes, lane = which % kLanes;  // so that `which` ascends with the channel
  const int channel = part.slot - within + pack * kWarp + within / kPack<scalar_t> + lane;
  const int y = part.y + row, x = part.x + column;
  scalar_t value = scalar_t(0);
  if (y < job.height && x < job.width && channel < job.channels) {
    value = job.features[part.image * job.strides[0] + channel * job.strides[1] + y * job.strides[2] +
                         x * job.strides[3]];
    if (value == scalar_t(0)) value = scalar_t(0);  // not -0
  }
  tile[(row * (kColumns + 1) + column) * kCell<scalar_t> + lane * kPack<scalar_t> + pack] = value;
}

// A maximum and the first place that holds it.
template <typename M, typename place_t>
struct Maximum {
  M value;
  place_t place;

  __device__ __forceinline__ void take(const Maximum& other) {
    const bool first = other.value > value || (other.value == value && other.place < place);
    value = first ? other.value : value;
    place = first ? other.place : place;
  }
};

template <typename scalar_t, typename place_t>
__global__ void __launch_bounds__(kWarps* kWarp) pack_kernel(const __grid_constant__ Job<scalar_t, place_t> job) {
  using M = Compute<scalar_t>;
  using Slots = Pack<scalar_t, kPerLane<scalar_t>>;
  using Places = Pack<place_t, kPerLane<scalar_t>>;
  __shared__ __align__(16) scalar_t tile[kTileCells * kCell<scalar_t>];
  const int down = (job.height + kRows - 1) / kRows;
  const Part part{blockIdx.x / down, static_cast<int>(blockIdx.x % down) * kRows,
                  static_cast<int>(blockIdx.y) * kColumns, static_cast<int>(blockIdx.z) * kSlots<scalar_t>};
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;

  if (job.strides[1] < job.strides[3]) {  // channels lie closer than cells
#pragma unroll 4
    for (int cell = warp; cell < kTileCells; cell += kWarps)
#pragma unroll
      for (int k = 0; k < kPerLane<scalar_t>; ++k)
        read_cell(job, part, cell / (kColumns + 1), cell % (kColumns + 1), lane + k * kWarp, tile);
  } else {
    constexpr int kLines = (kRows + 1) * kSlots<scalar_t>;
#pragma unroll 12
    for (int i = 0; i < kLines / kWarps; ++i) {
      const int line = i * kWarps + warp;
      read_cell(job, part, line % (kRows + 1), lane, line / (kRows + 1), tile);
    }
    if (threadIdx.x < kLines)
      read_cell(job, part, threadIdx.x % (kRows + 1), kColumns, threadIdx.x / (kRows + 1), tile);
  }
  __syncthreads();

  // A part of a row for each warp, from left to right: a column's maximum serves the windows on both sides of it.
  constexpr int kRun = kColumns * kRows / kWarps;
  const int row = warp / (kWarps / kRows), y = part.y + row, first = warp % (kWarps / kRows) * kRun;
  if (y >= job.height) return;
  const scalar_t* here = tile + (row * (kColumns + 1) + first) * kCell<scalar_t> + lane * kPerLane<scalar_t>;
  const int64_t to = ((part.image * job.height + y) * job.width + part.x + first) * job.slots + part.slot +
                     lane * kPerLane<scalar_t>;
  Maximum<M, place_t> left[kPerLane<scalar_t>];
#pragma unroll
  for (int i = 0; i <= kRun; ++i) {
    const int x = part.x + first + i;
    const auto upper = load<Slots>(here + i * kCell<scalar_t>);
    const auto lower = load<Slots>(here + (kColumns + 1 + i) * kCell<scalar_t>);
    if (i < kRun && x < job.width) store(job.cells + to + i * job.slots, upper);
    if (job.windows == nullptr) continue;
    Slots windows;
    Places places;
#pragma unroll
    for (int k = 0; k < kPerLane<scalar_t>; ++k) {
      Maximum<M, place_t> right{static_cast<M>(static_cast<scalar_t>(kLowest)), kNowhere<place_t>};
      if (x < job.width) {
        const M a = static_cast<M>(upper.at[k]), b = static_cast<M>(lower.at[k]);
        if (a > right.value) right = {a, place_at<place_t>(y, x)};
        if (b > right.value && y + 1 < job.height) right = {b, place_at<place_t>(y + 1, x)};
      }
      if (i > 0) left[k].take(right);
      windows.at[k] = static_cast<scalar_t>(left[k].value);
      places.at[k] = left[k].place;
      left[k] = right;
    }
    if (i == 0 || x > job.width) continue;
    store(job.windows + to + (i - 1) * job.slots, windows);
    if (job.places != nullptr) store(job.places + to + (i - 1) * job.slots, places);
  }
}

template <typename scalar_t, typename place_t>
void launch(const Tensor& features, const PackedMap& map) {
  const Job<scalar_t, place_t> job{
      static_cast<const scalar_t*>(features.data_ptr()),
      {features.stride(0), features.stride(1), features.stride(2), features.stride(3)},
      static_cast<int>(features.size(1)),
      static_cast<int>(features.size(2)),
      static_cast<int>(features.size(3)),
      map.slots,
      static_cast<scalar_t*>(const_cast<void*>(map.cells)),
      static_cast<scalar_t*>(const_cast<void*>(map.windows)),
      static_cast<place_t*>(const_cast<void*>(map.places)),
  };
  const int64_t rows = features.size(0) * ((job.height + kRows - 1) / kRows);
  const int64_t columns = (job.width + kColumns - 1) / kColumns, parts = map.slots / kSlots<scalar_t>;
  STD_TORCH_CHECK(rows <= INT32_MAX && parts <= UINT16_MAX,
                  "region pooling: on CUDA the features are too large for one call");
  if (rows * columns * parts == 0) return;
  pack_kernel<scalar_t, place_t>
      <<<dim3(rows, columns, parts), kWarps * kWarp, 0, current_stream(features)>>>(job);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace

PackedMap pack_map(const Pooling& pooling, const Tensor& features, Windows windows) {
  const int64_t cells = features.size(0) * features.size(2) * features.size(3);
  PackedMap map{};
  THO_DISPATCH_V2(features.scalar_type(), "region pooling", AT_WRAP(([&] {
                    map.slots = slots_of<scalar_t>(features.size(1));
                    STD_TORCH_CHECK(features.size(2) * features.size(3) * map.slots <= INT32_MAX, pooling.name,
                                    ": on CUDA the features of an image have at most 2^31 - 1 elements");
                    const int64_t size = cells * map.slots;
                    map.memory = torch::stable::new_empty(features, {(windows == Windows::none ? 1 : 2) * size});
                    auto* data = static_cast<scalar_t*>(map.memory.data_ptr());
                    map.cells = data;
                    if (windows != Windows::none) map.windows = data + size;
                    const bool small = has_short_places(pooling);
                    if (windows == Windows::places) {
                      map.place_memory =
                          torch::stable::new_empty(features, {size}, small ? ScalarType::Short : ScalarType::Int);
                      map.places = map.place_memory.data_ptr();
                    }
                    small ? launch<scalar_t, uint16_t>(features, map) : launch<scalar_t, uint32_t>(features, map);
                  })),
                  AT_EXPAND(AT_FLOATING_TYPES), ScalarType::Half, ScalarType::BFloat16);
  return map;
}

}  // namespace detector
