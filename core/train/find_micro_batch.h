#pragma once
/* --find-max-micro-batch-size: the largest --micro-batch-size that fits, for each recompute setting and for
 * auto, from plans alone: exact. With --global-batch-size only sizes that divide every data-parallel rank's
 * share count, since others cannot be given; without it the step has as many micro-batches as before, each
 * larger. */
#include "core/base/str.h"
#include "core/config/config.h"

/* Prints the table; appends it to `json` as an array. */
int find_max_micro_batch(const struct config *cfg, FILE *out, struct str *json, struct err *err);
