/* Context parallelism by all-gather: every rank gets all keys and values, in the order of the sequence, and
 * its two halves of queries each see a stretch from the first key on. In backward each rank has gradients for
 * all keys, which are summed and handed out. Twice the memory of the ring, and nothing runs beside the
 * exchange, but two calls of the kernel whatever the number of ranks. */
#include "core/model/ops/context.h"
#include "parallel/comm/comm.h"

struct gather {
    char *by_rank; /* [ranks][b, g, s, d], of k or v, whichever is larger; float32 of dk or dv */
    char *kv[2];   /* k and v [b, g, seq, d] */
    float *dkv[2], *dq;
};

static size_t carve(struct gather *x, const struct context *c, uintptr_t at, bool backward) {
    uintptr_t begin = at;
    int64_t count[2] = {context_kv_count(c, CONTEXT_KEYS) * c->ranks,
                        context_kv_count(c, CONTEXT_VALUES) * c->ranks};
    x->by_rank =
        context_carve(&at, count[0] > count[1] ? count[0] : count[1], backward ? DTYPE_F32 : c->dtype);
    for (int i = 0; i < 2; i++) x->kv[i] = context_carve(&at, count[i], c->dtype);
    for (int i = 0; i < 2 && backward; i++) x->dkv[i] = context_carve(&at, count[i], DTYPE_F32);
    if (backward && c->dtype != DTYPE_F32) x->dq = context_carve(&at, context_q_count(c), DTYPE_F32);
    return at - begin;
}

static size_t forward_scratch(const struct context *c) {
    return carve(&(struct gather){0}, c, 0, false);
}

static size_t backward_scratch(const struct context *c) {
    return carve(&(struct gather){0}, c, 0, true);
}

/* k and v of all ranks. */
static void gather_keys(struct run *r, const struct op *o, struct gather *x) {
    const struct context *c = o->attributes;
    for (int i = 0; i < 2; i++) {
        int64_t count = context_kv_count(c, i);
        const struct tensor_info *own = run_info(r, o->in[1 + i]);
        run_copy(r, x->by_rank + own->bytes * (size_t)c->rank, run_tensor(r, o->in[1 + i]), own);
        comm_all_gather(r->comms.cp, x->by_rank, count, comm_dtype_of(c->dtype));
        context_unfold(r, c, x->kv[i], x->by_rank, c->shape.b * c->shape.g, context_width(c, i), c->dtype);
    }
}

/* The keys that a half sees: all up to its own last position. */
static struct attention_window half_window(const struct context *c, int half) {
    return context_window(c, half, 0, (context_chunk(c, c->rank, half) + 1) * c->chunk, c->seq);
}

static void forward(struct run *r, const struct op *o) {
    const struct context *c = o->attributes;
    const struct attention_shape *z = &c->shape;
    struct gather x = {0};
    carve(&x, c, (uintptr_t)run_tensor(r, o->out[CONTEXT_FORWARD_SCRATCH]), false);
    gather_keys(r, o, &x);
    for (int half = 0; half < 2; half++) {
        struct attention_forward_args args = context_forward_args(r, o);
        int64_t row = half * c->chunk;
        args.o = dtype_at(run_tensor(r, o->out[CONTEXT_OUT]), c->dtype,
                          row * z->b * z->a * context_width(c, CONTEXT_VALUES));
        args.lse = (float *)run_tensor(r, o->out[CONTEXT_LSE]) + row;
        args.q = dtype_at(run_tensor(r, o->in[0]), c->dtype, row * z->d);
        args.k = x.kv[0], args.v = x.kv[1];
        args.shape.s = c->chunk;
        args.window = half_window(c, half);
        attention_forward_call(r->stream, &args);
    }
}

/* dx = this rank's part of the sum of all ranks' gradients [b, g, seq, d]. */
static void scatter_grads(struct run *r, const struct context *c, struct gather *x, void *dx,
                          const float *grads, int which) {
    int64_t count = context_kv_count(c, which);
    context_fold(r, c, x->by_rank, grads, c->shape.b * c->shape.g, context_width(c, which), DTYPE_F32);
    comm_reduce_scatter(r->comms.cp, x->by_rank, count, COMM_F32);
    context_narrow(r, dx, (const float *)x->by_rank + count * c->rank, count, c->dtype);
}

static void backward(struct run *r, const struct op *o) {
    const struct context *c = o->attributes;
    const struct attention_shape *z = &c->shape;
    struct gather x = {0};
    void *dq = run_grad(r, o->in[0]);
    carve(&x, c, (uintptr_t)run_tensor(r, o->out[CONTEXT_BACKWARD_SCRATCH]), true);
    if (!x.dq) x.dq = dq;
    gather_keys(r, o, &x);
    context_zero(r, x.dq, context_q_count(c));
    for (int i = 0; i < 2; i++) context_zero(r, x.dkv[i], context_kv_count(c, i) * c->ranks);
    for (int half = 0; half < 2; half++) {
        struct attention_backward_args args = context_backward_args(r, o);
        int64_t row = half * c->chunk, wide = row * z->b * z->a * context_width(c, CONTEXT_VALUES);
        args.dq = x.dq + row * z->d, args.dk = x.dkv[0], args.dv = x.dkv[1];
        args.d_o = dtype_at(run_grad(r, o->out[CONTEXT_OUT]), c->dtype, wide);
        args.o = dtype_at(run_tensor(r, o->out[CONTEXT_OUT]), c->dtype, wide);
        args.lse = (const float *)run_tensor(r, o->out[CONTEXT_LSE]) + row;
        args.q = dtype_at(run_tensor(r, o->in[0]), c->dtype, row * z->d);
        args.k = x.kv[0], args.v = x.kv[1];
        args.shape.s = c->chunk;
        args.window = half_window(c, half);
        args.grads_are_f32 = args.accumulate = true;
        attention_backward_call(r->stream, &args);
    }
    context_narrow(r, dq, x.dq, context_q_count(c), c->dtype);
    for (int i = 0; i < 2; i++) scatter_grads(r, c, &x, run_grad(r, o->in[1 + i]), x.dkv[i], i);
}

const struct context_way context_gather = {{"attention_gather", forward, backward, .backward_reads_in = 7,
                                            .backward_reads_out = 3, .grad_in = 7,
                                            .classes = OP_ATTENTION | OP_COMMUNICATION},
                                           forward_scratch,
                                           backward_scratch};
