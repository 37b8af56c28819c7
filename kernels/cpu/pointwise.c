/* Element-wise kernels: one pass over memory. Activations have a file of their own. */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/philox.h"
#include "kernels/cpu/simd.h"

enum { CHUNK = 32768 }; /* elements that one thread takes at a time: a multiple of PHILOX_SPAN */

/* ---- dropout and residual: y = (base) + (drop) x ---- */
struct mix {
    void *y;
    const void *x, *base; /* base NULL: nothing is added */
    int64_t n;
    uint64_t first_element;
    float p;
    struct rng_key key;
    enum dtype dtype;
};

SIMD_INLINE void mix_plain(const struct mix *m, int64_t begin, int64_t end, enum dtype t) {
    void *y = m->y;
    const void *x = m->x, *base = m->base;
    if (base) {
        SIMD_LOOP for (int64_t i = begin; i < end; i++)
            simd_store(y, t, i, simd_load(base, t, i) + simd_load(x, t, i));
    } else if (y != x) {
        memcpy(dtype_at(y, t, begin), dtype_at(x, t, begin), (size_t)(end - begin) * dtype_bytes(t));
    }
}

/* value or 0, by a mask: a conditional expression would become a branch around the load. */
SIMD_INLINE float keep_if(bool keep, float value) {
    return math_from_bits(math_to_bits(value) & -(int32_t)keep);
}

SIMD_INLINE void mix_dropped(const struct mix *m, int64_t begin, int64_t end, enum dtype t) {
    void *y = m->y;
    const void *x = m->x, *base = m->base;
    uint32_t buffer[PHILOX_BUFFER], threshold = rng_drop_threshold(m->p);
    float scale = 1.0f / (1.0f - m->p);
    for (int64_t i0 = begin; i0 < end; i0 += PHILOX_SPAN) {
        int64_t n = end - i0 < PHILOX_SPAN ? end - i0 : PHILOX_SPAN;
        const uint32_t *words = philox_words(m->key, m->first_element + (uint64_t)i0, n, buffer);
        if (base) {
            SIMD_LOOP for (int64_t i = 0; i < n; i++) {
                float kept = keep_if(words[i] >= threshold, simd_load(x, t, i0 + i) * scale);
                simd_store(y, t, i0 + i, simd_load(base, t, i0 + i) + kept);
            }
        } else {
            SIMD_LOOP for (int64_t i = 0; i < n; i++) {
                float kept = keep_if(words[i] >= threshold, simd_load(x, t, i0 + i) * scale);
                simd_store(y, t, i0 + i, kept);
            }
        }
    }
}

static void mix_body(void *context, int64_t begin, int64_t end, int thread) {
    const struct mix *m = context;
    (void)thread;
    if (m->p > 0) {
        SIMD_BY_DTYPE(m->dtype, mix_dropped, m, begin, end)
    } else {
        SIMD_BY_DTYPE(m->dtype, mix_plain, m, begin, end)
    }
}

void CPU(dropout)(const struct stream *stream, const struct dropout_args *args) {
    struct mix m = {.y = args->y,
                    .x = args->x,
                    .n = args->n,
                    .first_element = args->first_element,
                    .p = args->p,
                    .key = args->key,
                    .dtype = args->dtype};
    threads_for(stream->threads, m.n, CHUNK, mix_body, &m);
}

void CPU(residual_forward)(const struct stream *stream, const struct residual_forward_args *args) {
    struct mix m = {.y = args->y,
                    .x = args->x,
                    .base = args->residual,
                    .n = args->n,
                    .first_element = args->first_element,
                    .p = args->p,
                    .key = args->key,
                    .dtype = args->dtype};
    threads_for(stream->threads, m.n, CHUNK, mix_body, &m);
}

/* Both outputs of a piece are made while its dy is in the first-level cache. */
static void residual_backward_body(void *context, int64_t begin, int64_t end, int thread) {
    enum { PIECE = 4096 };
    const struct residual_backward_args *a = context;
    struct mix dx = {.y = a->dx,
                     .x = a->dy,
                     .base = a->accumulate_dx ? a->dx : NULL,
                     .first_element = a->first_element,
                     .p = a->p,
                     .key = a->key,
                     .dtype = a->dtype};
    struct mix dresidual = {.y = a->dresidual,
                            .x = a->dy,
                            .base = a->accumulate_dresidual ? a->dresidual : NULL,
                            .dtype = a->dtype};
    for (int64_t i = begin; i < end; i += PIECE) {
        int64_t stop = i + PIECE < end ? i + PIECE : end;
        if (a->dx) mix_body(&dx, i, stop, thread);
        if (a->dresidual) mix_body(&dresidual, i, stop, thread);
    }
}

void CPU(residual_backward)(const struct stream *stream, const struct residual_backward_args *args) {
    struct residual_backward_args a = *args;
    threads_for(stream->threads, a.n, CHUNK, residual_backward_body, &a);
}

void CPU(add)(const struct stream *stream, const struct add_args *args) {
    struct mix m = {.y = args->y, .x = args->b, .base = args->a, .n = args->n, .dtype = args->dtype};
    threads_for(stream->threads, m.n, CHUNK, mix_body, &m);
}

/* ---- cast, fill, copy_blocks ---- */
SIMD_INLINE void cast_pair(const struct cast_args *a, int64_t begin, int64_t end, enum dtype to,
                           enum dtype from) {
    void *dst = a->dst;
    const void *src = a->src;
    SIMD_LOOP for (int64_t i = begin; i < end; i++) simd_store(dst, to, i, simd_load(src, from, i));
}

SIMD_INLINE void cast_from(const struct cast_args *a, int64_t begin, int64_t end, enum dtype from) {
    switch (a->dst_dtype) {
    case DTYPE_BF16:
        cast_pair(a, begin, end, DTYPE_BF16, from);
        break;
    case DTYPE_F16:
        cast_pair(a, begin, end, DTYPE_F16, from);
        break;
    default:
        cast_pair(a, begin, end, DTYPE_F32, from);
        break;
    }
}

static void cast_body(void *context, int64_t begin, int64_t end, int thread) {
    const struct cast_args *a = context;
    (void)thread;
    SIMD_BY_DTYPE(a->src_dtype, cast_from, a, begin, end)
}

void CPU(cast)(const struct stream *stream, const struct cast_args *args) {
    struct cast_args a = *args;
    threads_for(stream->threads, a.n, CHUNK, cast_body, &a);
}

struct fill {
    void *y;
    uint32_t bits; /* of one element */
    size_t bytes;
};

static void fill_body(void *context, int64_t begin, int64_t end, int thread) {
    const struct fill *f = context;
    (void)thread;
    if (f->bits == 0) {
        memset((char *)f->y + (size_t)begin * f->bytes, 0, (size_t)(end - begin) * f->bytes);
    } else if (f->bytes == 2) {
        uint16_t *y = f->y, value = (uint16_t)f->bits;
        SIMD_LOOP for (int64_t i = begin; i < end; i++) y[i] = value;
    } else {
        uint32_t *y = f->y, value = f->bits;
        SIMD_LOOP for (int64_t i = begin; i < end; i++) y[i] = value;
    }
}

void CPU(fill)(const struct stream *stream, const struct fill_args *args) {
    struct fill f = {.y = args->y, .bytes = dtype_bytes(args->dtype)};
    uint16_t half = 0;
    store_f32(f.bytes == 2 ? (void *)&half : (void *)&f.bits, args->dtype, 0, args->value);
    if (f.bytes == 2) f.bits = half;
    threads_for(stream->threads, args->n, CHUNK, fill_body, &f);
}

/* Block (i, j) is row i * n1 + j. */
static void copy_body(void *context, int64_t begin, int64_t end, int thread) {
    const struct copy_blocks_args *a = context;
    size_t bytes = (size_t)a->n2 * dtype_bytes(a->dtype);
    (void)thread;
    for (int64_t r = begin; r < end; r++) {
        int64_t i = r / a->n1, j = r % a->n1;
        memcpy(dtype_at(a->dst, a->dtype, i * a->dst_stride0 + j * a->dst_stride1),
               dtype_at(a->src, a->dtype, i * a->src_stride0 + j * a->src_stride1), bytes);
    }
}

void CPU(copy_blocks)(const struct stream *stream, const struct copy_blocks_args *args) {
    struct copy_blocks_args a = *args;
    if (!a.n2) return;
    threads_for(stream->threads, a.n0 * a.n1, simd_rows_per_chunk(CHUNK, a.n2), copy_body, &a);
}
