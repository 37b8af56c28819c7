/* C = alpha op(A) op(B) + bias + C on vector registers, after Goto and van de Geijn, "Anatomy of
 * High-Performance Matrix Multiplication" (2008).
 *
 * C is cut into areas of at most AREA_M x AREA_N; for an area, k is cut into slices of SLICE_K. A slice of A
 * is packed into panels of MR rows, a slice of B into panels of NR columns (float32, k outermost, zeros
 * beyond the edge), then every MR x NR tile of C is one run of the micro-kernel over two panels. Both steps
 * are threaded; the sum of one element of C is taken slice by slice in order of k, whoever computes it.
 * Between slices a float32 C holds the partial sums itself; a 16-bit C gets them in a float32 scratch area.
 */
#include "kernels/cpu/gemm.h"
#include "kernels/cpu/gemm_rows.h"

/* vec: WIDTH floats. The micro-kernel holds MR x NR sums in registers. */
#if CPU_ISA_avx512 || CPU_ISA_amx
enum { WIDTH = 16, MR = 14, NR = 32, SLICE_K = 384 };
typedef __m512 vec;
#define vec_load(p)      _mm512_load_ps(p)
#define vec_store(p, v)  _mm512_store_ps(p, v)
#define vec_set1(x)      _mm512_set1_ps(x)
#define vec_fma(a, b, c) _mm512_fmadd_ps(a, b, c)
#elif CPU_ISA_avx2
enum { WIDTH = 8, MR = 6, NR = 16, SLICE_K = 384 };
typedef __m256 vec;
#define vec_load(p)      _mm256_load_ps(p)
#define vec_store(p, v)  _mm256_store_ps(p, v)
#define vec_set1(x)      _mm256_set1_ps(x)
#define vec_fma(a, b, c) _mm256_fmadd_ps(a, b, c)
#else
enum { WIDTH = 4, MR = 4, NR = 8, SLICE_K = 256 };
typedef float vec __attribute__((vector_size(16), may_alias));
#define vec_load(p)      (*(const vec *)(p))
#define vec_store(p, v)  (*(vec *)(p) = (v))
#define vec_set1(x)      ((vec){x, x, x, x})
#define vec_fma(a, b, c) ((a) * (b) + (c))
#endif

enum {
    BLOCK_M = 12 * MR, /* rows of C of one task */
    BLOCK_N = 1024 / NR * NR,
    AREA_M = 1008 / BLOCK_M * BLOCK_M,
    AREA_N = 2048,
    LANES = NR / WIDTH,
};

struct simd_job {
    struct gemm_view v;
    float *panels_a, *panels_b;
    float *sums; /* where partial sums live: C or the scratch area; NULL when one slice is all */
    int64_t ld_sums;
    int64_t m0, m1, n0, n1, k0, k1; /* the area and the slice */
    int64_t blocks_n;
};

enum { STAGED_ROWS = 16, STAGED_COLS = 64 };

/* dst[p * width + i] = rows[i][p] for i < count, p < depth. */
static void transpose_rows(float *dst, int64_t width, float rows[STAGED_ROWS][STAGED_COLS], int64_t count,
                           int64_t depth) {
    int64_t p = 0;
#if CPU_ISA_avx512 || CPU_ISA_amx
    __mmask16 mask = (__mmask16)((1u << count) - 1);
    for (; p + 4 <= depth; p += 4) {
        __m512 in[4]; /* lane l of in[r] is four values of row 4 l + r */
        for (int r = 0; r < 4; r++) {
            in[r] = _mm512_castps128_ps512(_mm_load_ps(&rows[r][p]));
            in[r] = _mm512_insertf32x4(in[r], _mm_load_ps(&rows[4 + r][p]), 1);
            in[r] = _mm512_insertf32x4(in[r], _mm_load_ps(&rows[8 + r][p]), 2);
            in[r] = _mm512_insertf32x4(in[r], _mm_load_ps(&rows[12 + r][p]), 3);
        }
        __m512d a = _mm512_castps_pd(_mm512_unpacklo_ps(in[0], in[1])),
                b = _mm512_castps_pd(_mm512_unpackhi_ps(in[0], in[1]));
        __m512d c = _mm512_castps_pd(_mm512_unpacklo_ps(in[2], in[3])),
                d = _mm512_castps_pd(_mm512_unpackhi_ps(in[2], in[3]));
        _mm512_mask_storeu_ps(dst + p * width, mask, _mm512_castpd_ps(_mm512_unpacklo_pd(a, c)));
        _mm512_mask_storeu_ps(dst + (p + 1) * width, mask, _mm512_castpd_ps(_mm512_unpackhi_pd(a, c)));
        _mm512_mask_storeu_ps(dst + (p + 2) * width, mask, _mm512_castpd_ps(_mm512_unpacklo_pd(b, d)));
        _mm512_mask_storeu_ps(dst + (p + 3) * width, mask, _mm512_castpd_ps(_mm512_unpackhi_pd(b, d)));
    }
#endif
    for (; p < depth; p++)
        for (int64_t i = 0; i < count; i++) dst[p * width + i] = rows[i][p];
}

/* dst[p * width + i] = op(X)[i, p] for i < rows, p < depth; zeros for rows <= i < width. `step_i` and
 * `step_p` are the strides of i and p; one of them is 1. */
static void pack_panel(float *dst, const void *src, enum dtype dtype, int64_t rows, int64_t width,
                       int64_t depth, int64_t step_i, int64_t step_p) {
    _Alignas(64) float staged[STAGED_ROWS][STAGED_COLS] = {{0}};
    if (rows < width) memset(dst, 0, (size_t)(width * depth) * sizeof(float));
    if (step_i == 1) { /* constant lengths for whole panels: no call to copy a few floats */
        if (rows == NR)
            for (int64_t p = 0; p < depth; p++)
                rows_load(dst + p * NR, dtype_at(src, dtype, p * step_p), dtype, NR);
        else if (rows == MR && width == MR)
            for (int64_t p = 0; p < depth; p++)
                rows_load(dst + p * MR, dtype_at(src, dtype, p * step_p), dtype, MR);
        else
            for (int64_t p = 0; p < depth; p++)
                rows_load(dst + p * width, dtype_at(src, dtype, p * step_p), dtype, rows);
        return;
    }
    for (int64_t i0 = 0; i0 < rows; i0 += STAGED_ROWS) {
        int64_t count = gemm_min(STAGED_ROWS, rows - i0);
        for (int64_t p0 = 0; p0 < depth; p0 += STAGED_COLS) {
            int64_t cols = gemm_min(STAGED_COLS, depth - p0);
            for (int64_t i = 0; i < count; i++)
                rows_load(staged[i], dtype_at(src, dtype, (i0 + i) * step_i + p0), dtype, cols);
            transpose_rows(dst + p0 * width + i0, width, staged, count, cols);
        }
    }
}

/* Panels of the slice: those of A first, then those of B. */
static void pack_panels(void *context, int64_t begin, int64_t end, int thread) {
    const struct simd_job *job = context;
    const struct gemm_args *args = job->v.args;
    int64_t depth = job->k1 - job->k0, panels_a = gemm_blocks(job->m1 - job->m0, MR);
    (void)thread;
    for (int64_t panel = begin; panel < end; panel++) {
        if (panel < panels_a) {
            int64_t i = job->m0 + panel * MR;
            pack_panel(job->panels_a + panel * MR * depth,
                       dtype_at(args->a, args->dtype, i * job->v.a_row + job->k0 * job->v.a_col), args->dtype,
                       gemm_min(MR, job->m1 - i), MR, depth, job->v.a_row, job->v.a_col);
        } else {
            int64_t j = job->n0 + (panel - panels_a) * NR;
            pack_panel(job->panels_b + (panel - panels_a) * NR * depth,
                       dtype_at(args->b, args->dtype, job->k0 * job->v.b_row + j * job->v.b_col), args->dtype,
                       gemm_min(NR, job->n1 - j), NR, depth, job->v.b_col, job->v.b_row);
        }
    }
}

/* out[MR][NR] = the product of two panels. */
static void multiply_panels(float *restrict out, const float *restrict a, const float *restrict b,
                            int64_t depth) {
    vec sum[MR][LANES];
#pragma GCC unroll 16
    for (int i = 0; i < MR; i++)
#pragma GCC unroll 4
        for (int j = 0; j < LANES; j++) sum[i][j] = vec_set1(0.0f);
    for (int64_t p = 0; p < depth; p++) {
        vec row[LANES];
#pragma GCC unroll 4
        for (int j = 0; j < LANES; j++) row[j] = vec_load(b + p * NR + j * WIDTH);
#pragma GCC unroll 16
        for (int i = 0; i < MR; i++) {
            vec factor = vec_set1(a[p * MR + i]);
#pragma GCC unroll 4
            for (int j = 0; j < LANES; j++) sum[i][j] = vec_fma(factor, row[j], sum[i][j]);
        }
    }
#pragma GCC unroll 16
    for (int i = 0; i < MR; i++)
#pragma GCC unroll 4
        for (int j = 0; j < LANES; j++) vec_store(out + i * NR + j * WIDTH, sum[i][j]);
}

/* Adds one row of a product tile to the partial sums, and writes C when the slice is the last. */
static inline __attribute__((always_inline)) void finish_row(const struct simd_job *job, float *restrict row,
                                                             int64_t i, int64_t j, int64_t count) {
    const struct gemm_args *args = job->v.args;
    bool first = job->k0 == 0, last = job->k1 == job->v.k, in_c = args->c_dtype == DTYPE_F32;
    void *c = dtype_at(args->c, args->c_dtype, i * job->v.ldc + j);
    float *sums =
        job->sums ? job->sums + (i - (in_c ? 0 : job->m0)) * job->ld_sums + j - (in_c ? 0 : job->n0) : NULL;
    float other[NR];
    for (int64_t x = 0; x < count; x++) row[x] *= job->v.alpha;
    if (first && args->bias) {
        rows_load(other, dtype_at(args->bias, args->dtype, j), args->dtype, count);
        for (int64_t x = 0; x < count; x++) row[x] += other[x];
    }
    if (!first)
        for (int64_t x = 0; x < count; x++) row[x] += sums[x];
    if (args->accumulate && (in_c ? first : last)) {
        rows_load(other, c, args->c_dtype, count);
        for (int64_t x = 0; x < count; x++) row[x] += other[x];
    }
    if (last)
        rows_store(c, row, args->c_dtype, count);
    else
        memcpy(sums, row, (size_t)count * sizeof(float));
}

/* One task: a BLOCK_M x BLOCK_N block of the area. */
static void multiply_blocks(void *context, int64_t begin, int64_t end, int thread) {
    const struct simd_job *job = context;
    int64_t depth = job->k1 - job->k0;
    _Alignas(64) float tile[MR * NR];
    (void)thread;
    for (int64_t block = begin; block < end; block++) {
        int64_t i0 = job->m0 + block / job->blocks_n * BLOCK_M, i1 = gemm_min(i0 + BLOCK_M, job->m1);
        int64_t j0 = job->n0 + block % job->blocks_n * BLOCK_N, j1 = gemm_min(j0 + BLOCK_N, job->n1);
        for (int64_t j = j0; j < j1; j += NR) {
            for (int64_t i = i0; i < i1; i += MR) {
                multiply_panels(tile, job->panels_a + (i - job->m0) * depth,
                                job->panels_b + (j - job->n0) * depth, depth);
                int64_t rows = gemm_min(MR, i1 - i), columns = gemm_min(NR, j1 - j);
                for (int64_t x = 0; x < rows; x++) {
                    if (columns == NR)
                        finish_row(job, tile + x * NR, i + x, j, NR);
                    else
                        finish_row(job, tile + x * NR, i + x, j, columns);
                }
            }
        }
    }
}

static int64_t panels_a_floats(const struct gemm_args *args) {
    return gemm_blocks(gemm_min(args->m, AREA_M), MR) * MR * gemm_min(args->k, SLICE_K);
}

static int64_t panels_b_floats(const struct gemm_args *args) {
    return gemm_blocks(gemm_min(args->n, AREA_N), NR) * NR * gemm_min(args->k, SLICE_K);
}

static bool needs_scratch(const struct gemm_args *args) {
    return args->k > SLICE_K && args->c_dtype != DTYPE_F32;
}

/* Each part is rounded up to whole cache lines of 16 floats. */
static int64_t whole_lines(int64_t floats) {
    return gemm_blocks(floats, 16) * 16;
}

size_t CPU(gemm_simd_workspace)(const struct gemm_args *args) {
    int64_t floats = whole_lines(panels_a_floats(args)) + whole_lines(panels_b_floats(args));
    if (needs_scratch(args)) floats += gemm_min(args->m, AREA_M) * gemm_min(args->n, AREA_N);
    return (size_t)floats * sizeof(float);
}

static void multiply_area(const struct stream *stream, struct simd_job *job) {
    int64_t m = job->m1 - job->m0, n = job->n1 - job->n0;
    int64_t panels = gemm_blocks(m, MR) + gemm_blocks(n, NR);
    job->blocks_n = gemm_blocks(n, BLOCK_N);
    job->k0 = 0;
    do {
        job->k1 = gemm_min(job->k0 + SLICE_K, job->v.k);
        threads_for(stream->threads, panels, 4, pack_panels, job);
        threads_for(stream->threads, gemm_blocks(m, BLOCK_M) * job->blocks_n, 1, multiply_blocks, job);
        job->k0 = job->k1;
    } while (job->k0 < job->v.k);
}

void CPU(gemm_simd)(const struct stream *stream, const struct gemm_args *args) {
    struct simd_job job = {.v = gemm_view(args)};
    job.panels_a = stream->workspace;
    job.panels_b = job.panels_a + whole_lines(panels_a_floats(args));
    if (args->c_dtype == DTYPE_F32) {
        job.sums = args->c;
        job.ld_sums = job.v.ldc;
    } else if (needs_scratch(args)) {
        job.sums = job.panels_b + whole_lines(panels_b_floats(args));
        job.ld_sums = gemm_min(args->n, AREA_N);
    }
    for (job.n0 = 0; job.n0 < args->n; job.n0 += AREA_N) {
        job.n1 = gemm_min(job.n0 + AREA_N, args->n);
        for (job.m0 = 0; job.m0 < args->m; job.m0 += AREA_M) {
            job.m1 = gemm_min(job.m0 + AREA_M, args->m);
            multiply_area(stream, &job);
        }
    }
}
