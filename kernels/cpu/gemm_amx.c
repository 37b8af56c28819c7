/* C = alpha op(A) op(B) + bias + C in bf16 on tile registers.
 *
 * A block of C is 32 x 48: six tiles of sums, one tile register for A and one for B (2 x 3 sums need 7 loads
 * for 6 products, and from the second-level cache 5 KiB for 96 cycles of products; 2 x 2 would need 4 KiB for
 * 64). A task is an area of C of at most area_m x area_n. Its thread walks k in chunks: packs the chunk of A,
 * which then stays in the second-level cache, and runs down the panels of B, which are packed already; the
 * next panel is prefetched meanwhile. Sums of all chunks but the last stay in a float32 scratch area of the
 * thread, in tiles; the last chunk writes C. C is so touched once, and the order of every sum is fixed by k
 * alone.
 *
 * Tiles leave the registers by memory, and a tile store waits for its product. So the stores of a block are
 * placed between the first products of the next one, and its conversion to C between the later products. */
#include "kernels/cpu/gemm_amx.h"
#if CPU_ISA_amx
#include "kernels/cpu/gemm.h"
#include "kernels/cpu/gemm_rows.h"

enum {
    CHUNK_STEPS = 32,  /* k of a chunk, in steps of 32 */
    ONE_CHUNK_M = 384, /* area when k is one chunk: the chunk of A is at most 768 KiB */
    ONE_CHUNK_N = 3072,
    MANY_CHUNKS_M = 256, /* area when it is more: A 512 KiB, sums 768 KiB */
    MANY_CHUNKS_N = 768,
    BLOCK_FLOATS = 6 * TILE_FLOATS,
    PACK_BYTES = 32 << 20, /* a B that is not packed yet is packed in runs of columns of about this size */
};

struct tile_job {
    struct gemm_view v;
    int64_t lda;
    const uint16_t *b; /* packed panels of the columns [n0, n1) */
    int64_t n0, n1;
    int64_t steps, chunks, chunk_steps;
    int64_t area_m, area_n, areas_m;
    unsigned char *thread_space;
    size_t thread_bytes;
};

/* ---- one block of C ---- */

/* The block whose sums were just taken. Until its tiles are stored nothing is known to be in `tiles`. */
struct block {
    float *tiles;  /* where the tiles are stored: the scratch area itself, or `landing` */
    float *before; /* sums of the chunks before, or NULL */
    bool to_c;
    unsigned char *c; /* row 0 of the block in C */
    int rows;         /* rows to finish: 0 when storing the tiles was all */
};

struct run { /* what stays the same over a panel of B */
    const struct tile_job *job;
    int64_t steps; /* of this chunk */
    float *landing;
    float bias[PANEL_N];
    __mmask16 mask[PANEL_TILES];
    const char *prefetch; /* the next panel of B, or NULL */
    int64_t prefetch_step;
};

static inline __attribute__((always_inline)) __m512 load16(const void *p, enum dtype dtype, __mmask16 mask) {
    if (dtype == DTYPE_F32) return _mm512_maskz_loadu_ps(mask, p);
    __m512i wide = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}

static inline __attribute__((always_inline)) void store16(void *p, enum dtype dtype, __mmask16 mask,
                                                          __m512 x) {
    if (dtype == DTYPE_F32) {
        _mm512_mask_storeu_ps(p, mask, x);
        return;
    }
    __m512i bits = _mm512_castps_si512(x);
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7FFF)), odd);
    __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
    rounded = _mm512_mask_mov_epi32(rounded, _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), quiet);
    _mm256_mask_storeu_epi16(p, mask, _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16)));
}

static inline __attribute__((always_inline)) void finish_row(const struct run *run, const struct block *block,
                                                             int row, const int tiles) {
    const struct gemm_args *args = run->job->v.args;
    int64_t at = (int64_t)(row / TILE_ROWS * PANEL_TILES) * TILE_FLOATS + row % TILE_ROWS * 16;
    size_t element = dtype_bytes(args->c_dtype);
    unsigned char *c = block->c + (size_t)row * (size_t)run->job->v.ldc * element;
    for (int t = 0; t < tiles; t++, at += TILE_FLOATS, c += 16 * element) {
        __m512 x = _mm512_load_ps(block->tiles + at);
        if (block->before) x = _mm512_add_ps(x, _mm512_load_ps(block->before + at));
        if (!block->to_c) {
            _mm512_store_ps(block->before + at, x);
            continue;
        }
        x = _mm512_fmadd_ps(x, _mm512_set1_ps(run->job->v.alpha), _mm512_loadu_ps(run->bias + t * 16));
        if (args->accumulate) x = _mm512_add_ps(x, load16(c, args->c_dtype, run->mask[t]));
        store16(c, args->c_dtype, run->mask[t], x);
    }
}

/* Stores sum tile t and starts it again from zero. */
#define TURN(t)                                                                                              \
    do {                                                                                                     \
        _tile_stored(t, store + (t)*TILE_FLOATS, 64);                                                        \
        _tile_zero(t);                                                                                       \
    } while (0)
#define LOAD_A(row)    _tile_loadd(6, a + (row)*TILE_ELEMENTS, 64)
#define LOAD_B(column) _tile_loadd(7, b + (column)*TILE_ELEMENTS, 64)

/* One step of k. With `turn`, the tiles of the block before go out to `store` on the way. */
static inline __attribute__((always_inline)) void step(const uint16_t *a, const uint16_t *b, const int tiles,
                                                       const bool turn, float *store) {
    LOAD_A(0);
    LOAD_B(0);
    if (turn) TURN(0);
    _tile_dpbf16ps(0, 6, 7);
    if (tiles > 1) {
        LOAD_B(1);
        if (turn) TURN(1);
        _tile_dpbf16ps(1, 6, 7);
    }
    if (tiles > 2) {
        LOAD_B(2);
        if (turn) TURN(2);
        _tile_dpbf16ps(2, 6, 7);
    }
    LOAD_A(1);
    if (tiles > 2) {
        if (turn) TURN(5);
        _tile_dpbf16ps(5, 6, 7);
        LOAD_B(1);
    }
    if (tiles > 1) {
        if (turn) TURN(4);
        _tile_dpbf16ps(4, 6, 7);
        LOAD_B(0);
    }
    if (turn) TURN(3);
    _tile_dpbf16ps(3, 6, 7);
}

static inline __attribute__((always_inline)) void prefetch_for_write(const void *p) {
    __asm__ volatile("prefetchw %0" : : "m"(*(const char *)p));
}

/* The sums of one block, while the block before is stored and finished. */
static inline __attribute__((always_inline)) void block_products(struct run *run, const uint16_t *a,
                                                                 const uint16_t *b,
                                                                 const struct block *before,
                                                                 const struct block *now, const int tiles) {
    int64_t steps = run->steps;
    int row = 0,
        share = before->rows ? (before->rows + (int)steps - 2) / (int)(steps > 1 ? steps - 1 : 1) : 0;
    size_t c_row = (size_t)run->job->v.ldc * dtype_bytes(run->job->v.args->c_dtype);
    size_t c_last = (size_t)tiles * 16 * dtype_bytes(run->job->v.args->c_dtype) - 1;
    int touch = 0, touch_share = now->to_c ? (now->rows + (int)steps - 1) / (int)steps : 0;
    step(a, b, tiles, true, before->tiles);
    for (int64_t s = 1; s < steps; s++) {
        a += 2 * TILE_ELEMENTS, b += tiles * TILE_ELEMENTS;
        step(a, b, tiles, false, NULL);
        for (int stop = row + share < before->rows ? row + share : before->rows; row < stop; row++)
            finish_row(run, before, row, tiles);
        for (int stop = touch + touch_share < now->rows ? touch + touch_share : now->rows; touch < stop;
             touch++) {
            const unsigned char *line = now->c + (size_t)touch * c_row;
            for (size_t x = 0; x < c_last; x += 64) prefetch_for_write(line + x);
            prefetch_for_write(line + c_last);
        }
        if (run->prefetch) {
            for (int64_t x = 0; x < run->prefetch_step; x += 64) _mm_prefetch(run->prefetch + x, _MM_HINT_T1);
            run->prefetch += run->prefetch_step;
        }
    }
    for (; row < before->rows; row++) finish_row(run, before, row, tiles);
}

static inline __attribute__((always_inline)) void block_flush(const struct run *run,
                                                              const struct block *block, const int tiles) {
    float *store = block->tiles;
    TURN(0);
    TURN(1);
    TURN(2);
    TURN(3);
    TURN(4);
    TURN(5);
    for (int row = 0; row < block->rows; row++) finish_row(run, block, row, tiles);
}

/* ---- one area of C ---- */
struct area {
    const struct tile_job *job;
    int64_t m0, m1, n0, n1; /* n counts from the job's n0 */
    uint16_t *a;            /* packed chunk of A */
    float *sums;            /* tiles of the area, or NULL when k is one chunk */
    float *landing;
};

/* One panel of B against the chunk of A. */
static inline __attribute__((always_inline)) void area_panel(const struct area *area, struct run *run,
                                                             int64_t n, int64_t chunk, const int tiles) {
    const struct tile_job *job = area->job;
    const struct gemm_args *args = job->v.args;
    int64_t step0 = chunk * job->chunk_steps, panels_m = gemm_blocks(area->m1 - area->m0, PANEL_M);
    const uint16_t *b = job->b + tile_b_elements(job->steps, n) + step0 * tiles * TILE_ELEMENTS;
    bool first = chunk == 0, last = chunk == job->chunks - 1;
    struct block before = {.tiles = area->landing};
    for (int64_t p = 0; p < panels_m; p++) {
        int64_t m = area->m0 + p * PANEL_M;
        float *sums =
            area->sums ? area->sums + ((n - area->n0) / PANEL_N * panels_m + p) * BLOCK_FLOATS : NULL;
        struct block now = {
            .tiles = first && !last ? sums : area->landing, .before = first ? NULL : sums, .to_c = last};
        now.rows = first && !last ? 0 : last ? (int)gemm_min(PANEL_M, area->m1 - m) : PANEL_M;
        now.c = dtype_at(args->c, args->c_dtype, m * job->v.ldc + job->n0 + n);
        block_products(run, area->a + p * run->steps * 2 * TILE_ELEMENTS, b, &before, &now, tiles);
        before = now;
    }
    block_flush(run, &before, tiles);
}

/* What does not change over the panel that starts at column n. */
static void run_begin(struct run *run, const struct area *area, int64_t n, int64_t chunk) {
    const struct tile_job *job = area->job;
    const struct gemm_args *args = job->v.args;
    int64_t columns = gemm_min(PANEL_N, area->n1 - n), next = n + PANEL_N;
    memset(run->bias, 0, sizeof(run->bias));
    if (args->bias)
        rows_load(run->bias, dtype_at(args->bias, args->dtype, job->n0 + n), args->dtype, columns);
    for (int t = 0; t < PANEL_TILES; t++) {
        int64_t left = columns - t * 16;
        run->mask[t] = (__mmask16)(left >= 16 ? 0xFFFF : left <= 0 ? 0 : (1 << left) - 1);
    }
    run->prefetch = NULL;
    if (next < area->n1) {
        int64_t panels_m = gemm_blocks(area->m1 - area->m0, PANEL_M);
        int64_t tiles = gemm_min(PANEL_TILES, gemm_blocks(job->n1 - job->n0 - next, TILE_ROWS));
        run->prefetch = (const char *)(job->b + tile_b_elements(job->steps, next) +
                                       chunk * job->chunk_steps * tiles * TILE_ELEMENTS);
        run->prefetch_step = gemm_blocks(tiles * TILE_ELEMENTS * 2, panels_m * 64) * 64;
    }
}

static void area_chunk(const struct area *area, int64_t chunk) {
    const struct tile_job *job = area->job;
    const struct gemm_args *args = job->v.args;
    int64_t step0 = chunk * job->chunk_steps, k0 = step0 * STEP_K;
    struct run run = {.job = job, .landing = area->landing};
    run.steps = gemm_min(job->chunk_steps, job->steps - step0);
    CPU(tile_pack_a)
    (area->a, dtype_at(args->a, args->dtype, area->m0 * job->v.a_row + k0 * job->v.a_col), args->trans_a,
     job->lda, area->m1 - area->m0, gemm_min(run.steps * STEP_K, args->k - k0), run.steps);
    for (int64_t n = area->n0; n < area->n1; n += PANEL_N) {
        run_begin(&run, area, n, chunk);
        switch (gemm_blocks(gemm_min(PANEL_N, area->n1 - n), TILE_ROWS)) {
        case 1:
            area_panel(area, &run, n, chunk, 1);
            break;
        case 2:
            area_panel(area, &run, n, chunk, 2);
            break;
        default:
            area_panel(area, &run, n, chunk, 3);
            break;
        }
    }
}

/* Sixteen rows of 64 bytes in each of the eight tile registers. The whole struct is an operand, so that no
 * compiler may drop the stores that fill it. */
static void tiles_on(void) {
    struct {
        uint8_t palette, start_row, reserved[14];
        uint16_t row_bytes[16];
        uint8_t rows[16];
    } config = {.palette = 1};
    for (int t = 0; t < 8; t++) config.row_bytes[t] = 64, config.rows[t] = TILE_ROWS;
    __asm__ volatile("ldtilecfg %0" : : "m"(config));
}

static size_t a_bytes(int64_t area_m, int64_t chunk_steps) {
    return (size_t)(gemm_blocks(area_m, PANEL_M) * 2 * TILE_ELEMENTS * chunk_steps) * sizeof(uint16_t);
}

static size_t sums_bytes(int64_t area_m, int64_t area_n) {
    return (size_t)(gemm_blocks(area_m, PANEL_M) * gemm_blocks(area_n, PANEL_N) * BLOCK_FLOATS) *
           sizeof(float);
}

static void run_areas(void *context, int64_t begin, int64_t end, int thread) {
    const struct tile_job *job = context;
    unsigned char *space = job->thread_space + (size_t)thread * job->thread_bytes;
    struct area area = {.job = job, .landing = (float *)(void *)space};
    space += BLOCK_FLOATS * sizeof(float);
    area.a = (uint16_t *)(void *)space;
    if (job->chunks > 1) area.sums = (float *)(void *)(space + a_bytes(job->area_m, job->chunk_steps));
    tiles_on();
    for (int64_t x = begin; x < end; x++) {
        area.m0 = x % job->areas_m * job->area_m;
        area.m1 = gemm_min(area.m0 + job->area_m, job->v.m);
        area.n0 = x / job->areas_m * job->area_n;
        area.n1 = gemm_min(area.n0 + job->area_n, job->n1 - job->n0);
        for (int64_t chunk = 0; chunk < job->chunks; chunk++) area_chunk(&area, chunk);
    }
    _tile_release();
}

/* ---- the whole product ---- */

/* `size` in equal parts of at most `part`, in whole units. */
static int64_t even_part(int64_t size, int64_t part, int64_t unit) {
    int64_t parts = gemm_blocks(size, part);
    return gemm_blocks(gemm_blocks(size, parts), unit) * unit;
}

/* Columns of B that are packed at a time when B comes as a plain matrix. */
static int64_t columns_per_pack(const struct gemm_args *args, int64_t steps) {
    if (args->b_packed) return args->n;
    int64_t columns = PACK_BYTES / (steps * STEP_K * 2) / PANEL_N * PANEL_N;
    return gemm_min(args->n, columns > PANEL_N ? columns : PANEL_N);
}

/* The cut into chunks and areas. It depends on the shape and the number of threads; the chunks, which fix the
 * order of the sums, on k alone. */
static struct tile_job plan(const struct stream *stream, const struct gemm_args *args) {
    struct tile_job job = {.v = gemm_view(args)};
    int64_t wanted = 4 * threads_count(stream->threads), n;
    job.steps = tile_steps(args->k) > 0 ? tile_steps(args->k) : 1;
    job.chunks = gemm_blocks(job.steps, CHUNK_STEPS);
    job.chunk_steps = gemm_blocks(job.steps, job.chunks);
    job.chunks = gemm_blocks(job.steps, job.chunk_steps);
    job.lda = args->trans_a ? job.v.a_col : job.v.a_row;
    n = columns_per_pack(args, job.steps);
    job.area_m = gemm_min(args->m, job.chunks > 1 ? MANY_CHUNKS_M : ONE_CHUNK_M);
    job.area_n = gemm_min(n, job.chunks > 1 ? MANY_CHUNKS_N : ONE_CHUNK_N);
    while (gemm_blocks(args->m, job.area_m) * gemm_blocks(n, job.area_n) < wanted) {
        if (job.area_n > 8 * PANEL_N)
            job.area_n = even_part(job.area_n, job.area_n / 2, PANEL_N);
        else if (job.area_m > 4 * PANEL_M)
            job.area_m = even_part(job.area_m, job.area_m / 2, PANEL_M);
        else
            break;
    }
    job.area_m = even_part(args->m, job.area_m, PANEL_M);
    job.area_n = even_part(n, job.area_n, PANEL_N);
    job.areas_m = gemm_blocks(args->m, job.area_m);
    job.thread_bytes = BLOCK_FLOATS * sizeof(float) + a_bytes(job.area_m, job.chunk_steps) +
                       (job.chunks > 1 ? sums_bytes(job.area_m, job.area_n) : 0);
    return job;
}

static size_t pack_bytes(const struct gemm_args *args, int64_t steps) {
    return args->b_packed ? 0
                          : (size_t)tile_b_elements(steps, columns_per_pack(args, steps)) * sizeof(uint16_t);
}

size_t CPU(gemm_tiles_workspace)(const struct stream *stream, const struct gemm_args *args) {
    if (!args->m || !args->n) return 0;
    struct tile_job job = plan(stream, args);
    return pack_bytes(args, job.steps) + (size_t)threads_count(stream->threads) * job.thread_bytes;
}

void CPU(gemm_tiles)(const struct stream *stream, const struct gemm_args *args) {
    if (!args->m || !args->n) return;
    struct tile_job job = plan(stream, args);
    int64_t columns = columns_per_pack(args, job.steps);
    uint16_t *packed = stream->workspace;
    job.thread_space = (unsigned char *)stream->workspace + pack_bytes(args, job.steps);
    for (job.n0 = 0; job.n0 < args->n; job.n0 = job.n1) {
        job.n1 = gemm_min(job.n0 + columns, args->n);
        job.b = args->b;
        if (!args->b_packed) {
            struct tile_source source = {.data = dtype_at(args->b, args->dtype, job.n0 * job.v.b_col),
                                         .dtype = args->dtype,
                                         .trans = args->trans_b,
                                         .k = args->k,
                                         .n = job.n1 - job.n0,
                                         .ld = args->trans_b ? job.v.b_col : job.v.b_row};
            CPU(tile_pack_b_all)(stream->threads, packed, &source);
            job.b = packed;
        }
        threads_for(stream->threads, job.areas_m * gemm_blocks(job.n1 - job.n0, job.area_n), 1, run_areas,
                    &job);
    }
}
#endif
