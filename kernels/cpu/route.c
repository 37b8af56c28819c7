/* Routing: tokens are independent and threaded; the counting sort that follows them is one pass over the
 * slots. Sums for the losses are taken per chunk of tokens and added in order of the chunks. */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/philox.h"
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

static float sqrt_softplus(float x) {
    return sqrtf(x > 0 ? x + log1pf(expf(-x)) : log1pf(expf(x)));
}

/* score[e] = e^(logit - largest), or the score of the logit alone; returns their sum, in order of e. */
static float raw_scores(float *score, const float *logits, int64_t n, enum router_score kind, float most) {
    float sum = 0;
    if (kind == ROUTER_SOFTMAX) {
        SIMD_LOOP for (int64_t e = 0; e < n; e++) score[e] = math_exp_softmax(logits[e] - most);
    } else if (kind == ROUTER_SIGMOID) {
        SIMD_LOOP for (int64_t e = 0; e < n; e++) score[e] = math_sigmoid(logits[e]);
    } else {
        for (int64_t e = 0; e < n; e++) score[e] = sqrt_softplus(logits[e]);
    }
    for (int64_t e = 0; e < n; e++) sum += score[e];
    return kind == ROUTER_SOFTMAX ? sum : sum + 1e-20f;
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
    if (s->score != ROUTER_SOFTMAX) total = s->topk > 1 ? total + 1e-20f : 1;
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

/* Weights are not negative, so their order is that of their bits. */
static uint32_t weight_bits(float weight) {
    return (uint32_t)math_to_bits(weight) & 0x7FFFFFFFu;
}

/* The `count`-th largest of n slots: bit by bit the largest number that so many weights reach. */
static uint32_t weight_of_last(const float *probs, const int32_t *slots, int64_t n, int64_t count) {
    uint32_t last = 0;
    for (uint32_t bit = 1u << 30; bit; bit >>= 1) {
        int64_t reached = 0;
        for (int64_t i = 0; i < n; i++) reached += weight_bits(probs[slots[i]]) >= (last | bit);
        if (reached >= count) last |= bit;
    }
    return last;
}

/* Gives rows to the slots of one expert, in order of tokens; those that have no room get none. */
static int32_t place_slots(const struct route_forward_args *a, const int32_t *slots, int64_t n, int32_t row) {
    const struct router_shape *s = &a->shape;
    int64_t room = s->capacity && s->capacity < n ? s->capacity : n, equal = room;
    uint32_t last = 0;
    if (room < n && !s->drops_by_position) {
        last = weight_of_last(a->probs, slots, n, room);
        for (int64_t i = 0; i < n; i++) equal -= weight_bits(a->probs[slots[i]]) > last;
    }
    for (int64_t i = 0; i < n; i++) {
        uint32_t weight = weight_bits(a->probs[slots[i]]);
        bool stays =
            room < n && !s->drops_by_position ? weight > last || (weight == last && equal-- > 0) : i < room;
        a->row_of_slot[slots[i]] = stays ? row : -1;
        if (!stays) a->probs[slots[i]] = 0;
        if (stays) a->slot_of_row[row++] = slots[i]; /* never ahead of `slots`, which may be the same array */
    }
    return row;
}

/* The slots of each expert, in order of tokens; first[e] is where expert e's begin. */
static void sort_slots(int32_t *sorted, int32_t *first, const struct route_forward_args *a) {
    const struct router_shape *s = &a->shape;
    int64_t slots = s->tokens * s->topk;
    int32_t next[ROUTER_MAX_EXPERTS + 1] = {0}, sum = 0;
    for (int64_t i = 0; i < slots; i++) next[a->experts[i]]++;
    for (int64_t e = 0; e <= s->experts; e++) {
        int32_t count = next[e];
        first[e] = next[e] = sum;
        sum += count;
    }
    for (int64_t i = 0; i < slots; i++) sorted[next[a->experts[i]]++] = (int32_t)i;
}

static void sort_rows(const struct route_forward_args *a, int32_t *sorted) {
    const struct router_shape *s = &a->shape;
    int32_t first[ROUTER_MAX_EXPERTS + 1], row = 0;
    sort_slots(sorted, first, a);
    for (int64_t e = 0; e < s->experts; e++) {
        a->offsets[e] = row;
        row = place_slots(a, sorted + first[e], first[e + 1] - first[e], row);
        if (a->tokens) a->tokens[e] += row - a->offsets[e];
        while (s->pads && row < (e + 1) * s->capacity) a->slot_of_row[row++] = -1;
    }
    a->offsets[s->experts] = row;
    while (row < router_rows(s)) a->slot_of_row[row++] = -1;
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
    const struct route_losses_args *args;
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
        for (int64_t e = 0; job->args->balance_sum && e < s->experts; e++)
            of_token += (double)score[e] * (double)counts[e];
        balance += of_token / (double)sum;
        if (s->score != ROUTER_SOFTMAX) sum = raw_scores(score, logits, s->experts, ROUTER_SOFTMAX, most);
        double lse = (double)most + log((double)sum);
        z += lse * lse;
    }
    job->sums[begin / TOKENS * 2] = balance;
    job->sums[begin / TOKENS * 2 + 1] = z;
}

static double parts_of(const struct router_shape *s) {
    return s->parts ? (double)s->parts : 1;
}

void CPU(route_losses)(const struct stream *stream, const struct route_losses_args *a) {
    const struct router_shape *s = &a->shape;
    struct loss_job job = {a, stream->workspace};
    double balance = 0, z = 0, of_set = (double)(s->tokens / s->count_sets) * parts_of(s);
    if (!s->tokens) return;
    threads_for(stream->threads, s->tokens, TOKENS, loss_body, &job);
    for (int64_t i = 0; i < chunks_of(s); i++) {
        balance += job.sums[2 * i];
        z += job.sums[2 * i + 1];
    }
    if (a->balance_sum)
        *a->balance_sum +=
            balance * (double)s->experts / ((double)s->topk * of_set * of_set * (double)s->count_sets);
    if (a->z_sum) *a->z_sum += z / ((double)s->tokens * parts_of(s));
}

size_t CPU(route_losses_workspace)(const struct stream *stream, const struct route_losses_args *args) {
    (void)stream;
    return (size_t)chunks_of(&args->shape) * 2 * sizeof(double);
}

/* ---- all of it ---- */

size_t CPU(route_forward_workspace)(const struct stream *stream, const struct route_forward_args *args) {
    const struct router_shape *s = &args->shape;
    (void)stream;
    return s->capacity ? (size_t)(s->tokens * s->topk) * sizeof(int32_t) : 0;
}

void CPU(route_forward)(const struct stream *stream, const struct route_forward_args *args) {
    threads_for(stream->threads, args->shape.tokens, TOKENS, route_body, (void *)(uintptr_t)args);
    sort_rows(args, args->shape.capacity ? stream->workspace : args->slot_of_row);
    count_choices(args);
}

SIMD_INLINE void jitter_elements(const struct router_jitter_args *a, int64_t begin, int64_t end,
                                 enum dtype t) {
    uint32_t buffer[PHILOX_BUFFER];
    float least = 1.0f - a->eps, range = 2 * a->eps;
    void *y = a->y;
    const void *x = a->x;
    for (int64_t i0 = begin; i0 < end; i0 += PHILOX_SPAN) {
        int64_t n = end - i0 < PHILOX_SPAN ? end - i0 : PHILOX_SPAN;
        const uint32_t *words = philox_words(a->key, a->first_element + (uint64_t)i0, n, buffer);
        if (a->accumulate) {
            SIMD_LOOP for (int64_t i = 0; i < n; i++) {
                float factor = MATH_FMA(range, rng_uniform(words[i]), least);
                simd_store(y, t, i0 + i, simd_load(y, t, i0 + i) + simd_load(x, t, i0 + i) * factor);
            }
        } else {
            SIMD_LOOP for (int64_t i = 0; i < n; i++) {
                float factor = MATH_FMA(range, rng_uniform(words[i]), least);
                simd_store(y, t, i0 + i, simd_load(x, t, i0 + i) * factor);
            }
        }
    }
}

static void jitter_body(void *context, int64_t begin, int64_t end, int thread) {
    const struct router_jitter_args *a = context;
    (void)thread;
    SIMD_BY_DTYPE(a->dtype, jitter_elements, a, begin, end)
}

void CPU(router_jitter)(const struct stream *stream, const struct router_jitter_args *args) {
    enum { CHUNK = 32768 };
    threads_for(stream->threads, args->n, CHUNK, jitter_body, (void *)(uintptr_t)args);
}

/* ---- backward ---- */

/* d score / d logit from the score; of a softmax, before its normalisation. With y = sqrt(log(1 + e^x)) it is
 * sigmoid(x) / (2 y) and sigmoid(x) = 1 - e^(-y^2). */
static float slope_of(float score, enum router_score kind) {
    if (kind == ROUTER_SOFTMAX) return score;
    if (kind == ROUTER_SIGMOID) return score * (1.0f - score);
    return score > 0 ? -expm1f(-score * score) / (2 * score) : 0;
}

/* dlogits[e] += the gradient through score[e] / sum. */
static void through_scores(float *dlogits, const float *score, const float *dscore, float sum, int64_t n,
                           enum router_score kind) {
    float dot = 0;
    for (int64_t e = 0; e < n; e++) dot += score[e] * dscore[e];
    dot /= sum;
    for (int64_t e = 0; e < n; e++) {
        float slope = slope_of(score[e], kind);
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
    if (s->score != ROUTER_SOFTMAX && s->topk == 1)
        out[0] = slope_of(own[0], s->score) * dscore[0];
    else
        through_scores(out, own, dscore, s->score == ROUTER_SOFTMAX ? sum : sum + 1e-20f, s->topk, s->score);
    for (int64_t j = 0; j < s->topk; j++) dlogits[chosen[j]] += out[j];
}

static void backward_token(const struct route_backward_args *a, int64_t t, float balance) {
    const struct router_shape *s = &a->shape;
    const float *logits = a->logits + t * s->experts;
    float dprobs[ROUTER_MAX_TOPK];
    for (int64_t j = 0; j < s->topk; j++)
        dprobs[j] = s->capacity && a->row_of_slot[t * s->topk + j] < 0 ? 0 : a->dprobs[t * s->topk + j];
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
    float lse = most + (float)log((double)sum), factor = a->z_scale * 2 * lse;
    factor /= (float)s->tokens * (float)parts_of(s) * sum;
    for (int64_t e = 0; e < s->experts; e++) out[e] += factor * score[e];
}

static void backward_body(void *context, int64_t begin, int64_t end, int thread) {
    const struct route_backward_args *a = context;
    const struct router_shape *s = &a->shape;
    double of_set = (double)(s->tokens / s->count_sets) * parts_of(s);
    double balance = (double)a->balance_scale * (double)s->experts /
                     ((double)s->topk * of_set * of_set * (double)s->count_sets);
    (void)thread;
    for (int64_t t = begin; t < end; t++) backward_token(a, t, (float)balance);
}

void CPU(route_backward)(const struct stream *stream, const struct route_backward_args *args) {
    threads_for(stream->threads, args->shape.tokens, TOKENS, backward_body, (void *)(uintptr_t)args);
}
