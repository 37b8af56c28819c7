#pragma once
/* The inside of a dataset, shared by datasets.c (which builds it) and dataset.c (which reads it). Users
 * include core/data/datasets.h. */
#include "core/data/datasets.h"
#include "core/data/gpt_index.h"
#include "core/data/indexed.h"

/* A corpus: an indexed file, or the mock one. Shared by the splits that read it. */
struct corpus {
    char *name;
    struct indexed *file;  /* NULL for mock data */
    int32_t *mock_lengths; /* [sequences], NULL for a file */
    int64_t sequences;
    struct corpus *next; /* list of all, for closing */
};

struct gpt_part {
    const struct corpus *corpus;
    struct gpt_index index;
    double weight;    /* normalised, as used for blending */
    int64_t demanded; /* -1: one epoch */
    int64_t first, end;
};

struct dataset {
    const struct data_options *options;
    enum data_split split;
    int num_parts;
    struct gpt_part *parts; /* [num_parts] */
    int64_t length;
    uint16_t *blend_part;   /* [length]; NULL: the single part in its own order */
    uint32_t *blend_sample; /* [length] */
};

/* Length of a sequence of either kind of corpus. */
int64_t corpus_length(const struct corpus *corpus, int64_t sequence);
