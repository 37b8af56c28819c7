#pragma once
/* Out of memory is found by the plan, before anything is allocated: what was needed, who holds it, and the
 * cheapest change of flags that fits. The limit is --device-memory-limit; without it a run may not plan more
 * than this machine has (memory and swap, or what its control group allows), a dry run anything. */
#include "core/train/trainer.h"

/* When the plan of `rank` does not fit, ends the job with status 3 and a report about the pipeline stage with
 * the highest peak; or returns -1 where another rank does that. 0: it fits. */
int out_of_memory_check(const struct config *cfg, const struct setup *setup, int rank, struct err *err);
/* Of a dry run that does not fit --device-memory-limit: the same report on `out`, its last line by the log.
 */
int out_of_memory_explain(const struct config *cfg, FILE *out, struct err *err);
