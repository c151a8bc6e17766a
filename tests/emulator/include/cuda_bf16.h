// Empty: what kernels do with CUDA's bfloat16 types stands between `#if defined(__CUDA_ARCH__)` and `#else`.
#pragma once
