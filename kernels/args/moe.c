#include "kernels/kernels.h"

/* ---- routing ---- */
static const char *check_shape(const struct router_shape *s) {
    if (s->tokens < 0) return "tokens must not be negative";
    if (s->experts < 1 || s->experts > ROUTER_MAX_EXPERTS) return "experts must be from 1 to 1024";
    if (s->topk < 1 || s->topk > s->experts || s->topk > ROUTER_MAX_TOPK)
        return "topk must be from 1 to experts, and at most 64";
    if (s->count_sets < 1 || s->tokens % s->count_sets) return "count_sets must divide tokens";
    if (s->capacity < 0 || s->capacity > s->tokens) return "capacity must be from 0 to tokens";
    if (s->pads && !s->capacity) return "padding needs a capacity";
    if (!s->group_count) return NULL;
    if (s->experts % s->group_count) return "group_count must divide experts";
    if (s->group_topk < 1 || s->group_topk > s->group_count || s->topk % s->group_topk)
        return "group_topk must be at most group_count and divide topk";
    if (s->topk / s->group_topk > s->experts / s->group_count)
        return "a group has fewer experts than are taken from it";
    return NULL;
}

const char *route_forward_check(const struct route_forward_args *args) {
    if (args->bias && args->shape.score == ROUTER_SOFTMAX) return "a bias needs scores that are no softmax";
    return check_shape(&args->shape);
}

/* An exponential counts as 8; the selection is comparisons. */
struct kernel_cost route_forward_cost(const struct route_forward_args *args) {
    const struct router_shape *s = &args->shape;
    double n = (double)s->tokens * (double)s->experts, slots = (double)s->tokens * (double)s->topk;
    return (struct kernel_cost){.flops = n * (double)(10 + s->topk), .bytes = 4 * (n + 4 * slots)};
}

const char *route_losses_check(const struct route_losses_args *args) {
    return check_shape(&args->shape);
}

struct kernel_cost route_losses_cost(const struct route_losses_args *args) {
    double n = (double)args->shape.tokens * (double)args->shape.experts;
    return (struct kernel_cost){.flops = 20 * n, .bytes = 4 * n};
}

const char *router_jitter_check(const struct router_jitter_args *args) {
    if (args->n < 0) return "n must not be negative";
    if (!(args->eps >= 0 && args->eps < 1)) return "eps must be from 0 to below 1";
    if (!dtype_is_float(args->dtype)) return "dtype must be fp32, bf16 or fp16";
    return NULL;
}

/* A random number is counted as in dropout_cost. */
struct kernel_cost router_jitter_cost(const struct router_jitter_args *args) {
    double n = (double)args->n;
    return (struct kernel_cost){.flops = (args->accumulate ? 4 : 3) * n,
                                .bytes = (args->accumulate ? 3 : 2) * n * (double)dtype_bytes(args->dtype)};
}

const char *route_backward_check(const struct route_backward_args *args) {
    return check_shape(&args->shape);
}

struct kernel_cost route_backward_cost(const struct route_backward_args *args) {
    const struct router_shape *s = &args->shape;
    double n = (double)s->tokens * (double)s->experts, slots = (double)s->tokens * (double)s->topk;
    return (struct kernel_cost){.flops = 16 * n, .bytes = 4 * (2 * n + 2 * slots)};
}

const char *router_backward_check(const struct router_backward_args *args) {
    if (args->tokens < 0) return "tokens must not be negative";
    if (args->experts < 1 || args->hidden < 1) return "experts and hidden must be at least 1";
    if (args->experts > ROUTER_MAX_EXPERTS) return "experts must be at most 1024";
    if (!dtype_is_float(args->dtype)) return "dtype must be fp32, bf16 or fp16";
    return NULL;
}

struct kernel_cost router_backward_cost(const struct router_backward_args *args) {
    double t = (double)args->tokens, e = (double)args->experts, h = (double)args->hidden;
    double size = (double)dtype_bytes(args->dtype);
    return (struct kernel_cost){.flops = 4 * t * e * h,
                                .gemm_flops = 4 * t * e * h,
                                .bytes = size * (t * h * (args->accumulate_dx ? 3 : 2) + e * h) + 8 * t * e +
                                         4 * e * h * (args->accumulate_dweight ? 2 : 1)};
}

/* ---- rows ---- */
static const char *check_rows(int64_t rows, int64_t cols, enum dtype dtype) {
    if (rows < 0) return "rows must not be negative";
    if (cols < 1) return "cols must be at least 1";
    if (!dtype_is_float(dtype)) return "dtype must be fp32, bf16 or fp16";
    return NULL;
}

const char *gather_rows_check(const struct gather_rows_args *args) {
    if (args->divisor < 1) return "divisor must be at least 1";
    return check_rows(args->rows, args->cols, args->dtype);
}

struct kernel_cost gather_rows_cost(const struct gather_rows_args *args) {
    double n = (double)args->rows * (double)args->cols;
    return (struct kernel_cost){.bytes = 2 * n * (double)dtype_bytes(args->dtype) + 4 * (double)args->rows};
}

const char *combine_rows_check(const struct combine_rows_args *args) {
    if (args->fan < 1) return "fan must be at least 1";
    return check_rows(args->rows, args->cols, args->dtype);
}

struct kernel_cost combine_rows_cost(const struct combine_rows_args *args) {
    double n = (double)args->rows * (double)args->cols, fan = (double)args->fan;
    double moved = fan + 1 + (args->accumulate ? 1 : 0);
    return (struct kernel_cost){.flops = n * fan,
                                .bytes = n * moved * (double)dtype_bytes(args->dtype) +
                                         4 * fan * (double)args->rows};
}

/* ---- activation and gate ---- */
const char *scaled_activation_forward_check(const struct scaled_activation_forward_args *args) {
    if ((unsigned)args->kind >= ACTIVATION_COUNT) return "unknown activation";
    return check_rows(args->rows, args->cols, args->dtype);
}

struct kernel_cost scaled_activation_forward_cost(const struct scaled_activation_forward_args *args) {
    int64_t rows = args->expected ? args->expected : args->rows;
    struct activation_forward_args plain = {
        .rows = rows, .cols = args->cols, .kind = args->kind, .dtype = args->dtype};
    struct kernel_cost cost = activation_forward_cost(&plain);
    cost.flops += (double)rows * (double)args->cols;
    cost.bytes += 8 * (double)rows;
    return cost;
}

const char *scaled_activation_backward_check(const struct scaled_activation_backward_args *args) {
    if (args->dx && args->dx == args->dy) return "dx may not alias dy";
    if ((unsigned)args->kind >= ACTIVATION_COUNT) return "unknown activation";
    return check_rows(args->rows, args->cols, args->dtype);
}

struct kernel_cost scaled_activation_backward_cost(const struct scaled_activation_backward_args *args) {
    int64_t rows = args->expected ? args->expected : args->rows;
    struct activation_backward_args plain = {
        .rows = rows, .cols = args->cols, .kind = args->kind, .dtype = args->dtype};
    struct kernel_cost cost = activation_backward_cost(&plain);
    cost.flops += 3 * (double)rows * (double)args->cols;
    cost.bytes += 12 * (double)rows;
    return cost;
}

const char *gate_forward_check(const struct gate_forward_args *args) {
    return check_rows(args->rows, args->cols, args->dtype);
}

struct kernel_cost gate_forward_cost(const struct gate_forward_args *args) {
    double n = (double)args->rows * (double)args->cols;
    return (struct kernel_cost){.flops = n, .bytes = 2 * n * (double)dtype_bytes(args->dtype)};
}

const char *gate_backward_check(const struct gate_backward_args *args) {
    return check_rows(args->rows, args->cols, args->dtype);
}

struct kernel_cost gate_backward_cost(const struct gate_backward_args *args) {
    double n = (double)args->rows * (double)args->cols;
    return (struct kernel_cost){.flops = 3 * n, .bytes = 3 * n * (double)dtype_bytes(args->dtype)};
}

/* ---- products ---- */
const char *grouped_gemm_check(const struct grouped_gemm_args *args) {
    if (args->groups < 1) return "groups must be at least 1";
    if (args->rows < 0 || args->n < 1 || args->k < 1) return "rows, n and k must not be negative";
    if (!dtype_is_float(args->dtype)) return "dtype must be fp32, bf16 or fp16";
    if (args->c_dtype != args->dtype && args->c_dtype != DTYPE_F32) return "c_dtype must be dtype or fp32";
    if (args->sums_rows && args->c_dtype != DTYPE_F32) return "a weight gradient is fp32";
    if (args->sums_rows && (args->trans_b || args->b_packed)) return "a weight gradient reads plain rows";
    return NULL;
}

struct kernel_cost grouped_gemm_cost(const struct grouped_gemm_args *args) {
    double rows = (double)(args->expected ? args->expected : args->rows), n = (double)args->n;
    double k = (double)args->k, g = (double)args->groups;
    double size = (double)dtype_bytes(args->dtype), c_size = (double)dtype_bytes(args->c_dtype);
    double products = 2 * rows * n * k, twice = args->accumulate ? 2 : 1;
    double bytes = args->sums_rows ? size * rows * (n + k) + c_size * g * n * k * twice
                                   : size * (rows * k + g * n * k) + c_size * rows * n * twice;
    return (struct kernel_cost){.flops = products, .gemm_flops = products, .bytes = bytes};
}
