/* Packing for the tile engine: see gemm_amx.h for the layouts. */
#include "kernels/cpu/gemm_amx.h"
#if CPU_ISA_amx
#include "core/base/check.h"
#include "kernels/cpu/gemm.h"

/* Four 16-byte pieces, `step` rows apart, as the lanes of one register. The inserts read memory and so do not
 * use the shuffle port. */
static inline __m512i four_pieces(const uint16_t *src, int64_t ld, int step) {
    __m512i lanes = _mm512_castsi128_si512(_mm_loadu_si128((const __m128i *)src));
    lanes = _mm512_inserti32x4(lanes, _mm_loadu_si128((const __m128i *)(src + step * ld)), 1);
    lanes = _mm512_inserti32x4(lanes, _mm_loadu_si128((const __m128i *)(src + 2 * step * ld)), 2);
    return _mm512_inserti32x4(lanes, _mm_loadu_si128((const __m128i *)(src + 3 * step * ld)), 3);
}

/* dst[c][0..31] = src[0..31][c] for 8 columns: lane l of in[r] is row 8 l + r, so an 8 x 8 transpose inside
 * every lane finishes the job. */
static inline void transpose_8_columns(uint16_t *dst, const uint16_t *src, int64_t ld) {
    __m512i in[8], by2[8], by4[8];
    for (int r = 0; r < 8; r++) in[r] = four_pieces(src + r * ld, ld, 8);
    for (int r = 0; r < 4; r++) {
        by2[r] = _mm512_unpacklo_epi16(in[2 * r], in[2 * r + 1]); /* columns 0-3 of rows 2r, 2r+1 */
        by2[r + 4] = _mm512_unpackhi_epi16(in[2 * r], in[2 * r + 1]);
    }
    for (int half = 0; half < 2; half++) {
        for (int r = 0; r < 2; r++) {
            by4[half * 4 + r] = _mm512_unpacklo_epi32(by2[half * 4 + 2 * r], by2[half * 4 + 2 * r + 1]);
            by4[half * 4 + r + 2] = _mm512_unpackhi_epi32(by2[half * 4 + 2 * r], by2[half * 4 + 2 * r + 1]);
        }
    }
    for (int pair = 0; pair < 4; pair++) { /* columns 2 pair and 2 pair + 1 */
        __m512i upper = by4[pair / 2 * 4 + pair % 2 * 2], lower = by4[pair / 2 * 4 + pair % 2 * 2 + 1];
        _mm512_store_si512(dst + (2 * pair) * STEP_K, _mm512_unpacklo_epi64(upper, lower));
        _mm512_store_si512(dst + (2 * pair + 1) * STEP_K, _mm512_unpackhi_epi64(upper, lower));
    }
}

/* One tile of B from 16 rows of 32 k: the transpose of a 16 x 16 matrix of pairs. */
static inline void tile_from_rows_of_k(uint16_t *dst, const uint16_t *src, int64_t ld) {
    for (int q = 0; q < 4; q++) {
        __m512i in[4];
        for (int r = 0; r < 4; r++) in[r] = four_pieces(src + r * ld + q * 8, ld, 4);
        __m512i a = _mm512_unpacklo_epi32(in[0], in[1]), b = _mm512_unpackhi_epi32(in[0], in[1]);
        __m512i c = _mm512_unpacklo_epi32(in[2], in[3]), d = _mm512_unpackhi_epi32(in[2], in[3]);
        uint16_t *out = dst + q * 4 * STEP_K;
        _mm512_store_si512(out, _mm512_unpacklo_epi64(a, c));
        _mm512_store_si512(out + STEP_K, _mm512_unpackhi_epi64(a, c));
        _mm512_store_si512(out + 2 * STEP_K, _mm512_unpacklo_epi64(b, d));
        _mm512_store_si512(out + 3 * STEP_K, _mm512_unpackhi_epi64(b, d));
    }
}

/* One tile of B from 32 rows of 16 columns: two rows at a time, interleaved. */
static inline void tile_from_rows_of_n(uint16_t *dst, const uint16_t *src, int64_t ld) {
    const __m512i interleave = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8,
                                                23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    for (int r = 0; r < TILE_ROWS; r++) {
        __m512i two = _mm512_castsi256_si512(_mm256_loadu_si256((const __m256i *)(src + 2 * r * ld)));
        two = _mm512_inserti64x4(two, _mm256_loadu_si256((const __m256i *)(src + (2 * r + 1) * ld)), 1);
        _mm512_store_si512(dst + r * STEP_K, _mm512_permutexvar_epi16(interleave, two));
    }
}

/* Copies rows x cols (cols <= 32) of bf16 or fp32 into out[height][width], rounded, with zeros around. */
static void stage(uint16_t *out, int height, int width, const void *src, enum dtype dtype, int64_t ld,
                  int64_t rows, int64_t cols) {
    for (int64_t i = 0; i < height; i++) {
        for (int64_t j = 0; j < width; j += 16) {
            __mmask16 mask = i < rows ? tile_mask(cols - j) : 0;
            const void *from = i < rows ? dtype_at(src, dtype, i * ld + j) : src;
            __m256i line = dtype == DTYPE_F32 ? tile_bf16(_mm512_maskz_loadu_ps(mask, from))
                                              : _mm256_maskz_loadu_epi16(mask, from);
            _mm256_store_si256((__m256i *)(out + i * width + j), line);
        }
    }
}

/* ---- A ---- */
static void pack_a_rows(uint16_t *dst, const uint16_t *src, int64_t ld, int64_t rows, int64_t depth,
                        int64_t steps) {
    enum { GROUP = 4 }; /* steps of one pass over the rows: whole 256-byte runs are read */
    for (int64_t s0 = 0; s0 < steps; s0 += GROUP) {
        int64_t s1 = gemm_min(s0 + GROUP, steps);
        for (int64_t i = 0; i < PANEL_M; i++) {
            for (int64_t s = s0; s < s1; s++) {
                int64_t left = i < rows ? depth - s * STEP_K : 0;
                __mmask32 mask = left >= STEP_K ? 0xFFFFFFFFu : left <= 0 ? 0 : (1u << left) - 1;
                const uint16_t *from = mask ? src + i * ld + s * STEP_K : src;
                _mm512_store_si512(dst + s * 2 * TILE_ELEMENTS + i * STEP_K,
                                   _mm512_maskz_loadu_epi16(mask, from));
            }
        }
    }
}

static void pack_a_columns(uint16_t *dst, const uint16_t *src, int64_t ld, int64_t rows, int64_t depth,
                           int64_t steps) {
    _Alignas(64) uint16_t staged[STEP_K * PANEL_M];
    for (int64_t s = 0; s < steps; s++, dst += 2 * TILE_ELEMENTS) {
        const uint16_t *from = src + s * STEP_K * ld;
        int64_t from_ld = ld, k_left = depth - s * STEP_K;
        if (rows < PANEL_M || k_left < STEP_K) {
            stage(staged, STEP_K, PANEL_M, from, DTYPE_BF16, ld, k_left, rows);
            from = staged, from_ld = PANEL_M;
        }
        for (int q = 0; q < 4; q++) transpose_8_columns(dst + q * 8 * STEP_K, from + q * 8, from_ld);
    }
}

void tile_pack_a(uint16_t *dst, const uint16_t *src, bool trans, int64_t ld, int64_t rows, int64_t depth,
                 int64_t steps) {
    for (int64_t i = 0; i < rows; i += PANEL_M, dst += steps * 2 * TILE_ELEMENTS) {
        if (trans)
            pack_a_columns(dst, src + i, ld, rows - i, depth, steps);
        else
            pack_a_rows(dst, src + i * ld, ld, rows - i, depth, steps);
    }
}

/* ---- B ---- */
static inline void pack_b_tile(uint16_t *dst, const struct tile_source *b, int64_t step, int64_t column) {
    _Alignas(64) uint16_t staged[TILE_ELEMENTS];
    int64_t k = step * STEP_K, k_left = b->k - k, n_left = b->n - column, ld = b->ld;
    const uint16_t *from = dtype_at(b->data, b->dtype, b->trans ? column * ld + k : k * ld + column);
    bool direct = b->dtype == DTYPE_BF16 && k_left >= STEP_K && n_left >= TILE_ROWS;
    if (b->trans) {
        if (!direct) stage(staged, TILE_ROWS, STEP_K, from, b->dtype, ld, n_left, gemm_min(k_left, STEP_K));
        tile_from_rows_of_k(dst, direct ? from : staged, direct ? ld : STEP_K);
    } else {
        if (!direct)
            stage(staged, STEP_K, TILE_ROWS, from, b->dtype, ld, k_left, gemm_min(n_left, TILE_ROWS));
        tile_from_rows_of_n(dst, direct ? from : staged, direct ? ld : TILE_ROWS);
    }
}

void tile_pack_b(uint16_t *dst, const struct tile_source *source, int64_t panel0, int64_t panel1,
                 int64_t step0, int64_t step1) {
    int64_t steps = tile_steps(source->k), tiles = gemm_blocks(source->n, TILE_ROWS);
    int64_t tile0 = panel0 * PANEL_TILES, tile1 = gemm_min(panel1 * PANEL_TILES, tiles);
    /* Follow the rows of the source: n inside for [k, n], k inside for [n, k]. */
    int64_t outer0 = source->trans ? tile0 : step0, outer1 = source->trans ? tile1 : step1;
    int64_t inner0 = source->trans ? step0 : tile0, inner1 = source->trans ? step1 : tile1;
    for (int64_t x = outer0; x < outer1; x++) {
        for (int64_t y = inner0; y < inner1; y++) {
            int64_t tile = source->trans ? x : y, step = source->trans ? y : x;
            int64_t panel = tile / PANEL_TILES, width = gemm_min(PANEL_TILES, tiles - panel * PANEL_TILES);
            int64_t place = panel * PANEL_TILES * steps + step * width + tile % PANEL_TILES;
            pack_b_tile(dst + place * TILE_ELEMENTS, source, step, tile * TILE_ROWS);
        }
    }
}

struct pack_job {
    uint16_t *dst;
    const struct tile_source *source;
    int64_t steps, panels, blocks_k;
};

enum { BLOCK_PANELS = 8, BLOCK_STEPS = 16 };

static void pack_blocks(void *context, int64_t begin, int64_t end, int thread) {
    const struct pack_job *job = context;
    (void)thread;
    for (int64_t block = begin; block < end; block++) {
        int64_t panel = block / job->blocks_k * BLOCK_PANELS, step = block % job->blocks_k * BLOCK_STEPS;
        tile_pack_b(job->dst, job->source, panel, gemm_min(panel + BLOCK_PANELS, job->panels), step,
                    gemm_min(step + BLOCK_STEPS, job->steps));
    }
}

void tile_pack_b_all(struct threads *threads, uint16_t *dst, const struct tile_source *source) {
    struct pack_job job = {.dst = dst,
                           .source = source,
                           .steps = tile_steps(source->k),
                           .panels = gemm_blocks(source->n, PANEL_N)};
    job.blocks_k = gemm_blocks(job.steps, BLOCK_STEPS);
    threads_for(threads, gemm_blocks(job.panels, BLOCK_PANELS) * job.blocks_k, 1, pack_blocks, &job);
}

size_t CPU(gemm_tiles_packed_bytes)(int64_t k, int64_t n) {
    return (size_t)tile_b_elements(tile_steps(k), n) * sizeof(uint16_t);
}

void CPU(gemm_pack)(const struct stream *stream, const struct gemm_pack_args *args) {
    CHECK(args->dtype == DTYPE_BF16, "only bf16 is packed; gemm_packed_bytes is 0 for %s",
          dtype_name(args->dtype));
    struct tile_source source = {.data = args->src,
                                 .dtype = args->src_dtype,
                                 .trans = args->trans,
                                 .k = args->k,
                                 .n = args->n,
                                 .ld = args->ld      ? args->ld
                                       : args->trans ? args->k
                                                     : args->n};
    tile_pack_b_all(stream->threads, args->dst, &source);
}

size_t CPU(gemm_pack_workspace)(const struct stream *stream, const struct gemm_pack_args *args) {
    (void)stream, (void)args;
    return 0;
}
#endif
