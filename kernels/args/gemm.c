#include "kernels/kernels.h"

static bool is_float(enum dtype dtype) {
    return dtype == DTYPE_F32 || dtype == DTYPE_BF16 || dtype == DTYPE_F16;
}

static bool stride_fits(int64_t ld, int64_t columns) {
    return ld == 0 || ld >= columns;
}

const char *gemm_check(const struct gemm_args *args) {
    if (args->m < 0 || args->n < 0 || args->k < 0) return "m, n and k must not be negative";
    if (!is_float(args->dtype)) return "dtype must be fp32, bf16 or fp16";
    if (args->c_dtype != args->dtype && args->c_dtype != DTYPE_F32) return "c_dtype must be dtype or fp32";
    if (!stride_fits(args->lda, args->trans_a ? args->m : args->k)) return "lda is shorter than a row of A";
    if (!args->b_packed && !stride_fits(args->ldb, args->trans_b ? args->k : args->n))
        return "ldb is shorter than a row of B";
    if (!stride_fits(args->ldc, args->n)) return "ldc is shorter than a row of C";
    if (args->alpha != args->alpha) return "alpha is not a number";
    return NULL;
}

struct kernel_cost gemm_cost(const struct gemm_args *args) {
    double m = (double)args->m, n = (double)args->n, k = (double)args->k;
    double element = (double)dtype_bytes(args->dtype), c_element = (double)dtype_bytes(args->c_dtype);
    double products = 2 * m * n * k;
    return (struct kernel_cost){
        .flops = products + (args->bias ? m * n : 0) + (args->accumulate ? m * n : 0),
        .gemm_flops = products,
        .bytes =
            (m * k + k * n + (args->bias ? n : 0)) * element + m * n * c_element * (args->accumulate ? 2 : 1),
    };
}

const char *gemm_pack_check(const struct gemm_pack_args *args) {
    if (args->k < 0 || args->n < 0) return "k and n must not be negative";
    if (!is_float(args->dtype)) return "dtype must be fp32, bf16 or fp16";
    if (args->src_dtype != args->dtype && args->src_dtype != DTYPE_F32)
        return "src_dtype must be dtype or fp32";
    if (!stride_fits(args->ld, args->trans ? args->k : args->n))
        return "ld is shorter than a row of the source";
    return NULL;
}

struct kernel_cost gemm_pack_cost(const struct gemm_pack_args *args) {
    double elements = (double)args->k * (double)args->n;
    return (struct kernel_cost){.bytes = elements *
                                         (double)(dtype_bytes(args->src_dtype) + dtype_bytes(args->dtype))};
}

const char *bias_backward_check(const struct bias_backward_args *args) {
    if (args->rows < 0 || args->cols < 0) return "rows and cols must not be negative";
    if (!is_float(args->dtype)) return "dtype must be fp32, bf16 or fp16";
    return NULL;
}

struct kernel_cost bias_backward_cost(const struct bias_backward_args *args) {
    double rows = (double)args->rows, cols = (double)args->cols;
    return (struct kernel_cost){
        .flops = rows * cols,
        .bytes = rows * cols * (double)dtype_bytes(args->dtype) + 4 * cols * (args->accumulate ? 2 : 1),
    };
}
