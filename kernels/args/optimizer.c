#include "kernels/kernels.h"

const char *adamw_check(const struct adamw_args *args) {
    if (args->n < 0) return "n must not be negative";
    if (!(args->beta1 >= 0 && args->beta1 < 1 && args->beta2 >= 0 && args->beta2 < 1))
        return "beta1 and beta2 must be at least 0 and below 1";
    if (!(args->bias_correction1 > 0 && args->bias_correction2 > 0))
        return "bias corrections must be above 0 (1 - beta^step, step counts from 1)";
    if (args->model && args->model_dtype != DTYPE_BF16 && args->model_dtype != DTYPE_F16)
        return "the model copy must be bf16 or fp16";
    return NULL;
}

struct kernel_cost adamw_cost(const struct adamw_args *args) {
    double n = (double)args->n;
    return (struct kernel_cost){.flops = 16 * n, .bytes = n * (7 * 4 + (args->model ? 2 : 0))};
}

const char *sum_squares_check(const struct sum_squares_args *args) {
    if (args->n < 0) return "n must not be negative";
    if (!dtype_is_float(args->dtype)) return "dtype must be fp32, bf16 or fp16";
    return NULL;
}

struct kernel_cost sum_squares_cost(const struct sum_squares_args *args) {
    double n = (double)args->n;
    return (struct kernel_cost){.flops = 2 * n, .bytes = n * (double)dtype_bytes(args->dtype)};
}

const char *normal_init_check(const struct normal_init_args *args) {
    if (args->n < 0) return "n must not be negative";
    if (!(args->std >= 0)) return "std must not be negative";
    return NULL;
}

struct kernel_cost normal_init_cost(const struct normal_init_args *args) {
    double n = (double)args->n;
    return (struct kernel_cost){.flops = 12 * n, .bytes = 4 * n};
}
