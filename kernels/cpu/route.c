/* Routing: tokens are independent and threaded; the counting sort that follows them is one pass over the
 * slots. Sums for the losses are taken per chunk of tokens and added in order of the chunks. */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/simd.h"
#include <math.h>

enum { TOKENS = 64 }; /* of a chunk */

static int64_t chunks_of(const struct router_shape *s) {
    return (s->tokens + TOKENS - 1) / TOKENS;
}

/* ---- scores ---- */

static float largest(const float *x, int64_t n) {
    float most = x[0];
    for (int64_t e = 1; e < n; e++) most = x[e] > most ? x[e] : most;
    return most;
}

/* score[e] = e^(logit - largest) or sigmoid(logit); returns their sum, in order of e. */
static float raw_scores(float *score, const float *logits, int64_t n, enum router_score kind, float most) {
    float sum = 0;
    if (kind == ROUTER_SOFTMAX) {
        SIMD_LOOP for (int64_t e = 0; e < n; e++) score[e] = math_exp_softmax(logits[e] - most);
    } else {
        SIMD_LOOP for (int64_t e = 0; e < n; e++) score[e] = math_sigmoid(logits[e]);
    }
    for (int64_t e = 0; e < n; e++) sum += score[e];
    return kind == ROUTER_SIGMOID ? sum + 1e-20f : sum;
}

/* The `count` largest of n keys, the largest first, the lowest index first among equals. */
static void select_largest(int32_t *chosen, const float *key, int64_t n, int64_t count) {
    int64_t held = 0;
    for (int64_t e = 0; e < n; e++) {
        if (held == count && !(key[e] > key[chosen[count - 1]])) continue;
        int64_t place = held < count ? held++ : count - 1;
        for (; place > 0 && key[e] > key[chosen[place - 1]]; place--) chosen[place] = chosen[place - 1];
        chosen[place] = (int32_t)e;
    }
}

static void limit_groups(float *key, const struct router_shape *s) {
    float sums[ROUTER_MAX_EXPERTS];
    int32_t best[ROUTER_MAX_TOPK], groups[ROUTER_MAX_TOPK];
    bool open[ROUTER_MAX_EXPERTS] = {false};
    int64_t size = s->experts / s->group_count, count = s->topk / s->group_topk;
    for (int64_t g = 0; g < s->group_count; g++) {
        select_largest(best, key + g * size, size, count);
        sums[g] = 0;
        for (int64_t j = 0; j < count; j++) sums[g] += key[g * size + best[j]];
    }
    select_largest(groups, sums, s->group_count, s->group_topk);
    for (int64_t j = 0; j < s->group_topk; j++) open[groups[j]] = true;
    for (int64_t e = 0; e < s->experts; e++)
        if (!open[e / size]) key[e] = -INFINITY;
}

/* ---- one token ---- */

static void weigh(float *probs, const int32_t *chosen, const float *score, float sum, const float *logits,
                  const struct router_shape *s) {
    float scaling = s->scaling != 0 ? s->scaling : 1;
    if (s->score == ROUTER_SOFTMAX && s->pre_softmax) {
        for (int64_t j = 0; j < s->topk; j++) probs[j] = score[chosen[j]] / sum * scaling;
        return;
    }
    float most = logits[chosen[0]], total = 0;
    for (int64_t j = 1; j < s->topk; j++) most = fmaxf(most, logits[chosen[j]]);
    for (int64_t j = 0; j < s->topk; j++) {
        probs[j] = s->score == ROUTER_SOFTMAX ? math_exp_softmax(logits[chosen[j]] - most) : score[chosen[j]];
        total += probs[j];
    }
    if (s->score == ROUTER_SIGMOID) total = s->topk > 1 ? total + 1e-20f : 1;
    for (int64_t j = 0; j < s->topk; j++) probs[j] = probs[j] / total * scaling;
}

static void route_token(const struct route_forward_args *a, int64_t t) {
    const struct router_shape *s = &a->shape;
    const float *logits = a->logits + t * s->experts;
    int32_t *chosen = a->experts + t * s->topk;
    float score[ROUTER_MAX_EXPERTS], key[ROUTER_MAX_EXPERTS];
    bool by_logit = (!s->group_count && !a->bias) || (s->score == ROUTER_SOFTMAX && !s->pre_softmax);
    float sum = raw_scores(score, logits, s->experts, s->score, largest(logits, s->experts));
    for (int64_t e = 0; e < s->experts; e++)
        key[e] = by_logit                     ? logits[e]
                 : s->score == ROUTER_SOFTMAX ? score[e] / sum
                                              : score[e] + (a->bias ? a->bias[e] : 0);
    if (s->group_count) limit_groups(key, s);
    select_largest(chosen, key, s->experts, s->topk);
    weigh(a->probs + t * s->topk, chosen, score, sum, logits, s);
}

static void route_body(void *context, int64_t begin, int64_t end, int thread) {
    (void)thread;
    for (int64_t t = begin; t < end; t++) route_token(context, t);
}

/* ---- rows in order of experts ---- */

static void sort_rows(const struct route_forward_args *a) {
    const struct router_shape *s = &a->shape;
    int64_t slots = s->tokens * s->topk;
    int32_t next[ROUTER_MAX_EXPERTS] = {0};
    for (int64_t i = 0; i < slots; i++) next[a->experts[i]]++;
    int32_t row = 0;
    for (int64_t e = 0; e < s->experts; e++) {
        int32_t count = next[e];
        a->offsets[e] = next[e] = row;
        row += count;
    }
    a->offsets[s->experts] = row;
    for (int64_t i = 0; i < slots; i++) {
        a->row_of_slot[i] = next[a->experts[i]]++;
        a->slot_of_row[a->row_of_slot[i]] = (int32_t)i;
    }
}

/* Where the selection is by plain logits it has been made; otherwise it is made again without bias and
 * groups. */
static void count_choices(const struct route_forward_args *a) {
    const struct router_shape *s = &a->shape;
    bool is_plain = !s->group_count && !a->bias;
    int32_t own[ROUTER_MAX_TOPK];
    memset(a->counts, 0, (size_t)(s->count_sets * s->experts) * sizeof(*a->counts));
    for (int64_t t = 0; t < s->tokens; t++) {
        int32_t *counts = a->counts + t % s->count_sets * s->experts;
        const int32_t *chosen = is_plain ? a->experts + t * s->topk : own;
        if (!is_plain) select_largest(own, a->logits + t * s->experts, s->experts, s->topk);
        for (int64_t j = 0; j < s->topk; j++) counts[chosen[j]]++;
    }
}

/* ---- losses ---- */

struct loss_job {
    const struct route_forward_args *args;
    double *sums; /* two per chunk */
};

static void loss_body(void *context, int64_t begin, int64_t end, int thread) {
    const struct loss_job *job = context;
    const struct router_shape *s = &job->args->shape;
    float score[ROUTER_MAX_EXPERTS];
    double balance = 0, z = 0;
    (void)thread;
    for (int64_t t = begin; t < end; t++) {
        const float *logits = job->args->logits + t * s->experts;
        float most = largest(logits, s->experts);
        const int32_t *counts = job->args->counts + t % s->count_sets * s->experts;
        float sum = raw_scores(score, logits, s->experts, s->score, most);
        double of_token = 0;
        for (int64_t e = 0; e < s->experts; e++) of_token += (double)score[e] * (double)counts[e];
        balance += of_token / (double)sum;
        if (s->score != ROUTER_SOFTMAX) sum = raw_scores(score, logits, s->experts, ROUTER_SOFTMAX, most);
        double lse = (double)most + log((double)sum);
        z += lse * lse;
    }
    job->sums[begin / TOKENS * 2] = balance;
    job->sums[begin / TOKENS * 2 + 1] = z;
}

static void sum_losses(const struct stream *stream, const struct route_forward_args *a) {
    const struct router_shape *s = &a->shape;
    struct loss_job job = {a, stream->workspace};
    double balance = 0, z = 0, of_set = (double)(s->tokens / s->count_sets);
    threads_for(stream->threads, s->tokens, TOKENS, loss_body, &job);
    for (int64_t i = 0; i < chunks_of(s); i++) {
        balance += job.sums[2 * i];
        z += job.sums[2 * i + 1];
    }
    if (a->balance_sum)
        *a->balance_sum +=
            balance * (double)s->experts / ((double)s->topk * of_set * of_set * (double)s->count_sets);
    if (a->z_sum) *a->z_sum += z / (double)s->tokens;
}

size_t CPU(route_forward_workspace)(const struct stream *stream, const struct route_forward_args *args) {
    (void)stream;
    return (size_t)chunks_of(&args->shape) * 2 * sizeof(double);
}

void CPU(route_forward)(const struct stream *stream, const struct route_forward_args *args) {
    threads_for(stream->threads, args->shape.tokens, TOKENS, route_body, (void *)(uintptr_t)args);
    sort_rows(args);
    count_choices(args);
    if ((args->balance_sum || args->z_sum) && args->shape.tokens) sum_losses(stream, args);
}

/* ---- backward ---- */

/* dlogits[e] += the gradient through score[e] / sum. */
static void through_scores(float *dlogits, const float *score, const float *dscore, float sum, int64_t n,
                           enum router_score kind) {
    float dot = 0;
    for (int64_t e = 0; e < n; e++) dot += score[e] * dscore[e];
    dot /= sum;
    for (int64_t e = 0; e < n; e++) {
        float slope = kind == ROUTER_SOFTMAX ? score[e] : score[e] * (1.0f - score[e]);
        dlogits[e] += slope * ((dscore[e] - dot) / sum);
    }
}

/* The same for the selected experts alone. */
static void through_chosen(float *dlogits, const int32_t *chosen, const float *dprobs, const float *logits,
                           const float *score, const struct router_shape *s, float scaling) {
    float own[ROUTER_MAX_TOPK], dscore[ROUTER_MAX_TOPK], out[ROUTER_MAX_TOPK] = {0}, sum = 0;
    float most = logits[chosen[0]];
    for (int64_t j = 1; j < s->topk; j++) most = fmaxf(most, logits[chosen[j]]);
    for (int64_t j = 0; j < s->topk; j++) {
        own[j] = s->score == ROUTER_SOFTMAX ? math_exp_softmax(logits[chosen[j]] - most) : score[chosen[j]];
        dscore[j] = dprobs[j] * scaling;
        sum += own[j];
    }
    if (s->score == ROUTER_SIGMOID && s->topk == 1)
        out[0] = own[0] * (1.0f - own[0]) * dscore[0];
    else
        through_scores(out, own, dscore, s->score == ROUTER_SIGMOID ? sum + 1e-20f : sum, s->topk, s->score);
    for (int64_t j = 0; j < s->topk; j++) dlogits[chosen[j]] += out[j];
}

static void backward_token(const struct route_backward_args *a, int64_t t, float balance) {
    const struct router_shape *s = &a->shape;
    const float *logits = a->logits + t * s->experts, *dprobs = a->dprobs + t * s->topk;
    const int32_t *chosen = a->experts + t * s->topk;
    float score[ROUTER_MAX_EXPERTS], dscore[ROUTER_MAX_EXPERTS], *out = a->dlogits + t * s->experts;
    float scaling = s->scaling != 0 ? s->scaling : 1, most = largest(logits, s->experts);
    float sum = raw_scores(score, logits, s->experts, s->score, most);
    bool over_all = s->score == ROUTER_SOFTMAX && s->pre_softmax;
    memset(out, 0, (size_t)s->experts * sizeof(*out));
    memset(dscore, 0, (size_t)s->experts * sizeof(*dscore));
    if (!over_all) through_chosen(out, chosen, dprobs, logits, score, s, scaling);
    for (int64_t j = 0; over_all && j < s->topk; j++) dscore[chosen[j]] = dprobs[j] * scaling;
    if (balance != 0) {
        const int32_t *counts = a->counts + t % s->count_sets * s->experts;
        for (int64_t e = 0; e < s->experts; e++) dscore[e] += balance * (float)counts[e];
    }
    if (over_all || balance != 0) through_scores(out, score, dscore, sum, s->experts, s->score);
    if (a->z_scale == 0) return;
    if (s->score != ROUTER_SOFTMAX) sum = raw_scores(score, logits, s->experts, ROUTER_SOFTMAX, most);
    float lse = most + (float)log((double)sum), factor = a->z_scale * 2 * lse / ((float)s->tokens * sum);
    for (int64_t e = 0; e < s->experts; e++) out[e] += factor * score[e];
}

static void backward_body(void *context, int64_t begin, int64_t end, int thread) {
    const struct route_backward_args *a = context;
    const struct router_shape *s = &a->shape;
    double of_set = (double)(s->tokens / s->count_sets);
    double balance = (double)a->balance_scale * (double)s->experts /
                     ((double)s->topk * of_set * of_set * (double)s->count_sets);
    (void)thread;
    for (int64_t t = begin; t < end; t++) backward_token(a, t, (float)balance);
}

void CPU(route_backward)(const struct stream *stream, const struct route_backward_args *args) {
    threads_for(stream->threads, args->shape.tokens, TOKENS, backward_body, (void *)(uintptr_t)args);
}
