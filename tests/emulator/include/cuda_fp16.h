// Empty: what kernels do with CUDA's half types stands between `#if defined(__CUDA_ARCH__)` and `#else`.
#pragma once
