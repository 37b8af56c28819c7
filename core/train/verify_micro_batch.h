#pragma once
/* --find-max-micro-batch-size --verify: the table of find_micro_batch.h, and each answer confirmed: one step
 * is really run at it and must take exactly the planned bytes, within the limit; the next size that may be
 * given is planned from flags, as a run of it would be, and must not fit.
 *
 * Collective over the ranks; rank 0 prints. */
#include "core/train/ranks.h"

/* Returns an exit status: STATUS_FAILED when an answer is not confirmed. */
int verify_max_micro_batch(const struct config *cfg, const struct ranks *ranks, FILE *out, struct err *err);
