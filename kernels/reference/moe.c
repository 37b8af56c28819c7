/* Dispatch and the experts' products in plain loops. */
#include "kernels/reference/reference.h"
#include <math.h>

void reference_router_backward(const struct stream *stream, const struct router_backward_args *args) {
    (void)stream;
    const struct router_backward_args a = *args;
    for (int64_t t = 0; t < a.tokens; t++)
        for (int64_t i = 0; i < a.hidden; i++) {
            double sum = a.accumulate_dx ? (double)load_f32(a.dx, a.dtype, t * a.hidden + i) : 0;
            for (int64_t e = 0; e < a.experts; e++)
                sum += (double)a.dlogits[t * a.experts + e] *
                       (double)load_f32(a.weight, a.dtype, e * a.hidden + i);
            store_f32(a.dx, a.dtype, t * a.hidden + i, (float)sum);
        }
    for (int64_t e = 0; e < a.experts; e++)
        for (int64_t i = 0; i < a.hidden; i++) {
            double sum = a.accumulate_dweight ? (double)a.dweight[e * a.hidden + i] : 0;
            for (int64_t t = 0; t < a.tokens; t++)
                sum +=
                    (double)a.dlogits[t * a.experts + e] * (double)load_f32(a.x, a.dtype, t * a.hidden + i);
            a.dweight[e * a.hidden + i] = (float)sum;
        }
}

void reference_gather_rows(const struct stream *stream, const struct gather_rows_args *args) {
    (void)stream;
    for (int64_t i = 0; i < args->rows; i++)
        for (int64_t j = 0; j < args->cols; j++) {
            int64_t from = args->index[i] / args->divisor * args->cols + j;
            float value = args->index[i] < 0 ? 0 : load_f32(args->x, args->dtype, from);
            store_f32(args->y, args->dtype, i * args->cols + j, value);
        }
}

void reference_combine_rows(const struct stream *stream, const struct combine_rows_args *args) {
    (void)stream;
    for (int64_t i = 0; i < args->rows; i++)
        for (int64_t j = 0; j < args->cols; j++) {
            double sum = args->accumulate ? (double)load_f32(args->y, args->dtype, i * args->cols + j) : 0;
            for (int64_t k = 0; k < args->fan; k++) {
                int64_t row = args->index[i * args->fan + k];
                if (row >= 0) sum += (double)load_f32(args->x, args->dtype, row * args->cols + j);
            }
            store_f32(args->y, args->dtype, i * args->cols + j, (float)sum);
        }
}

void reference_gate_forward(const struct stream *stream, const struct gate_forward_args *args) {
    (void)stream;
    for (int64_t i = 0; i < args->rows; i++) {
        double open = 1 / (1 + exp(-(double)load_f32(args->g, args->dtype, i)));
        for (int64_t j = i * args->cols; j < (i + 1) * args->cols; j++)
            store_f32(args->y, args->dtype, j, (float)(open * (double)load_f32(args->x, args->dtype, j)));
    }
}

void reference_gate_backward(const struct stream *stream, const struct gate_backward_args *args) {
    (void)stream;
    for (int64_t i = 0; i < args->rows; i++) {
        double open = 1 / (1 + exp(-(double)load_f32(args->g, args->dtype, i))), sum = 0;
        for (int64_t j = i * args->cols; j < (i + 1) * args->cols; j++) {
            double dy = (double)load_f32(args->dy, args->dtype, j);
            sum += dy * (double)load_f32(args->x, args->dtype, j);
            store_f32(args->dx, args->dtype, j, (float)(open * dy));
        }
        store_f32(args->dg, args->dtype, i, (float)(sum * open * (1 - open)));
    }
}

void reference_grouped_gemm(const struct stream *stream, const struct grouped_gemm_args *args) {
    size_t size = dtype_bytes(args->dtype), c_size = dtype_bytes(args->c_dtype);
    int64_t matrix = args->n * args->k;
    for (int64_t g = 0; g < args->groups; g++) {
        int64_t first = args->offsets[g], rows = args->offsets[g + 1] - first;
        struct gemm_args gemm = {
            .dtype = args->dtype, .c_dtype = args->c_dtype, .accumulate = args->accumulate};
        if (args->sums_rows) {
            gemm.c = (char *)args->c + (size_t)(g * matrix) * c_size;
            gemm.a = (const char *)args->a + (size_t)(first * args->n) * size;
            gemm.b = (const char *)args->b + (size_t)(first * args->k) * size;
            gemm.trans_a = true;
            gemm.m = args->n, gemm.n = args->k, gemm.k = rows;
        } else {
            gemm.c = (char *)args->c + (size_t)(first * args->n) * c_size;
            gemm.a = (const char *)args->a + (size_t)(first * args->k) * size;
            gemm.b = (const char *)args->b + (size_t)(g * matrix) * size;
            gemm.trans_b = args->trans_b;
            gemm.b_packed = args->b_packed; /* the plain matrix here, see gemm.c */
            gemm.m = rows, gemm.n = args->n, gemm.k = args->k;
        }
        reference_gemm(stream, &gemm);
    }
}
