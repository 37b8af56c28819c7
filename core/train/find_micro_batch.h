#pragma once
/* --find-max-micro-batch-size: the largest --micro-batch-size that fits, for each recompute setting and for
 * auto, from plans alone: exact. With --global-batch-size only sizes that divide every data-parallel rank's
 * share count, since others cannot be given; without it the step has as many micro-batches as before, each
 * larger. */
#include "core/base/str.h"
#include "core/config/config.h"
#include "core/train/settings.h"

/* One question at a time: open, ask, close. */
struct micro_batch_fit {
    int64_t micro_batch; /* 0: none fits */
    size_t peak;         /* of the largest rank */
    double step_seconds; /* 0 without --hardware */
    double tokens_per_second;
};
struct micro_batch_search;
/* `threads` of a rank, as setup_open has it. NULL with a message: no limit is known, or the flags cannot be
 * planned. */
struct micro_batch_search *micro_batch_search_open(const struct config *cfg, int threads, struct err *err);
/* `policy` NULL: auto, which may take `budget` where that is less than the limit. Without --hardware auto
 * chooses with the rates of the profile "cpu", as it does in a run. */
struct micro_batch_fit micro_batch_search_largest(struct micro_batch_search *s,
                                                  const struct recompute_policy *policy, size_t budget);
void micro_batch_search_close(struct micro_batch_search *s);

/* What --find-max-micro-batch-size prints: the settings of settings.h, and with --hardware auto. */
struct micro_batch_row {
    struct recompute_setting setting; /* of auto only the flags */
    bool is_auto;
    struct micro_batch_fit fit;
    int64_t next; /* the next size that may be given; 0: none */
};
enum { MICRO_BATCH_ROWS = SETTINGS_MAX + 1 };
int micro_batch_search_rows(struct micro_batch_search *s, struct micro_batch_row rows[MICRO_BATCH_ROWS]);
size_t micro_batch_search_limit(const struct micro_batch_search *s);
/* `json` may be NULL. */
void micro_batch_search_print(const struct micro_batch_search *s, const struct micro_batch_row *rows,
                              int count, FILE *out, struct str *json);

/* Prints the table; appends it to `json` as an array. */
int find_max_micro_batch(const struct config *cfg, FILE *out, struct str *json, struct err *err);
