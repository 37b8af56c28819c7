#pragma once
/* Cross entropy over the (padded) vocabulary, one row per token.
 *
 *   forward:  lse[r] = log sum_v exp(logits[r, v]); loss[r] = mask[r] == 0 ? 0 : mask[r] * (lse[r] -
 * logits[r, label[r]]) backward: dlogits[r, v] = mask[r] == 0 ? 0 : (exp(logits[r, v] - lse[r]) - [v ==
 * label[r]]) * mask[r] * grad_scale dlogits may alias logits. Rows whose mask is 0 are never read for their
 * label (labels of -100 are fine there). Exponentials and sums are fp32. rows are in any order; labels and
 * mask follow the same order.
 *
 * A shard of the vocabulary: column 0 is the vocabulary id first_label, and of the `vocab` columns only the
 * first `columns` count (0: all; negative: none): the others are padding, left out of the sum and given a
 * gradient of 0, whatever they hold. With `picked` set, forward writes the shard's own lse (-infinity when no
 * column counts) and picked[r] = the label's logit where it lies here and the mask is not 0, else 0; loss may
 * then be NULL. cross_entropy_combine makes of all shards, in the order of their ids, the lse and the loss of
 * the whole: lse[r] = log sum_p exp(lse_parts[p, r]), loss[r] = mask[r] == 0 ? 0 : mask[r] * (lse[r] - sum_p
 * picked_parts[p, r]). Backward then takes the whole's lse. */
#include "core/tensor/dtype.h"

struct cross_entropy_forward_args {
    float *loss, *lse;  /* [rows] */
    const void *logits; /* [rows, vocab] dtype */
    const int32_t *labels;
    const float *mask;
    int64_t rows, vocab;
    int64_t first_label, columns;
    float *picked; /* [rows]; NULL: this is the whole vocabulary */
    enum dtype dtype;
};

struct cross_entropy_combine_args {
    float *loss, *lse;                     /* [rows] */
    const float *lse_parts, *picked_parts; /* [parts, rows], the parts part_stride (0: rows) apart */
    const float *mask;
    int64_t rows, parts, part_stride;
};

struct cross_entropy_backward_args {
    void *dlogits;      /* [rows, vocab] dtype */
    const void *logits; /* [rows, vocab] dtype */
    const float *lse;
    const int32_t *labels;
    const float *mask;
    int64_t rows, vocab;
    int64_t first_label, columns;
    float grad_scale;
    enum dtype dtype;
};
