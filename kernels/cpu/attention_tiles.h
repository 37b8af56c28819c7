#pragma once
/* Tile (AMX) building blocks of bf16 attention, for the amx copy only. A tile is 1 KB: 16 rows of 64
 * bytes. As the left factor it holds [16, 32] bf16, as the right factor [16 pairs of depth, 16] pairs of
 * bf16, as a sum [16, 16] float. Operands are packed tile after tile, so that a tile load walks 16
 * neighbouring lines.
 *
 * A tile product keeps one of the two vector ports busy, so tile and vector work mostly add up (measured: 8
 * products and 64 exponentials of 16 take as long together as apart): both are to be kept few. */
#include "kernels/cpu/cpu.h"
#include <stdbool.h>

/* Whether the tile kernels take this problem; attention.c asks, and does what they do not. The running
 * maximum wants a positive scale. */
static inline bool attention_fits_tiles(float scale, enum dtype dtype) {
    return dtype == DTYPE_BF16 && scale > 0.0f;
}

/* The kernels of the unfused chain on tiles: attention_unfused.c calls them for bf16. */
#define TILES_KERNEL(name)                                                                                   \
    size_t CPU(name##_tiles_workspace)(const struct stream *stream, const struct name##_args *args);         \
    void CPU(name##_tiles)(const struct stream *stream, const struct name##_args *args);
TILES_KERNEL(attention_scores_forward)
TILES_KERNEL(attention_scores_backward)
TILES_KERNEL(attention_context_forward)
TILES_KERNEL(attention_context_backward)
#undef TILES_KERNEL

size_t CPU(attention_tiles_forward_workspace)(const struct stream *stream,
                                              const struct attention_forward_args *args);
void CPU(attention_tiles_forward)(const struct stream *stream, const struct attention_forward_args *args);
size_t CPU(attention_tiles_backward_workspace)(const struct stream *stream,
                                               const struct attention_backward_args *args);
void CPU(attention_tiles_backward)(const struct stream *stream, const struct attention_backward_args *args);

#if CPU_ISA_amx
#include <immintrin.h>
#include <string.h>

enum {
    TILE = 512,      /* bf16 elements of a tile */
    TILE_SUM = 256,  /* floats of a tile */
    CHUNK = 32,      /* queries and keys of a chunk of scores: 2 x 2 tiles */
    CHUNK_SUM = 1024 /* floats of a chunk: [32 keys, 32 queries] */
};

/* Inline asm rather than intrinsics: with "memory" no compiler moves a store past a tile load, and with "m"
 * none drops the stores that fill the configuration. */
#define TILE_LOAD(t, p, step)                                                                                \
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #t ::"r"(p), "r"((int64_t)(step)) : "memory")
#define TILE_STORE(t, p, step)                                                                               \
    __asm__ volatile("tilestored %%tmm" #t ", (%0,%1,1)" ::"r"(p), "r"((int64_t)(step)) : "memory")
#define TILE_ZERO(t)      __asm__ volatile("tilezero %%tmm" #t ::)
#define TILE_DOT(c, a, b) __asm__ volatile("tdpbf16ps %%tmm" #b ", %%tmm" #a ", %%tmm" #c ::)

struct tile_config {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
};

/* Every thread loads its own configuration and lets go of the tiles when its task ends. */
static inline void tiles_open(void) {
    struct tile_config config = {.palette = 1};
    for (int t = 0; t < 8; t++) config.row_bytes[t] = 64, config.rows[t] = 16;
    __asm__ volatile("ldtilecfg %0" ::"m"(config));
}

static inline void tiles_close(void) {
    __asm__ volatile("tilerelease" ::);
}

/* Where the tiles of a factor lie, in elements: `across` to the next row of tiles (left) or column of tiles
 * (right), `depth` to the next tile along the summed dimension, `step` to the next row of a left tile (0:
 * packed). */
struct tiles {
    const uint16_t *p;
    int64_t across, depth, step;
};

/* Tiles 0..3 += the 2 x 2 block of left times right. */
static inline __attribute__((always_inline)) void tiles_multiply(struct tiles left, struct tiles right,
                                                                 int64_t depth) {
    int64_t step = left.step ? left.step * 2 : 64;
    for (int64_t k = 0; k < depth; k++) {
        const uint16_t *a = left.p + k * left.depth, *b = right.p + k * right.depth;
        TILE_LOAD(6, b, 64);
        TILE_LOAD(4, a, step);
        TILE_DOT(0, 4, 6);
        TILE_LOAD(7, b + right.across, 64);
        TILE_DOT(1, 4, 7);
        TILE_LOAD(5, a + left.across, step);
        TILE_DOT(2, 5, 6);
        TILE_DOT(3, 5, 7);
    }
}

/* c is 2 x 2 sums, `right` and `down` floats apart, their rows `step` floats apart. */
static inline __attribute__((always_inline)) void tiles_product(float *c, int64_t right_step,
                                                                int64_t down_step, int64_t step,
                                                                struct tiles left, struct tiles right,
                                                                int64_t depth, bool accumulate) {
    if (accumulate) {
        TILE_LOAD(0, c, step * 4);
        TILE_LOAD(1, c + right_step, step * 4);
        TILE_LOAD(2, c + down_step, step * 4);
        TILE_LOAD(3, c + down_step + right_step, step * 4);
    } else {
        TILE_ZERO(0);
        TILE_ZERO(1);
        TILE_ZERO(2);
        TILE_ZERO(3);
    }
    tiles_multiply(left, right, depth);
    TILE_STORE(0, c, step * 4);
    TILE_STORE(1, c + right_step, step * 4);
    TILE_STORE(2, c + down_step, step * 4);
    TILE_STORE(3, c + down_step + right_step, step * 4);
}

/* ---- packing ---- */

/* 16 x 16 transpose of 32-bit elements. */
static inline __attribute__((always_inline)) void transpose16(__m512i r[16]) {
    __m512i t[16];
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    for (int i = 0; i < 4; i++) {
        t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
        t[i + 4] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
        t[i + 8] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
        t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
    }
    for (int i = 0; i < 4; i++) {
        r[i] = _mm512_shuffle_i32x4(t[i], t[i + 4], 0x88);
        r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 4], 0xdd);
        r[i + 4] = _mm512_shuffle_i32x4(t[i + 8], t[i + 12], 0x88);
        r[i + 12] = _mm512_shuffle_i32x4(t[i + 8], t[i + 12], 0xdd);
    }
}

/* Rows of bf16 in memory; rows from `rows` on and columns from `cols` on, when causal also those right of the
 * diagonal, read as zero. */
struct rows16 {
    const uint16_t *p;
    int64_t step, rows, cols;
    bool causal;
};

static inline int64_t row_cols(const struct rows16 *x, int64_t row) {
    return x->causal && row + 1 < x->cols ? row + 1 : x->cols;
}

/* Left tiles [s/16][d/32] need no packing when every row is whole: they are loaded where they lie. */
static inline bool lies_in_tiles(const void *p, int64_t rows, int64_t d) {
    return rows % 32 == 0 && d % 32 == 0 && (uintptr_t)p % 64 == 0;
}

/* The left tiles of rows `row` on of [s, d], packed with `d_padded` columns or, when direct, where they lie.
 */
static inline struct tiles left_tiles(const uint16_t *p, int64_t row, int64_t d_padded, bool direct) {
    return direct ? (struct tiles){p + row * d_padded, 16 * d_padded, 32, d_padded}
                  : (struct tiles){p + row * d_padded, 16 * d_padded, TILE, 0};
}

/* 32 columns of one row, from column `col`. */
static inline __m512i load_row32(const struct rows16 *x, int64_t row, int64_t col) {
    int64_t left = row < x->rows ? row_cols(x, row) - col : 0;
    if (left >= 32) return _mm512_loadu_si512(x->p + row * x->step + col);
    if (left <= 0) return _mm512_setzero_si512();
    return _mm512_maskz_loadu_epi16((__mmask32)((1u << left) - 1), x->p + row * x->step + col);
}

/* Rows row, row + every, ... of columns col..col+31; most blocks are whole and need no test per row. */
static inline __attribute__((always_inline)) void load_rows16(__m512i r[16], const struct rows16 *x,
                                                              int64_t row, int64_t col, int64_t every) {
    if (row + 15 * every < x->rows && col + 32 <= row_cols(x, row)) {
        for (int i = 0; i < 16; i++) r[i] = _mm512_loadu_si512(x->p + (row + i * every) * x->step + col);
    } else {
        for (int i = 0; i < 16; i++) r[i] = load_row32(x, row + i * every, col);
    }
}

/* The left-factor tile of rows row..row+15, columns col..col+31. */
static inline void pack_left(uint16_t *tile, const struct rows16 *x, int64_t row, int64_t col) {
    __m512i r[16];
    load_rows16(r, x, row, col, 1);
    for (int i = 0; i < 16; i++) _mm512_store_si512(tile + i * 32, r[i]);
}

/* The right-factor tile of the transpose: depth runs over columns, across over rows. */
static inline void pack_right_transposed(uint16_t *tile, const struct rows16 *x, int64_t row, int64_t col) {
    __m512i r[16];
    load_rows16(r, x, row, col, 1);
    transpose16(r);
    for (int i = 0; i < 16; i++) _mm512_store_si512(tile + i * 32, r[i]);
}

/* Neighbouring rows, interleaved: pairs[h][n] holds rows row + 2n, row + 2n + 1 of columns col + 16h... */
static inline void interleave_rows(__m512i pairs[2][16], const struct rows16 *x, int64_t row, int64_t col) {
    const __m512i low = _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11),
                  high = _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15);
    __m512i even[16], odd[16];
    load_rows16(even, x, row, col, 2);
    load_rows16(odd, x, row + 1, col, 2);
    for (int n = 0; n < 16; n++) {
        __m512i lo = _mm512_unpacklo_epi16(even[n], odd[n]), hi = _mm512_unpackhi_epi16(even[n], odd[n]);
        pairs[0][n] = _mm512_permutex2var_epi64(lo, low, hi);
        pairs[1][n] = _mm512_permutex2var_epi64(lo, high, hi);
    }
}

/* Two right-factor tiles, columns col..col+15 and col+16..col+31, depth over rows row..row+31. */
static inline void pack_right(uint16_t *tile, const struct rows16 *x, int64_t row, int64_t col) {
    __m512i pairs[2][16];
    interleave_rows(pairs, x, row, col);
    for (int n = 0; n < 32; n++) _mm512_store_si512(tile + n * 32, pairs[n / 16][n % 16]);
}

/* Two left-factor tiles of the transpose: rows are columns col..col+15 and col+16..col+31, depth rows
 * row..row+31. */
static inline void pack_left_transposed(uint16_t *tile, const struct rows16 *x, int64_t row, int64_t col) {
    __m512i pairs[2][16];
    interleave_rows(pairs, x, row, col);
    for (int half = 0; half < 2; half++) {
        transpose16(pairs[half]);
        for (int n = 0; n < 16; n++) _mm512_store_si512(tile + half * TILE + n * 32, pairs[half][n]);
    }
}

/* ---- vectors ---- */

/* 2^x to 2.6e-6 of its value, below the rounding of bf16: the fraction by a polynomial of degree 4 (minimax
 * on [0, 1)), the whole part into the exponent. 0 far below zero; NaN stays NaN. */
static inline __m512 exp2_fast(__m512 x) {
    __m512 r = _mm512_reduce_ps(x, 0x09); /* x - floor(x) */
    __m512 p = _mm512_fmadd_ps(_mm512_set1_ps(0.0135341678f), r, _mm512_set1_ps(0.0520114601f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.241442755f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.693003833f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.00000262f));
    return _mm512_scalef_ps(p, x);
}

/* Scores of a chunk that do not count become very small: keys from row `keys` on, and when causal keys past
 * the query; `query` is the key row where the chunk's first query stands. */
static inline void mask_scores(float *scores, int64_t keys, bool causal, int64_t query, int64_t key) {
    const __m512 never = _mm512_set1_ps(-1e30f);
    if (key + CHUNK <= keys && !(causal && key + CHUNK > query)) return;
    for (int j = 0; j < CHUNK; j++) {
        int64_t first = causal ? key + j - query : 0; /* first lane that counts */
        uint32_t out = first >= 32 ? ~0u : first > 0 ? (1u << first) - 1 : 0;
        if (key + j >= keys) out = ~0u;
        _mm512_mask_storeu_ps(scores + j * CHUNK, (__mmask16)out, never);
        _mm512_mask_storeu_ps(scores + j * CHUNK + 16, (__mmask16)(out >> 16), never);
    }
}

/* 16 floats to bf16, or to float32 stored or added, where `cols` says. */
static inline void store_floats(void *dst, int64_t at, __mmask16 cols, __m512 x, bool is_f32,
                                bool accumulate) {
    if (!is_f32) {
        _mm256_mask_storeu_epi16((uint16_t *)dst + at, cols, (__m256i)_mm512_cvtneps_pbh(x));
        return;
    }
    float *p = (float *)dst + at;
    if (accumulate) x = _mm512_add_ps(_mm512_maskz_loadu_ps(cols, p), x);
    _mm512_mask_storeu_ps(p, cols, x);
}

/* [low | high] as 32 bf16. */
static inline __m512i to_bf16(__m512 low, __m512 high) {
    return (__m512i)_mm512_cvtne2ps_pbh(high, low);
}
#endif
