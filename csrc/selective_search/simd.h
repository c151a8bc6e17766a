// One source, three instruction sets: the loader picks the best clone for the processor.
//
// All clones give the same bits because the library is compiled with -ffp-contract=off (no fused
// multiply-add) and without -ffast-math (no reordered sums).
#pragma once

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(__SANITIZE_ADDRESS__)
#define SELECTIVE_SEARCH_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define SELECTIVE_SEARCH_CLONES
#endif
