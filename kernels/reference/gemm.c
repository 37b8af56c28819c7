/* Plain loops, double accumulation, one rounding when a value is stored. The packed form of this backend is
 * the plain matrix op(B)[k, n] in `dtype`. */
#include "kernels/kernels.h"

void reference_gemm(const struct stream *stream, const struct gemm_args *args);
void reference_gemm_pack(const struct stream *stream, const struct gemm_pack_args *args);
void reference_bias_backward(const struct stream *stream, const struct bias_backward_args *args);

/* Element [row, column] of op(X), where X has row stride ld. */
static int64_t at(bool trans, int64_t ld, int64_t row, int64_t column) {
    return trans ? column * ld + row : row * ld + column;
}

static int64_t stride_or(int64_t ld, int64_t dense) {
    return ld ? ld : dense;
}

void reference_gemm(const struct stream *stream, const struct gemm_args *args) {
    (void)stream;
    bool trans_b = args->trans_b && !args->b_packed;
    int64_t lda = stride_or(args->lda, args->trans_a ? args->m : args->k);
    int64_t ldb = args->b_packed ? args->n : stride_or(args->ldb, trans_b ? args->k : args->n);
    int64_t ldc = stride_or(args->ldc, args->n);
    double alpha = args->alpha != 0 ? (double)args->alpha : 1;
    for (int64_t i = 0; i < args->m; i++) {
        for (int64_t j = 0; j < args->n; j++) {
            double sum = 0;
            for (int64_t p = 0; p < args->k; p++)
                sum += (double)load_f32(args->a, args->dtype, at(args->trans_a, lda, i, p)) *
                       (double)load_f32(args->b, args->dtype, at(trans_b, ldb, p, j));
            sum *= alpha;
            if (args->bias) sum += (double)load_f32(args->bias, args->dtype, j);
            if (args->accumulate) sum += (double)load_f32(args->c, args->c_dtype, i * ldc + j);
            store_f32(args->c, args->c_dtype, i * ldc + j, (float)sum);
        }
    }
}

void reference_gemm_pack(const struct stream *stream, const struct gemm_pack_args *args) {
    (void)stream;
    int64_t ld = stride_or(args->ld, args->trans ? args->k : args->n);
    for (int64_t p = 0; p < args->k; p++)
        for (int64_t j = 0; j < args->n; j++)
            store_f32(args->dst, args->dtype, p * args->n + j,
                      load_f32(args->src, args->src_dtype, at(args->trans, ld, p, j)));
}

void reference_bias_backward(const struct stream *stream, const struct bias_backward_args *args) {
    (void)stream;
    for (int64_t j = 0; j < args->cols; j++) {
        double sum = args->accumulate ? (double)args->dbias[j] : 0;
        for (int64_t i = 0; i < args->rows; i++)
            sum += (double)load_f32(args->dy, args->dtype, i * args->cols + j);
        args->dbias[j] = (float)sum;
    }
}
