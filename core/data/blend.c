#include "core/data/blend.h"
#include "core/base/mem.h"
#include <ctype.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_DATASETS = 32766 };

/* A decimal number that fills the word; hexadecimal, inf and nan are paths. */
static bool parse_weight(const char *word, double *weight_p) {
    char *end;
    if (!*word || strspn(word, "0123456789.eE+- ") != strlen(word)) return false;
    double weight = strtod(word, &end);
    if (end == word || *end) return false;
    *weight_p = weight;
    return true;
}

static char *stripped(const char *word) {
    while (isspace((unsigned char)*word)) word++;
    char *copy = mem_strdup(word, "data path");
    for (size_t n = strlen(copy); n && isspace((unsigned char)copy[n - 1]); n--) copy[n - 1] = 0;
    return copy;
}

/* 1: (weight, path) pairs; 0: paths only; -1: error. */
static int has_weights(const char *const *words, int count, const char *flag, struct err *err) {
    int numbers = 0;
    double weight;
    if (count % 2) return 0;
    for (int i = 0; i < count; i += 2) numbers += parse_weight(words[i], &weight);
    if (!numbers) return 0;
    for (int i = 0; i < count; i += 2) {
        if (!parse_weight(words[i], &weight))
            return err_set(err,
                           "%s: '%s' stands where a weight is expected, because other paths have one; give "
                           "every path a weight or none",
                           flag, words[i]);
        if (!(weight > 0) || !isfinite(weight))
            return err_set(err, "%s: weight %s of %s must be a number above 0; leave the path out instead",
                           flag, words[i], words[i + 1]);
    }
    return 1;
}

int blend_parse(const char *const *words, int count, const char *flag, struct blend *blend, struct err *err) {
    CHECK(count > 0, "%s has no words", flag);
    int weighted = has_weights(words, count, flag, err);
    if (weighted < 0) return -1;
    int n = weighted ? count / 2 : count, step = weighted ? 2 : 1;
    if (n > MOST_DATASETS)
        return err_set(err, "%s: %d datasets; at most %d can be blended", flag, n, MOST_DATASETS);
    struct blend b = {.count = n, .prefixes = mem_new_array(char *, (size_t)n, "blend paths")};
    if (weighted) b.weights = mem_new_array(double, (size_t)n, "blend weights");
    for (int i = 0; i < n; i++) {
        b.prefixes[i] = stripped(words[i * step + weighted]);
        if (weighted) parse_weight(words[2 * i], &b.weights[i]);
    }
    *blend = b;
    return 0;
}

void blend_free(struct blend *b) {
    for (int i = 0; i < b->count; i++) mem_free(b->prefixes[i]);
    mem_free(b->prefixes);
    mem_free(b->weights);
    *b = (struct blend){0};
}

/* numpy/core/src/umath: blocks of up to 128 with eight partial sums, halves above that. The recursion is as
 * deep as the logarithm of count / 128. */
double blend_pairwise_sum(const double *v, int64_t n) {
    if (n < 8) {
        double sum = 0;
        for (int64_t i = 0; i < n; i++) sum += v[i];
        return sum;
    }
    if (n <= 128) {
        double r[8];
        int64_t i = 8;
        for (int k = 0; k < 8; k++) r[k] = v[k];
        for (; i < n - n % 8; i += 8)
            for (int k = 0; k < 8; k++) r[k] += v[i + k];
        double sum = ((r[0] + r[1]) + (r[2] + r[3])) + ((r[4] + r[5]) + (r[6] + r[7]));
        for (; i < n; i++) sum += v[i];
        return sum;
    }
    int64_t half = n / 2;
    half -= half % 8;
    return blend_pairwise_sum(v, half) + blend_pairwise_sum(v + half, n - half);
}

void blend_normalize(double *weights, int count) {
    double sum = blend_pairwise_sum(weights, count);
    for (int i = 0; i < count; i++) weights[i] /= sum;
}

int64_t blend_share(int64_t size, double weight, double surplus) {
    return (int64_t)ceil(ceil((double)size * weight) * (1 + surplus));
}

void blend_order(const double *weights, int count, int64_t size, uint16_t *dataset, uint32_t *sample,
                 int64_t *drawn) {
    double *taken = mem_new_array(double, (size_t)count, "blend draws");
    for (int64_t i = 0; i < size; i++) {
        double at = i > 1 ? (double)i : 1.0, most = -INFINITY;
        int best = 0;
        for (int d = 0; d < count; d++) {
            double share =
                weights[d] * at; /* apart from the subtraction, so that no compiler fuses the two */
            double error = share - taken[d];
            if (error > most) most = error, best = d;
        }
        dataset[i] = (uint16_t)best;
        sample[i] = (uint32_t)taken[best];
        taken[best] += 1.0;
    }
    for (int d = 0; d < count; d++) drawn[d] = (int64_t)taken[d];
    mem_free(taken);
}

void blend_order_exhaustive(const int64_t *lengths, int count, uint16_t *dataset, uint32_t *sample) {
    int64_t size = 0, *taken = mem_new_array(int64_t, (size_t)count, "blend draws");
    for (int d = 0; d < count; d++) size += lengths[d];
    for (int64_t i = 0; i < size; i++) {
        double at = i > 1 ? (double)i : 1.0, most = -INFINITY;
        int best = -1;
        for (int d = 0; d < count; d++) {
            if (taken[d] == lengths[d]) continue;
            double share = (double)lengths[d] / (double)size * at;
            double error = share - (double)taken[d];
            if (error > most) most = error, best = d;
        }
        dataset[i] = (uint16_t)best;
        sample[i] = (uint32_t)taken[best]++;
    }
    mem_free(taken);
}
