#pragma once
/* Where the elements that a rank holds of a tensor lie on disk. The rank's block, the held range of it and
 * the entry's cuts and transposition (names.h) come down to a list of rectangles of disk elements, in rising
 * disk order, each with its place in memory:
 *
 *     disk element (row + i, col + k)  =  held element  local + i * row_step + k * col_step
 *
 * Blocks of disk rows pass through a buffer that holds whole rows, [num_rows, entry->dims[1]]: gather fills
 * in what the rank holds, runs says which ranges of elements that is, scatter takes them out. */
#include "core/checkpoint/names.h"

struct checkpoint_rect {
    int64_t row, col, rows, cols; /* on disk */
    int64_t local, row_step, col_step;
};

struct checkpoint_rects {
    struct checkpoint_rect *list; /* owned */
    int count, capacity;
};

/* Replaces the list. Zero-initialise it before the first call. */
void checkpoint_rects_set(struct checkpoint_rects *rects, const struct checkpoint_entry *entry,
                          const struct checkpoint_tensor *tensor);
/* Drops disk rows from `rows` on: rows of a padded vocabulary that a file does not have. */
void checkpoint_rects_limit(struct checkpoint_rects *rects, int64_t rows);
void checkpoint_rects_free(struct checkpoint_rects *rects);

/* A range of disk rows, and the rectangles' parts in it. */
struct checkpoint_block {
    int64_t first, num_rows, width; /* width: elements of a disk row */
    const struct checkpoint_rects *rects;
};

/* The next block from disk row `from` on that holds anything, of at most `max_rows`; false: there is none. */
bool checkpoint_block_next(struct checkpoint_block *block, const struct checkpoint_rects *rects,
                           const struct checkpoint_entry *entry, int64_t from, int64_t max_rows);

/* Calls fn for each maximal run of held elements, rising; elements are counted from the tensor's beginning on
 * disk. Runs with at most `gap` elements between them are joined. Stops when fn returns other than 0, and
 * returns that. */
typedef int (*checkpoint_run_fn)(void *context, int64_t first, int64_t count);
int checkpoint_block_runs(const struct checkpoint_block *block, int64_t gap, checkpoint_run_fn fn,
                          void *context);

/* When the block lies in memory as on disk: the number of the held element where it starts; otherwise -1. */
int64_t checkpoint_block_in_place(const struct checkpoint_block *block);
void checkpoint_block_gather(const struct checkpoint_block *block, const float *held, float *buffer);
void checkpoint_block_scatter(const struct checkpoint_block *block, const float *buffer, float *held);

/* How many of the entry's disk rows are staged at once; at least 1, however long a row is. */
int64_t checkpoint_staging_rows(const struct checkpoint_entry *entry);
