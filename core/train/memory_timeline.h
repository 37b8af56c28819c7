#pragma once
/* --memory-timeline: the page with what lies where in the arena over one step.
 *
 * A dry run writes it from the plans of the pipeline stages. A training run writes the same page at start,
 * and again after the first full step that it trains, with what that step touched: the executor notes the
 * highest byte of each run of a list, and rank 0 puts the notes of its pipeline's ranks beside their plans.
 * That is the one step of a run that may take host memory later than the first.
 *
 *     memory_timeline_plan(&cfg, 0, "...", err)                  // dry run
 *     memory_timeline_open(&t); ...  memory_timeline_begin(t, n); step; memory_timeline_end(t); ...
 *     memory_timeline_close(t) */
#include "core/train/trainer.h"

/* Writes the page from the plans alone; `threads` as in setup_open, `from` says where it comes from. Errors
 * are the user's: the file, or the flags. */
int memory_timeline_plan(const struct config *cfg, int threads, const char *from, struct err *err);

/* With --memory-timeline: plans the picture and writes the page of the plan on rank 0. Collective. */
int memory_timeline_open(struct trainer *t, struct err *err);
void memory_timeline_close(struct trainer *t);
/* Around the micro-batches of a training step. end is collective over a pipeline; a page that cannot be
 * written is a warning. */
void memory_timeline_begin(struct trainer *t, int micro_batches);
void memory_timeline_end(struct trainer *t);
