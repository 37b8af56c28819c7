#pragma once
/* --recompute-sweep: one table of all recompute settings (settings.h, and auto at three budgets between the
 * least and the most memory, and at the limit): peak, step time, recompute time, tokens/s; with a limit also
 * the largest micro-batch, of auto within its row's budget, and with --hardware its predicted tokens/s. Rows
 * that no other row beats in both memory and speed are the frontier. Measured by running a few steps of each
 * setting with fresh weights, or predicted (--dry-run, with --hardware). Parameters after the steps must be
 * equal to the last bit.
 *
 * Collective over the ranks; rank 0 prints. */
#include "core/train/ranks.h"
#include "core/train/settings.h"

enum { SWEEP_MAX_ROWS = SETTINGS_MAX + 4 };

struct sweep_row {
    char name[SETTING_FLAGS_BYTES];
    bool fits;   /* --device-memory-limit */
    size_t peak; /* of the rank that takes most: planned, and with is_measured measured */
    double seconds, rerun_seconds, tokens_per_second, predicted_seconds; /* 0: not known */
    int64_t largest_micro_batch;                                         /* 0: not known or none */
    double largest_tokens_per_second;
    uint64_t params_hash; /* 0: not measured */
    bool is_frontier;
};

/* Marks the rows that no other row beats: less memory and at least as fast, or faster and no more memory. */
void sweep_mark_frontier(struct sweep_row *rows, int count);
/* The table as a self-contained picture: memory against speed, the frontier as a line. */
void sweep_write_svg(const struct sweep_row *rows, int count, const char *title, struct str *out);

/* `ranks` NULL: predicted only. Returns an exit status. */
int recompute_sweep(const struct config *cfg, const struct ranks *ranks, FILE *out, struct err *err);
