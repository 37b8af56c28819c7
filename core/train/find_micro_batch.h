#pragma once
/* --find-max-micro-batch-size: the largest --micro-batch-size that fits, for each recompute setting and for
 * auto, from plans alone: exact. With --global-batch-size only sizes that divide every data-parallel rank's
 * share count, since others cannot be given; without it the step has as many micro-batches as before, each
 * larger. */
#include "core/base/str.h"
#include "core/config/config.h"
#include "recompute/policy.h"

/* One question at a time: open, ask, close. `policy` NULL: auto, which needs --hardware. */
struct micro_batch_fit {
    int64_t micro_batch; /* 0: none fits */
    size_t peak;         /* of the largest rank */
    double step_seconds; /* 0 without --hardware */
    double tokens_per_second;
};
struct micro_batch_search;
/* NULL with a message: no limit is known, or the flags cannot be planned. */
struct micro_batch_search *micro_batch_search_open(const struct config *cfg, struct err *err);
struct micro_batch_fit micro_batch_search_largest(struct micro_batch_search *s,
                                                  const struct recompute_policy *policy);
void micro_batch_search_close(struct micro_batch_search *s);

/* Prints the table; appends it to `json` as an array. */
int find_max_micro_batch(const struct config *cfg, FILE *out, struct str *json, struct err *err);
