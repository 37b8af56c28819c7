/* Context-parallel attention: the op's shape, and what its three ways share. */
#include "core/model/ops/context.h"
#include "core/base/check.h"
#include "core/model/ops.h"
#include <math.h>

struct attention_forward_args context_forward_args(const struct run *r, const struct op *o) {
    const struct context *c = o->attributes;
    return (struct attention_forward_args){.shape = c->shape,
                                           .scale = c->scale,
                                           .dropout = r->training ? c->dropout : 0,
                                           .key = run_rng(r, o),
                                           .causal = true,
                                           .dtype = c->dtype};
}

struct attention_backward_args context_backward_args(const struct run *r, const struct op *o) {
    const struct context *c = o->attributes;
    return (struct attention_backward_args){.shape = c->shape,
                                            .scale = c->scale,
                                            .dropout = c->dropout,
                                            .key = run_rng(r, o),
                                            .causal = true,
                                            .dtype = c->dtype};
}

struct attention_window context_window(const struct context *c, int half, int64_t first_key, int64_t keys,
                                       int64_t k_rows) {
    return (struct attention_window){.first_query = context_chunk(c, c->rank, half) * c->chunk,
                                     .first_key = first_key,
                                     .keys = keys,
                                     .q_rows = c->shape.s,
                                     .k_rows = k_rows,
                                     .first_head = c->first_head,
                                     .heads = c->heads,
                                     .seq = c->seq};
}

static void reorder(const struct run *r, const struct context *c, void *whole, void *by_rank, int64_t lines,
                    int64_t width, enum dtype dtype, bool unfold) {
    int64_t rows = c->shape.s * width, block = c->chunk * width;
    for (int n = 0; n < 2 * c->ranks; n++) {
        void *at_whole = dtype_at(whole, dtype, context_chunk(c, n / 2, n % 2) * block);
        void *at_rank = dtype_at(by_rank, dtype, n / 2 * lines * rows + n % 2 * block);
        KERNEL_CALL(copy_blocks, r->stream, .dst = unfold ? at_whole : at_rank,
                    .src = unfold ? at_rank : at_whole, .n0 = lines, .n1 = 1, .n2 = block,
                    .dst_stride0 = unfold ? c->seq * width : rows,
                    .src_stride0 = unfold ? rows : c->seq * width, .dtype = dtype);
    }
}

void context_unfold(const struct run *r, const struct context *c, void *whole, const void *by_rank,
                    int64_t lines, int64_t width, enum dtype dtype) {
    reorder(r, c, whole, dtype_at(by_rank, dtype, 0), lines, width, dtype, true);
}

void context_fold(const struct run *r, const struct context *c, void *by_rank, const void *whole,
                  int64_t lines, int64_t width, enum dtype dtype) {
    reorder(r, c, dtype_at(whole, dtype, 0), by_rank, lines, width, dtype, false);
}

void context_zero(const struct run *r, float *x, int64_t n) {
    KERNEL_CALL(fill, r->stream, .y = x, .n = n, .value = 0, .dtype = DTYPE_F32);
}

void context_narrow(const struct run *r, void *dst, const float *src, int64_t n, enum dtype dtype) {
    if (dst == src) return;
    KERNEL_CALL(cast, r->stream, .dst = dst, .src = src, .n = n, .dst_dtype = dtype, .src_dtype = DTYPE_F32);
}

static const struct context_way *way_of(const struct model *m) {
    if (m->cp_comm == MODEL_CP_ALL_GATHER) return &context_gather;
    return m->cp_comm == MODEL_CP_A2A ? &context_heads : &context_ring;
}

int op_add_attention_context(struct program *p, const struct model *m, const int qkv[3]) {
    struct context c = {.shape = model_attention_shape(m),
                        .first_head = model_heads(m) * m->tp_rank,
                        .heads = m->heads,
                        .seq = m->seq,
                        .chunk = m->seq / (2 * m->cp),
                        .ranks = m->cp,
                        .rank = m->cp_rank,
                        .scale = (float)model_softmax_scale(m),
                        .dropout = m->attention_dropout,
                        .dtype = m->dtype};
    const struct context_way *way = way_of(m);
    CHECK(c.seq % (2 * c.ranks) == 0, "the sequence must be a multiple of twice the context-parallel ranks");
    CHECK(m->cp_comm != MODEL_CP_A2A || (c.shape.a % c.ranks == 0 && c.shape.g % c.ranks == 0),
          "a2a needs heads and query groups per rank that are multiples of the context-parallel ranks");
    int op = program_op(p, &way->def, way->def.name, qkv, 3, &c, sizeof(c));
    program_draws_random(p, op);
    int o = program_output(p, op, "core_attention", m->dtype, 3,
                           (int64_t[]){c.shape.s, c.shape.b, c.shape.a * context_width(&c, CONTEXT_VALUES)},
                           true);
    program_output(p, op, "log_sum_exp", DTYPE_F32, 3, (int64_t[]){c.shape.b, c.shape.a, c.shape.s}, false);
    program_output(p, op, "context_scratch", DTYPE_F32, 1, (int64_t[]){(int64_t)way->forward_scratch(&c) / 4},
                   false);
    program_output(p, op, "context_scratch", DTYPE_F32, 1,
                   (int64_t[]){(int64_t)way->backward_scratch(&c) / 4}, false);
    p->ops[op].backward_scratch_out = 1u << CONTEXT_BACKWARD_SCRATCH;
    return o;
}
