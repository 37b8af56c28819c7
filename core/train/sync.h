#pragma once
/* What the ranks that hold the same parameters do together: reduce gradients bucket by bucket, keep shards of
 * optimizer state (ZeRO 1), of gradients (2) and of weights (3), and gather weights before they are read.
 *
 * The executor calls sync_before_segment and sync_after_segment around every list; the step calls
 * sync_finish_grads after the last action and sync_weights_changed after the update. Reductions run beside
 * the backward pass with
 * --overlap-grad-reduce, gathers beside the forward pass with --overlap-param-gather, and always beside
 * compute for units of ZeRO 2 and 3 (one unit ahead). All memory is the arena's. */
#include "core/train/executor.h"

struct sync *sync_open(struct executor *e);
void sync_close(struct sync *s);
void sync_set_overlap(struct sync *s, bool grad_reduce, bool param_gather);

void sync_before_segment(struct executor *e, const struct action *a, int segment);
void sync_after_segment(struct executor *e, const struct action *a, int segment);
/* Ends all reductions; afterwards the held gradients of every parameter are the sums over all ranks that make
 * parts of them. */
void sync_finish_grads(struct executor *e);
/* Whether the copies of a parameter are made from its own master, on this rank alone. */
bool sync_is_local(const struct executor *e, int param);
/* Packed copies of such a parameter, right after its update; the plain one has been written by AdamW. */
void sync_pack_local(struct executor *e, int param);
/* The held masters of all other parameters have changed: gathers them, at once or (overlap) when first
 * needed. */
void sync_shards_changed(struct executor *e);
/* The held masters have changed (or were loaded): makes the copies that kernels read, gathering them where
 * masters are sharded: at once, or with overlap of gathers when they are first needed. */
void sync_weights_changed(struct executor *e);
