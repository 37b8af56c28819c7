#pragma once
/* The arithmetic of reductions: the members' contributions in rank order, element by element. F32, BF16 and
 * F16 are added in float32 and rounded once; F64 is added in double, integers in their own type (they wrap).
 * A NaN wins over everything in MAX and MIN. No state, no allocation. */
#include "parallel/comm/comm.h"

struct comm_sum {
    enum comm_dtype dtype;
    enum comm_reduce op;
    int members, rank; /* contribution `rank` is `own`, contribution j lies at pieces + j * stride bytes */
    const void *own;
    const char *pieces;
    size_t stride;
};
/* out[count], which may be `own`. */
void comm_sum_run(const struct comm_sum *sum, void *out, int64_t count);
