/* qkv_split: one pass over the tokens, head by head: unpack to float32, norm, rotate, store in head-major
 * order; the backward the same way round. Heads that are neither normed nor rotated are copied. Gradients of
 * the norm's parameters are summed per chunk of tokens, and the chunks added in order, so the bits do not
 * depend on threads. */
#include "kernels/cpu/attention_blocks.h"
#include <math.h>

enum part { PART_Q, PART_K, PART_V, NUM_PARTS };

/* First column of a head within a row of qkv: group by group, a/g query heads, one key, one value head. */
static int64_t head_column(const struct attention_shape *z, int part, int64_t head) {
    int64_t per_group = z->a / z->g, width = (per_group + 2) * z->d;
    if (part == PART_Q) return head / per_group * width + head % per_group * z->d;
    return head * width + (per_group + (part == PART_V)) * z->d;
}

/* First element of a head of a token in [b, heads, s, d]. */
static int64_t head_row(const struct attention_shape *z, int part, int64_t token, int64_t head) {
    int64_t heads = part == PART_Q ? z->a : z->g;
    return ((token % z->b * heads + head) * z->s + token / z->b) * z->d;
}

/* The rotation of one position; with sin negated, its inverse. */
struct rotary {
    const float *cos, *sin; /* of this position */
    int64_t half;
    float sign;
    bool interleaved;
};

static void rotate(float *x, const struct rotary *r) {
    if (r->interleaved) {
        for (int64_t i = 0; i < r->half; i++) {
            float x0 = x[2 * i], x1 = x[2 * i + 1], c = r->cos[i], s = r->sign * r->sin[i];
            x[2 * i] = x0 * c - x1 * s, x[2 * i + 1] = x1 * c + x0 * s;
        }
    } else {
        float *y = x + r->half;
#pragma omp simd
        for (int64_t i = 0; i < r->half; i++) {
            float x0 = x[i], x1 = y[i], c = r->cos[i], s = r->sign * r->sin[i];
            x[i] = x0 * c - x1 * s, y[i] = x1 * c + x0 * s;
        }
    }
}

/* x becomes (x - mean) / deviation; returns 1 / deviation. */
static float normalise(float *x, int64_t d, float epsilon, bool rms) {
    float mean = 0, square = 0;
    if (!rms) {
#pragma omp simd reduction(+ : mean)
        for (int64_t n = 0; n < d; n++) mean += x[n];
        mean /= (float)d;
    }
#pragma omp simd reduction(+ : square)
    for (int64_t n = 0; n < d; n++) square += (x[n] - mean) * (x[n] - mean);
    float inverse = 1.0f / sqrtf(square / (float)d + epsilon);
    for (int64_t n = 0; n < d; n++) x[n] = (x[n] - mean) * inverse;
    return inverse;
}

/* Weights and biases of both norms in float32, once per call: [2][d] each. */
struct params {
    float *weight, *bias;
};

static void load_params(struct params *params, const struct qkv_split_norm *norm, int64_t d,
                        enum dtype dtype) {
    const void *const weights[] = {norm->q_weight, norm->k_weight}, *const biases[] = {norm->q_bias,
                                                                                       norm->k_bias};
    for (int part = PART_Q; part <= PART_K && norm->q_weight; part++) {
        float *weight = params->weight + part * d, *bias = params->bias + part * d;
        row_to_f32(weight, weights[part], dtype, d);
        for (int64_t n = 0; n < d && norm->zero_centered; n++) weight[n] += 1.0f;
        if (norm->q_bias) row_to_f32(bias, biases[part], dtype, d);
        for (int64_t n = 0; n < d && !norm->q_bias; n++) bias[n] = 0.0f;
    }
}

static int64_t chunk_tokens(const struct attention_shape *z) {
    int64_t tokens = z->s * z->b, share = (tokens + 63) / 64;
    return share < 16 ? 16 : share;
}

/* ---- forward ---- */
struct forward_job {
    const struct qkv_split_forward_args *args;
    struct params params;
    float *scratch; /* [threads][d] */
};

static void forward_head(const struct forward_job *job, float *x, int part, int64_t token, int64_t head) {
    const struct qkv_split_forward_args *args = job->args;
    const struct attention_shape *z = &args->shape;
    void *const outs[] = {args->q, args->k, args->v};
    void *out = dtype_at(outs[part], args->dtype, head_row(z, part, token, head));
    const void *in =
        dtype_at(args->qkv, args->dtype, token * (z->a + 2 * z->g) * z->d + head_column(z, part, head));
    if (part == PART_V || (!args->norm.q_weight && !args->cos)) {
        memcpy(out, in, (size_t)z->d * dtype_bytes(args->dtype));
        return;
    }
    row_to_f32(x, in, args->dtype, z->d);
    if (args->norm.q_weight) {
        const float *weight = job->params.weight + part * z->d, *bias = job->params.bias + part * z->d;
        normalise(x, z->d, args->norm.epsilon, args->norm.rms);
        for (int64_t n = 0; n < z->d; n++) x[n] = x[n] * weight[n] + bias[n];
    }
    if (args->cos) {
        int64_t half = args->rotary_dim / 2, at = token / z->b * half;
        rotate(x, &(struct rotary){args->cos + at, args->sin + at, half, 1.0f, args->rotary_interleaved});
    }
    row_from_f32(out, x, args->dtype, z->d);
}

static void forward_tokens(void *context, int64_t begin, int64_t end, int thread) {
    const struct forward_job *job = context;
    const struct attention_shape *z = &job->args->shape;
    float *x = job->scratch + thread * z->d;
    for (int64_t token = begin; token < end; token++) {
        for (int part = PART_Q; part < NUM_PARTS; part++) {
            for (int64_t head = 0; head < (part == PART_Q ? z->a : z->g); head++)
                forward_head(job, x, part, token, head);
        }
    }
}

size_t CPU(qkv_split_forward_workspace)(const struct stream *stream,
                                        const struct qkv_split_forward_args *args) {
    return (size_t)(threads_count(stream->threads) + 4) * (size_t)args->shape.d * sizeof(float);
}

void CPU(qkv_split_forward)(const struct stream *stream, const struct qkv_split_forward_args *args) {
    float *at = stream->workspace;
    int64_t d = args->shape.d;
    struct forward_job job = {args, {at, at + 2 * d}, at + 4 * d};
    load_params(&job.params, &args->norm, d, args->dtype);
    threads_for(stream->threads, args->shape.s * args->shape.b, 16, forward_tokens, &job);
}

/* ---- backward ---- */
struct backward_job {
    const struct qkv_split_backward_args *args;
    struct params params;
    float *scratch;  /* [threads][2][d] */
    float *partials; /* [chunks][weight, bias][q, k][d]; NULL without QK norm */
    int64_t grain;
};

/* g, the gradient of the norm's output, becomes that of its input; x holds that input and becomes xhat. */
static void norm_backward_head(const struct backward_job *job, float *g, float *x, int part, float *partial) {
    const struct qkv_split_backward_args *args = job->args;
    int64_t d = args->shape.d;
    const float *weight = job->params.weight + part * d;
    float *dweight = partial + part * d, *dbias = partial + (2 + part) * d, sum = 0, sum_x = 0;
    float inverse = normalise(x, d, args->norm.epsilon, args->norm.rms);
#pragma omp simd reduction(+ : sum, sum_x)
    for (int64_t n = 0; n < d; n++) {
        dweight[n] += g[n] * x[n];
        dbias[n] += g[n];
        g[n] *= weight[n];
        sum += g[n], sum_x += g[n] * x[n];
    }
    float mean = args->norm.rms ? 0.0f : sum / (float)d, mean_x = sum_x / (float)d;
    for (int64_t n = 0; n < d; n++) g[n] = inverse * (g[n] - mean - x[n] * mean_x);
}

static void backward_head(const struct backward_job *job, float *g, float *partial, int part, int64_t token,
                          int64_t head) {
    const struct qkv_split_backward_args *args = job->args;
    const struct attention_shape *z = &args->shape;
    const void *const grads[] = {args->dq, args->dk, args->dv};
    const void *in = dtype_at(grads[part], args->dtype, head_row(z, part, token, head));
    int64_t column = token * (z->a + 2 * z->g) * z->d + head_column(z, part, head);
    void *out = dtype_at(args->dqkv, args->dtype, column);
    if (part == PART_V || (!args->norm.q_weight && !args->cos)) {
        memcpy(out, in, (size_t)z->d * dtype_bytes(args->dtype));
        return;
    }
    row_to_f32(g, in, args->dtype, z->d);
    if (args->cos) {
        int64_t half = args->rotary_dim / 2, at = token / z->b * half;
        rotate(g, &(struct rotary){args->cos + at, args->sin + at, half, -1.0f, args->rotary_interleaved});
    }
    if (args->norm.q_weight) {
        float *x = g + z->d;
        row_to_f32(x, dtype_at(args->qkv, args->dtype, column), args->dtype, z->d);
        norm_backward_head(job, g, x, part, partial);
    }
    row_from_f32(out, g, args->dtype, z->d);
}

static void backward_tokens(void *context, int64_t begin, int64_t end, int thread) {
    const struct backward_job *job = context;
    const struct attention_shape *z = &job->args->shape;
    float *g = job->scratch + thread * 2 * z->d, *partial = NULL;
    if (job->partials) {
        partial = job->partials + begin / job->grain * 4 * z->d;
        memset(partial, 0, (size_t)(4 * z->d) * sizeof(float));
    }
    for (int64_t token = begin; token < end; token++) {
        for (int part = PART_Q; part < NUM_PARTS; part++) {
            for (int64_t head = 0; head < (part == PART_Q ? z->a : z->g); head++) {
                backward_head(job, g, partial, part, token, head);
            }
        }
    }
}

/* out (+)= the partial sums of all chunks, in order. */
static void add_partials(float *out, const struct backward_job *job, int row, int64_t chunks) {
    int64_t d = job->args->shape.d;
    if (!job->args->accumulate_params) memset(out, 0, (size_t)d * sizeof(float));
    for (int64_t chunk = 0; chunk < chunks; chunk++) {
        const float *partial = job->partials + (chunk * 4 + row) * d;
        for (int64_t n = 0; n < d; n++) out[n] += partial[n];
    }
}

static int64_t num_chunks(const struct attention_shape *z) {
    return (z->s * z->b + chunk_tokens(z) - 1) / chunk_tokens(z);
}

size_t CPU(qkv_split_backward_workspace)(const struct stream *stream,
                                         const struct qkv_split_backward_args *args) {
    int64_t rows =
        4 + 2 * threads_count(stream->threads) + (args->norm.q_weight ? 4 * num_chunks(&args->shape) : 0);
    return (size_t)(rows * args->shape.d) * sizeof(float);
}

void CPU(qkv_split_backward)(const struct stream *stream, const struct qkv_split_backward_args *args) {
    float *at = stream->workspace;
    int64_t d = args->shape.d, tokens = args->shape.s * args->shape.b, chunks = num_chunks(&args->shape);
    struct backward_job job = {args, {at, at + 2 * d}, at + 4 * d, NULL, chunk_tokens(&args->shape)};
    if (args->norm.q_weight) job.partials = job.scratch + 2 * threads_count(stream->threads) * d;
    load_params(&job.params, &args->norm, d, args->dtype);
    threads_for(stream->threads, tokens, job.grain, backward_tokens, &job);
    if (!args->norm.q_weight) return;
    add_partials(args->dq_weight, &job, 0, chunks);
    add_partials(args->dk_weight, &job, 1, chunks);
    if (!args->norm.q_bias) return;
    add_partials(args->dq_bias, &job, 2, chunks);
    add_partials(args->dk_bias, &job, 3, chunks);
}
