/* qkv_split, the judge: head by head, double inside. */
#include "kernels/reference/reference.h"

enum part { PART_Q, PART_K, PART_V };

/* First column of a head within a row of qkv: group by group, a/g query heads, one key, one value head. */
static int64_t head_column(const struct attention_shape *z, enum part part, int64_t head) {
    int64_t per_group = z->a / z->g, width = (per_group + 2) * z->d;
    if (part == PART_Q) return head / per_group * width + head % per_group * z->d;
    return head * width + (per_group + (part == PART_V)) * z->d;
}

static double at(const void *p, enum dtype dtype, int64_t i) {
    return (double)load_f32(p, dtype, i);
}

/* Mean and 1 / deviation of a head. */
struct moments {
    double mean, inverse;
};

static struct moments head_moments(const struct qkv_split_norm *norm, const void *x, enum dtype dtype,
                                   int64_t row, int64_t d) {
    double mean = 0, square = 0;
    for (int64_t n = 0; n < d && !norm->rms; n++) mean += at(x, dtype, row + n) / (double)d;
    for (int64_t n = 0; n < d; n++) {
        double centred = at(x, dtype, row + n) - mean;
        square += centred * centred / (double)d;
    }
    return (struct moments){mean, 1.0 / sqrt(square + (double)norm->epsilon)};
}

/* Indices of rotary pair `pair` within the head. */
static void rotary_pair(int64_t rotary_dim, bool interleaved, int64_t pair, int64_t *first_p,
                        int64_t *second_p) {
    *first_p = interleaved ? 2 * pair : pair;
    *second_p = interleaved ? 2 * pair + 1 : pair + rotary_dim / 2;
}

/* Element n of the head after the norm. */
static double normed(const struct qkv_split_forward_args *args, enum part part, int64_t row, struct moments m,
                     int64_t n) {
    const void *weight = part == PART_Q ? args->norm.q_weight : args->norm.k_weight;
    const void *bias = part == PART_Q ? args->norm.q_bias : args->norm.k_bias;
    double x = at(args->qkv, args->dtype, row + n);
    if (part == PART_V || !weight) return x;
    double w = at(weight, args->dtype, n) + (args->norm.zero_centered ? 1 : 0);
    return (x - m.mean) * m.inverse * w + (bias ? at(bias, args->dtype, n) : 0);
}

static void split_head(const struct qkv_split_forward_args *args, enum part part, void *out, int64_t out_row,
                       int64_t in_row, int64_t position) {
    struct moments m = head_moments(&args->norm, args->qkv, args->dtype, in_row, args->shape.d);
    int64_t rotary = part != PART_V && args->cos ? args->rotary_dim : 0;
    for (int64_t pair = 0; pair < rotary / 2; pair++) {
        int64_t first, second;
        rotary_pair(rotary, args->rotary_interleaved, pair, &first, &second);
        double c = (double)args->cos[position * (rotary / 2) + pair];
        double s = (double)args->sin[position * (rotary / 2) + pair];
        double x0 = normed(args, part, in_row, m, first), x1 = normed(args, part, in_row, m, second);
        store_f32(out, args->dtype, out_row + first, (float)(x0 * c - x1 * s));
        store_f32(out, args->dtype, out_row + second, (float)(x1 * c + x0 * s));
    }
    for (int64_t n = rotary; n < args->shape.d; n++) {
        store_f32(out, args->dtype, out_row + n, (float)normed(args, part, in_row, m, n));
    }
}

void reference_qkv_split_forward(const struct stream *stream, const struct qkv_split_forward_args *args) {
    (void)stream;
    const struct attention_shape *z = &args->shape;
    void *const outs[] = {args->q, args->k, args->v};
    int64_t width = (z->a + 2 * z->g) * z->d;
    for (int64_t token = 0; token < z->s * z->b; token++) {
        int64_t position = token / z->b, batch = token % z->b;
        for (int part = PART_Q; part <= PART_V; part++) {
            int64_t heads = part == PART_Q ? z->a : z->g;
            for (int64_t head = 0; head < heads; head++) {
                split_head(args, (enum part)part, outs[part],
                           ((batch * heads + head) * z->s + position) * z->d,
                           token * width + head_column(z, (enum part)part, head), position);
            }
        }
    }
}

/* Gradient of the norm's output at n: the rotation turned back. */
static double unrotated(const struct qkv_split_backward_args *args, enum part part, const void *grad,
                        int64_t row, int64_t position, int64_t n) {
    int64_t rotary = part != PART_V && args->cos ? args->rotary_dim : 0, half = rotary / 2;
    double g = at(grad, args->dtype, row + n);
    if (n >= rotary) return g;
    int64_t pair = args->rotary_interleaved ? n / 2 : n % half, first, second;
    rotary_pair(rotary, args->rotary_interleaved, pair, &first, &second);
    double c = (double)args->cos[position * half + pair], s = (double)args->sin[position * half + pair];
    double g0 = at(grad, args->dtype, row + first), g1 = at(grad, args->dtype, row + second);
    return n == first ? g0 * c + g1 * s : g1 * c - g0 * s;
}

static void merge_head(const struct qkv_split_backward_args *args, enum part part, const void *grad,
                       int64_t grad_row, int64_t row, int64_t position) {
    int64_t d = args->shape.d;
    const void *weight = part == PART_Q ? args->norm.q_weight : args->norm.k_weight;
    if (part == PART_V || !weight) {
        for (int64_t n = 0; n < d; n++) {
            store_f32(args->dqkv, args->dtype, row + n,
                      (float)unrotated(args, part, grad, grad_row, position, n));
        }
        return;
    }
    struct moments m = head_moments(&args->norm, args->qkv, args->dtype, row, d);
    double sum = 0, sum_x = 0; /* means of g w and g w xhat */
    for (int64_t n = 0; n < d; n++) {
        double w = at(weight, args->dtype, n) + (args->norm.zero_centered ? 1 : 0);
        double g = unrotated(args, part, grad, grad_row, position, n) * w / (double)d;
        sum += g;
        sum_x += g * (at(args->qkv, args->dtype, row + n) - m.mean) * m.inverse;
    }
    for (int64_t n = 0; n < d; n++) {
        double w = at(weight, args->dtype, n) + (args->norm.zero_centered ? 1 : 0);
        double g = unrotated(args, part, grad, grad_row, position, n) * w;
        double xhat = (at(args->qkv, args->dtype, row + n) - m.mean) * m.inverse;
        store_f32(args->dqkv, args->dtype, row + n,
                  (float)(m.inverse * (g - (args->norm.rms ? 0 : sum) - xhat * sum_x)));
    }
}

/* Gradient of weight and bias element n: over all rows of q or k. */
static void merge_params(const struct qkv_split_backward_args *args, enum part part, int64_t n) {
    const struct attention_shape *z = &args->shape;
    const void *grad = part == PART_Q ? args->dq : args->dk;
    float *dweight = part == PART_Q ? args->dq_weight : args->dk_weight;
    float *dbias = part == PART_Q ? args->dq_bias : args->dk_bias;
    int64_t heads = part == PART_Q ? z->a : z->g, width = (z->a + 2 * z->g) * z->d;
    double sum = 0, sum_x = 0;
    for (int64_t token = 0; token < z->s * z->b; token++) {
        int64_t position = token / z->b, batch = token % z->b;
        for (int64_t head = 0; head < heads; head++) {
            int64_t row = token * width + head_column(z, part, head);
            struct moments m = head_moments(&args->norm, args->qkv, args->dtype, row, z->d);
            double g =
                unrotated(args, part, grad, ((batch * heads + head) * z->s + position) * z->d, position, n);
            sum += g;
            sum_x += g * (at(args->qkv, args->dtype, row + n) - m.mean) * m.inverse;
        }
    }
    dweight[n] = (float)(sum_x + (args->accumulate_params ? (double)dweight[n] : 0));
    if (args->norm.q_bias) dbias[n] = (float)(sum + (args->accumulate_params ? (double)dbias[n] : 0));
}

void reference_qkv_split_backward(const struct stream *stream, const struct qkv_split_backward_args *args) {
    (void)stream;
    const struct attention_shape *z = &args->shape;
    const void *const grads[] = {args->dq, args->dk, args->dv};
    int64_t width = (z->a + 2 * z->g) * z->d;
    for (int64_t token = 0; token < z->s * z->b; token++) {
        int64_t position = token / z->b, batch = token % z->b;
        for (int part = PART_Q; part <= PART_V; part++) {
            int64_t heads = part == PART_Q ? z->a : z->g;
            for (int64_t head = 0; head < heads; head++) {
                merge_head(args, (enum part)part, grads[part],
                           ((batch * heads + head) * z->s + position) * z->d,
                           token * width + head_column(z, (enum part)part, head), position);
            }
        }
    }
    if (!args->norm.q_weight) return;
    for (int64_t n = 0; n < z->d; n++) {
        merge_params(args, PART_Q, n);
        merge_params(args, PART_K, n);
    }
}
