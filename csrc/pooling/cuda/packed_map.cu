// A block takes some channels of 2 rows x 32 cells. It reads them, and one row and one column more, into
// shared memory in the order in which they lie, and writes cells and windows with the channels side by side.

#include "pooling/cuda/packed_map.h"

#include <torch/csrc/stable/macros.h>

namespace detector {
namespace {

constexpr int kWarps = 8;
constexpr int kRows = 2;
constexpr int kColumns = kWarp;
constexpr int kTile = (kRows + 1) * (kColumns + 1);  // cells

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

// No zero is negative.
template <typename scalar_t>
__device__ __forceinline__ scalar_t positive_zero(scalar_t value) {
  if constexpr (sizeof(scalar_t) == 2) {
    if (value.x == 0x8000) value.x = 0;
    return value;
  } else {
    return value + scalar_t(0);
  }
}

// A column of two cells, then two columns: the maximum and the first place that holds it.
template <typename M, typename place_t, bool with_places>
struct Maximum {
  M value;
  uint32_t place;

  __device__ __forceinline__ Maximum() : value(0), place(0) {}
  __device__ __forceinline__ Maximum(M upper, M lower, int y, int x)
      : value(M(kLowest)), place(kNowhere<place_t>) {
    const bool first = upper > value;
    value = first ? upper : value;
    const bool second = lower > value;
    value = second ? lower : value;
    if (with_places) place = second ? place_at<place_t>(y + 1, x) : (first ? place_at<place_t>(y, x) : place);
  }

  __device__ __forceinline__ void take(const Maximum& right) {
    if (with_places) {
      if (right.value > value || (right.value == value && right.place < place)) place = right.place;
    }
    value = right.value > value ? right.value : value;
  }
};

// Where a block's part of the map begins.
struct Part {
  int64_t image;
  int y, x, slot;
};

// Reads the block's cells and their neighbours. Beyond the map are its last row, column and channel again,
// which change no maximum.
template <typename scalar_t, typename place_t>
__device__ __forceinline__ void read_tile(const Job<scalar_t, place_t>& job, const Part& part,
                                          scalar_t* tile) {
  constexpr int kLanes = kSlots<scalar_t> / kPack<scalar_t>;  // of the kernels that read the map
  const int within = part.slot % kGroup<scalar_t>;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const scalar_t* image = job.features + part.image * job.strides[0];
  // `which` of the part's channels ascends with the channel: pack by pack, and within a pack lane by lane.
  const auto read = [&](int row, int column, int which) {
    const int pack = which / kLanes, of_pack = which % kLanes;
    const int channel =
        min(part.slot - within + pack * kWarp + within / kPack<scalar_t> + of_pack, job.channels - 1);
    const int y = min(part.y + row, job.height - 1), x = min(part.x + column, job.width - 1);
    tile[(row * (kColumns + 1) + column) * kCell<scalar_t> + of_pack * kPack<scalar_t> + pack] =
        positive_zero(image[channel * job.strides[1] + y * job.strides[2] + x * job.strides[3]]);
  };
  if (job.strides[1] < job.strides[3]) {  // channels lie closer than cells
#pragma unroll 4
    for (int cell = warp; cell < kTile; cell += kWarps)
#pragma unroll
      for (int k = 0; k < kPerLane<scalar_t>; ++k)
        read(cell / (kColumns + 1), cell % (kColumns + 1), lane + k * kWarp);
  } else {
#pragma unroll
    for (int row = 0; row <= kRows; ++row)
#pragma unroll
      for (int i = 0; i < kSlots<scalar_t> / kWarps; ++i) read(row, lane, i * kWarps + warp);
    for (int i = threadIdx.x; i < (kRows + 1) * kSlots<scalar_t>; i += kWarps * kWarp)
      read(i % (kRows + 1), kColumns, i / (kRows + 1));
  }
  __syncthreads();
}

// Writes a part of a row for each warp, from left to right: a column's maximum serves the windows on both
// sides of it.
template <bool with_windows, bool with_places, typename scalar_t, typename place_t>
__device__ __forceinline__ void write_tile(const Job<scalar_t, place_t>& job, const Part& part,
                                           const scalar_t* tile) {
  using M = Compute<scalar_t>;
  using Slots = Pack<scalar_t, kPerLane<scalar_t>>;
  using Places = Pack<place_t, kPerLane<scalar_t>>;
  constexpr int kRun = kColumns * kRows / kWarps;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int row = warp / (kWarps / kRows), y = part.y + row, first = warp % (kWarps / kRows) * kRun;
  if (y >= job.height) return;
  const scalar_t* here = tile + (row * (kColumns + 1) + first) * kCell<scalar_t> + lane * kPerLane<scalar_t>;
  const int64_t to = ((part.image * job.height + y) * job.width + part.x + first) * job.slots + part.slot +
                     lane * kPerLane<scalar_t>;
  Maximum<M, place_t, with_places> left[kPerLane<scalar_t>];
#pragma unroll
  for (int i = 0; i <= kRun; ++i) {
    const int x = part.x + first + i;
    const auto upper = load<Slots>(here + i * kCell<scalar_t>);
    if (i < kRun && x < job.width) store(job.cells + to + i * job.slots, upper);
    if constexpr (with_windows) {
      const auto lower = load<Slots>(here + (kColumns + 1 + i) * kCell<scalar_t>);
      Slots windows;
      Places places;
#pragma unroll
      for (int k = 0; k < kPerLane<scalar_t>; ++k) {
        const Maximum<M, place_t, with_places> right(static_cast<M>(upper.at[k]), static_cast<M>(lower.at[k]),
                                                     y, x);
        if (i > 0) left[k].take(right);
        windows.at[k] = static_cast<scalar_t>(left[k].value);
        places.at[k] = static_cast<place_t>(left[k].place);
        left[k] = right;
      }
      if (i > 0 && x <= job.width) {
        store(job.windows + to + (i - 1) * job.slots, windows);
        if constexpr (with_places) store(job.places + to + (i - 1) * job.slots, places);
      }
    }
  }
}

template <typename scalar_t, typename place_t>
__global__ void __launch_bounds__(kWarps* kWarp)
    pack_kernel(const __grid_constant__ Job<scalar_t, place_t> job) {
  __shared__ __align__(16) scalar_t tile[kTile * kCell<scalar_t>];
  const int down = (job.height + kRows - 1) / kRows;
  const Part part{blockIdx.x / down, static_cast<int>(blockIdx.x % down) * kRows,
                  static_cast<int>(blockIdx.y) * kColumns, static_cast<int>(blockIdx.z) * kSlots<scalar_t>};
  read_tile(job, part, tile);
  if (job.windows == nullptr)
    write_tile<false, false>(job, part, tile);
  else if (job.places == nullptr)
    write_tile<true, false>(job, part, tile);
  else
    write_tile<true, true>(job, part, tile);
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
  dispatch(features.scalar_type(), [&]<typename scalar_t>() {
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
  });
  return map;
}

}  // namespace detector
