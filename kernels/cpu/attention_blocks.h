#pragma once
/* Building blocks of the attention kernels: a register-blocked float32 product over small blocks in cache,
 * rows to and from float32, and the dropout factors of a block. Blocks are padded so that no block function
 * meets a tail: rows to a multiple of 8, columns to a multiple of 32, and the padding holds zeros.
 *
 * Scores live transposed, keys down and queries across: a vector holds 16 queries of one key, so maximum,
 * sum and exponential need no step across lanes. */
#include "core/tensor/dtype.h"
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/simd.h"
#include <stdbool.h>
#if CPU_ISA_avx2 || CPU_ISA_avx512 || CPU_ISA_amx
#include <immintrin.h>
#endif

enum { BLOCK_LANES = 32, BLOCK_ROWS = 8 };

static inline int64_t round_up(int64_t n, int64_t multiple) {
    return (n + multiple - 1) / multiple * multiple;
}

static inline int64_t min_i64(int64_t a, int64_t b) {
    return a < b ? a : b;
}

/* ---- one vector register of floats ---- */
#if CPU_ISA_avx512 || CPU_ISA_amx
enum { VECTOR = 16, TILE_ROWS = 8 };
typedef __m512 vector;
static inline vector vector_load(const float *p) {
    return _mm512_loadu_ps(p);
}
static inline void vector_store(float *p, vector v) {
    _mm512_storeu_ps(p, v);
}
static inline vector vector_set(float f) {
    return _mm512_set1_ps(f);
}
static inline vector vector_fma(vector a, vector b, vector c) {
    return _mm512_fmadd_ps(a, b, c);
}
#elif CPU_ISA_avx2
enum { VECTOR = 8, TILE_ROWS = 4 };
typedef __m256 vector;
static inline vector vector_load(const float *p) {
    return _mm256_loadu_ps(p);
}
static inline void vector_store(float *p, vector v) {
    _mm256_storeu_ps(p, v);
}
static inline vector vector_set(float f) {
    return _mm256_set1_ps(f);
}
static inline vector vector_fma(vector a, vector b, vector c) {
    return _mm256_fmadd_ps(a, b, c);
}
#else
enum { VECTOR = 4, TILE_ROWS = 4 };
typedef float vector __attribute__((vector_size(16)));
static inline vector vector_load(const float *p) {
    vector v;
    memcpy(&v, p, sizeof(v));
    return v;
}
static inline void vector_store(float *p, vector v) {
    memcpy(p, &v, sizeof(v));
}
static inline vector vector_set(float f) {
    return (vector){f, f, f, f};
}
static inline vector vector_fma(vector a, vector b, vector c) {
    return a * b + c;
}
#endif

/* The left factor of a block product: element (row, k) is p[row * row_step + k * k_step]. */
struct left {
    const float *p;
    int64_t row_step, k_step;
};

/* c[TILE_ROWS, 2 * VECTOR] (+)= a b, in registers. */
static inline void tile_product(float *c, int64_t c_step, struct left a, const float *b, int64_t b_step,
                                int64_t depth, bool accumulate) {
    vector sum[TILE_ROWS][2];
    for (int r = 0; r < TILE_ROWS; r++) {
        for (int v = 0; v < 2; v++) {
            sum[r][v] = accumulate ? vector_load(c + r * c_step + v * VECTOR) : vector_set(0.0f);
        }
    }
    for (int64_t k = 0; k < depth; k++) {
        const float *left = a.p + k * a.k_step, *right = b + k * b_step;
        vector b0 = vector_load(right), b1 = vector_load(right + VECTOR);
        for (int r = 0; r < TILE_ROWS; r++) {
            vector x = vector_set(left[r * a.row_step]);
            sum[r][0] = vector_fma(x, b0, sum[r][0]);
            sum[r][1] = vector_fma(x, b1, sum[r][1]);
        }
    }
    for (int r = 0; r < TILE_ROWS; r++) {
        for (int v = 0; v < 2; v++) vector_store(c + r * c_step + v * VECTOR, sum[r][v]);
    }
}

/* c[rows, cols] (+)= a[rows, depth] b[depth, cols]; rows a multiple of BLOCK_ROWS, cols of BLOCK_LANES. */
static inline void block_product(float *c, int64_t c_step, struct left a, const float *b, int64_t b_step,
                                 int64_t rows, int64_t cols, int64_t depth, bool accumulate) {
    for (int64_t col = 0; col < cols; col += 2 * VECTOR) {
        for (int64_t row = 0; row < rows; row += TILE_ROWS) {
            struct left a_row = {a.p + row * a.row_step, a.row_step, a.k_step};
            tile_product(c + row * c_step + col, c_step, a_row, b + col, b_step, depth, accumulate);
        }
    }
}

/* ---- rows to and from float32 ---- */
static inline void row_to_f32(float *dst, const void *src, enum dtype dtype, int64_t n) {
    const uint16_t *half = src;
    if (dtype == DTYPE_F32) {
        memcpy(dst, src, (size_t)n * 4);
    } else if (dtype == DTYPE_BF16) {
        for (int64_t i = 0; i < n; i++) dst[i] = bf16_to_f32(half[i]);
    } else {
        int64_t i = 0;
#if defined(__F16C__)
        for (; i + 8 <= n; i += 8) {
            _mm256_storeu_ps(dst + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(half + i))));
        }
#endif
        for (; i < n; i++) dst[i] = simd_from_f16(half[i]);
    }
}

static inline void row_from_f32(void *dst, const float *src, enum dtype dtype, int64_t n) {
    uint16_t *half = dst;
    if (dtype == DTYPE_F32) {
        memcpy(dst, src, (size_t)n * 4);
    } else if (dtype == DTYPE_BF16) {
        for (int64_t i = 0; i < n; i++) half[i] = simd_to_bf16(src[i]);
    } else {
        int64_t i = 0;
#if defined(__F16C__)
        for (; i + 8 <= n; i += 8) {
            _mm_storeu_si128((__m128i *)(half + i),
                             _mm256_cvtps_ph(_mm256_loadu_ps(src + i), _MM_FROUND_TO_NEAREST_INT));
        }
#endif
        for (; i < n; i++) half[i] = simd_to_f16(src[i]);
    }
}

/* dst[rows_padded, cols_padded] = src[rows, cols] with zeros around; src rows are src_step elements apart. */
static inline void pack_rows(float *dst, int64_t rows_padded, int64_t cols_padded, const void *src,
                             int64_t src_step, int64_t rows, int64_t cols, enum dtype dtype) {
    for (int64_t r = 0; r < rows_padded; r++) {
        float *row = dst + r * cols_padded;
        int64_t used = r < rows ? cols : 0;
        if (used) row_to_f32(row, dtype_at(src, dtype, r * src_step), dtype, used);
        memset(row + used, 0, (size_t)(cols_padded - used) * sizeof(float));
    }
}

/* dst[cols, BLOCK_LANES] = transpose of src[BLOCK_LANES, cols]. */
static inline void transpose_lanes(float *dst, const float *src, int64_t cols) {
    for (int64_t c = 0; c < cols; c++) {
        for (int i = 0; i < BLOCK_LANES; i++) dst[c * BLOCK_LANES + i] = src[i * cols + c];
    }
}
