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

/* Packs op(A)[rows, depth] into panels of 32 rows of `steps` steps each. */
void CPU(tile_pack_a)(uint16_t *dst, const uint16_t *src, bool trans, int64_t ld, int64_t rows, int64_t depth,
                      int64_t steps);
/* Packs the panels [panel0, panel1) and steps [step0, step1) of B into their places in dst. */
void CPU(tile_pack_b)(uint16_t *dst, const struct tile_source *source, int64_t panel0, int64_t panel1,
                      int64_t step0, int64_t step1);
/* All of B, threaded. */
void CPU(tile_pack_b_all)(struct threads *threads, uint16_t *dst, const struct tile_source *source);
