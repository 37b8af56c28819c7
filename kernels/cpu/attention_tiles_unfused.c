/* The matrix products of the unfused chain for bf16 on tiles. A task is one batch row and one key/value
 * group, its query heads in order. Four products do it all, with X the [s, s] matrix of a head:
 *
 *     scores, dprobs   X = left right^T    by strips of 32 queries
 *     context, dq      out = X right       by strips of 32 queries
 *     dv, dk           sums += X^T left    by blocks of 128 queries and chunks of 32 keys */
#include "kernels/cpu/attention_tiles.h"
#if CPU_ISA_amx

enum { CHUNKS = 4, BLOCK = CHUNKS * CHUNK }; /* queries of a block */

struct problem {
    struct attention_shape z;
    int64_t d, s; /* padded to multiples of 32 */
    bool causal;
};

static struct problem make_problem(struct attention_shape z, bool causal) {
    return (struct problem){z, (z.d + 31) / 32 * 32, (z.s + 31) / 32 * 32, causal};
}

struct buffers {
    uint16_t *right;  /* of keys or values: right tiles [s/32][d/16], or of the transpose [s/16][d/32] */
    uint16_t *left;   /* left tiles of a strip of queries [2][d/32] */
    uint16_t *strip;  /* left tiles of a strip of X [2][s/32] */
    uint16_t *block;  /* right tiles of a block of queries [CHUNKS][d/16] */
    uint16_t *turned; /* left tiles of X^T, 32 keys by a block of queries: [2][CHUNKS] */
    float *sums;      /* [s, d] */
    float *out;       /* [32, d], or a chunk [32, 32] */
};

/* Cuts `f` out of the memory at address `at` and returns the bytes used; address 0 only measures. */
static size_t carve(struct buffers *f, const struct problem *p, uintptr_t at) {
    size_t d = (size_t)p->d, s = (size_t)p->s, used = 0;
    const size_t halves[] = {s * d, CHUNK * d, CHUNK * s, BLOCK * d, 2 * CHUNKS * TILE};
    uint16_t **const pointers[] = {&f->right, &f->left, &f->strip, &f->block, &f->turned};
    for (size_t i = 0; i < sizeof(halves) / sizeof(halves[0]); i++) {
        *pointers[i] = (uint16_t *)(at + used), used += halves[i] * 2;
    }
    f->sums = (float *)(at + used), used += s * d * 4;
    f->out = (float *)(at + used), used += CHUNK * d * 4;
    return used;
}

static int64_t min_i64(int64_t a, int64_t b) {
    return a < b ? a : b;
}

/* ---- operands ---- */

/* The rows of a head or of a key/value group: of [b, heads, s, d], of [s, b, a * d], of [b, a, s, s]. */
static struct rows16 head_rows(const struct problem *p, const void *x, int64_t head) {
    return (struct rows16){(const uint16_t *)x + head * p->z.s * p->z.d, p->z.d, p->z.s, p->z.d, false};
}

static struct rows16 hidden_rows(const struct problem *p, const void *x, int64_t head) {
    return (struct rows16){(const uint16_t *)x + head * p->z.d, p->z.b * p->z.a * p->z.d, p->z.s, p->z.d,
                           false};
}

static struct rows16 square_rows(const struct problem *p, const void *x, int64_t head) {
    return (struct rows16){(const uint16_t *)x + head * p->z.s * p->z.s, p->z.s, p->z.s, p->z.s, p->causal};
}

static void load_right(const struct problem *p, struct buffers *f, struct rows16 x) {
    for (int64_t row = 0; row < p->s; row += 32) {
        for (int64_t col = 0; col < p->d; col += 32)
            pack_right(f->right + row * p->d + col / 16 * TILE, &x, row, col);
    }
}

static void load_right_transposed(const struct problem *p, struct buffers *f, struct rows16 x) {
    for (int64_t row = 0; row < p->s; row += 16) {
        for (int64_t col = 0; col < p->d; col += 32) {
            pack_right_transposed(f->right + row * p->d + col / 32 * TILE, &x, row, col);
        }
    }
}

/* Keys of a strip, in chunks. */
static int64_t strip_chunks(const struct problem *p, int64_t query) {
    return (p->causal ? query : p->s - CHUNK) / CHUNK + 1;
}

/* ---- X = factor * left right^T ---- */

/* bf16 of a chunk into rows of X, cut at the edge and, when causal, at the diagonal. */
static void store_chunk(const struct problem *p, const float *sums, uint16_t *x, int64_t query, int64_t key,
                        float factor, bool zeros_above) {
    const __m512 scale = _mm512_set1_ps(factor);
    for (int64_t i = query; i < min_i64(query + CHUNK, p->z.s); i++) {
        const float *row = sums + (i - query) * CHUNK;
        int64_t inside = min_i64(p->z.s - key, CHUNK),
                used = p->causal ? min_i64(i + 1 - key, inside) : inside;
        __mmask32 keep = used == 32 ? ~0u : (1u << used) - 1, write = inside == 32 ? ~0u : (1u << inside) - 1;
        __m512i out = to_bf16(_mm512_mul_ps(_mm512_load_ps(row), scale),
                              _mm512_mul_ps(_mm512_load_ps(row + 16), scale));
        _mm512_mask_storeu_epi16(x + i * p->z.s + key, zeros_above ? write : keep,
                                 _mm512_maskz_mov_epi16(keep, out));
    }
}

static void product_square(const struct problem *p, struct buffers *f, struct rows16 left, uint16_t *x,
                           int64_t query, float factor, bool zeros_above) {
    int64_t d = p->d, chunks = strip_chunks(p, query);
    for (int64_t col = 0; col < d; col += 32) {
        pack_left(f->left + col / 32 * TILE, &left, query, col);
        pack_left(f->left + 16 * d + col / 32 * TILE, &left, query + 16, col);
    }
    for (int64_t chunk = 0; chunk < chunks; chunk++) {
        struct tiles a = {f->left, 16 * d, TILE, 0}, b = {f->right + chunk * CHUNK * d, 16 * d, TILE, 0};
        tiles_product(f->out, 16, 16 * CHUNK, CHUNK, a, b, d / 32, false);
        store_chunk(p, f->out, x, query, chunk * CHUNK, factor, zeros_above);
    }
    if (!zeros_above || chunks * CHUNK >= p->z.s) return;
    for (int64_t i = query; i < min_i64(query + CHUNK, p->z.s); i++) {
        memset(x + i * p->z.s + chunks * CHUNK, 0, (size_t)(p->z.s - chunks * CHUNK) * 2);
    }
}

/* ---- out = factor * X right ---- */

static void store_out(const struct problem *p, const float *sums, struct rows16 out, int64_t query,
                      float factor) {
    for (int64_t i = 0; i < min_i64(CHUNK, p->z.s - query); i++) {
        uint16_t *row = (uint16_t *)(uintptr_t)out.p + (query + i) * out.step;
        for (int64_t n = 0; n < p->z.d; n += 16) {
            __mmask16 cols = p->z.d - n >= 16 ? 0xFFFF : (__mmask16)((1u << (p->z.d - n)) - 1);
            __m512 x = _mm512_mul_ps(_mm512_load_ps(sums + i * p->d + n), _mm512_set1_ps(factor));
            _mm256_mask_storeu_epi16(row + n, cols, (__m256i)_mm512_cvtneps_pbh(x));
        }
    }
}

static void product_out(const struct problem *p, struct buffers *f, struct rows16 x, struct rows16 out,
                        int64_t query, float factor) {
    int64_t d = p->d, chunks = strip_chunks(p, query);
    for (int64_t chunk = 0; chunk < chunks; chunk++) {
        pack_left(f->strip + chunk * TILE, &x, query, chunk * CHUNK);
        pack_left(f->strip + 16 * p->s + chunk * TILE, &x, query + 16, chunk * CHUNK);
    }
    for (int64_t n = 0; n < d; n += 32) {
        struct tiles a = {f->strip, 16 * p->s, TILE, 0},
                     b = {f->right + n / 16 * TILE, TILE, d / 16 * TILE, 0};
        tiles_product(f->out + n, 16, 16 * d, d, a, b, chunks, false);
    }
    store_out(p, f->out, out, query, factor);
}

/* ---- sums += X^T left ---- */

static void product_sums(const struct problem *p, struct buffers *f, struct rows16 x, struct rows16 left,
                         int64_t query) {
    int64_t d = p->d, end = min_i64(query + BLOCK, p->s), keys = p->causal ? end : p->s;
    for (int64_t i = query; i < end; i += CHUNK) {
        for (int64_t col = 0; col < d; col += 32) {
            pack_right(f->block + (i - query) * d + col / 16 * TILE, &left, i, col);
        }
    }
    for (int64_t key = 0; key < keys; key += CHUNK) {
        int64_t first = p->causal && key > query ? key : query, chunks = (end - first) / CHUNK;
        uint16_t turned[2 * TILE] __attribute__((aligned(64)));
        for (int64_t c = 0; c < chunks; c++) {
            pack_left_transposed(turned, &x, first + c * CHUNK, key);
            memcpy(f->turned + c * TILE, turned, TILE * 2);
            memcpy(f->turned + (CHUNKS + c) * TILE, turned + TILE, TILE * 2);
        }
        for (int64_t n = 0; n < d; n += 32) {
            struct tiles a = {f->turned, CHUNKS * TILE, TILE, 0};
            struct tiles b = {f->block + (first - query) * d + n / 16 * TILE, TILE, d / 16 * TILE, 0};
            tiles_product(f->sums + key * d + n, 16, 16 * d, d, a, b, chunks, true);
        }
    }
}

static void clear_sums(const struct problem *p, struct buffers *f) {
    memset(f->sums, 0, (size_t)(p->s * p->d) * sizeof(float));
}

static void store_sums(const struct problem *p, struct buffers *f, struct rows16 out, float factor) {
    for (int64_t key = 0; key < p->z.s; key += CHUNK) store_out(p, f->sums + key * p->d, out, key, factor);
}

/* ---- the kernels: `kv` = batch * g + group; its heads are kv * a/g and the next ---- */
struct job {
    struct problem p;
    const void *args;
    void *workspace;
};

static struct buffers open_task(const struct job *job, int thread) {
    struct buffers f;
    size_t bytes = carve(&f, &job->p, 0);
    carve(&f, &job->p, (uintptr_t)job->workspace + (size_t)thread * bytes);
    tiles_open();
    return f;
}

static void scores_forward_task(void *context, int64_t begin, int64_t end, int thread) {
    const struct job *job = context;
    const struct attention_scores_forward_args *args = job->args;
    const struct problem *p = &job->p;
    struct buffers f = open_task(job, thread);
    int64_t per_group = p->z.a / p->z.g;
    for (int64_t kv = begin; kv < end; kv++) {
        load_right_transposed(p, &f, head_rows(p, args->k, kv));
        for (int64_t head = kv * per_group; head < (kv + 1) * per_group; head++) {
            uint16_t *scores = (uint16_t *)args->scores + head * p->z.s * p->z.s;
            for (int64_t query = 0; query < p->z.s; query += CHUNK) {
                product_square(p, &f, head_rows(p, args->q, head), scores, query, args->scale, false);
            }
        }
    }
    tiles_close();
}

static void scores_backward_task(void *context, int64_t begin, int64_t end, int thread) {
    const struct job *job = context;
    const struct attention_scores_backward_args *args = job->args;
    const struct problem *p = &job->p;
    struct buffers f = open_task(job, thread);
    int64_t per_group = p->z.a / p->z.g;
    for (int64_t kv = begin; kv < end; kv++) {
        load_right(p, &f, head_rows(p, args->k, kv));
        clear_sums(p, &f);
        for (int64_t head = kv * per_group; head < (kv + 1) * per_group; head++) {
            struct rows16 x = square_rows(p, args->dscores, head), q = head_rows(p, args->q, head);
            for (int64_t query = 0; query < p->z.s; query += CHUNK) {
                product_out(p, &f, x, head_rows(p, args->dq, head), query, args->scale);
            }
            for (int64_t query = 0; query < p->z.s; query += BLOCK) product_sums(p, &f, x, q, query);
        }
        store_sums(p, &f, head_rows(p, args->dk, kv), args->scale);
    }
    tiles_close();
}

static void context_forward_task(void *context, int64_t begin, int64_t end, int thread) {
    const struct job *job = context;
    const struct attention_context_forward_args *args = job->args;
    const struct problem *p = &job->p;
    struct buffers f = open_task(job, thread);
    int64_t per_group = p->z.a / p->z.g;
    for (int64_t kv = begin; kv < end; kv++) {
        load_right(p, &f, head_rows(p, args->v, kv));
        for (int64_t head = kv * per_group; head < (kv + 1) * per_group; head++) {
            struct rows16 x = square_rows(p, args->probs, head), o = hidden_rows(p, args->o, head);
            for (int64_t query = 0; query < p->z.s; query += CHUNK) product_out(p, &f, x, o, query, 1.0f);
        }
    }
    tiles_close();
}

static void context_backward_task(void *context, int64_t begin, int64_t end, int thread) {
    const struct job *job = context;
    const struct attention_context_backward_args *args = job->args;
    const struct problem *p = &job->p;
    struct buffers f = open_task(job, thread);
    int64_t per_group = p->z.a / p->z.g;
    for (int64_t kv = begin; kv < end; kv++) {
        load_right_transposed(p, &f, head_rows(p, args->v, kv));
        clear_sums(p, &f);
        for (int64_t head = kv * per_group; head < (kv + 1) * per_group; head++) {
            struct rows16 d_o = hidden_rows(p, args->d_o, head), x = square_rows(p, args->probs, head);
            uint16_t *dprobs = (uint16_t *)args->dprobs + head * p->z.s * p->z.s;
            for (int64_t query = 0; query < p->z.s; query += CHUNK) {
                product_square(p, &f, d_o, dprobs, query, 1.0f, true);
            }
            for (int64_t query = 0; query < p->z.s; query += BLOCK) product_sums(p, &f, x, d_o, query);
        }
        store_sums(p, &f, head_rows(p, args->dv, kv), 1.0f);
    }
    tiles_close();
}

#define UNFUSED(name, task)                                                                                  \
    size_t CPU(name##_tiles_workspace)(const struct stream *stream, const struct name##_args *args) {        \
        struct problem p = make_problem(args->shape, args->causal);                                          \
        struct buffers f;                                                                                    \
        return (size_t)threads_count(stream->threads) * carve(&f, &p, 0);                                    \
    }                                                                                                        \
    void CPU(name##_tiles)(const struct stream *stream, const struct name##_args *args) {                    \
        struct job job = {make_problem(args->shape, args->causal), args, stream->workspace};                 \
        threads_for(stream->threads, args->shape.b * args->shape.g, 1, task, &job);                          \
    }
UNFUSED(attention_scores_forward, scores_forward_task)
UNFUSED(attention_scores_backward, scores_backward_task)
UNFUSED(attention_context_forward, context_forward_task)
UNFUSED(attention_context_backward, context_backward_task)
#endif
