/* bf16 attention forward on tiles. 32 queries walk over chunks of 32 keys; scores are computed transposed
 * (keys down, queries across), so that a vector holds one key of 16 queries and the softmax has no step
 * across lanes. The running maximum is raised only when a score exceeds it by 2^8 (the sums have room for
 * that), so rescaling is rare. */
#include "kernels/cpu/attention_dropout.h"
#include "kernels/cpu/attention_tiles.h"
#include <math.h>
#if CPU_ISA_amx

enum { GROUP_CHUNKS = 4 }; /* chunks between two products with the values */

struct problem {
    const struct attention_forward_args *args;
    struct attention_shape z;
    struct attention_window w;
    int64_t ahead;                        /* query row i stands at key row i + ahead */
    int64_t dv;                           /* head size of the values */
    int64_t d_padded, v_padded, k_padded; /* multiples of 32: of d, of dv and of the keys */
    int64_t part;                         /* queries of a task */
    float scale;                          /* log2(e) times the scale: exponents are to base 2 */
    bool direct;                          /* keys need no packing */
    struct dropout dropout;
};

/* A task packs the values that it needs, so parts are long, but there should be some 32 tasks to share out.
 */
static int64_t part_queries(const struct attention_shape *z) {
    int64_t parts = (32 + z->b * z->g - 1) / (z->b * z->g), rows = (z->s + parts - 1) / parts;
    return (rows < 256 ? 256 : rows + 31) / 32 * 32;
}

static struct problem make_problem(const struct attention_forward_args *args) {
    struct attention_window w = attention_window_of(&args->shape, args->window);
    return (struct problem){.args = args,
                            .z = args->shape,
                            .w = w,
                            .ahead = w.first_query - w.first_key,
                            .dv = attention_value_dim(&args->shape),
                            .d_padded = (args->shape.d + 31) / 32 * 32,
                            .v_padded = (attention_value_dim(&args->shape) + 31) / 32 * 32,
                            .k_padded = (w.keys + 31) / 32 * 32,
                            .part = part_queries(&args->shape),
                            .scale = args->scale * 1.44269504f,
                            .direct = lies_in_tiles(args->k, w.keys, args->shape.d),
                            .dropout = dropout_make(args->key, args->dropout)};
}

struct buffers {
    const uint16_t *keys; /* f->k, or the keys themselves */
    uint16_t *k, *v;      /* left tiles: k [s/16][d/32], v transposed [s/32][dv/16] */
    uint16_t *q;          /* right tiles [2][d/32] of the query block */
    uint16_t *probs;      /* right tiles [GROUP_CHUNKS][2] */
    float *scores[2];     /* [CHUNK keys, CHUNK queries] */
    float *out;           /* [dv, CHUNK queries] */
    __m512 max[2], sum[2];
    uint32_t keep[GROUP_CHUNKS * CHUNK]; /* dropout masks, per key, of a group of chunks */
};

static size_t buffer_bytes(const struct problem *p) {
    size_t d = (size_t)p->d_padded, dv = (size_t)p->v_padded, s = (size_t)p->k_padded;
    return s * (d + dv) * 2 + CHUNK * d * 2 + GROUP_CHUNKS * 2 * TILE * 2 + 2 * CHUNK_SUM * 4 +
           dv * CHUNK * 4;
}

static void carve(struct buffers *f, const struct problem *p, char *at) {
    int64_t d = p->d_padded, s = p->k_padded;
    f->k = (uint16_t *)at, f->v = f->k + s * d, f->q = f->v + s * p->v_padded, f->probs = f->q + CHUNK * d;
    f->scores[0] = (float *)(f->probs + GROUP_CHUNKS * 2 * TILE);
    f->scores[1] = f->scores[0] + CHUNK_SUM, f->out = f->scores[1] + CHUNK_SUM;
}

static void pack_keys_values(const struct problem *p, struct buffers *f, int64_t kv, int64_t keys) {
    const struct attention_shape *z = &p->z;
    int64_t d = p->d_padded;
    int64_t first = kv * p->w.k_rows;
    struct rows16 k = {(const uint16_t *)p->args->k + first * z->d, z->d, p->w.keys, z->d, false};
    struct rows16 v = {(const uint16_t *)p->args->v + first * p->dv, p->dv, p->w.keys, p->dv, false};
    f->keys = p->direct ? k.p : f->k;
    for (int64_t row = 0; row < keys; row += 32) {
        for (int64_t col = 0; col < d && !p->direct; col += 32) {
            pack_left(f->k + row * d + col / 32 * TILE, &k, row, col);
            pack_left(f->k + (row + 16) * d + col / 32 * TILE, &k, row + 16, col);
        }
        for (int64_t col = 0; col < p->v_padded; col += 32) {
            pack_left_transposed(f->v + row * p->v_padded + col / 16 * TILE, &v, row, col);
        }
    }
}

/* scores of keys key..key+31 = K Q^T. */
static void score_products(const struct problem *p, struct buffers *f, int64_t chunk) {
    int64_t d = p->d_padded;
    struct tiles keys = left_tiles(f->keys, chunk * CHUNK, d, p->direct), queries = {f->q, 16 * d, TILE, 0};
    tiles_product(f->scores[chunk % 2], 16, 16 * CHUNK, CHUNK, keys, queries, d / 32, false);
}

/* out[dv, queries] (+)= V^T P over the chunks of a group. */
static void value_products(const struct problem *p, struct buffers *f, int64_t first, int64_t chunks) {
    int64_t d = p->v_padded;
    for (int64_t n = 0; n < d; n += 32) {
        struct tiles values = {f->v + first * CHUNK * d + n / 16 * TILE, TILE, d / 16 * TILE, 0};
        struct tiles probs = {f->probs, TILE, 2 * TILE, 0};
        tiles_product(f->out + n * CHUNK, 16, 16 * CHUNK, CHUNK, values, probs, chunks, first > 0);
    }
}

/* Raises the maximum where the chunk is far above it, and rescales what was summed so far; `done` chunks of
 * this group have their probabilities in f->probs, the groups before are in f->out. */
static void raise_max(const struct problem *p, struct buffers *f, __m512 top[2], bool out_begun,
                      int64_t done) {
    __m512 shrink[2];
    for (int h = 0; h < 2; h++) {
        __m512 max = _mm512_max_ps(f->max[h], top[h]);
        shrink[h] = exp2_fast(_mm512_sub_ps(f->max[h], max));
        f->max[h] = max, f->sum[h] = _mm512_mul_ps(f->sum[h], shrink[h]);
    }
    for (int64_t n = 0; n < p->v_padded && out_begun; n++) {
        float *row = f->out + n * CHUNK;
        _mm512_store_ps(row, _mm512_mul_ps(_mm512_load_ps(row), shrink[0]));
        _mm512_store_ps(row + 16, _mm512_mul_ps(_mm512_load_ps(row + 16), shrink[1]));
    }
    const __m512i odd = _mm512_set1_epi32((int)0xFFFF0000);
    for (int64_t n = 0; n < done * 32; n++) {
        __m512i *row = (__m512i *)(f->probs + n * 32), pair = _mm512_load_si512(row);
        __m512 high = _mm512_mul_ps((__m512)_mm512_and_si512(pair, odd), shrink[n / 16 % 2]);
        __m512 low = _mm512_mul_ps((__m512)_mm512_slli_epi32(pair, 16), shrink[n / 16 % 2]);
        const __m512i zip = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23,
                                             7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
        _mm512_store_si512(row, _mm512_permutexvar_epi16(zip, to_bf16(low, high)));
    }
}

static inline void find_top(const struct problem *p, const float *scores, __m512 top[2]) {
    top[0] = _mm512_load_ps(scores), top[1] = _mm512_load_ps(scores + 16);
    for (int j = 1; j < CHUNK; j++) {
        top[0] = _mm512_max_ps(top[0], _mm512_load_ps(scores + j * CHUNK));
        top[1] = _mm512_max_ps(top[1], _mm512_load_ps(scores + j * CHUNK + 16));
    }
    top[0] = _mm512_mul_ps(top[0], _mm512_set1_ps(p->scale));
    top[1] = _mm512_mul_ps(top[1], _mm512_set1_ps(p->scale));
}

/* Probabilities of a chunk into two right tiles, and their sums. `keep` has a mask per key and half, or is
 * NULL. */
static inline __attribute__((always_inline)) void exponentials(const struct problem *p, struct buffers *f,
                                                               const float *scores, uint16_t *probs,
                                                               const uint32_t *keep) {
    const __m512i zip = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7,
                                         22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    const __m512 scale = _mm512_set1_ps(p->scale);
    for (int h = 0; h < 2; h++) {
        __m512 max = f->max[h], even_sum = f->sum[h], odd_sum = _mm512_setzero_ps();
        for (int j = 0; j < CHUNK; j += 2) {
            const float *row = scores + j * CHUNK + 16 * h;
            __m512 even = exp2_fast(_mm512_fmsub_ps(_mm512_load_ps(row), scale, max));
            __m512 odd = exp2_fast(_mm512_fmsub_ps(_mm512_load_ps(row + CHUNK), scale, max));
            even_sum = _mm512_add_ps(even_sum, even), odd_sum = _mm512_add_ps(odd_sum, odd);
            if (keep) {
                even = _mm512_maskz_mov_ps((__mmask16)(keep[j] >> 16 * h), even);
                odd = _mm512_maskz_mov_ps((__mmask16)(keep[j + 1] >> 16 * h), odd);
            }
            _mm512_store_si512(probs + h * TILE + j / 2 * 32,
                               _mm512_permutexvar_epi16(zip, to_bf16(even, odd)));
        }
        f->sum[h] = _mm512_add_ps(even_sum, odd_sum);
    }
}

static void softmax_chunk(const struct problem *p, struct buffers *f, int64_t chunk, int64_t query) {
    float *scores = f->scores[chunk % 2];
    int64_t key = chunk * CHUNK;
    __m512 top[2];
    mask_scores(scores, p->w.keys, p->args->causal, query + p->ahead, key);
    find_top(p, scores, top);
    const __m512 room = _mm512_set1_ps(8.0f);
    if (_mm512_cmp_ps_mask(_mm512_sub_ps(top[0], f->max[0]), room, _CMP_GT_OQ) |
        _mm512_cmp_ps_mask(_mm512_sub_ps(top[1], f->max[1]), room, _CMP_GT_OQ)) {
        raise_max(p, f, top, chunk >= GROUP_CHUNKS, chunk % GROUP_CHUNKS);
    }
    uint16_t *probs = f->probs + chunk % GROUP_CHUNKS * 2 * TILE;
    if (p->dropout.threshold) {
        exponentials(p, f, scores, probs, f->keep + chunk % GROUP_CHUNKS * CHUNK);
    } else {
        exponentials(p, f, scores, probs, NULL);
    }
}

/* o = out / sum, turned back to queries down. */
static void write_queries(const struct problem *p, struct buffers *f, int64_t batch, int64_t head,
                          int64_t query) {
    const struct attention_shape *z = &p->z;
    for (int h = 0; h < 2; h++) {
        __mmask16 sees = _mm512_cmp_ps_mask(f->sum[h], _mm512_setzero_ps(), _CMP_NEQ_UQ); /* any key */
        __m512 factor = _mm512_maskz_div_ps(sees, _mm512_set1_ps(p->dropout.keep_scale), f->sum[h]);
        for (int64_t n = 0; n < p->dv; n += 16) {
            __m512i r[16];
            __mmask16 cols = p->dv - n >= 16 ? 0xFFFF : (__mmask16)((1u << (p->dv - n)) - 1);
            for (int i = 0; i < 16; i++) {
                r[i] = (__m512i)_mm512_mul_ps(_mm512_load_ps(f->out + (n + i) * CHUNK + 16 * h), factor);
            }
            transpose16(r);
            for (int i = 0; i < 16 && query + 16 * h + i < z->s; i++) {
                int64_t at = (((query + 16 * h + i) * z->b + batch) * z->a + head) * p->dv + n;
                store_floats(p->args->o, at, cols, (__m512)r[i], p->args->o_is_f32, false);
            }
        }
    }
    if (!p->args->lse) return;
    float max[CHUNK], sum[CHUNK], *lse = p->args->lse + (batch * z->a + head) * p->w.q_rows + query;
    for (int h = 0; h < 2; h++) {
        _mm512_storeu_ps(max + 16 * h, f->max[h]);
        _mm512_storeu_ps(sum + 16 * h, f->sum[h]);
    }
    for (int64_t i = 0; i < CHUNK && query + i < z->s; i++) lse[i] = max[i] * 0.693147181f + logf(sum[i]);
}

/* The dropout masks of a group of chunks at once: starting the counters costs as much as four rounds. */
static void drop_group(const struct problem *p, struct buffers *f, int64_t chunk, int64_t chunks,
                       uint64_t first_element) {
    int64_t left = chunks - chunk < GROUP_CHUNKS ? chunks - chunk : GROUP_CHUNKS;
    if (!p->dropout.threshold) return;
    dropout_mask(&p->dropout, first_element + (uint64_t)(chunk * CHUNK), (uint64_t)p->w.seq, left * CHUNK,
                 f->keep);
}

/* Keys that the queries before `end` see. */
static int64_t keys_before(const struct problem *p, int64_t end) {
    return p->args->causal ? attention_window_sees(&p->w, end - 1) : p->w.keys;
}

/* A query that sees no key starts from a maximum that hidden scores do not reach: its sum stays 0. */
static void start_queries(const struct problem *p, struct buffers *f, int64_t query) {
    int64_t blind = p->args->causal ? -(query + p->ahead) : 0; /* queries before the first key */
    uint32_t lanes = blind >= 32 ? ~0u : blind > 0 ? (1u << blind) - 1 : 0;
    for (int h = 0; h < 2; h++) {
        f->max[h] =
            _mm512_mask_mov_ps(_mm512_set1_ps(-1e38f), (__mmask16)(lanes >> 16 * h), _mm512_setzero_ps());
        f->sum[h] = _mm512_setzero_ps();
    }
}

static void forward_queries(const struct problem *p, struct buffers *f, int64_t batch, int64_t head,
                            int64_t query) {
    const struct attention_shape *z = &p->z;
    const struct attention_window *w = &p->w;
    int64_t row = (batch * z->a + head) * w->q_rows, d = p->d_padded;
    int64_t end = query + CHUNK < z->s ? query + CHUNK : z->s;
    int64_t chunks = (keys_before(p, end) + CHUNK - 1) / CHUNK;
    int64_t element = ((batch * w->heads + w->first_head + head) * w->seq + w->first_query + query) * w->seq;
    uint64_t first_element = (uint64_t)(element + w->first_key);
    struct rows16 q = {(const uint16_t *)p->args->q + row * z->d, z->d, z->s, z->d, false};
    for (int64_t col = 0; col < d; col += 32) {
        pack_right_transposed(f->q + col / 32 * TILE, &q, query, col);
        pack_right_transposed(f->q + 16 * d + col / 32 * TILE, &q, query + 16, col);
    }
    start_queries(p, f, query);
    if (chunks) {
        score_products(p, f, 0);
    } else {
        memset(f->out, 0, (size_t)(p->v_padded * CHUNK) * sizeof(float));
    }
    for (int64_t chunk = 0; chunk < chunks; chunk++) {
        if (chunk % GROUP_CHUNKS == 0) drop_group(p, f, chunk, chunks, first_element);
        if (chunk + 1 < chunks) score_products(p, f, chunk + 1);
        softmax_chunk(p, f, chunk, query);
        if ((chunk + 1) % GROUP_CHUNKS == 0 || chunk + 1 == chunks) {
            value_products(p, f, chunk / GROUP_CHUNKS * GROUP_CHUNKS, chunk % GROUP_CHUNKS + 1);
        }
    }
    write_queries(p, f, batch, head, query);
}

struct job {
    struct problem p;
    char *workspace;
    int64_t parts;
};

/* Task t: the last parts, which have most keys, come first. */
static void forward_task(void *context, int64_t begin, int64_t end, int thread) {
    struct job *job = context;
    const struct problem *p = &job->p;
    const struct attention_shape *z = &p->z;
    struct buffers f;
    carve(&f, p, job->workspace + (size_t)thread * buffer_bytes(p));
    tiles_open();
    for (int64_t task = begin; task < end; task++) {
        int64_t part = job->parts - 1 - task / (z->b * z->g), kv = task % (z->b * z->g),
                per_group = z->a / z->g;
        int64_t batch = kv / z->g, group = kv % z->g,
                last = (part + 1) * p->part < z->s ? (part + 1) * p->part : z->s;
        pack_keys_values(p, &f, kv, keys_before(p, last));
        for (int64_t head = group * per_group; head < (group + 1) * per_group; head++) {
            for (int64_t query = part * p->part; query < last; query += CHUNK)
                forward_queries(p, &f, batch, head, query);
        }
    }
    tiles_close();
}

size_t CPU(attention_tiles_forward_workspace)(const struct stream *stream,
                                              const struct attention_forward_args *args) {
    struct problem p = make_problem(args);
    return (size_t)threads_count(stream->threads) * buffer_bytes(&p);
}

void CPU(attention_tiles_forward)(const struct stream *stream, const struct attention_forward_args *args) {
    struct job job = {make_problem(args), stream->workspace, 0};
    job.parts = (args->shape.s + job.p.part - 1) / job.p.part;
    threads_for(stream->threads, args->shape.b * args->shape.g * job.parts, 1, forward_task, &job);
}
#endif
