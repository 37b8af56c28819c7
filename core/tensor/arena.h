#pragma once
/* The one allocation of a rank's device memory. The plan says how many bytes; offsets come from the plan;
 * nothing is freed singly. The pages are private anonymous memory, zero at first, so resident memory grows
 * only as they are used. Debug builds (-DPOISON) fill freed ranges with 0xFF, which is NaN in every float
 * dtype. */
#include "core/base/check.h"
#include <stdint.h>

struct arena {
    char *base;
    size_t bytes;
};

/* Ends with -1 and a message when the system does not give the bytes. */
int arena_open(struct arena *arena, size_t bytes, struct err *err);
void arena_close(struct arena *arena);
/* Marks a range as dead. Does nothing in release builds. */
void arena_poison(struct arena *arena, size_t offset, size_t bytes);
