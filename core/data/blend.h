#pragma once
/* Blending of several datasets, as Megatron-LM's BlendedDataset does it: weights and paths from a list of
 * words, the sizes that each dataset must give, and the order of draws (always the dataset that lags most
 * behind its share; the first one on ties).
 *
 *     struct blend blend;
 *     if (blend_parse(words, count, "--data-path", &blend, err)) return -1;   // "0.3 a 0.7 b", or "a b c"
 *     blend_order(blend.weights, blend.count, size, dataset, sample, drawn);
 *     blend_free(&blend); */
#include "core/base/check.h"
#include <stdbool.h>
#include <stdint.h>

struct blend {
    int count;
    char **prefixes; /* [count], without surrounding blanks */
    double *weights; /* [count], as given; NULL when the list has none */
};

/* `flag` is named in messages. Weights for some paths only, a weight that is not above 0, or 32767 and more
 * paths are errors. */
int blend_parse(const char *const *words, int count, const char *flag, struct blend *blend, struct err *err);
void blend_free(struct blend *blend);

/* Divides by the sum, adding up in NumPy's pairwise order, so that every bit agrees. */
void blend_normalize(double *weights, int count);
/* Samples that one dataset must give: ceil(ceil(size * weight) * (1 + surplus)). */
int64_t blend_share(int64_t size, double weight, double surplus);
/* Fills dataset[size] and sample[size]; drawn[count] receives the number of draws of each. */
void blend_order(const double *weights, int count, int64_t size, uint16_t *dataset, uint32_t *sample,
                 int64_t *drawn);
/* The same, drawing exactly lengths[d] samples of dataset d; size is the sum of lengths. */
void blend_order_exhaustive(const int64_t *lengths, int count, uint16_t *dataset, uint32_t *sample);
/* Sum in the order that numpy.sum uses for contiguous doubles. */
double blend_pairwise_sum(const double *values, int64_t count);
