#pragma once
/* Who holds the memory at a plan's peak: a row for each fixed category and for each kept or working tensor,
 * the same tensor of all layers and micro-batches in one row, the largest first. The rows and what is free
 * below the highest byte add up to plan->arena_bytes. */
#include "core/base/str.h"
#include "core/plan.h"

struct plan_holder {
    const char *category; /* "weights", ..., "kept", "work", "gradient", "layer input" */
    const char *module;   /* innermost recompute module, or "" */
    const char *tensor;   /* string literal, or "" for a fixed category */
    size_t bytes;
    int count; /* tensors */
};

/* Returns how many; the array is owned by the caller (mem_free). */
int plan_holders(const struct plan *plan, struct plan_holder **holders_p);
/* A line for each of the `most` largest. */
void plan_print_holder_rows(const struct plan_holder *holders, int count, int most, FILE *out);
void plan_print_holders(const struct plan *plan, int most, FILE *out);
/* The same rows as an array of objects. The rows outlive the plan. */
void plan_write_holders_json(const struct plan_holder *holders, int count, int most, struct str *out);
