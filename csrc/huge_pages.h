// Large outputs on huge pages.

#pragma once

#include "tensors.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace detector {

// Fresh memory costs a page fault for every 4 KiB written; on huge pages a large output costs a quarter.
inline void advise_huge_pages(const Tensor& tensor) {
#if defined(__linux__)
  constexpr uintptr_t kHuge = 2 << 20;
  const uintptr_t begin = reinterpret_cast<uintptr_t>(tensor.data_ptr());
  const uintptr_t first = (begin + kHuge - 1) / kHuge * kHuge;
  const uintptr_t last = (begin + tensor.numel() * tensor.element_size()) / kHuge * kHuge;
  if (last > first) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
}

}  // namespace detector
