#pragma once
/* Context parallelism, private to core/model/ops: attention over a sequence that is split over ranks.
 *
 * The sequence is cut into 2 n chunks of c tokens; rank r of n holds chunks r and 2 n - 1 - r, in this order
 * ("halves" of its s = 2 c rows): under the causal mask all ranks then have the same work. For n = 2:
 *
 *     chunks   0 1 2 3
 *     rank     0 1 1 0        rank 0: chunks 0, 3     rank 1: chunks 1, 2
 *
 * Three ways to bring queries and keys together, each a file: context_ring.c (keys and values travel),
 * context_gather.c (every rank gets them all), context_heads.c (heads for sequence). Random numbers are those
 * of the whole: dropout does not depend on n or on the way. */
#include "core/model/ops/internal.h"
#include "core/model/run.h"

struct context {
    struct attention_shape shape; /* this rank's: s rows, its tensor-parallel heads */
    int64_t first_head, heads, seq, chunk;
    int ranks, rank;
    float scale, dropout;
    enum dtype dtype;
};

/* Sizes of the scratch that a way takes, and its op. */
struct context_way {
    struct op_def def;
    size_t (*forward_scratch)(const struct context *c);
    size_t (*backward_scratch)(const struct context *c);
};
extern const struct context_way context_ring, context_gather, context_heads;

enum { CONTEXT_OUT, CONTEXT_LSE, CONTEXT_FORWARD_SCRATCH, CONTEXT_BACKWARD_SCRATCH }; /* outputs of the op */

/* Number of the chunk that is `half` (0 or 1) of a rank's rows. */
static inline int64_t context_chunk(const struct context *c, int rank, int half) {
    return half ? 2 * c->ranks - 1 - rank : rank;
}

enum { CONTEXT_KEYS, CONTEXT_VALUES };

/* Head size of keys (and queries) or of values (and the output). */
static inline int64_t context_width(const struct context *c, int which) {
    return which == CONTEXT_VALUES ? attention_value_dim(&c->shape) : c->shape.d;
}

/* Elements of q, of o, of keys or values, of both. */
static inline int64_t context_q_count(const struct context *c) {
    return c->shape.b * c->shape.a * c->shape.s * c->shape.d;
}

static inline int64_t context_o_count(const struct context *c) {
    return c->shape.b * c->shape.a * c->shape.s * attention_value_dim(&c->shape);
}

static inline int64_t context_kv_count(const struct context *c, int which) {
    return c->shape.b * c->shape.g * c->shape.s * context_width(c, which);
}

static inline int64_t context_both_count(const struct context *c) {
    return context_kv_count(c, CONTEXT_KEYS) + context_kv_count(c, CONTEXT_VALUES);
}

/* Cuts `count` elements off a stretch of scratch; starting from 0 it measures. */
static inline void *context_carve(uintptr_t *at, int64_t count, enum dtype dtype) {
    uintptr_t begin = *at;
    *at += align_up((size_t)count * dtype_bytes(dtype));
    return (void *)begin;
}

/* What all calls of the kernels share; callers add pointers and the window. */
struct attention_forward_args context_forward_args(const struct run *r, const struct op *o);
struct attention_backward_args context_backward_args(const struct run *r, const struct op *o);
/* Queries of one half against `keys` keys from position first_key on, of a buffer of k_rows rows. */
struct attention_window context_window(const struct context *c, int half, int64_t first_key, int64_t keys,
                                       int64_t k_rows);

/* [ranks][lines, s, width], as gathered from the ranks, to and from [lines, seq, width] in the order of the
 * sequence. */
void context_unfold(const struct run *r, const struct context *c, void *whole, const void *by_rank,
                    int64_t lines, int64_t width, enum dtype dtype);
void context_fold(const struct run *r, const struct context *c, void *by_rank, const void *whole,
                  int64_t lines, int64_t width, enum dtype dtype);
void context_zero(const struct run *r, float *x, int64_t n);
/* dst = src, from float32. */
void context_narrow(const struct run *r, void *dst, const float *src, int64_t n, enum dtype dtype);
