/* bf16 attention backward on tiles (FlashAttention-2, Dao 2023). A task is one batch row and one key/value
 * group; its query heads follow in order, so dk and dv sum in a fixed order. A head is walked in blocks of
 * 128 keys by 128 queries, cut into chunks of 32 x 32. Of a chunk, keys down and queries across:
 *
 *     S = K Q^T, dP = V dO^T        tile products into float32
 *     P = 2^(S - lse), dS = P (dP - delta)     vectors, rounded to bf16 tiles
 *     dV += P dO, dK += dS Q        per row of chunks
 *     dQ^T += K^T dS                per block */
#include "kernels/cpu/attention_dropout.h"
#include "kernels/cpu/attention_tiles.h"
#include <math.h>
#if CPU_ISA_amx

enum { CHUNKS = 4, BLOCK = CHUNKS * CHUNK }; /* of a block, each way */

struct problem {
    const struct attention_backward_args *args;
    struct attention_shape z;
    struct attention_window w;
    int64_t v_dim;          /* head size of the values */
    int64_t d, dv, s, keys; /* padded to multiples of 32 */
    int64_t ahead;          /* query row i stands at key row i + ahead */
    bool direct;            /* keys and values need no packing */
    float scale;            /* log2(e) times the scale: exponents are to base 2 */
    struct dropout dropout;
};

static struct problem make_problem(const struct attention_backward_args *args) {
    const struct attention_shape *z = &args->shape;
    struct attention_window w = attention_window_of(z, args->window);
    return (struct problem){.args = args,
                            .z = *z,
                            .w = w,
                            .v_dim = attention_value_dim(z),
                            .d = (z->d + 31) / 32 * 32,
                            .dv = (attention_value_dim(z) + 31) / 32 * 32,
                            .s = (z->s + 31) / 32 * 32,
                            .keys = (w.keys + 31) / 32 * 32,
                            .ahead = w.first_query - w.first_key,
                            .direct = lies_in_tiles(args->k, w.keys, z->d) &&
                                      lies_in_tiles(args->v, w.keys, attention_value_dim(z)),
                            .scale = args->scale * 1.44269504f,
                            .dropout = dropout_make(args->key, args->dropout)};
}

struct buffers {
    const uint16_t *keys, *values; /* f->k and f->v, or the tensors themselves */
    uint16_t *k, *v, *k_t;         /* left tiles: k, v [keys/16][d/32]; k transposed [keys/32][d/16] */
    uint16_t *q_t, *do_t;          /* right tiles of the transposes [s/16][d/32] */
    uint16_t *q, *d_o;             /* right tiles [s/32][d/16]; of v and dO with dv for d */
    uint16_t *probs, *dscores;     /* left tiles of a row of chunks [2][CHUNKS] */
    uint16_t *dscores_q;           /* right tiles of a block [CHUNKS keys][CHUNKS queries][2] */
    float *dk, *dv;                /* [keys, d], [keys, dv] */
    float *dq;                     /* [s/32][d, 32 queries in the order of query_at] */
    float *scores, *dprobs;        /* of a row of chunks: [CHUNKS][32 keys, 32 queries] */
    uint32_t *keep;                /* dropout masks of a block [CHUNKS queries][BLOCK keys] */
    float *lse, *delta;            /* [s]; lse to base 2 */
};

/* Cuts `f` out of the memory at address `at` and returns the bytes used; address 0 only measures. */
static size_t carve(struct buffers *f, const struct problem *p, uintptr_t at) {
    size_t row = 2 * CHUNKS * TILE, used = 0;
    const struct {
        uint16_t **tiles;
        int64_t rows, cols;
    } halves[] = {{&f->k, p->keys, p->d}, {&f->v, p->keys, p->dv}, {&f->k_t, p->keys, p->d},
                  {&f->q_t, p->s, p->d},  {&f->do_t, p->s, p->dv}, {&f->q, p->s, p->d},
                  {&f->d_o, p->s, p->dv}};
    for (size_t i = 0; i < sizeof(halves) / sizeof(halves[0]); i++) {
        *halves[i].tiles = (uint16_t *)(at + used), used += (size_t)(halves[i].rows * halves[i].cols) * 2;
    }
    f->dk = (float *)(at + used), used += (size_t)(p->keys * p->d) * 4;
    f->dv = (float *)(at + used), used += (size_t)(p->keys * p->dv) * 4;
    f->dq = (float *)(at + used), used += (size_t)(p->s * p->d) * 4;
    f->probs = (uint16_t *)(at + used), used += row * 2;
    f->dscores = (uint16_t *)(at + used), used += row * 2;
    f->dscores_q = (uint16_t *)(at + used), used += CHUNKS * row * 2;
    f->scores = (float *)(at + used), used += CHUNKS * CHUNK_SUM * 4;
    f->dprobs = (float *)(at + used), used += CHUNKS * CHUNK_SUM * 4;
    f->keep = (uint32_t *)(at + used), used += CHUNKS * BLOCK * 4;
    f->lse = (float *)(at + used), used += (size_t)p->s * 4;
    f->delta = (float *)(at + used), used += (size_t)p->s * 4;
    return used;
}

static void pack_group(const struct problem *p, struct buffers *f, int64_t kv) {
    const struct attention_shape *z = &p->z;
    int64_t first = kv * p->w.k_rows, dv = p->v_dim;
    struct rows16 k = {(const uint16_t *)p->args->k + first * z->d, z->d, p->w.keys, z->d, false};
    struct rows16 v = {(const uint16_t *)p->args->v + first * dv, dv, p->w.keys, dv, false};
    f->keys = p->direct ? k.p : f->k;
    f->values = p->direct ? v.p : f->v;
    for (int64_t row = 0; row < p->keys; row += 32) {
        for (int64_t col = 0; col < p->d; col += 32) {
            for (int64_t half = row; half < row + 32 && !p->direct; half += 16) {
                pack_left(f->k + half * p->d + col / 32 * TILE, &k, half, col);
            }
            pack_left_transposed(f->k_t + row * p->d + col / 16 * TILE, &k, row, col);
        }
        for (int64_t col = 0; col < p->dv && !p->direct; col += 32) {
            pack_left(f->v + row * p->dv + col / 32 * TILE, &v, row, col);
            pack_left(f->v + (row + 16) * p->dv + col / 32 * TILE, &v, row + 16, col);
        }
    }
    memset(f->dk, 0, (size_t)(p->keys * p->d) * 4);
    memset(f->dv, 0, (size_t)(p->keys * p->dv) * 4);
}

/* Sum of dO * O over one row. */
static float row_delta(const struct rows16 *o, const struct rows16 *d_o, int64_t row, int64_t d) {
    const __m512i odd = _mm512_set1_epi32((int)0xFFFF0000);
    __m512 low = _mm512_setzero_ps(), high = _mm512_setzero_ps();
    for (int64_t col = 0; col < d; col += 32) {
        __m512i a = load_row32(o, row, col), b = load_row32(d_o, row, col);
        low = _mm512_fmadd_ps((__m512)_mm512_slli_epi32(a, 16), (__m512)_mm512_slli_epi32(b, 16), low);
        high = _mm512_fmadd_ps((__m512)_mm512_and_si512(a, odd), (__m512)_mm512_and_si512(b, odd), high);
    }
    return _mm512_reduce_add_ps(_mm512_add_ps(low, high));
}

static void pack_head(const struct problem *p, struct buffers *f, int64_t batch, int64_t head) {
    const struct attention_shape *z = &p->z;
    int64_t row = (batch * z->a + head) * p->w.q_rows, step = z->b * z->a * p->v_dim,
            first = (batch * z->a + head) * p->v_dim;
    struct rows16 q = {(const uint16_t *)p->args->q + row * z->d, z->d, z->s, z->d, false};
    struct rows16 d_o = {(const uint16_t *)p->args->d_o + first, step, z->s, p->v_dim, false};
    struct rows16 o = {(const uint16_t *)p->args->o + first, step, z->s, p->v_dim, false};
    for (int64_t i = 0; i < p->s; i += 32) {
        for (int64_t col = 0; col < p->d; col += 32) {
            for (int64_t half = i; half < i + 32; half += 16) {
                pack_right_transposed(f->q_t + half * p->d + col / 32 * TILE, &q, half, col);
            }
            pack_right(f->q + i * p->d + col / 16 * TILE, &q, i, col);
        }
        for (int64_t col = 0; col < p->dv; col += 32) {
            for (int64_t half = i; half < i + 32; half += 16) {
                pack_right_transposed(f->do_t + half * p->dv + col / 32 * TILE, &d_o, half, col);
            }
            pack_right(f->d_o + i * p->dv + col / 16 * TILE, &d_o, i, col);
        }
    }
    for (int64_t i = 0; i < p->s; i++) { /* queries past the end, or that see no key, get probability 0 */
        bool sees = i < z->s && p->args->lse[row + i] != -INFINITY;
        f->lse[i] = sees ? p->args->lse[row + i] * 1.44269504f : 1e30f;
        f->delta[i] = row_delta(&o, &d_o, i, p->dv);
    }
    memset(f->dq, 0, (size_t)(p->s * p->d) * 4);
}

/* A chunk of scores: its first key and query. */
struct chunk {
    int64_t key, query;
};

static void chunk_products(const struct problem *p, const struct buffers *f, struct chunk c) {
    int64_t d = p->d, dv = p->dv;
    struct tiles keys = left_tiles(f->keys, c.key, d, p->direct);
    struct tiles values = left_tiles(f->values, c.key, dv, p->direct);
    struct tiles queries = {f->q_t + c.query * d, 16 * d, TILE, 0},
                 outs = {f->do_t + c.query * dv, 16 * dv, TILE, 0};
    int64_t sums = c.query % BLOCK * CHUNK;
    tiles_product(f->scores + sums, 16, 16 * CHUNK, CHUNK, keys, queries, d / 32, false);
    tiles_product(f->dprobs + sums, 16, 16 * CHUNK, CHUNK, values, outs, dv / 32, false);
}

/* What the inner loop keeps in registers, for 16 queries each. */
struct lanes {
    __m512 scale, keep_scale, lse[2], minus_delta[2];
};

/* Of one key: P and dS for 32 queries, as bf16. */
static inline __attribute__((always_inline)) void key_row(const struct lanes *x, const float *scores,
                                                          const float *dprobs, const uint32_t *keep,
                                                          __m512i *prob, __m512i *dscore) {
    __m512 pr[2], ds[2];
    for (int h = 0; h < 2; h++) {
        __m512 dp = _mm512_load_ps(dprobs + 16 * h);
        pr[h] = exp2_fast(_mm512_fmsub_ps(_mm512_load_ps(scores + 16 * h), x->scale, x->lse[h]));
        if (keep) {
            ds[h] = _mm512_mul_ps(pr[h], _mm512_mask3_fmadd_ps(dp, x->keep_scale, x->minus_delta[h],
                                                               (__mmask16)(*keep >> 16 * h)));
            pr[h] = _mm512_maskz_mov_ps((__mmask16)(*keep >> 16 * h), pr[h]);
        } else {
            ds[h] = _mm512_mul_ps(pr[h], _mm512_add_ps(dp, x->minus_delta[h]));
        }
    }
    *prob = to_bf16(pr[0], pr[1]), *dscore = to_bf16(ds[0], ds[1]);
}

/* P and dS of a chunk as left tiles (tile 0 at the pointer, tile 1 CHUNKS tiles on), and dS as right tiles,
 * whose columns come in the order of query_at. */
static inline __attribute__((always_inline)) void chunk_gradients(const struct lanes *x, const float *scores,
                                                                  const float *dprobs, const uint32_t *keep,
                                                                  uint16_t *probs, uint16_t *dscores,
                                                                  uint16_t *dscores_q) {
    for (int j = 0; j < CHUNK; j += 2) {
        __m512i prob[2], ds[2];
        int64_t row = j / 16 * CHUNKS * TILE + j % 16 * 32;
        key_row(x, scores + j * CHUNK, dprobs + j * CHUNK, keep ? keep + j : NULL, &prob[0], &ds[0]);
        key_row(x, scores + (j + 1) * CHUNK, dprobs + (j + 1) * CHUNK, keep ? keep + j + 1 : NULL, &prob[1],
                &ds[1]);
        _mm512_store_si512(probs + row, prob[0]);
        _mm512_store_si512(probs + row + 32, prob[1]);
        _mm512_store_si512(dscores + row, ds[0]);
        _mm512_store_si512(dscores + row + 32, ds[1]);
        _mm512_store_si512(dscores_q + j * 16, _mm512_unpacklo_epi16(ds[0], ds[1]));
        _mm512_store_si512(dscores_q + TILE + j * 16, _mm512_unpackhi_epi16(ds[0], ds[1]));
    }
}

/* Query of column c of right tile t of dscores_q: the word unpacks work within 128 bits. */
static inline int query_at(int t, int c) {
    return c / 4 * 8 + t * 4 + c % 4;
}

static void chunk_vectors(const struct problem *p, struct buffers *f, struct chunk c) {
    float *scores = f->scores + c.query % BLOCK * CHUNK;
    const float *dprobs = f->dprobs + c.query % BLOCK * CHUNK;
    int64_t column = c.query % BLOCK / CHUNK;
    uint16_t *probs = f->probs + column * TILE, *dscores = f->dscores + column * TILE;
    uint16_t *dscores_q = f->dscores_q + (c.key % BLOCK / CHUNK * CHUNKS + column) * 2 * TILE;
    struct lanes x = {.scale = _mm512_set1_ps(p->scale), .keep_scale = _mm512_set1_ps(p->dropout.keep_scale)};
    for (int h = 0; h < 2; h++) {
        x.lse[h] = _mm512_load_ps(f->lse + c.query + 16 * h);
        x.minus_delta[h] = _mm512_sub_ps(_mm512_setzero_ps(), _mm512_load_ps(f->delta + c.query + 16 * h));
    }
    mask_scores(scores, p->w.keys, p->args->causal, c.query + p->ahead, c.key);
    if (p->dropout.threshold) {
        const uint32_t *keep = f->keep + column * BLOCK + c.key % BLOCK;
        chunk_gradients(&x, scores, dprobs, keep, probs, dscores, dscores_q);
    } else {
        chunk_gradients(&x, scores, dprobs, NULL, probs, dscores, dscores_q);
    }
}

/* dv and dk of 32 keys += P dO and dS Q over the chunks first..CHUNKS-1 of the block. */
static void key_products(const struct problem *p, struct buffers *f, int64_t key, int64_t query,
                         int64_t chunks) {
    int64_t d = p->d, dv = p->dv, column = query % BLOCK / CHUNK;
    struct tiles probs = {f->probs + column * TILE, CHUNKS * TILE, TILE, 0};
    struct tiles dscores = {f->dscores + column * TILE, CHUNKS * TILE, TILE, 0};
    for (int64_t n = 0; n < dv; n += 32) {
        struct tiles outs = {f->d_o + query * dv + n / 16 * TILE, TILE, dv / 16 * TILE, 0};
        tiles_product(f->dv + key * dv + n, 16, 16 * dv, dv, probs, outs, chunks, true);
    }
    for (int64_t n = 0; n < d; n += 32) {
        struct tiles queries = {f->q + query * d + n / 16 * TILE, TILE, d / 16 * TILE, 0};
        tiles_product(f->dk + key * d + n, 16, 16 * d, d, dscores, queries, chunks, true);
    }
}

/* dq of 32 queries += dS K over the first `chunks` chunks of keys of the block. */
static void query_products(const struct problem *p, struct buffers *f, int64_t key, int64_t query,
                           int64_t chunks) {
    int64_t d = p->d, column = query % BLOCK / CHUNK;
    struct tiles dscores = {f->dscores_q + column * 2 * TILE, TILE, CHUNKS * 2 * TILE, 0};
    for (int64_t n = 0; n < d; n += 32) {
        struct tiles keys = {f->k_t + key * d + n / 16 * TILE, TILE, d / 16 * TILE, 0};
        tiles_product(f->dq + query * d + n * CHUNK, 16, 16 * CHUNK, CHUNK, keys, dscores, chunks, true);
    }
}

static int64_t min_i64(int64_t a, int64_t b) {
    return a < b ? a : b;
}

static int64_t max_i64(int64_t a, int64_t b) {
    return a > b ? a : b;
}

/* First chunk of queries of which some see a key of the chunk at `key`. */
static int64_t first_query(const struct problem *p, int64_t key) {
    int64_t query = p->args->causal ? key - p->ahead : 0; /* the query that stands at the key */
    return query > 0 ? query / CHUNK * CHUNK : 0;
}

/* End of the chunks of keys that some query of the chunk at `query` sees: first_query, read the other way. */
static int64_t end_of_keys(const struct problem *p, int64_t query) {
    int64_t end = p->args->causal ? query + CHUNK + p->ahead : p->keys; /* the key past the last query */
    return end > 0 ? min_i64((end + CHUNK - 1) / CHUNK * CHUNK, p->keys) : 0;
}

static void backward_block(const struct problem *p, struct buffers *f, int64_t key, int64_t query,
                           int64_t element) {
    int64_t key_end = min_i64(key + BLOCK, p->keys), query_end = min_i64(query + BLOCK, p->s);
    for (int64_t i = query; i < query_end && p->dropout.threshold; i += CHUNK) {
        int64_t last = min_i64(key_end, end_of_keys(p, i));
        if (last <= key) continue;
        dropout_mask(&p->dropout, (uint64_t)(element + i * p->w.seq + key), (uint64_t)p->w.seq, last - key,
                     f->keep + i % BLOCK / CHUNK * BLOCK);
    }
    for (int64_t j = key; j < key_end; j += CHUNK) {
        int64_t first = max_i64(query, first_query(p, j));
        if (first >= query_end) continue;
        for (int64_t i = first; i < query_end; i += CHUNK) chunk_products(p, f, (struct chunk){j, i});
        for (int64_t i = first; i < query_end; i += CHUNK) chunk_vectors(p, f, (struct chunk){j, i});
        key_products(p, f, j, first, (query_end - first) / CHUNK);
    }
    for (int64_t i = query; i < query_end; i += CHUNK) {
        int64_t last = min_i64(key_end, end_of_keys(p, i));
        if (last > key) query_products(p, f, key, i, (last - key) / CHUNK);
    }
}

/* dq[query, d] = scale * the sums, turned back to queries down. */
static void write_queries(const struct problem *p, const struct buffers *f, int64_t head_row, int64_t query) {
    const struct attention_shape *z = &p->z;
    const __m512 scale = _mm512_set1_ps(p->args->scale);
    const float *sums = f->dq + query * p->d;
    for (int t = 0; t < 2; t++) {
        for (int64_t n = 0; n < z->d; n += 16) {
            __m512i r[16];
            __mmask16 cols = z->d - n >= 16 ? 0xFFFF : (__mmask16)((1u << (z->d - n)) - 1);
            for (int i = 0; i < 16; i++) {
                r[i] = (__m512i)_mm512_mul_ps(_mm512_load_ps(sums + (n + i) * CHUNK + 16 * t), scale);
            }
            transpose16(r);
            for (int i = 0; i < 16; i++) {
                int64_t row = query + query_at(t, i);
                if (row >= z->s) continue;
                store_floats(p->args->dq, (head_row + row) * z->d + n, cols, (__m512)r[i],
                             p->args->grads_are_f32, p->args->accumulate);
            }
        }
    }
}

/* Rows of dk or dv, `dim` wide, from row `first` of the tensor on, = factor * sums[keys, dim padded]. */
static void write_rows(const struct problem *p, void *out, int64_t dim, int64_t first, const float *sums,
                       float factor) {
    int64_t padded = (dim + 31) / 32 * 32;
    for (int64_t j = 0; j < p->w.keys; j++) {
        for (int64_t n = 0; n < dim; n += 16) {
            __mmask16 cols = dim - n >= 16 ? 0xFFFF : (__mmask16)((1u << (dim - n)) - 1);
            __m512 x = _mm512_mul_ps(_mm512_load_ps(sums + j * padded + n), _mm512_set1_ps(factor));
            store_floats(out, (first + j) * dim + n, cols, x, p->args->grads_are_f32, p->args->accumulate);
        }
    }
}

/* Dropout element of the head's first query and key. */
static int64_t first_element(const struct problem *p, int64_t batch, int64_t head) {
    const struct attention_window *w = &p->w;
    int64_t row = (batch * w->heads + w->first_head + head) * w->seq + w->first_query;
    return row * w->seq + w->first_key;
}

struct job {
    struct problem p;
    char *workspace;
};

static void backward_task(void *context, int64_t begin, int64_t end, int thread) {
    struct job *job = context;
    const struct problem *p = &job->p;
    const struct attention_shape *z = &p->z;
    struct buffers f;
    size_t bytes = carve(&f, p, 0);
    carve(&f, p, (uintptr_t)job->workspace + (size_t)thread * bytes);
    tiles_open();
    for (int64_t kv = begin; kv < end; kv++) {
        int64_t batch = kv / z->g, group = kv % z->g, per_group = z->a / z->g;
        pack_group(p, &f, kv);
        for (int64_t head = group * per_group; head < (group + 1) * per_group; head++) {
            int64_t head_row = (batch * z->a + head) * p->w.q_rows, element = first_element(p, batch, head);
            pack_head(p, &f, batch, head);
            for (int64_t key = 0; key < p->keys; key += BLOCK) {
                for (int64_t query = first_query(p, key) / BLOCK * BLOCK; query < p->s; query += BLOCK) {
                    backward_block(p, &f, key, query, element);
                }
            }
            for (int64_t query = 0; query < p->s; query += CHUNK) write_queries(p, &f, head_row, query);
        }
        write_rows(p, p->args->dk, z->d, kv * p->w.k_rows, f.dk, p->args->scale);
        write_rows(p, p->args->dv, p->v_dim, kv * p->w.k_rows, f.dv, p->dropout.keep_scale);
    }
    tiles_close();
}

size_t CPU(attention_tiles_backward_workspace)(const struct stream *stream,
                                               const struct attention_backward_args *args) {
    struct problem p = make_problem(args);
    struct buffers f;
    return (size_t)threads_count(stream->threads) * carve(&f, &p, 0);
}

void CPU(attention_tiles_backward)(const struct stream *stream, const struct attention_backward_args *args) {
    struct job job = {make_problem(args), stream->workspace};
    threads_for(stream->threads, args->shape.b * args->shape.g, 1, backward_task, &job);
}
#endif
