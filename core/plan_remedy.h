#pragma once
/* What would make a plan fit: other recompute settings, the distributed optimizer, smaller micro-batches,
 * each tried by planning every pipeline stage with it. Cheapest means fewest recomputed FLOPs in a step, of
 * one rank of each stage together; what recomputes nothing more comes first.
 *
 * The recompute settings are sets of modules, alone and beside those given, full uniform with groups of 1, 2,
 * 4, ..., and the smallest full block. Together with another change they are tried only where nothing fits
 * alone. */
#include "core/plan.h"

enum { PLAN_MAX_REMEDIES = 64 };

struct plan_remedy {
    char flags[384];
    bool changes_recompute; /* instead of the recompute flags given */
    bool changes_more;      /* something beside recompute */
    size_t bytes;           /* the highest peak of any stage */
    double rerun_flops;     /* of a step, one rank of each stage */
};

struct plan_remedies {
    struct plan_remedy at[PLAN_MAX_REMEDIES]; /* that fit, the cheapest first */
    int count;
};

struct plan_remedy_options {
    const struct plan_request *stages; /* of the failing layout, one for each pipeline stage */
    int num_stages;
    int first; /* the stage to try first: the one that does not fit */
    size_t limit;
    bool may_shard;         /* --use-distributed-optimizer can be added */
    const char *with_batch; /* flags that a smaller --micro-batch-size needs beside it, or "" */
};

void plan_find_remedies(const struct plan_remedy_options *options, struct plan_remedies *out);
/* The first that changes recompute and nothing else; then the first that leaves recompute alone. NULL: none.
 */
const struct plan_remedy *plan_recompute_remedy(const struct plan_remedies *r);
const struct plan_remedy *plan_other_remedy(const struct plan_remedies *r);
