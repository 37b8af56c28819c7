#pragma once
/* Which tables the conformance tests judge. The same sources make two sets of programs: one for the CPU's
 * instruction sets, and with TEST_CUDA one for the CUDA kernels (docs/cuda.md), which are linked to it. */
#include "kernels/kernels.h"
#include <string.h>

#ifdef TEST_CUDA
static const char *const isa_names[] = {"cuda"};
#else
static const char *const isa_names[] = {"generic", "avx2", "avx512", "amx"};
#endif
/* Largest team of threads that a test tries; a GPU's kernels know of none, so one repetition shows the same
 * bits. */
#ifdef TEST_CUDA
enum { MOST_TEAM = 1 };
#else
enum { MOST_TEAM = 3 };
#endif
enum { ISA_COUNT = sizeof(isa_names) / sizeof(isa_names[0]) };

/* Whether the other set of programs has judged this table already. */
static inline bool judged_elsewhere(const struct kernels *k) {
    return MOST_TEAM == 1 && k == kernels_reference();
}

/* NULL when this processor cannot run it. */
static inline const struct kernels *table_named(const char *name) {
    return strcmp(name, "cuda") ? kernels_cpu_isa(name) : kernels_cuda();
}
