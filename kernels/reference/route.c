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

/* The score of one expert where scores are no softmax, and its slope. */
static double score_of(enum router_score kind, double x) {
    if (kind == ROUTER_SIGMOID) return sigmoid(x);
    return sqrt(x > 0 ? x + log1p(exp(-x)) : log1p(exp(x)));
}

static double slope_of(enum router_score kind, double x) {
    if (kind == ROUTER_SIGMOID) return sigmoid(x) * (1 - sigmoid(x));
    return sigmoid(x) / (2 * score_of(kind, x));
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
        p[e] =
            s->score == ROUTER_SOFTMAX ? exp((double)logits[e] - lse) : score_of(s->score, (double)logits[e]);
        sum += p[e];
    }
    for (int64_t e = 0; e < s->experts && s->score != ROUTER_SOFTMAX; e++) p[e] /= sum;
}

/* What experts are compared by. Without groups and bias every score rises with the logit. */
static void keys_of(double *key, const struct router_shape *s, const float *logits, const float *bias) {
    bool by_logit = (!s->group_count && !bias) || (s->score == ROUTER_SOFTMAX && !s->pre_softmax);
    double lse = log_sum_exp(logits, s->experts);
    for (int64_t e = 0; e < s->experts; e++) {
        double x = (double)logits[e];
        key[e] = by_logit                     ? x
                 : s->score == ROUTER_SOFTMAX ? exp(x - lse)
                                              : score_of(s->score, x) + (bias ? (double)bias[e] : 0);
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
        chosen[j] = pre ? p[experts[j]] : s->score == ROUTER_SOFTMAX ? exp(x - most) : score_of(s->score, x);
        sum += chosen[j];
    }
    if (pre || (s->score != ROUTER_SOFTMAX && s->topk == 1)) sum = 1;
    if (s->score != ROUTER_SOFTMAX && s->topk > 1) sum += 1e-20;
    for (int64_t j = 0; j < s->topk; j++) probs[j] = (float)(chosen[j] / sum * scaling);
}

/* Whether a slot stays: fewer than `capacity` slots of its expert come before it. */
static bool stays(const struct route_forward_args *a, int64_t slot) {
    const float *weights = a->probs;
    int64_t before = 0;
    if (!a->shape.capacity) return true;
    for (int64_t i = 0; i < a->shape.tokens * a->shape.topk; i++) {
        if (i == slot || a->experts[i] != a->experts[slot]) continue;
        bool is_larger = !a->shape.drops_by_position && weights[i] > weights[slot];
        bool is_equal = a->shape.drops_by_position || weights[i] == weights[slot];
        before += is_larger || (is_equal && i < slot);
    }
    return before < a->shape.capacity;
}

static void sort_rows(const struct route_forward_args *a) {
    const struct router_shape *s = &a->shape;
    int64_t row = 0, slots = s->tokens * s->topk;
    for (int64_t e = 0; e < s->experts; e++) {
        a->offsets[e] = (int32_t)row;
        for (int64_t slot = 0; slot < slots; slot++) {
            if (a->experts[slot] != e) continue;
            if (stays(a, slot)) {
                a->row_of_slot[slot] = (int32_t)row;
                a->slot_of_row[row++] = (int32_t)slot;
                if (a->tokens) a->tokens[e]++;
            } else {
                a->row_of_slot[slot] = -1;
            }
        }
        while (s->pads && row < (e + 1) * s->capacity) a->slot_of_row[row++] = -1;
    }
    a->offsets[s->experts] = (int32_t)row;
    while (row < router_rows(s)) a->slot_of_row[row++] = -1;
}

void reference_route_losses(const struct stream *stream, const struct route_losses_args *a) {
    (void)stream;
    const struct router_shape *s = &a->shape;
    double parts = s->parts ? (double)s->parts : 1, of_set = (double)(s->tokens / s->count_sets) * parts;
    double balance = 0, z = 0, p[ROUTER_MAX_EXPERTS];
    for (int64_t t = 0; t < s->tokens; t++) {
        const float *logits = a->logits + t * s->experts;
        double lse = log_sum_exp(logits, s->experts);
        all_scores(p, s, logits);
        for (int64_t e = 0; a->balance_sum && e < s->experts; e++)
            balance += p[e] * (double)a->counts[t % s->count_sets * s->experts + e];
        z += lse * lse;
    }
    if (!s->tokens) return;
    if (a->balance_sum)
        *a->balance_sum +=
            balance * (double)s->experts / ((double)s->topk * of_set * of_set * (double)s->count_sets);
    if (a->z_sum) *a->z_sum += z / ((double)s->tokens * parts);
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
    for (int64_t slot = 0; slot < s->tokens * s->topk; slot++)
        if (args->row_of_slot[slot] < 0) args->probs[slot] = 0;
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
        double x = (double)logits[e],
               raw = s->score == ROUTER_SOFTMAX ? exp(x - most) : score_of(s->score, x);
        sum += raw;
        dot += raw * dscore[e];
    }
    if (s->score != ROUTER_SOFTMAX) sum += 1e-20;
    for (int64_t e = 0; e < s->experts; e++) {
        if (!share[e]) continue;
        double x = (double)logits[e], inner = normalised ? (dscore[e] - dot / sum) / sum : dscore[e];
        dlogits[e] += (s->score == ROUTER_SOFTMAX ? exp(x - most) : slope_of(s->score, x)) * inner;
    }
}

void reference_route_backward(const struct stream *stream, const struct route_backward_args *args) {
    (void)stream;
    const struct router_shape *s = &args->shape;
    double scaling = s->scaling != 0 ? (double)s->scaling : 1;
    double parts = s->parts ? (double)s->parts : 1, of_set = (double)(s->tokens / s->count_sets) * parts;
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
            bool stayed = !s->capacity || args->row_of_slot[t * s->topk + j] >= 0;
            dscore[e] = stayed ? (double)args->dprobs[t * s->topk + j] * scaling : 0;
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
            out[e] +=
                (double)args->z_scale * 2 * lse * exp((double)logits[e] - lse) / ((double)s->tokens * parts);
            args->dlogits[t * s->experts + e] = (float)out[e];
        }
    }
}

void reference_router_jitter(const struct stream *stream, const struct router_jitter_args *args) {
    (void)stream;
    const struct router_jitter_args a = *args;
    for (int64_t i = 0; i < a.n; i++) {
        uint64_t element = a.first_element + (uint64_t)i;
        double u = (double)rng_uniform(rng_philox(a.key, element / 4).w[element % 4]);
        double y = load_f32(a.x, a.dtype, i) * (1 - (double)a.eps + 2 * (double)a.eps * u);
        store_f32(a.y, a.dtype, i, (float)(y + (a.accumulate ? (double)load_f32(a.y, a.dtype, i) : 0)));
    }
}
