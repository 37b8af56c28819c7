#pragma once
/* Packed forms for the tile engine. A tile is 16 rows of 64 bytes (1 KiB); a step is 32 values of k.
 *
 *   A, panel of 32 rows:  step by step, two tiles of 16 rows x 32 k, plain row order.
 *   B, panel of 48 columns (the last one 16, 32 or 48): step by step, one tile per 16 columns; row r of a
 * tile holds the pairs (k = 2r, k = 2r + 1) of its columns, as the tile product wants its right-hand operand.
 *
 * Beyond the edge of the matrix tiles hold zeros. Panels of B follow one another, each over all of k. */
#include "kernels/cpu/cpu.h"

enum {
    TILE_ROWS = 16,
    TILE_ELEMENTS = 512,
    TILE_FLOATS = 256,
    STEP_K = 32,
    PANEL_M = 32,
    PANEL_N = 48,
    PANEL_TILES = 3
};

struct tile_source { /* op(B)[k, n] */
    const void *data;
    enum dtype dtype; /* bf16 or fp32 */
    bool trans;       /* data is [n, k] */
    int64_t k, n, ld;
};

static inline int64_t tile_steps(int64_t k) {
    return (k + STEP_K - 1) / STEP_K;
}

/* Elements of a packed B with k steps of 32 and n columns. */
static inline int64_t tile_b_elements(int64_t steps, int64_t n) {
    return steps * ((n + TILE_ROWS - 1) / TILE_ROWS) * TILE_ELEMENTS;
}

#if CPU_ISA_amx
#include <immintrin.h>

/* f32_to_bf16 for 16 values: round to nearest even, in integers, because vcvtneps2bf16 flushes subnormals. */
static inline __m256i tile_bf16(__m512 x) {
    __m512i bits = _mm512_castps_si512(x);
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7FFF)), odd);
    __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
    rounded = _mm512_mask_mov_epi32(rounded, _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), quiet);
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16));
}

/* The first `count` of 16 lanes. */
static inline __mmask16 tile_mask(int64_t count) {
    return (__mmask16)(count >= 16 ? 0xFFFF : count <= 0 ? 0 : (1 << count) - 1);
}
#endif

/* Short names, so that each instruction set has its own copies. */
#define tile_pack_a     CPU(tile_pack_a)
#define tile_pack_b     CPU(tile_pack_b)
#define tile_pack_b_all CPU(tile_pack_b_all)

/* Packs op(A)[rows, depth] into panels of 32 rows of `steps` steps each. */
void tile_pack_a(uint16_t *dst, const uint16_t *src, bool trans, int64_t ld, int64_t rows, int64_t depth,
                 int64_t steps);
/* Packs the panels [panel0, panel1) and steps [step0, step1) of B into their places in dst. */
void tile_pack_b(uint16_t *dst, const struct tile_source *source, int64_t panel0, int64_t panel1,
                 int64_t step0, int64_t step1);
/* All of B, threaded. */
void tile_pack_b_all(struct threads *threads, uint16_t *dst, const struct tile_source *source);
