#pragma once
/* Micro-batches in order, prepared ahead by one thread. Micro-batch m of data-parallel rank r, counted from
 * `consumed_samples`, holds samples consumed + (m * dp_size + r) * micro_batch .. + micro_batch - 1
 * (Megatron-LM's "single" sampler): so the samples of a global batch do not depend on the micro-batch size,
 * and resuming is starting at another count.
 *
 * All memory is taken by loader_open; loader_next allocates nothing. A batch is a view into the loader's ring
 * and stays valid until the next loader_next, loader_seek or loader_close. An error met while preparing a
 * batch is returned by the loader_next that would have returned the batch, and by every later one until
 * loader_seek. Running past the end of the dataset is such an error.
 *
 *     loader_open(sets->split[DATA_TRAIN], micro_batch, dp_rank, dp_size, consumed, &loader, err);
 *     while (loader_next(loader, &batch, err) == 0) ... */
#include "core/base/check.h"
#include "core/data/datasets.h"

struct batch {
    const int32_t *tokens;       /* [b, s] */
    const int32_t *labels;       /* [b, s]: tokens one to the left */
    const int32_t *position_ids; /* [b, s] */
    const float *loss_mask;      /* [b, s]: 1, or 0 where the loss does not count */
    int64_t micro_batch_size, seq_length;
    int64_t first_sample; /* number of the first row's sample in the dataset; rows are consecutive */
};

struct loader;
int loader_open(const struct dataset *dataset, int64_t micro_batch, int dp_rank, int dp_size,
                int64_t consumed_samples, struct loader **loader_p, struct err *err);
int loader_next(struct loader *loader, struct batch *view, struct err *err);
/* Starts again at another count, also after an error. */
void loader_seek(struct loader *loader, int64_t consumed_samples);
void loader_close(struct loader *loader); /* NULL is fine */

/* One row from seq_length + 1 tokens: what the loader does, for tests and tools. */
void batch_fill_row(const struct data_options *options, const int32_t *text, int32_t *tokens, int32_t *labels,
                    int32_t *position_ids, float *loss_mask);
