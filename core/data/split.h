#pragma once
/* --split, by Megatron-LM's rule: "969, 30, 1" are shares, normalised by their sum and added up to book-ends;
 * a split covers the sequences from round(begin * n) to round(end * n), halves to even. */
#include "core/base/check.h"
#include "core/data/datasets.h"

struct split_range {
    double begin, end; /* nothing when end <= begin */
};

/* Runs of digits and dots are numbers, all else separates them; missing ones are 0. */
int split_parse(const char *text, struct split_range ranges[DATA_SPLITS], struct err *err);
void split_cut(struct split_range range, int64_t sequences, int64_t *first_p, int64_t *end_p);
