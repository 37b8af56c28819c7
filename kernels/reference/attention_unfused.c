/* The unfused attention chain, the judge: scores, softmax and context with their gradients, plain loops,
 * double inside. */
#include "kernels/reference/reference.h"

static double at(const void *p, enum dtype dtype, int64_t i) {
    return (double)load_f32(p, dtype, i);
}

/* Element (i, n) of a head: of [b, heads, s, cols], and of [s, b, a * d]. */
static int64_t head_at(int64_t heads, int64_t s, int64_t cols, int64_t batch, int64_t head, int64_t i) {
    return ((batch * heads + head) * s + i) * cols;
}

static int64_t hidden_at(const struct attention_shape *z, int64_t batch, int64_t head, int64_t i) {
    return (i * z->b + batch) * z->a * z->d + head * z->d;
}

void reference_attention_scores_forward(const struct stream *stream,
                                        const struct attention_scores_forward_args *args) {
    (void)stream;
    const struct attention_shape *z = &args->shape;
    for (int64_t head = 0; head < z->b * z->a; head++) {
        int64_t batch = head / z->a, group = head % z->a / (z->a / z->g);
        for (int64_t i = 0; i < z->s; i++) {
            int64_t q = (head * z->s + i) * z->d;
            for (int64_t j = 0; j < (args->causal ? i + 1 : z->s); j++) {
                int64_t k = head_at(z->g, z->s, z->d, batch, group, j);
                double sum = 0;
                for (int64_t n = 0; n < z->d; n++) {
                    sum += at(args->q, args->dtype, q + n) * at(args->k, args->dtype, k + n);
                }
                store_f32(args->scores, args->dtype, (head * z->s + i) * z->s + j,
                          (float)((double)args->scale * sum));
            }
        }
    }
}

void reference_attention_scores_backward(const struct stream *stream,
                                         const struct attention_scores_backward_args *args) {
    (void)stream;
    const struct attention_shape *z = &args->shape;
    int64_t s = z->s, d = z->d, per_group = z->a / z->g;
    for (int64_t head = 0; head < z->b * z->a; head++) {
        int64_t batch = head / z->a, group = head % z->a / per_group;
        for (int64_t i = 0; i < s; i++) {
            for (int64_t n = 0; n < d; n++) {
                double sum = 0;
                for (int64_t j = 0; j < (args->causal ? i + 1 : s); j++) {
                    sum += at(args->dscores, args->dtype, (head * s + i) * s + j) *
                           at(args->k, args->dtype, head_at(z->g, s, d, batch, group, j) + n);
                }
                store_f32(args->dq, args->dtype, (head * s + i) * d + n, (float)((double)args->scale * sum));
            }
        }
    }
    for (int64_t group = 0; group < z->b * z->g; group++) {
        for (int64_t j = 0; j < s; j++) {
            for (int64_t n = 0; n < d; n++) {
                double sum = 0;
                for (int64_t head = group * per_group; head < (group + 1) * per_group; head++) {
                    for (int64_t i = args->causal ? j : 0; i < s; i++) {
                        sum += at(args->dscores, args->dtype, (head * s + i) * s + j) *
                               at(args->q, args->dtype, (head * s + i) * d + n);
                    }
                }
                store_f32(args->dk, args->dtype, (group * s + j) * d + n, (float)((double)args->scale * sum));
            }
        }
    }
}

void reference_softmax_forward(const struct stream *stream, const struct softmax_forward_args *args) {
    (void)stream;
    for (int64_t r = 0; r < args->rows; r++) {
        int64_t used = args->causal ? r % args->cols + 1 : args->cols, row = r * args->cols;
        double max = -INFINITY, sum = 0;
        for (int64_t j = 0; j < used; j++) max = fmax(max, at(args->x, args->dtype, row + j));
        for (int64_t j = 0; j < used; j++) sum += exp(at(args->x, args->dtype, row + j) - max);
        for (int64_t j = 0; j < used; j++) {
            store_f32(args->y, args->dtype, row + j,
                      (float)(exp(at(args->x, args->dtype, row + j) - max) / sum));
        }
        for (int64_t j = used; j < args->cols; j++) store_f32(args->y, args->dtype, row + j, 0.0f);
    }
}

void reference_softmax_backward(const struct stream *stream, const struct softmax_backward_args *args) {
    (void)stream;
    for (int64_t r = 0; r < args->rows; r++) {
        int64_t used = args->causal ? r % args->cols + 1 : args->cols, row = r * args->cols;
        double delta = 0;
        for (int64_t j = 0; j < used; j++) {
            delta += at(args->dy, args->dtype, row + j) * at(args->y, args->dtype, row + j);
        }
        for (int64_t j = 0; j < used; j++) {
            double y = at(args->y, args->dtype, row + j);
            store_f32(args->dx, args->dtype, row + j,
                      (float)(y * (at(args->dy, args->dtype, row + j) - delta)));
        }
        for (int64_t j = used; j < args->cols; j++) store_f32(args->dx, args->dtype, row + j, 0.0f);
    }
}

void reference_attention_context_forward(const struct stream *stream,
                                         const struct attention_context_forward_args *args) {
    (void)stream;
    const struct attention_shape *z = &args->shape;
    for (int64_t head = 0; head < z->b * z->a; head++) {
        int64_t batch = head / z->a, group = head % z->a / (z->a / z->g);
        for (int64_t i = 0; i < z->s; i++) {
            for (int64_t n = 0; n < z->d; n++) {
                double sum = 0;
                for (int64_t j = 0; j < (args->causal ? i + 1 : z->s); j++) {
                    sum += at(args->probs, args->dtype, (head * z->s + i) * z->s + j) *
                           at(args->v, args->dtype, head_at(z->g, z->s, z->d, batch, group, j) + n);
                }
                store_f32(args->o, args->dtype, hidden_at(z, batch, head % z->a, i) + n, (float)sum);
            }
        }
    }
}

static void context_dprobs(const struct attention_context_backward_args *args, int64_t head) {
    const struct attention_shape *z = &args->shape;
    int64_t batch = head / z->a, group = head % z->a / (z->a / z->g);
    for (int64_t i = 0; i < z->s; i++) {
        int64_t o = hidden_at(z, batch, head % z->a, i);
        for (int64_t j = 0; j < z->s; j++) {
            int64_t v = head_at(z->g, z->s, z->d, batch, group, j);
            double sum = 0;
            for (int64_t n = 0; n < z->d && (!args->causal || j <= i); n++) {
                sum += at(args->d_o, args->dtype, o + n) * at(args->v, args->dtype, v + n);
            }
            store_f32(args->dprobs, args->dtype, (head * z->s + i) * z->s + j, (float)sum);
        }
    }
}

void reference_attention_context_backward(const struct stream *stream,
                                          const struct attention_context_backward_args *args) {
    (void)stream;
    const struct attention_shape *z = &args->shape;
    int64_t s = z->s, per_group = z->a / z->g;
    for (int64_t head = 0; head < z->b * z->a; head++) context_dprobs(args, head);
    for (int64_t group = 0; group < z->b * z->g; group++) {
        for (int64_t j = 0; j < s; j++) {
            for (int64_t n = 0; n < z->d; n++) {
                double sum = 0;
                for (int64_t head = group * per_group; head < (group + 1) * per_group; head++) {
                    for (int64_t i = args->causal ? j : 0; i < s; i++) {
                        sum += at(args->probs, args->dtype, (head * s + i) * s + j) *
                               at(args->d_o, args->dtype, hidden_at(z, head / z->a, head % z->a, i) + n);
                    }
                }
                store_f32(args->dv, args->dtype, (group * s + j) * z->d + n, (float)sum);
            }
        }
    }
}
