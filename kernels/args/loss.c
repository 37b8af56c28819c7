#include "kernels/kernels.h"

static const char *check_shape(int64_t rows, int64_t vocab, int64_t columns, enum dtype dtype) {
    if (rows < 0) return "rows must not be negative";
    if (vocab < 1) return "vocab must be at least 1";
    if (columns > vocab) return "columns must be at most vocab";
    if (!dtype_is_float(dtype)) return "dtype must be fp32, bf16 or fp16";
    return NULL;
}

const char *cross_entropy_forward_check(const struct cross_entropy_forward_args *args) {
    return check_shape(args->rows, args->vocab, args->columns, args->dtype);
}

/* Maximum, subtraction, exponential (8) and sum per logit; labels, mask, loss and lse per row. */
struct kernel_cost cross_entropy_forward_cost(const struct cross_entropy_forward_args *args) {
    double rows = (double)args->rows, n = rows * (double)args->vocab;
    return (struct kernel_cost){.flops = 11 * n, .bytes = n * (double)dtype_bytes(args->dtype) + 16 * rows};
}

const char *cross_entropy_combine_check(const struct cross_entropy_combine_args *args) {
    if (args->rows < 0) return "rows must not be negative";
    if (args->parts < 1) return "parts must be at least 1";
    if (args->part_stride && args->part_stride < args->rows) return "part_stride must be at least rows";
    return NULL;
}

/* Maximum, exponential and two sums per part; mask, loss and lse per row. */
struct kernel_cost cross_entropy_combine_cost(const struct cross_entropy_combine_args *args) {
    double rows = (double)args->rows, n = rows * (double)args->parts;
    return (struct kernel_cost){.flops = 12 * n, .bytes = 8 * n + 12 * rows};
}

const char *cross_entropy_backward_check(const struct cross_entropy_backward_args *args) {
    return check_shape(args->rows, args->vocab, args->columns, args->dtype);
}

struct kernel_cost cross_entropy_backward_cost(const struct cross_entropy_backward_args *args) {
    double rows = (double)args->rows, n = rows * (double)args->vocab;
    return (struct kernel_cost){.flops = 10 * n,
                                .bytes = 2 * n * (double)dtype_bytes(args->dtype) + 12 * rows};
}
