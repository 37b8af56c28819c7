/* C = alpha op(A) op(B) + bias + C in bf16 on tile registers.
 *
 * A task is an area of C. Its thread walks k in chunks: packs the chunk of A, which then stays in the
 * second-level cache, and runs down the panels of B, which are packed already. Sums of all chunks but the
 * last stay in a float32 scratch area of the thread, in tiles; the last chunk writes C. C is so touched once,
 * and the order of every sum is fixed by k alone.
 *
 * A panel of B meets two panels of A at a time, a block of 64 x 48. Six tile registers hold the sums of one
 * half (32 x 48), one is for A and one for B: 7 loads for 6 products. The halves take turns, SEGMENT steps of
 * k each, in the order 0 1 | 1 0 | 0 1 ..., so that a segment of B is read from the first-level cache the
 * second time, and the sums change places in that cache only every other segment. From the second-level cache
 * come 7 KiB for 192 cycles of products instead of 10. (Products and tile stores alone, operands in that
 * cache, k = 768, one core: 80% of the tile peak, 69% without the turns.)
 *
 * A tile store waits for its product, so the stores of one segment are placed between the first products of
 * the next; the conversion of a finished block to C, and prefetches of C and of the next panel of B, are
 * spread over the steps of the block after it. */
#include "kernels/cpu/gemm_amx.h"
#if CPU_ISA_amx
#include "kernels/cpu/gemm.h"
#include "kernels/cpu/gemm_rows.h"

enum {
    CHUNK_STEPS = 32,            /* k of a chunk, in steps of 32 */
    SEGMENT = 4,                 /* steps */
    ONE_CHUNK_BYTES = 640 << 10, /* area when k is one chunk: this much of A */
    ONE_CHUNK_M = 512,
    ONE_CHUNK_N = 3072,
    MANY_CHUNKS_M = 256, /* area when it is more: A 512 KiB, sums 768 KiB */
    MANY_CHUNKS_N = 768,
    LEAST_M = 128, /* areas are not made smaller than this to keep more threads busy */
    LEAST_N = 2 * PANEL_N,
    ENOUGH_AREAS = 16, /* for each thread; fewer are cut evenly */
    HALF_FLOATS = 2 * PANEL_TILES * TILE_FLOATS,
    BLOCK_M = 2 * PANEL_M,
    LANDING_BYTES = 2 * HALF_FLOATS * 4,
    PACK_BYTES = 32 << 20, /* a B that is not packed yet is packed in runs of columns of about this size */
};

struct tile_job {
    struct gemm_view v;
    int64_t lda;
    const uint16_t *b; /* packed panels of the columns [n0, n1) */
    int64_t n0, n1;
    int64_t steps, chunks, chunk_steps;
    int64_t parts_m, parts_n; /* areas down and across */
    unsigned char *thread_space;
    size_t thread_bytes, a_bytes;
};

/* ---- one block of C ---- */

/* A panel of B, as seen from C. */
struct column {
    int tiles;      /* across */
    size_t c_width; /* bytes */
    __mmask16 mask[PANEL_TILES];
    float bias[PANEL_N];
};

/* Up to 64 x 48 of C. `tiles` holds its sums between segments and in the end: a landing place, or the scratch
 * area. When `rows` is not 0 they are then written to C. */
struct block {
    const struct column *column;
    float *tiles;
    const float *start; /* sums of the chunks before, or NULL */
    unsigned char *c;   /* row 0 of the block in C */
    int halves, rows;
};

struct chunk; /* of k, of one area */
typedef void finish_fn(const struct chunk *chunk, const struct block *block, int row, int end);

struct chunk {
    int64_t index, steps;
    bool to_c; /* the last chunk of k */
    finish_fn *finish;
    size_t c_row; /* bytes from row to row of C */
    float alpha;
    const char *next_b;       /* the next panel of B, to prefetch */
    int64_t next_b_lines;     /* with each step */
    struct column columns[2]; /* of this panel and of the one before */
    /* What is still in flight: a block whose sums are in the registers, to be stored at `live`. */
    struct block before;
    float *live;
};

#define ALWAYS_INLINE static inline __attribute__((always_inline))

ALWAYS_INLINE __m512 load16(const void *p, const enum dtype dtype, __mmask16 mask) {
    if (dtype == DTYPE_F32) return _mm512_maskz_loadu_ps(mask, p);
    __m512i wide = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}

ALWAYS_INLINE void store16(void *p, const enum dtype dtype, __mmask16 mask, __m512 x) {
    if (dtype == DTYPE_F32)
        _mm512_mask_storeu_ps(p, mask, x);
    else
        _mm256_mask_storeu_epi16(p, mask,
                                 (__m256i)_mm512_cvtneps_pbh(x)); /* subnormals to 0, as the products */
}

/* Rows [row, end) of a block to C. */
ALWAYS_INLINE void finish_rows(const struct chunk *chunk, const struct block *block, int row, int end,
                               const bool accumulate, const enum dtype dtype) {
    __m512 alpha = _mm512_set1_ps(chunk->alpha);
    for (; row < end; row++) {
        const float *tile = block->tiles + row / TILE_ROWS * PANEL_TILES * TILE_FLOATS + row % TILE_ROWS * 16;
        unsigned char *c = block->c + (size_t)row * chunk->c_row;
        for (int t = 0; t < block->column->tiles; t++, tile += TILE_FLOATS, c += 16 * dtype_bytes(dtype)) {
            __m512 x =
                _mm512_fmadd_ps(_mm512_load_ps(tile), alpha, _mm512_loadu_ps(block->column->bias + t * 16));
            if (accumulate) x = _mm512_add_ps(x, load16(c, dtype, block->column->mask[t]));
            store16(c, dtype, block->column->mask[t], x);
        }
    }
}

#define FINISH(name, accumulate, dtype)                                                                      \
    static void name(const struct chunk *chunk, const struct block *block, int row, int end) {               \
        finish_rows(chunk, block, row, end, accumulate, dtype);                                              \
    }
FINISH(finish_f32, false, DTYPE_F32)
FINISH(finish_f32_accumulate, true, DTYPE_F32)
FINISH(finish_bf16, false, DTYPE_BF16)
FINISH(finish_bf16_accumulate, true, DTYPE_BF16)

static finish_fn *const finish_to_c[2][2] = {/* [bf16][accumulate] */
                                             {finish_f32, finish_f32_accumulate},
                                             {finish_bf16, finish_bf16_accumulate}};

/* Fetches the lines of C that rows [row, end) of a block will write. */
static inline void touch_rows(const struct chunk *chunk, const struct block *block, int row, int end) {
    for (; row < end; row++) {
        const char *line = (const char *)block->c + (size_t)row * chunk->c_row;
        for (size_t x = 0; x < block->column->c_width; x += 64)
            __asm__ volatile("prefetchw %0" : : "m"(line[x]));
        __asm__ volatile("prefetchw %0" : : "m"(line[block->column->c_width - 1]));
    }
}

/* What the sum tiles do at the first products of a segment. */
enum turn { STAY, FROM_ZERO, FROM_MEMORY };

#define TURN(t)                                                                                              \
    do {                                                                                                     \
        if (turn != STAY) _tile_stored(t, store + (t)*TILE_FLOATS, 64);                                      \
        if (turn == FROM_ZERO) _tile_zero(t);                                                                \
        if (turn == FROM_MEMORY) _tile_loadd(t, load + (t)*TILE_FLOATS, 64);                                 \
    } while (0)
#define LOAD_A(row)    _tile_loadd(6, a + (row)*TILE_ELEMENTS, 64)
#define LOAD_B(column) _tile_loadd(7, b + (column)*TILE_ELEMENTS, 64)

/* One step of k for one half. Unless they stay, the sums of the half before go out to `store` on the way. */
ALWAYS_INLINE void step(const uint16_t *a, const uint16_t *b, const int tiles, const enum turn turn,
                        float *store, const float *load) {
    LOAD_A(0);
    LOAD_B(0);
    TURN(0);
    _tile_dpbf16ps(0, 6, 7);
    if (tiles > 1) {
        LOAD_B(1);
        TURN(1);
        _tile_dpbf16ps(1, 6, 7);
    }
    if (tiles > 2) {
        LOAD_B(2);
        TURN(2);
        _tile_dpbf16ps(2, 6, 7);
    }
    LOAD_A(1);
    if (tiles > 2) {
        TURN(5);
        _tile_dpbf16ps(5, 6, 7);
        LOAD_B(1);
    }
    if (tiles > 1) {
        TURN(4);
        _tile_dpbf16ps(4, 6, 7);
        LOAD_B(0);
    }
    TURN(3);
    _tile_dpbf16ps(3, 6, 7);
}

/* The work beside the products: the block before goes to C, the lines of C of this block are fetched. */
struct beside {
    struct block before, now;
    int row, row_share, touch, touch_share;
};

/* Of `steps` steps of the inner loop, those that have room for it: all but the first of a segment. */
static int64_t beside_steps(int64_t steps) {
    int64_t with_room = steps * (SEGMENT - 1) / SEGMENT;
    return with_room > 0 ? with_room : 1;
}

static struct beside beside_begin(const struct chunk *chunk, const struct block *now) {
    int64_t steps = beside_steps(chunk->steps * now->halves);
    return (struct beside){.before = chunk->before,
                           .now = *now,
                           .row_share = (int)gemm_blocks(chunk->before.rows, steps),
                           .touch_share = (int)gemm_blocks(now->rows, steps)};
}

ALWAYS_INLINE void beside_step(struct chunk *chunk, struct beside *beside) {
    if (beside->row < beside->before.rows) {
        int row = beside->row, end = row + beside->row_share;
        beside->row = end < beside->before.rows ? end : beside->before.rows;
        chunk->finish(chunk, &beside->before, row, beside->row);
    }
    if (beside->touch < beside->now.rows) {
        int row = beside->touch, end = row + beside->touch_share;
        beside->touch = end < beside->now.rows ? end : beside->now.rows;
        touch_rows(chunk, &beside->now, row, beside->touch);
    }
    for (int64_t i = 0; i < chunk->next_b_lines; i++) _mm_prefetch(chunk->next_b + i * 64, _MM_HINT_T1);
    chunk->next_b += chunk->next_b_lines * 64;
}

/* The sums of one block, up to their last product: they stay in the registers. */
ALWAYS_INLINE void block_products(struct chunk *chunk, const uint16_t *a, const uint16_t *b,
                                  const struct block *now, const int tiles) {
    struct beside beside = beside_begin(chunk, now);
    int64_t half_a = chunk->steps * 2 * TILE_ELEMENTS;
    float *live = chunk->live;
    int half = 0;
    for (int64_t s = 0; s < chunk->steps; s += SEGMENT) {
        int64_t end = gemm_min(s + SEGMENT, chunk->steps);
        for (int visit = 0; visit < now->halves; visit++) {
            if (visit) half ^= 1;
            const uint16_t *a_at = a + half * half_a + s * 2 * TILE_ELEMENTS,
                           *b_at = b + s * tiles * TILE_ELEMENTS;
            float *here = now->tiles + half * HALF_FLOATS;
            if (s == 0 && !now->start)
                step(a_at, b_at, tiles, FROM_ZERO, live, NULL);
            else if (s == 0)
                step(a_at, b_at, tiles, FROM_MEMORY, live, now->start + half * HALF_FLOATS);
            else if (visit)
                step(a_at, b_at, tiles, FROM_MEMORY, live, here);
            else
                step(a_at, b_at, tiles, STAY, NULL, NULL);
            live = here;
            for (int64_t x = s + 1; x < end; x++) {
                a_at += 2 * TILE_ELEMENTS, b_at += tiles * TILE_ELEMENTS;
                step(a_at, b_at, tiles, STAY, NULL, NULL);
                beside_step(chunk, &beside);
            }
        }
    }
    if (beside.row < beside.before.rows) chunk->finish(chunk, &beside.before, beside.row, beside.before.rows);
    chunk->live = live;
    chunk->before = *now;
}

/* Brings what is in flight home. Afterwards nothing is: what the next block stores goes to `nowhere`. */
static void chunk_flush(struct chunk *chunk, float *nowhere) {
    const enum turn turn = FROM_ZERO;
    float *store = chunk->live;
    const float *load = NULL;
    (void)load;
    TURN(0);
    TURN(1);
    TURN(2);
    TURN(3);
    TURN(4);
    TURN(5);
    if (chunk->before.rows) chunk->finish(chunk, &chunk->before, 0, chunk->before.rows);
    chunk->before.rows = 0;
    chunk->live = nowhere;
}

/* ---- one area of C ---- */
struct area {
    const struct tile_job *job;
    int64_t m0, m1, n0, n1; /* n counts from the job's n0 */
    uint16_t *a;            /* packed chunk of A */
    float *sums;            /* tiles of the area, or NULL when k is one chunk */
    float *landing[2];      /* a block each */
};

/* One panel of B against the chunk of A. */
ALWAYS_INLINE void area_panel(const struct area *area, struct chunk *chunk, int64_t n,
                              const struct column *column, const int tiles) {
    const struct tile_job *job = area->job;
    const struct gemm_args *args = job->v.args;
    int64_t panels_m = gemm_blocks(area->m1 - area->m0, PANEL_M);
    const uint16_t *b =
        job->b + tile_b_elements(job->steps, n) + chunk->index * job->chunk_steps * tiles * TILE_ELEMENTS;
    float *sums = area->sums ? area->sums + (n - area->n0) / PANEL_N * panels_m * HALF_FLOATS : NULL;
    for (int64_t p = 0; p < panels_m; p += 2) {
        int64_t m = area->m0 + p * PANEL_M;
        float *sums_here = sums ? sums + p * HALF_FLOATS : NULL;
        float *landing = chunk->before.tiles == area->landing[0] ? area->landing[1] : area->landing[0];
        struct block now = {.column = column,
                            .tiles = chunk->to_c ? landing : sums_here,
                            .start = chunk->index ? sums_here : NULL,
                            .c = dtype_at(args->c, args->c_dtype, m * job->v.ldc + job->n0 + n),
                            .halves = p + 1 < panels_m ? 2 : 1,
                            .rows = chunk->to_c ? (int)gemm_min(BLOCK_M, area->m1 - m) : 0};
        block_products(chunk, area->a + p * chunk->steps * 2 * TILE_ELEMENTS, b, &now, tiles);
    }
}

/* Describes the panel of B that starts at column n, and sets out to prefetch the next one. */
static void column_begin(struct column *column, struct chunk *chunk, const struct area *area, int64_t n) {
    const struct tile_job *job = area->job;
    const struct gemm_args *args = job->v.args;
    int64_t columns = gemm_min(PANEL_N, area->n1 - n), next = n + PANEL_N;
    column->tiles = (int)gemm_blocks(columns, TILE_ROWS);
    column->c_width = (size_t)columns * dtype_bytes(args->c_dtype);
    memset(column->bias, 0, sizeof(column->bias));
    if (args->bias)
        rows_load(column->bias, dtype_at(args->bias, args->dtype, job->n0 + n), args->dtype, columns);
    for (int t = 0; t < PANEL_TILES; t++) column->mask[t] = tile_mask(columns - t * 16);
    chunk->next_b_lines = 0;
    if (next < area->n1) {
        int64_t tiles = gemm_min(PANEL_TILES, gemm_blocks(job->n1 - job->n0 - next, TILE_ROWS));
        int64_t lines = chunk->steps * tiles * TILE_ROWS,
                panels_m = gemm_blocks(area->m1 - area->m0, PANEL_M);
        chunk->next_b = (const char *)(job->b + tile_b_elements(job->steps, next) +
                                       chunk->index * job->chunk_steps * tiles * TILE_ELEMENTS);
        chunk->next_b_lines = gemm_blocks(lines, beside_steps(panels_m * chunk->steps));
    }
}

static void area_chunk(const struct area *area, int64_t index) {
    const struct tile_job *job = area->job;
    const struct gemm_args *args = job->v.args;
    int64_t step0 = index * job->chunk_steps, k0 = step0 * STEP_K, panels = 0;
    struct chunk chunk = {.index = index, .alpha = job->v.alpha, .to_c = index == job->chunks - 1};
    chunk.steps = gemm_min(job->chunk_steps, job->steps - step0);
    chunk.c_row = (size_t)job->v.ldc * dtype_bytes(args->c_dtype);
    chunk.finish = finish_to_c[args->c_dtype == DTYPE_BF16][args->accumulate];
    chunk.live = area->landing[0]; /* nothing is in flight yet: any place will do */
    tile_pack_a(area->a, dtype_at(args->a, args->dtype, area->m0 * job->v.a_row + k0 * job->v.a_col),
                args->trans_a, job->lda, area->m1 - area->m0, gemm_min(chunk.steps * STEP_K, args->k - k0),
                chunk.steps);
    for (int64_t n = area->n0; n < area->n1; n += PANEL_N, panels++) {
        struct column *column = &chunk.columns[panels % 2];
        column_begin(column, &chunk, area, n);
        switch (column->tiles) {
        case 1: /* fewer tiles than the panel before: those would stay behind */
            chunk_flush(&chunk, area->landing[0]);
            area_panel(area, &chunk, n, column, 1);
            break;
        case 2:
            chunk_flush(&chunk, area->landing[0]);
            area_panel(area, &chunk, n, column, 2);
            break;
        default:
            area_panel(area, &chunk, n, column, 3);
            break;
        }
    }
    chunk_flush(&chunk, area->landing[0]);
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

/* Where part i of `parts` even parts of [0, size) begins, in whole units. */
static int64_t part_begin(int64_t size, int64_t unit, int64_t parts, int64_t i) {
    return gemm_min(size, gemm_blocks(size, unit) * i / parts * unit);
}

/* Units of the largest part. */
static int64_t part_units(int64_t size, int64_t unit, int64_t parts) {
    return gemm_blocks(gemm_blocks(size, unit), parts);
}

static void run_in(const struct tile_job *job, unsigned char *space, int64_t begin, int64_t end) {
    struct area area = {.job = job};
    for (int i = 0; i < 2; i++, space += LANDING_BYTES) area.landing[i] = (float *)(void *)space;
    area.a = (uint16_t *)(void *)space;
    if (job->chunks > 1) area.sums = (float *)(void *)(space + job->a_bytes);
    tiles_on();
    for (int64_t x = begin; x < end; x++) {
        int64_t part_m = x % job->parts_m, part_n = x / job->parts_m, n = job->n1 - job->n0;
        area.m0 = part_begin(job->v.m, PANEL_M, job->parts_m, part_m);
        area.m1 = part_begin(job->v.m, PANEL_M, job->parts_m, part_m + 1);
        area.n0 = part_begin(n, PANEL_N, job->parts_n, part_n);
        area.n1 = part_begin(n, PANEL_N, job->parts_n, part_n + 1);
        for (int64_t chunk = 0; chunk < job->chunks; chunk++) area_chunk(&area, chunk);
    }
    _tile_release();
}

static void run_areas(void *context, int64_t begin, int64_t end, int thread) {
    const struct tile_job *job = context;
    run_in(job, job->thread_space + (size_t)thread * job->thread_bytes, begin, end);
}

/* ---- the whole product ---- */

/* Columns of B that are packed at a time when B comes as a plain matrix. */
static int64_t columns_per_pack(const struct gemm_args *args, int64_t steps) {
    if (args->b_packed) return args->n;
    int64_t columns = PACK_BYTES / (steps * STEP_K * 2) / PANEL_N * PANEL_N;
    return gemm_min(args->n, columns > PANEL_N ? columns : PANEL_N);
}

/* The cut of n columns of C into areas: small enough for the second-level cache and, where there are few, as
 * many as threads or a multiple, so that no thread waits. */
static void plan_areas(struct tile_job *job, int64_t n, int64_t threads) {
    int64_t m = job->v.m, rows = MANY_CHUNKS_M, columns = MANY_CHUNKS_N;
    if (job->chunks == 1) {
        rows = gemm_min(ONE_CHUNK_M, ONE_CHUNK_BYTES / (job->steps * STEP_K * 2));
        columns = ONE_CHUNK_N;
    }
    job->parts_m = gemm_blocks(m, rows);
    job->parts_n = gemm_blocks(n, columns);
    if (job->parts_m * job->parts_n < ENOUGH_AREAS * threads) {
        int64_t even = gemm_blocks(job->parts_m, threads) * threads, most = gemm_blocks(m, LEAST_M);
        job->parts_m = even <= most ? even : job->parts_m > most ? job->parts_m : most;
        while (job->parts_m * job->parts_n % threads && job->parts_n * LEAST_N < n) job->parts_n++;
    }
}

/* Everything but the pointers. The chunks fix the order of the sums and depend on k alone; the areas depend
 * on the shape and the number of threads. */
static struct tile_job plan(const struct gemm_args *args, int64_t threads) {
    struct tile_job job = {.v = gemm_view(args)};
    job.lda = args->trans_a ? job.v.a_col : job.v.a_row;
    job.steps = tile_steps(args->k);
    job.chunk_steps = gemm_blocks(job.steps, gemm_blocks(job.steps, CHUNK_STEPS));
    job.chunks = gemm_blocks(job.steps, job.chunk_steps);
    int64_t n = columns_per_pack(args, job.steps);
    plan_areas(&job, n, threads);
    int64_t panels_m = part_units(args->m, PANEL_M, job.parts_m),
            panels_n = part_units(n, PANEL_N, job.parts_n);
    job.a_bytes = (size_t)(panels_m * 2 * TILE_ELEMENTS * job.chunk_steps) * sizeof(uint16_t);
    job.thread_bytes = 2 * LANDING_BYTES + job.a_bytes;
    if (job.chunks > 1) job.thread_bytes += (size_t)(panels_m * panels_n * HALF_FLOATS) * sizeof(float);
    return job;
}

static size_t pack_bytes(const struct gemm_args *args, int64_t steps) {
    return args->b_packed ? 0
                          : (size_t)tile_b_elements(steps, columns_per_pack(args, steps)) * sizeof(uint16_t);
}

int64_t CPU(gemm_tiles_areas)(const struct gemm_args *args, int64_t threads) {
    if (!args->m || !args->n) return 0;
    struct tile_job job = plan(args, threads);
    return job.parts_m * job.parts_n;
}

void CPU(gemm_tiles_run)(const struct gemm_args *args, int64_t threads, int64_t area, unsigned char *space) {
    struct tile_job job = plan(args, threads);
    job.b = args->b;
    job.n1 = args->n;
    run_in(&job, space, area, area + 1);
}

size_t CPU(gemm_tiles_thread_bound)(const struct gemm_args *args) {
    int64_t steps = tile_steps(args->k), most = ONE_CHUNK_BYTES / (STEP_K * 2) / PANEL_M + 2 * CHUNK_STEPS;
    int64_t panels_m = gemm_blocks(args->m, PANEL_M), panels_n = gemm_blocks(args->n, PANEL_N);
    int64_t a_steps = gemm_min(panels_m * gemm_min(steps, CHUNK_STEPS), most); /* panels times steps of A */
    size_t bytes = 2 * LANDING_BYTES + (size_t)(a_steps * 2 * TILE_ELEMENTS) * sizeof(uint16_t);
    panels_m = gemm_min(panels_m, MANY_CHUNKS_M / PANEL_M + 1);
    panels_n = gemm_min(panels_n, MANY_CHUNKS_N / PANEL_N + 1);
    if (steps > CHUNK_STEPS) bytes += (size_t)(panels_m * panels_n * HALF_FLOATS) * sizeof(float);
    return bytes;
}

size_t CPU(gemm_tiles_pack_bound)(const struct gemm_args *args) {
    int64_t steps = tile_steps(args->k), whole = tile_b_elements(steps, args->n) * 2;
    int64_t some = tile_b_elements(steps, PANEL_N) * 2;
    if (args->b_packed) return 0;
    return (size_t)gemm_min(whole, some > PACK_BYTES ? some : PACK_BYTES);
}

size_t CPU(gemm_tiles_workspace)(const struct stream *stream, const struct gemm_args *args) {
    if (!args->m || !args->n) return 0;
    struct tile_job job = plan(args, threads_count(stream->threads));
    return pack_bytes(args, job.steps) + (size_t)threads_count(stream->threads) * job.thread_bytes;
}

void CPU(gemm_tiles)(const struct stream *stream, const struct gemm_args *args) {
    if (!args->m || !args->n) return;
    struct tile_job job = plan(args, threads_count(stream->threads));
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
            tile_pack_b_all(stream->threads, packed, &source);
            job.b = packed;
        }
        threads_for(stream->threads, job.parts_m * job.parts_n, 1, run_areas, &job);
    }
}
#endif
