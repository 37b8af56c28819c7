/* matmul.h by cuBLASLt: float32 sums, no TF32. The first heuristic that fits the workspace is kept per shape,
 * so that a shape has the same algorithm, and so the same bits, all through the run. Not part of the
 * emulation. */
#ifndef CUDA_EMULATION
#include "kernels/cuda/cuda.cuh"
#include <cublasLt.h>
extern "C" {
#include "kernels/cuda/matmul.h"
}

enum { WORKSPACE = 32 << 20, KEPT = 512 };

static void must(cublasStatus_t status, const char *what) {
    CHECK(status == CUBLAS_STATUS_SUCCESS, "cuBLASLt: %s: %s", what, cublasLtGetStatusString(status));
}

static cublasLtHandle_t handle(void) {
    static cublasLtHandle_t the_handle;
    if (!the_handle) must(cublasLtCreate(&the_handle), "cublasLtCreate");
    return the_handle;
}

static cudaDataType_t type_of(enum dtype dtype) {
    return dtype == DTYPE_BF16 ? CUDA_R_16BF : dtype == DTYPE_F16 ? CUDA_R_16F : CUDA_R_32F;
}

size_t matmul_workspace_bytes(void) {
    return WORKSPACE;
}

/* Largest power of two, up to 256, that the address is a multiple of. */
static uint32_t alignment_of(const void *p) {
    const uintptr_t bits = reinterpret_cast<uintptr_t>(p) | 256;
    return (uint32_t)(bits & (~bits + 1));
}

/* What an algorithm was picked for. */
struct shape {
    int64_t m, n, k, lda, ldb, ldd;
    uint32_t align_a, align_b, align_d, flags;
};

static struct kept {
    shape of;
    cublasLtMatmulAlgo_t algorithm;
    bool used;
} kept_algorithms[KEPT];

static shape shape_of(const matmul &p) {
    const shape s = {p.m,
                     p.n,
                     p.k,
                     p.lda,
                     p.ldb,
                     p.ldd,
                     alignment_of(p.a),
                     alignment_of(p.b),
                     alignment_of(p.d),
                     (uint32_t)p.trans_a | (uint32_t)p.trans_b << 1 | (uint32_t)p.accumulate << 2 |
                         (uint32_t)(p.bias != nullptr) << 3 | (uint32_t)p.dtype << 4 |
                         (uint32_t)p.d_dtype << 8};
    return s;
}

/* The entry of this shape, or the one to fill; a full table forgets what lies there. */
static kept *entry_of(const shape &s) {
    uint64_t hash = 14695981039346656037u;
    const unsigned char *bytes = reinterpret_cast<const unsigned char *>(&s);
    for (size_t i = 0; i < sizeof(s); i++) hash = (hash ^ bytes[i]) * 1099511628211u;
    for (uint64_t i = 0; i < 8; i++) {
        kept *e = &kept_algorithms[(hash + i) % KEPT];
        if (!e->used || !memcmp(&e->of, &s, sizeof(s))) return e;
    }
    kept_algorithms[hash % KEPT].used = false;
    return &kept_algorithms[hash % KEPT];
}

struct layouts {
    cublasLtMatmulDescOpaque_t work;
    cublasLtMatrixLayoutOpaque_t a, b, d;
};

static void describe(layouts *l, const matmul &p) {
    const cublasOperation_t op_a = p.trans_a ? CUBLAS_OP_T : CUBLAS_OP_N,
                            op_b = p.trans_b ? CUBLAS_OP_T : CUBLAS_OP_N;
    must(cublasLtMatmulDescInit(&l->work, CUBLAS_COMPUTE_32F, CUDA_R_32F), "describe the product");
    must(cublasLtMatmulDescSetAttribute(&l->work, CUBLASLT_MATMUL_DESC_TRANSA, &op_a, sizeof(op_a)),
         "transpose A");
    must(cublasLtMatmulDescSetAttribute(&l->work, CUBLASLT_MATMUL_DESC_TRANSB, &op_b, sizeof(op_b)),
         "transpose B");
    if (p.bias) {
        const cublasLtEpilogue_t epilogue = CUBLASLT_EPILOGUE_BIAS;
        must(cublasLtMatmulDescSetAttribute(&l->work, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue,
                                            sizeof(epilogue)),
             "bias");
        must(cublasLtMatmulDescSetAttribute(&l->work, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &p.bias,
                                            sizeof(p.bias)),
             "bias");
    }
    must(cublasLtMatrixLayoutInit(&l->a, type_of(p.dtype), (uint64_t)(p.trans_a ? p.k : p.m),
                                  (uint64_t)(p.trans_a ? p.m : p.k), p.lda),
         "layout of A");
    must(cublasLtMatrixLayoutInit(&l->b, type_of(p.dtype), (uint64_t)(p.trans_b ? p.n : p.k),
                                  (uint64_t)(p.trans_b ? p.k : p.n), p.ldb),
         "layout of B");
    must(cublasLtMatrixLayoutInit(&l->d, type_of(p.d_dtype), (uint64_t)p.m, (uint64_t)p.n, p.ldd),
         "layout of D");
}

static void pick(kept *e, const shape &s, layouts *l) {
    cublasLtMatmulPreferenceOpaque_t preference;
    cublasLtMatmulHeuristicResult_t result;
    const size_t bytes = WORKSPACE;
    int found = 0;
    must(cublasLtMatmulPreferenceInit(&preference), "preference");
    must(cublasLtMatmulPreferenceSetAttribute(&preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &bytes,
                                              sizeof(bytes)),
         "workspace");
    must(cublasLtMatmulPreferenceSetAttribute(&preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES,
                                              &s.align_a, sizeof(s.align_a)),
         "alignment");
    must(cublasLtMatmulPreferenceSetAttribute(&preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
                                              &s.align_b, sizeof(s.align_b)),
         "alignment");
    must(cublasLtMatmulPreferenceSetAttribute(&preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
                                              &s.align_d, sizeof(s.align_d)),
         "alignment");
    must(cublasLtMatmulPreferenceSetAttribute(&preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES,
                                              &s.align_d, sizeof(s.align_d)),
         "alignment");
    must(cublasLtMatmulAlgoGetHeuristic(handle(), &l->work, &l->a, &l->b, &l->d, &l->d, &preference, 1,
                                        &result, &found),
         "pick an algorithm");
    CHECK(found == 1, "cuBLASLt has no algorithm for %lld x %lld x %lld", (long long)s.m, (long long)s.n,
          (long long)s.k);
    e->of = s, e->algorithm = result.algo, e->used = true;
}

void matmul_launch(const struct stream *stream, const struct matmul *product) {
    const matmul &p = *product;
    const shape s = shape_of(p);
    kept *e = entry_of(s);
    const float beta = p.accumulate ? 1.0f : 0.0f;
    layouts l;
    describe(&l, p);
    if (!e->used) pick(e, s, &l);
    must(cublasLtMatmul(handle(), &l.work, &p.alpha, p.a, &l.a, p.b, &l.b, &beta, p.d, &l.d, p.d, &l.d,
                        &e->algorithm, stream->workspace, WORKSPACE, cuda_stream(stream)),
         "multiply");
}
#endif
