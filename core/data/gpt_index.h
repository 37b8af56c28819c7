#pragma once
/* The three indices of Megatron-LM's GPTDataset over a range of sequences, in its order for the same seed:
 *
 *   documents  the sequences of the range, repeated for each epoch, shuffled
 *   samples    where sample j starts in that stream: (position in `documents`, token in that sequence); a
 *              sample has seq_length + 1 tokens and the next one starts on its last token
 *   shuffle    the order in which samples are handed out
 *
 * The last epoch is shuffled apart when less than 80% of it is needed. Sizes 5 3 7, seq_length 4, unshuffled:
 *
 *     stream   a a a a a b b b c c c c c c c
 *     sample 0 |-------|                        row 0 (0,0)
 *     sample 1         |-------|                row 1 (0,4)
 *     sample 2                 |-------|        row 2 (2,0) ...
 *
 * All three live in memory owned by the struct; gpt_index_free releases them. */
#include "core/base/check.h"
#include <stdbool.h>
#include <stdint.h>

struct gpt_index_request {
    const char *name, *split; /* file and split, for messages */
    const void *lengths;      /* i32 length of every sequence of the file, not necessarily aligned */
    int64_t first, end;       /* the range of sequences of this split */
    int64_t seq_length;
    int64_t num_samples; /* demanded; -1: exactly one epoch */
    uint32_t seed;
};

struct gpt_index {
    int64_t tokens_per_epoch, epochs;
    bool separate_last_epoch;
    int64_t positions;        /* epochs * (end - first) */
    int64_t samples;          /* at least the number demanded */
    uint32_t *documents;      /* [positions] sequence numbers */
    uint32_t *start_position; /* [samples + 1] */
    int32_t *start_offset;    /* [samples + 1] */
    uint32_t *shuffle;        /* [samples] */
};

int gpt_index_build(const struct gpt_index_request *request, struct gpt_index *index, struct err *err);
void gpt_index_free(struct gpt_index *index);
