#include "kernels/kernels.h"

/* ---- activations ---- */
static const char *check_activation(int64_t rows, int64_t cols, enum activation kind, enum dtype dtype) {
    if (rows < 0) return "rows must not be negative";
    if (cols < 1) return "cols must be at least 1";
    if ((unsigned)kind >= ACTIVATION_COUNT) return "unknown activation";
    if (!dtype_is_float(dtype)) return "dtype must be fp32, bf16 or fp16";
    return NULL;
}

const char *activation_forward_check(const struct activation_forward_args *args) {
    return check_activation(args->rows, args->cols, args->kind, args->dtype);
}

/* Operations per output element; an exponential or error function counts as 8. */
static double activation_flops(enum activation kind) {
    static const double flops[ACTIVATION_COUNT] = {
        [ACTIVATION_GELU_TANH] = 16, [ACTIVATION_GELU_ERF] = 12,    [ACTIVATION_SQUARED_RELU] = 2,
        [ACTIVATION_SWIGLU] = 12,    [ACTIVATION_GEGLU_QUICK] = 13, [ACTIVATION_GEGLU] = 13,
    };
    return flops[kind];
}

struct kernel_cost activation_forward_cost(const struct activation_forward_args *args) {
    double n = (double)args->rows * (double)args->cols, in = activation_is_gated(args->kind) ? 2 : 1;
    return (struct kernel_cost){.flops = n * activation_flops(args->kind),
                                .bytes = n * (in + 1) * (double)dtype_bytes(args->dtype)};
}

const char *activation_backward_check(const struct activation_backward_args *args) {
    if (args->dx && args->dx == args->dy && activation_is_gated(args->kind))
        return "dx may not alias dy for a gated activation";
    return check_activation(args->rows, args->cols, args->kind, args->dtype);
}

struct kernel_cost activation_backward_cost(const struct activation_backward_args *args) {
    double n = (double)args->rows * (double)args->cols, in = activation_is_gated(args->kind) ? 2 : 1;
    return (struct kernel_cost){.flops = n * (activation_flops(args->kind) + 6 * in),
                                .bytes = n * (2 * in + 1) * (double)dtype_bytes(args->dtype)};
}

/* ---- dropout and residual ---- */
static const char *check_dropout(int64_t n, float p, enum dtype dtype) {
    if (n < 0) return "n must not be negative";
    if (!(p >= 0 && p < 1)) return "the dropout probability must be at least 0 and below 1";
    if (!dtype_is_float(dtype)) return "dtype must be fp32, bf16 or fp16";
    return NULL;
}

const char *dropout_check(const struct dropout_args *args) {
    return check_dropout(args->n, args->p, args->dtype);
}

/* The random words are integer work and not counted. */
struct kernel_cost dropout_cost(const struct dropout_args *args) {
    double n = (double)args->n;
    return (struct kernel_cost){.flops = args->p > 0 ? n : 0,
                                .bytes = 2 * n * (double)dtype_bytes(args->dtype)};
}

const char *residual_forward_check(const struct residual_forward_args *args) {
    return check_dropout(args->n, args->p, args->dtype);
}

struct kernel_cost residual_forward_cost(const struct residual_forward_args *args) {
    double n = (double)args->n;
    return (struct kernel_cost){.flops = args->p > 0 ? 2 * n : n,
                                .bytes = 3 * n * (double)dtype_bytes(args->dtype)};
}

const char *residual_backward_check(const struct residual_backward_args *args) {
    if (args->dx && args->dx == args->dy && (args->p > 0 || args->accumulate_dx))
        return "dx may alias dy only when it is a plain copy (p == 0, no accumulate)";
    if (args->dresidual && args->dresidual == args->dy && args->accumulate_dresidual)
        return "dresidual may alias dy only when it is a plain copy (no accumulate)";
    if (args->dx && args->dx == args->dresidual && args->dx != args->dy)
        return "dx and dresidual must be different buffers";
    return check_dropout(args->n, args->p, args->dtype);
}

/* An output that is skipped, or is dy itself, moves no bytes. */
struct kernel_cost residual_backward_cost(const struct residual_backward_args *args) {
    double n = (double)args->n, size = (double)dtype_bytes(args->dtype), flops = 0, moved = 0;
    if (args->dx && args->dx != args->dy) {
        moved += args->accumulate_dx ? 2 : 1;
        flops += (args->p > 0 ? 1 : 0) + (args->accumulate_dx ? 1 : 0);
    }
    if (args->dresidual && args->dresidual != args->dy) {
        moved += args->accumulate_dresidual ? 2 : 1;
        flops += args->accumulate_dresidual ? 1 : 0;
    }
    return (struct kernel_cost){.flops = flops * n, .bytes = moved > 0 ? (moved + 1) * n * size : 0};
}

/* ---- cast, add, fill ---- */
const char *cast_check(const struct cast_args *args) {
    if (args->n < 0) return "n must not be negative";
    if (!dtype_is_float(args->dst_dtype) || !dtype_is_float(args->src_dtype))
        return "dtypes must be fp32, bf16 or fp16";
    if (args->dst && args->dst == args->src && dtype_bytes(args->dst_dtype) != dtype_bytes(args->src_dtype))
        return "a cast in place needs dtypes of one size";
    return NULL;
}

struct kernel_cost cast_cost(const struct cast_args *args) {
    return (struct kernel_cost){
        .bytes = (double)args->n * (double)(dtype_bytes(args->dst_dtype) + dtype_bytes(args->src_dtype))};
}

const char *add_check(const struct add_args *args) {
    if (args->n < 0) return "n must not be negative";
    if (!dtype_is_float(args->dtype)) return "dtype must be fp32, bf16 or fp16";
    return NULL;
}

struct kernel_cost add_cost(const struct add_args *args) {
    double n = (double)args->n;
    return (struct kernel_cost){.flops = n, .bytes = 3 * n * (double)dtype_bytes(args->dtype)};
}

const char *fill_check(const struct fill_args *args) {
    if (args->n < 0) return "n must not be negative";
    if ((unsigned)args->dtype >= DTYPE_COUNT) return "unknown dtype";
    return NULL;
}

struct kernel_cost fill_cost(const struct fill_args *args) {
    return (struct kernel_cost){.bytes = (double)args->n * (double)dtype_bytes(args->dtype)};
}

const char *copy_blocks_check(const struct copy_blocks_args *args) {
    if (args->n0 < 0 || args->n1 < 0 || args->n2 < 0) return "n0, n1 and n2 must not be negative";
    if ((unsigned)args->dtype >= DTYPE_COUNT) return "unknown dtype";
    return NULL;
}

struct kernel_cost copy_blocks_cost(const struct copy_blocks_args *args) {
    double n = (double)args->n0 * (double)args->n1 * (double)args->n2;
    return (struct kernel_cost){.bytes = 2 * n * (double)dtype_bytes(args->dtype)};
}
