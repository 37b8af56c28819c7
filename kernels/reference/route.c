/* Routing in plain loops: an expert is selected when fewer than topk others are better. */
#include "kernels/reference/reference.h"
#include <math.h>

/* Whether expert (or group) a comes before b: larger, or equal and lower. */
static bool is_before(const double *key, int64_t a, int64_t b) {
    return key[a] > key[b] || (key[a] == key[b] && a < b);
}

/* Place of item i among the `n` items from `first` on. */
static int64_t rank_of(const double *key, int64_t i, int64_t first, int64_t n) {
    int64_t rank = 0;
    for (int64_t k = first; k < first + n; k++) rank += k != i && is_before(key, k, i);
    return rank;
}

static double sigmoid(double x) {
    return 1 / (1 + exp(-x));
}

static double log_sum_exp(const float *logits, int64_t n) {
    double most = (double)logits[0], sum = 0;
    for (int64_t e = 1; e < n; e++) most = fmax(most, (double)logits[e]);
    for (int64_t e = 0; e < n; e++) sum += exp((double)logits[e] - most);
    return most + log(sum);
}

/* P[e]: the normalised scores over all experts. */
static void all_scores(double *p, const struct router_shape *s, const float *logits) {
    double lse = log_sum_exp(logits, s->experts), sum = 1e-20;
    for (int64_t e = 0; e < s->experts; e++) {
        p[e] = s->score == ROUTER_SOFTMAX ? exp((double)logits[e] - lse) : sigmoid((double)logits[e]);
        sum += p[e];
    }
    for (int64_t e = 0; e < s->experts && s->score == ROUTER_SIGMOID; e++) p[e] /= sum;
}

/* What experts are compared by. Without groups and bias every score rises with the logit. */
static void keys_of(double *key, const struct router_shape *s, const float *logits, const float *bias) {
    bool by_logit = (!s->group_count && !bias) || (s->score == ROUTER_SOFTMAX && !s->pre_softmax);
    double lse = log_sum_exp(logits, s->experts);
    for (int64_t e = 0; e < s->experts; e++) {
        double x = (double)logits[e];
        key[e] = by_logit                     ? x
                 : s->score == ROUTER_SOFTMAX ? exp(x - lse)
                                              : sigmoid(x) + (bias ? (double)bias[e] : 0);
    }
}

/* Experts outside the best groups fall behind all others. */
static void limit_groups(double *key, const struct router_shape *s) {
    double sums[ROUTER_MAX_EXPERTS] = {0};
    int64_t size = s->experts / s->group_count, best = s->topk / s->group_topk;
    for (int64_t g = 0; g < s->group_count; g++)
        for (int64_t e = g * size; e < (g + 1) * size; e++)
            if (rank_of(key, e, g * size, size) < best) sums[g] += key[e];
    for (int64_t g = 0; g < s->group_count; g++)
        for (int64_t e = g * size; e < (g + 1) * size; e++)
            if (rank_of(sums, g, 0, s->group_count) >= s->group_topk) key[e] = -INFINITY;
}

static void weights_of(float *probs, const struct router_shape *s, const float *logits,
                       const int32_t *experts) {
    double p[ROUTER_MAX_EXPERTS], sum = 0, scaling = s->scaling != 0 ? (double)s->scaling : 1;
    double chosen[ROUTER_MAX_TOPK], most = -INFINITY;
    bool pre = s->score == ROUTER_SOFTMAX && s->pre_softmax;
    if (pre) all_scores(p, s, logits);
    for (int64_t j = 0; j < s->topk; j++) most = fmax(most, (double)logits[experts[j]]);
    for (int64_t j = 0; j < s->topk; j++) {
        double x = (double)logits[experts[j]];
        chosen[j] = pre ? p[experts[j]] : s->score == ROUTER_SOFTMAX ? exp(x - most) : sigmoid(x);
        sum += chosen[j];
    }
    if (pre || (s->score == ROUTER_SIGMOID && s->topk == 1)) sum = 1;
    if (s->score == ROUTER_SIGMOID && s->topk > 1) sum += 1e-20;
    for (int64_t j = 0; j < s->topk; j++) probs[j] = (float)(chosen[j] / sum * scaling);
}

static void sort_rows(const struct route_forward_args *a) {
    int64_t row = 0, slots = a->shape.tokens * a->shape.topk;
    for (int64_t e = 0; e < a->shape.experts; e++) {
        a->offsets[e] = (int32_t)row;
        for (int64_t slot = 0; slot < slots; slot++) {
            if (a->experts[slot] != e) continue;
            a->row_of_slot[slot] = (int32_t)row;
            a->slot_of_row[row++] = (int32_t)slot;
        }
    }
    a->offsets[a->shape.experts] = (int32_t)row;
}

static void sum_losses(const struct route_forward_args *a) {
    const struct router_shape *s = &a->shape;
    double balance = 0, z = 0, of_set = (double)(s->tokens / s->count_sets), p[ROUTER_MAX_EXPERTS];
    for (int64_t t = 0; t < s->tokens; t++) {
        const float *logits = a->logits + t * s->experts;
        double lse = log_sum_exp(logits, s->experts);
        all_scores(p, s, logits);
        for (int64_t e = 0; e < s->experts; e++)
            balance += p[e] * (double)a->counts[t % s->count_sets * s->experts + e];
        z += lse * lse;
    }
    if (!s->tokens) return;
    if (a->balance_sum)
        *a->balance_sum +=
            balance * (double)s->experts / ((double)s->topk * of_set * of_set * (double)s->count_sets);
    if (a->z_sum) *a->z_sum += z / (double)s->tokens;
}

void reference_route_forward(const struct stream *stream, const struct route_forward_args *args) {
    (void)stream;
    const struct router_shape *s = &args->shape;
    double key[ROUTER_MAX_EXPERTS];
    memset(args->counts, 0, (size_t)(s->count_sets * s->experts) * sizeof(*args->counts));
    for (int64_t t = 0; t < s->tokens; t++) {
        const float *logits = args->logits + t * s->experts;
        int32_t *experts = args->experts + t * s->topk;
        for (int64_t e = 0; e < s->experts; e++) key[e] = (double)logits[e];
        for (int64_t e = 0; e < s->experts; e++)
            if (rank_of(key, e, 0, s->experts) < s->topk) args->counts[t % s->count_sets * s->experts + e]++;
        keys_of(key, s, logits, args->bias);
        if (s->group_count) limit_groups(key, s);
        for (int64_t e = 0; e < s->experts; e++) {
            int64_t rank = rank_of(key, e, 0, s->experts);
            if (rank < s->topk) experts[rank] = (int32_t)e;
        }
        weights_of(args->probs + t * s->topk, s, logits, experts);
    }
    sort_rows(args);
    sum_losses(args);
}

/* dscore[e] to dlogit[e] for scores that are a softmax, or sigmoids over their sum. Only the experts with
 * share[e] belong to the normalisation. */
static void through_scores(double *dlogits, const struct router_shape *s, const float *logits,
                           const double *dscore, const bool *share, bool normalised) {
    double sum = 0, dot = 0, most = -INFINITY;
    for (int64_t e = 0; e < s->experts; e++)
        if (share[e]) most = fmax(most, (double)logits[e]);
    for (int64_t e = 0; e < s->experts; e++) {
        if (!share[e]) continue;
        double x = (double)logits[e], raw = s->score == ROUTER_SOFTMAX ? exp(x - most) : sigmoid(x);
        sum += raw;
        dot += raw * dscore[e];
    }
    if (s->score == ROUTER_SIGMOID) sum += 1e-20;
    for (int64_t e = 0; e < s->experts; e++) {
        if (!share[e]) continue;
        double x = (double)logits[e], inner = normalised ? (dscore[e] - dot / sum) / sum : dscore[e];
        dlogits[e] +=
            s->score == ROUTER_SOFTMAX ? exp(x - most) * inner : sigmoid(x) * (1 - sigmoid(x)) * inner;
    }
}

void reference_route_backward(const struct stream *stream, const struct route_backward_args *args) {
    (void)stream;
    const struct router_shape *s = &args->shape;
    double scaling = s->scaling != 0 ? (double)s->scaling : 1, of_set = (double)(s->tokens / s->count_sets);
    double balance = (double)args->balance_scale * (double)s->experts /
                     ((double)s->topk * of_set * of_set * (double)s->count_sets);
    bool over_all = s->score == ROUTER_SOFTMAX && s->pre_softmax;
    bool all[ROUTER_MAX_EXPERTS];
    for (int64_t e = 0; e < s->experts; e++) all[e] = true;
    for (int64_t t = 0; t < s->tokens; t++) {
        const float *logits = args->logits + t * s->experts;
        double out[ROUTER_MAX_EXPERTS] = {0}, dscore[ROUTER_MAX_EXPERTS] = {0};
        bool chosen[ROUTER_MAX_EXPERTS] = {false};
        for (int64_t j = 0; j < s->topk; j++) {
            int32_t e = args->experts[t * s->topk + j];
            chosen[e] = true;
            dscore[e] = (double)args->dprobs[t * s->topk + j] * scaling;
        }
        through_scores(out, s, logits, dscore, over_all ? all : chosen,
                       s->score == ROUTER_SOFTMAX || s->topk > 1);
        if (args->balance_scale != 0) {
            for (int64_t e = 0; e < s->experts; e++)
                dscore[e] = balance * (double)args->counts[t % s->count_sets * s->experts + e];
            through_scores(out, s, logits, dscore, all, true);
        }
        double lse = log_sum_exp(logits, s->experts);
        for (int64_t e = 0; e < s->experts; e++) {
            out[e] += (double)args->z_scale * 2 * lse * exp((double)logits[e] - lse) / (double)s->tokens;
            args->dlogits[t * s->experts + e] = (float)out[e];
        }
    }
}
