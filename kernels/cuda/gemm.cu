/* Dense products by cuBLASLt. It counts columns first: a row-major C = A B is its C^T = B^T A^T. */
#include "kernels/cuda/cuda.cuh"
extern "C" {
#include "kernels/cuda/matmul.h"
}

enum { THREADS = 256 };

/* c[m, n] = (c) + bias: what is left when cuBLASLt has no such bias, or nothing is summed. */
template <typename T, typename C>
static __global__ void __launch_bounds__(THREADS)
    bias_kernel(C *c, const T *bias, int64_t m, int64_t n, int64_t ldc, bool add) {
    const int64_t at = (int64_t)blockIdx.x * THREADS + threadIdx.x, row = at / n, col = at % n;
    if (row >= m) return;
    float value = add ? to_f32(c[row * ldc + col]) : 0.0f;
    if (bias) value += to_f32(bias[col]);
    from_f32(&c[row * ldc + col], value);
}

template <typename T, typename C>
static void add_bias(const struct stream *stream, const gemm_args &a, int64_t ldc, bool add) {
    CUDA_LAUNCH((bias_kernel<T, C>), cuda_blocks(a.m * a.n, THREADS, 1), THREADS, 0, cuda_stream(stream),
                static_cast<C *>(a.c), static_cast<const T *>(a.bias), a.m, a.n, ldc, add);
}

static void add_bias_of(const struct stream *stream, const gemm_args &a, int64_t ldc, bool add) {
    if (a.c_dtype == a.dtype) {
        BY_DTYPE(a.dtype, T, (add_bias<T, T>(stream, a, ldc, add)))
    } else {
        BY_DTYPE(a.dtype, T, (add_bias<T, float>(stream, a, ldc, add)))
    }
}

size_t cuda_gemm_workspace(const struct stream *, const struct gemm_args *args) {
    return args->m && args->n && args->k ? matmul_workspace_bytes() : 0;
}

void cuda_gemm(const struct stream *stream, const struct gemm_args *args) {
    const gemm_args &a = *args;
    const int64_t ldc = a.ldc ? a.ldc : a.n;
    const bool fused = a.c_dtype == a.dtype;
    struct matmul p = {};
    CHECK(!a.b_packed, "CUDA multiplies by plain matrices");
    if (!a.m || !a.n) return;
    if (a.k == 0) {
        add_bias_of(stream, a, ldc, a.accumulate);
        return;
    }
    p.d = a.c, p.a = a.b, p.b = a.a;
    p.bias = fused ? a.bias : nullptr;
    p.m = a.n, p.n = a.m, p.k = a.k;
    p.lda = a.ldb ? a.ldb : a.trans_b ? a.k : a.n, p.ldb = a.lda ? a.lda : a.trans_a ? a.m : a.k, p.ldd = ldc;
    p.trans_a = a.trans_b, p.trans_b = a.trans_a, p.accumulate = a.accumulate;
    p.dtype = a.dtype, p.d_dtype = a.c_dtype;
    p.alpha = a.alpha != 0 ? a.alpha : 1.0f;
    matmul_launch(stream, &p);
    if (a.bias && !fused) add_bias_of(stream, a, ldc, true);
}
