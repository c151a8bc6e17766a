#include "pooling/cpu/masks.h"

namespace detector {

std::vector<Cover> read_covers(const MaskedPooling& masked, const Tensor& windows, const Tensor& cover) {
  const auto* rows = static_cast<const int64_t*>(windows.data_ptr());
  std::vector<Cover> covers(windows.size(0));
  for (size_t row = 0; row < covers.size(); ++row)
    STD_TORCH_CHECK(read_cover(rows + 5 * row, cover.numel(), masked.pooling.y.extent,
                               masked.pooling.x.extent, &covers[row]),
                    "masked_pool: row ", row, " of windows has cells that cover, with ", cover.numel(),
                    " numbers, does not have");
  return covers;
}

}  // namespace detector
