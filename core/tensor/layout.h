#pragma once
/* Live ranges to offsets: the smallest arena for blocks that are each needed from one instant to another, by
 * first fit of the largest block first (the greedy-by-size rule; within a few percent of optimal on our
 * lists, and fast). Two blocks whose ranges touch at one instant never overlap. */
#include <stddef.h>

struct layout_block {
    int first, last; /* inclusive instants */
    size_t bytes;    /* is rounded up to TENSOR_ALIGNMENT */
    size_t *offset_p;
};

/* Sets every *offset_p and returns the bytes of the arena. Reorders the array. */
size_t layout_place(struct layout_block *blocks, int count);
