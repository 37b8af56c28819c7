#pragma once
/* Moves blocks of rows between a program tensor and its tensor on disk: cuts, joins and transposes as the
 * entry says (names.h). `rows` are disk rows; the buffer is [num_rows, entry->dims[1]]. */
#include "core/checkpoint/names.h"

/* Disk rows [first, first + num_rows) out of a whole program tensor of `cols` columns. Returns `buffer`
 * filled, or a pointer into the tensor where the rows lie there as they are. */
const float *checkpoint_gather_rows(const struct checkpoint_entry *entry, const float *tensor, int64_t cols,
                                    int64_t first, int64_t num_rows, float *buffer);
/* The inverse, into the part of the program tensor that starts at row `first_row` and has `local_rows`; rows
 * outside it are skipped. */
void checkpoint_scatter_rows(const struct checkpoint_entry *entry, const float *buffer, int64_t first,
                             int64_t num_rows, float *tensor, int64_t cols, int64_t first_row,
                             int64_t local_rows);
/* How many of the entry's disk rows are staged at once; at least 1, however long a row is. */
int64_t checkpoint_staging_rows(const struct checkpoint_entry *entry);
