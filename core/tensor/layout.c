#include "core/tensor/layout.h"
#include "core/tensor/program.h"
#include <stdlib.h>

static int by_size_then_start(const void *x, const void *y) {
    const struct layout_block *a = x, *b = y;
    if (a->bytes != b->bytes) return a->bytes < b->bytes ? 1 : -1;
    if (a->first != b->first) return a->first < b->first ? -1 : 1;
    return (a->last > b->last) - (a->last < b->last);
}

/* The lowest offset at which `block` overlaps none of the placed blocks that live at the same time. */
static size_t lowest_offset(const struct layout_block *placed, int count, const struct layout_block *block) {
    size_t offset = 0;
    for (int moved = 1; moved;) {
        moved = 0;
        for (int i = 0; i < count; i++) {
            const struct layout_block *p = &placed[i];
            if (p->last < block->first || block->last < p->first) continue;
            size_t p_end = *p->offset_p + p->bytes;
            if (offset < p_end && *p->offset_p < offset + block->bytes) {
                offset = p_end;
                moved = 1;
            }
        }
    }
    return offset;
}

size_t layout_place(struct layout_block *blocks, int count) {
    size_t top = 0;
    for (int i = 0; i < count; i++) blocks[i].bytes = align_up(blocks[i].bytes);
    qsort(blocks, (size_t)count, sizeof(*blocks), by_size_then_start);
    for (int i = 0; i < count; i++) {
        *blocks[i].offset_p = lowest_offset(blocks, i, &blocks[i]);
        if (*blocks[i].offset_p + blocks[i].bytes > top) top = *blocks[i].offset_p + blocks[i].bytes;
    }
    return top;
}
