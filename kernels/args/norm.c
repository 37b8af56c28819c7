#include "kernels/kernels.h"

static const char *check_shape(int64_t rows, int64_t cols, float epsilon, enum dtype dtype) {
    if (rows < 0) return "rows must not be negative";
    if (cols < 1) return "cols must be at least 1";
    if (!(epsilon >= 0)) return "epsilon must not be negative";
    if (!dtype_is_float(dtype)) return "dtype must be fp32, bf16 or fp16";
    return NULL;
}

const char *norm_forward_check(const struct norm_forward_args *args) {
    if (args->rms && args->bias) return "RMSNorm has no bias";
    return check_shape(args->rows, args->cols, args->epsilon, args->dtype);
}

/* RMSNorm: square, add, scale, weight. LayerNorm adds the mean's sum, the subtraction and the bias. */
struct kernel_cost norm_forward_cost(const struct norm_forward_args *args) {
    double n = (double)args->rows * (double)args->cols, size = (double)dtype_bytes(args->dtype);
    double params = (double)args->cols * (args->rms ? 1 : 2);
    return (struct kernel_cost){.flops = n * (args->rms ? 4 : 7), .bytes = size * (2 * n + params)};
}

const char *norm_backward_check(const struct norm_backward_args *args) {
    if (args->rms && args->dbias) return "RMSNorm has no bias";
    return check_shape(args->rows, args->cols, args->epsilon, args->dtype);
}

struct kernel_cost norm_backward_cost(const struct norm_backward_args *args) {
    double n = (double)args->rows * (double)args->cols, size = (double)dtype_bytes(args->dtype);
    double cols = (double)args->cols, params = cols * (args->rms ? 1 : 2);
    double bytes = size * (n * (args->accumulate_dx ? 4 : 3) + cols);
    bytes += 4 * params * (args->accumulate_params ? 2 : 1);
    return (struct kernel_cost){.flops = n * (args->rms ? 11 : 16), .bytes = bytes};
}
