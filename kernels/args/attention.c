/* Shape checks and costs of the attention kernels. A causal row i has i + 1 scores, so a head has
 * s (s + 1) / 2 of them; without the mask s * s; with a window, those of its part. The cost counts exactly
 * these, whatever blocks a backend happens to compute beside them. */
#include "kernels/kernels.h"

static const char *check_shape(const struct attention_shape *shape, enum dtype dtype) {
    if (dtype != DTYPE_F32 && dtype != DTYPE_BF16 && dtype != DTYPE_F16) {
        return "dtype must be fp32, bf16 or fp16";
    }
    if (shape->s < 1 || shape->b < 1 || shape->a < 1 || shape->g < 1 || shape->d < 1) {
        return "s, b, a, g and d must be at least 1";
    }
    if (shape->dv < 0) return "dv must not be negative";
    if (shape->a % shape->g) return "a must be a multiple of g";
    return NULL;
}

static const char *check_split(const struct attention_shape *shape, const struct qkv_split_norm *norm,
                               const float *cos, const float *sin, int64_t rotary_dim, enum dtype dtype) {
    const char *wrong = check_shape(shape, dtype);
    if (wrong) return wrong;
    if (!norm->q_weight != !norm->k_weight) return "QK norm needs both weights or none";
    if (!norm->q_bias != !norm->k_bias) return "QK norm needs both biases or none";
    if (norm->q_bias && (norm->rms || !norm->q_weight)) return "biases belong to a LayerNorm";
    if (!cos != !sin) return "the rotary embedding needs both tables or none";
    if (cos && (rotary_dim < 2 || rotary_dim % 2 || rotary_dim > shape->d)) {
        return "rotary_dim must be even, from 2 to d";
    }
    return NULL;
}

static const char *check_core(const struct attention_shape *shape, float dropout, enum dtype dtype) {
    const char *wrong = check_shape(shape, dtype);
    if (wrong) return wrong;
    return dropout >= 0.0f && dropout < 1.0f ? NULL : "dropout must be in [0, 1)";
}

static const char *check_window(const struct attention_shape *shape, struct attention_window window) {
    struct attention_window w = attention_window_of(shape, window);
    if (w.first_query < 0 || w.first_key < 0 || w.first_head < 0) {
        return "window: first_query, first_key and first_head must not be negative";
    }
    if (w.keys < 1 || w.q_rows < shape->s || w.k_rows < w.keys) {
        return "window: keys must be at least 1, q_rows at least s, k_rows at least keys";
    }
    if (w.heads < w.first_head + shape->a) return "window: heads must be at least first_head + a";
    if (window.seq && (w.first_query + shape->s > w.seq || w.first_key + w.keys > w.seq)) {
        return "window: queries and keys must lie within seq";
    }
    return NULL;
}

static const char *check_rows(int64_t rows, int64_t cols, bool causal, enum dtype dtype) {
    if (dtype != DTYPE_F32 && dtype != DTYPE_BF16 && dtype != DTYPE_F16) {
        return "dtype must be fp32, bf16 or fp16";
    }
    if (rows < 1 || cols < 1) return "rows and cols must be at least 1";
    if (causal && rows % cols) return "causal rows come in whole squares: rows must be a multiple of cols";
    return NULL;
}

const char *qkv_split_forward_check(const struct qkv_split_forward_args *args) {
    if (!args->q || !args->k || !args->v || !args->qkv) return "q, k, v and qkv must be set";
    return check_split(&args->shape, &args->norm, args->cos, args->sin, args->rotary_dim, args->dtype);
}

const char *qkv_split_backward_check(const struct qkv_split_backward_args *args) {
    if (!args->dqkv || !args->dq || !args->dk || !args->dv) return "dqkv, dq, dk and dv must be set";
    if (args->norm.q_weight && (!args->qkv || !args->dq_weight || !args->dk_weight)) {
        return "QK norm needs qkv, dq_weight and dk_weight";
    }
    if (args->norm.q_bias && (!args->dq_bias || !args->dk_bias)) {
        return "QK LayerNorm needs dq_bias and dk_bias";
    }
    return check_split(&args->shape, &args->norm, args->cos, args->sin, args->rotary_dim, args->dtype);
}

const char *attention_forward_check(const struct attention_forward_args *args) {
    if (!args->o || !args->q || !args->k || !args->v) return "o, q, k and v must be set";
    const char *wrong = check_core(&args->shape, args->dropout, args->dtype);
    return wrong ? wrong : check_window(&args->shape, args->window);
}

const char *attention_backward_check(const struct attention_backward_args *args) {
    if (!args->dq || !args->dk || !args->dv) return "dq, dk and dv must be set";
    if (!args->d_o || !args->o || !args->lse || !args->q || !args->k || !args->v) {
        return "d_o, o, lse, q, k and v must be set";
    }
    if (args->accumulate && !args->grads_are_f32 && args->dtype != DTYPE_F32) {
        return "only float32 gradients accumulate: set grads_are_f32";
    }
    const char *wrong = check_core(&args->shape, args->dropout, args->dtype);
    return wrong ? wrong : check_window(&args->shape, args->window);
}

const char *attention_merge_check(const struct attention_merge_args *args) {
    if (!args->o || !args->lse || !args->o_part || !args->lse_part) {
        return "o, lse, o_part and lse_part must be set";
    }
    if ((args->lse_rows && args->lse_rows < args->shape.s) ||
        (args->part_rows && args->part_rows < args->shape.s)) {
        return "lse_rows and part_rows must be at least s";
    }
    return check_shape(&args->shape, DTYPE_F32);
}

const char *attention_scores_forward_check(const struct attention_scores_forward_args *args) {
    if (!args->scores || !args->q || !args->k) return "scores, q and k must be set";
    return check_shape(&args->shape, args->dtype);
}

const char *attention_scores_backward_check(const struct attention_scores_backward_args *args) {
    if (!args->dq || !args->dk || !args->dscores || !args->q || !args->k) {
        return "dq, dk, dscores, q and k must be set";
    }
    return check_shape(&args->shape, args->dtype);
}

const char *softmax_forward_check(const struct softmax_forward_args *args) {
    if (!args->y || !args->x) return "y and x must be set";
    return check_rows(args->rows, args->cols, args->causal, args->dtype);
}

const char *softmax_backward_check(const struct softmax_backward_args *args) {
    if (!args->dx || !args->dy || !args->y) return "dx, dy and y must be set";
    return check_rows(args->rows, args->cols, args->causal, args->dtype);
}

const char *attention_context_forward_check(const struct attention_context_forward_args *args) {
    if (!args->o || !args->probs || !args->v) return "o, probs and v must be set";
    return check_shape(&args->shape, args->dtype);
}

const char *attention_context_backward_check(const struct attention_context_backward_args *args) {
    if (!args->dprobs || !args->dv || !args->d_o || !args->probs || !args->v) {
        return "dprobs, dv, d_o, probs and v must be set";
    }
    return check_shape(&args->shape, args->dtype);
}

/* ---- costs ---- */

/* Scores of one head over all batches and heads. */
static double num_scores(const struct attention_shape *shape, bool causal) {
    double s = (double)shape->s;
    return (double)shape->b * (double)shape->a * (causal ? s * (s + 1) / 2 : s * s);
}

static double q_elements(const struct attention_shape *shape) {
    return (double)shape->s * (double)shape->b * (double)shape->a * (double)shape->d;
}

static double kv_elements(const struct attention_shape *shape) {
    return (double)shape->s * (double)shape->b * (double)shape->g * (double)shape->d;
}

static double squares(const struct attention_shape *shape) {
    return (double)shape->b * (double)shape->a * (double)shape->s * (double)shape->s;
}

/* Scores of one head that the first `rows` positions from that of the first key on see: 1 + 2 + ..., and all
 * the keys from where the last key stands. */
static double triangle(double rows, double keys) {
    if (rows <= 0) return 0;
    return rows <= keys ? rows * (rows + 1) / 2 : keys * (keys + 1) / 2 + (rows - keys) * keys;
}

static double window_scores(const struct attention_shape *shape, struct attention_window window,
                            bool causal) {
    struct attention_window w = attention_window_of(shape, window);
    double heads = (double)shape->b * (double)shape->a, s = (double)shape->s, keys = (double)w.keys;
    double before = (double)(w.first_query - w.first_key);
    return heads * (causal ? triangle(before + s, keys) - triangle(before, keys) : s * keys);
}

/* Of the tensors with the head size of v: o and its gradient; k and v together. */
static double o_elements(const struct attention_shape *shape) {
    return q_elements(shape) / (double)shape->d * (double)attention_value_dim(shape);
}

static double window_kv_elements(const struct attention_shape *shape, struct attention_window window) {
    double keys = (double)attention_window_of(shape, window).keys;
    return keys * (double)shape->b * (double)shape->g * (double)(shape->d + attention_value_dim(shape));
}

/* Matrix products of `depth` multiply-adds per score, `pointwise` more operations per score. */
static struct kernel_cost cost_of_scores(double scores, int64_t depth, int pointwise, double bytes) {
    struct kernel_cost cost = {.gemm_flops = scores * 2 * (double)depth, .bytes = bytes};
    cost.flops = cost.gemm_flops + scores * pointwise;
    return cost;
}

static struct kernel_cost score_cost(const struct attention_shape *shape, bool causal, int products,
                                     int pointwise, double bytes) {
    return cost_of_scores(num_scores(shape, causal), shape->d * products, pointwise, bytes);
}

/* Per element of q and k: norm 8 operations forward and 14 backward, rotary 3; the tables are read once. */
static struct kernel_cost split_cost(const struct attention_shape *shape, const struct qkv_split_norm *norm,
                                     bool rotary, int64_t rotary_dim, enum dtype dtype, bool backward) {
    double normed = q_elements(shape) + kv_elements(shape), all = normed + kv_elements(shape);
    double heads = normed / (double)shape->d, size = (double)dtype_bytes(dtype);
    struct kernel_cost cost = {.bytes = 2 * all * size};
    if (norm->q_weight) {
        cost.flops += normed * (backward ? 14 : 8);
        cost.bytes += (2 + (norm->q_bias ? 2 : 0)) * (double)shape->d * (size + (backward ? 4 : 0));
        if (backward) cost.bytes += normed * size;
    }
    if (rotary) {
        cost.flops += heads * (double)rotary_dim * 3;
        cost.bytes += (double)shape->s * (double)rotary_dim * 4;
    }
    return cost;
}

struct kernel_cost qkv_split_forward_cost(const struct qkv_split_forward_args *args) {
    return split_cost(&args->shape, &args->norm, args->cos, args->rotary_dim, args->dtype, false);
}

struct kernel_cost qkv_split_backward_cost(const struct qkv_split_backward_args *args) {
    return split_cost(&args->shape, &args->norm, args->cos, args->rotary_dim, args->dtype, true);
}

struct kernel_cost attention_forward_cost(const struct attention_forward_args *args) {
    const struct attention_shape *shape = &args->shape;
    double size = (double)dtype_bytes(args->dtype), q = q_elements(shape);
    double bytes = (q + window_kv_elements(shape, args->window)) * size +
                   o_elements(shape) * (args->o_is_f32 ? 4 : size);
    if (args->lse) bytes += q / (double)shape->d * 4;
    double scores = window_scores(shape, args->window, args->causal);
    return cost_of_scores(scores, shape->d + attention_value_dim(shape), args->dropout > 0 ? 6 : 4, bytes);
}

struct kernel_cost attention_backward_cost(const struct attention_backward_args *args) {
    const struct attention_shape *shape = &args->shape;
    double size = (double)dtype_bytes(args->dtype), grad_size = args->grads_are_f32 ? 4 : size;
    double q = q_elements(shape), o = o_elements(shape), kv = window_kv_elements(shape, args->window);
    double bytes = (q + 2 * o + kv) * size + q / (double)shape->d * 4 +
                   (q + kv) * grad_size * (args->accumulate ? 2 : 1);
    double scores = window_scores(shape, args->window, args->causal);
    int64_t depth = 3 * shape->d + 2 * attention_value_dim(shape); /* scores, dq, dk; dprobs, dv */
    struct kernel_cost cost = cost_of_scores(scores, depth, args->dropout > 0 ? 9 : 6, bytes);
    cost.flops += 2 * o; /* sum of dO * O */
    if (args->accumulate) cost.flops += q + kv;
    return cost;
}

/* Two products and a sum for each element; two exponentials (8 each), one of them and a logarithm more for
 * lse for each row of a head. */
struct kernel_cost attention_merge_cost(const struct attention_merge_args *args) {
    double rows = q_elements(&args->shape) / (double)args->shape.d, o = o_elements(&args->shape);
    return (struct kernel_cost){.flops = args->first ? 0 : 3 * o + 32 * rows,
                                .bytes = (o + rows) * 4 * (args->first ? 2 : 3)};
}

struct kernel_cost attention_scores_forward_cost(const struct attention_scores_forward_args *args) {
    const struct attention_shape *shape = &args->shape;
    double elements = q_elements(shape) + kv_elements(shape) + num_scores(shape, args->causal);
    return score_cost(shape, args->causal, 1, 1, elements * (double)dtype_bytes(args->dtype));
}

struct kernel_cost attention_scores_backward_cost(const struct attention_scores_backward_args *args) {
    const struct attention_shape *shape = &args->shape;
    double elements = 2 * q_elements(shape) + 2 * kv_elements(shape) + num_scores(shape, args->causal);
    return score_cost(shape, args->causal, 2, 0, elements * (double)dtype_bytes(args->dtype));
}

struct kernel_cost softmax_forward_cost(const struct softmax_forward_args *args) {
    double all = (double)args->rows * (double)args->cols, cols = (double)args->cols;
    double used = args->causal ? all * (cols + 1) / (2 * cols) : all;
    return (struct kernel_cost){.flops = 5 * used, .bytes = (used + all) * (double)dtype_bytes(args->dtype)};
}

struct kernel_cost softmax_backward_cost(const struct softmax_backward_args *args) {
    double all = (double)args->rows * (double)args->cols, cols = (double)args->cols;
    double used = args->causal ? all * (cols + 1) / (2 * cols) : all;
    return (struct kernel_cost){.flops = 4 * used,
                                .bytes = (2 * used + all) * (double)dtype_bytes(args->dtype)};
}

struct kernel_cost attention_context_forward_cost(const struct attention_context_forward_args *args) {
    const struct attention_shape *shape = &args->shape;
    double elements = q_elements(shape) + kv_elements(shape) + num_scores(shape, args->causal);
    return score_cost(shape, args->causal, 1, 0, elements * (double)dtype_bytes(args->dtype));
}

struct kernel_cost attention_context_backward_cost(const struct attention_context_backward_args *args) {
    const struct attention_shape *shape = &args->shape;
    double elements = q_elements(shape) + 2 * kv_elements(shape) + num_scores(shape, args->causal) +
                      squares(shape); /* dprobs is written whole, zeros included */
    return score_cost(shape, args->causal, 2, 0, elements * (double)dtype_bytes(args->dtype));
}
