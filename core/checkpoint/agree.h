#pragma once
/* What the ranks of a save or a load have to agree on. All calls are collective; a `world` of NULL is one
 * rank and costs nothing. */
#include "core/base/check.h"
#include "parallel/comm/comm.h"

bool checkpoint_is_first(const struct comm *world);
/* The highest outcome (0: fine) of all ranks, and in *err, on all of them, the message of the lowest rank
 * that had it, with "rank N: " before it. */
int checkpoint_agree(struct comm *world, int outcome, struct err *err);
/* 64-bit sums over the ranks, mod 2^64. */
void checkpoint_add_up(struct comm *world, uint64_t *sums, int64_t count);
/* Whether any rank says so. */
bool checkpoint_any(struct comm *world, bool here);
/* From the lowest rank to all. */
void checkpoint_share(struct comm *world, void *data, size_t bytes);
