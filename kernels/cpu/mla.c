/* Multi-latent attention: what lies between the projections and attention, one pass over the tokens. Plain
 * parts of a head are copied; rotated parts go through float32. A token is one thread's, heads in order, so
 * the bits do not depend on threads. */
#include "kernels/cpu/attention_blocks.h"

enum { TOKENS = 16 }; /* of a chunk */

/* ---- latent split ---- */

static void split_rows(void *context, int64_t begin, int64_t end, int thread) {
    const struct mla_latent_split_forward_args *args = context;
    size_t size = dtype_bytes(args->dtype), latent = (size_t)args->rank * size, pe = (size_t)args->dr * size;
    (void)thread;
    for (int64_t row = begin; row < end; row++) {
        const char *x = (const char *)args->x + (size_t)row * (latent + pe);
        memcpy((char *)args->latent + (size_t)row * latent, x, latent);
        memcpy((char *)args->k_pe + (size_t)row * pe, x + latent, pe);
    }
}

static void join_rows(void *context, int64_t begin, int64_t end, int thread) {
    const struct mla_latent_split_backward_args *args = context;
    size_t size = dtype_bytes(args->dtype), latent = (size_t)args->rank * size, pe = (size_t)args->dr * size;
    (void)thread;
    for (int64_t row = begin; row < end; row++) {
        char *dx = (char *)args->dx + (size_t)row * (latent + pe);
        memcpy(dx, (const char *)args->dlatent + (size_t)row * latent, latent);
        memcpy(dx + latent, (const char *)args->dk_pe + (size_t)row * pe, pe);
    }
}

void CPU(mla_latent_split_forward)(const struct stream *stream,
                                   const struct mla_latent_split_forward_args *args) {
    struct mla_latent_split_forward_args copy = *args;
    threads_for(stream->threads, args->rows, TOKENS, split_rows, &copy);
}

void CPU(mla_latent_split_backward)(const struct stream *stream,
                                    const struct mla_latent_split_backward_args *args) {
    struct mla_latent_split_backward_args copy = *args;
    threads_for(stream->threads, args->rows, TOKENS, join_rows, &copy);
}

/* ---- assembling the heads ---- */

/* First element of a head of a token in [b, a, s, width]. */
static int64_t head_row(const struct mla_shape *z, int64_t token, int64_t head, int64_t width) {
    return ((token % z->b * z->a + head) * z->s + token / z->b) * width;
}

/* Pairs to halves. */
static void rotate(float *y, const float *x, const float *cos, const float *sin, int64_t half) {
    for (int64_t i = 0; i < half; i++) {
        float even = x[2 * i], odd = x[2 * i + 1];
        y[i] = even * cos[i] - odd * sin[i], y[i + half] = odd * cos[i] + even * sin[i];
    }
}

/* Its transpose: halves to pairs. */
static void rotate_back(float *x, const float *y, const float *cos, const float *sin, int64_t half) {
    for (int64_t i = 0; i < half; i++) {
        float low = y[i], high = y[i + half];
        x[2 * i] = low * cos[i] + high * sin[i], x[2 * i + 1] = high * cos[i] - low * sin[i];
    }
}

struct forward_job {
    const struct mla_assemble_forward_args *args;
    float *scratch; /* [threads][2][dr] */
};

static void forward_token(const struct mla_assemble_forward_args *args, float *x, int64_t token) {
    const struct mla_shape *z = &args->shape;
    enum dtype t = args->dtype;
    size_t size = dtype_bytes(t), plain = (size_t)z->dn * size, value = (size_t)z->dv * size;
    int64_t d = z->dn + z->dr, wide = z->dn + z->dv, half = z->dr / 2, angle = token / z->b * half;
    float *y = x + z->dr;
    char *k_pe = NULL; /* where the rotated key lies since the first head */
    for (int64_t head = 0; head < z->a; head++) {
        int64_t n = token * z->a + head, row = head_row(z, token, head, d);
        const char *q_in = dtype_at(args->q_in, t, n * d), *kv = dtype_at(args->kv, t, n * wide);
        char *q = dtype_at(args->q, t, row), *k = dtype_at(args->k, t, row);
        memcpy(q, q_in, plain);
        row_to_f32(x, q_in + plain, t, z->dr);
        rotate(y, x, args->cos + angle, args->sin + angle, half);
        row_from_f32(q + plain, y, t, z->dr);
        memcpy(k, kv, plain);
        if (k_pe) {
            memcpy(k + plain, k_pe, (size_t)z->dr * size);
        } else {
            row_to_f32(x, dtype_at(args->k_pe, t, token * z->dr), t, z->dr);
            rotate(y, x, args->cos + angle, args->sin + angle, half);
            k_pe = k + plain;
            row_from_f32(k_pe, y, t, z->dr);
        }
        memcpy(dtype_at(args->v, t, head_row(z, token, head, z->dv)), kv + plain, value);
    }
}

static void forward_tokens(void *context, int64_t begin, int64_t end, int thread) {
    const struct forward_job *job = context;
    for (int64_t token = begin; token < end; token++)
        forward_token(job->args, job->scratch + thread * 2 * job->args->shape.dr, token);
}

size_t CPU(mla_assemble_forward_workspace)(const struct stream *stream,
                                           const struct mla_assemble_forward_args *args) {
    return (size_t)threads_count(stream->threads) * 2 * (size_t)args->shape.dr * sizeof(float);
}

void CPU(mla_assemble_forward)(const struct stream *stream, const struct mla_assemble_forward_args *args) {
    struct forward_job job = {args, stream->workspace};
    threads_for(stream->threads, args->shape.s * args->shape.b, TOKENS, forward_tokens, &job);
}

struct backward_job {
    const struct mla_assemble_backward_args *args;
    float *scratch; /* [threads][3][dr] */
};

static void backward_token(const struct mla_assemble_backward_args *args, float *x, int64_t token) {
    const struct mla_shape *z = &args->shape;
    enum dtype t = args->dtype;
    size_t size = dtype_bytes(t), plain = (size_t)z->dn * size, value = (size_t)z->dv * size;
    int64_t d = z->dn + z->dr, wide = z->dn + z->dv, half = z->dr / 2, angle = token / z->b * half;
    float *y = x + z->dr, *sum = y + z->dr;
    for (int64_t i = 0; i < z->dr; i++) sum[i] = 0.0f;
    for (int64_t head = 0; head < z->a; head++) {
        int64_t n = token * z->a + head, row = head_row(z, token, head, d);
        char *dq_in = dtype_at(args->dq_in, t, n * d), *dkv = dtype_at(args->dkv, t, n * wide);
        const char *dq = dtype_at(args->dq, t, row), *dk = dtype_at(args->dk, t, row);
        memcpy(dq_in, dq, plain);
        row_to_f32(y, dq + plain, t, z->dr);
        rotate_back(x, y, args->cos + angle, args->sin + angle, half);
        row_from_f32(dq_in + plain, x, t, z->dr);
        memcpy(dkv, dk, plain);
        row_to_f32(y, dk + plain, t, z->dr);
        for (int64_t i = 0; i < z->dr; i++) sum[i] += y[i];
        memcpy(dkv + plain, dtype_at(args->dv, t, head_row(z, token, head, z->dv)), value);
    }
    rotate_back(x, sum, args->cos + angle, args->sin + angle, half);
    row_from_f32(dtype_at(args->dk_pe, t, token * z->dr), x, t, z->dr);
}

static void backward_tokens(void *context, int64_t begin, int64_t end, int thread) {
    const struct backward_job *job = context;
    for (int64_t token = begin; token < end; token++)
        backward_token(job->args, job->scratch + thread * 3 * job->args->shape.dr, token);
}

size_t CPU(mla_assemble_backward_workspace)(const struct stream *stream,
                                            const struct mla_assemble_backward_args *args) {
    return (size_t)threads_count(stream->threads) * 3 * (size_t)args->shape.dr * sizeof(float);
}

void CPU(mla_assemble_backward)(const struct stream *stream, const struct mla_assemble_backward_args *args) {
    struct backward_job job = {args, stream->workspace};
    threads_for(stream->threads, args->shape.s * args->shape.b, TOKENS, backward_tokens, &job);
}
