#pragma once
/* --dry-run: the plan of every rank of a world of any size, without running one. Ranks of a pipeline stage
 * have the same plan, so each stage is planned once. Prints the memory of each, the rank with the highest
 * peak and the ten largest holders of memory there, whether it fits --device-memory-limit, and with
 * --hardware the predicted step; --dry-run-json gets the same. */
#include "core/config/config.h"

/* Returns an exit status: STATUS_OK, STATUS_USAGE (said on the log), STATUS_OUT_OF_MEMORY when a rank does
 * not fit. */
int dry_run(const struct config *cfg, FILE *out, struct err *err);
