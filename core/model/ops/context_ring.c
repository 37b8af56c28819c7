/* Context parallelism as a ring (Liu et al. 2023, Ring Attention): keys and values travel from rank to rank
 * while each rank computes with those that it has. At step t rank r has the keys of rank r - t; of its two
 * halves against the two halves there, the blocks above the diagonal are skipped:
 *
 *     n = 2, rank 0 (chunks 0, 3)   step 0, keys of chunks 0, 3: 0x0 diagonal, 3x0, 3x3 diagonal
 *                                   step 1, keys of chunks 1, 2: 3x1, 3x2
 *
 * Forward merges the blocks in float32. In backward the gradients of keys and values follow their keys one
 * step behind: each rank adds its own in float32, and after n steps they are home. */
#include "core/model/ops/context.h"
#include "parallel/comm/comm.h"

enum { TAG_KEYS, TAG_VALUES, TAG_GRADS };

struct ring {
    struct run *run;
    const struct op *op;
    const struct context *c;
    const void *q;
    char *travel[2]; /* k and v of another rank, one after the other */
    float *o, *part, *part_lse, *lse;
    float *dq, *grads[2], *arriving; /* grads: dk and dv, one after the other */
    struct comm_request *keys[4], *sums[2];
    bool started[2]; /* per half: something is in o */
};

/* Keys and values of two steps are there at once from three ranks on. */
static void carve_travel(struct ring *x, uintptr_t *at) {
    int64_t count = context_both_count(x->c);
    x->travel[0] = context_carve(at, count, x->c->dtype);
    x->travel[1] = x->c->ranks > 2 ? context_carve(at, count, x->c->dtype) : x->travel[0];
}

static size_t carve_forward(struct ring *x, uintptr_t at) {
    const struct context *c = x->c;
    uintptr_t begin = at;
    carve_travel(x, &at);
    x->part = context_carve(&at, context_o_count(c) / 2, DTYPE_F32);
    x->part_lse = context_carve(&at, context_q_count(c) / c->shape.d, DTYPE_F32);
    x->o = c->dtype == DTYPE_F32 ? NULL : context_carve(&at, context_o_count(c), DTYPE_F32);
    return at - begin;
}

static size_t carve_backward(struct ring *x, uintptr_t at) {
    const struct context *c = x->c;
    uintptr_t begin = at;
    float **const sums[] = {&x->grads[0], &x->grads[1], &x->arriving};
    carve_travel(x, &at);
    for (int i = 0; i < 3; i++) *sums[i] = context_carve(&at, context_both_count(c), DTYPE_F32);
    x->dq = c->dtype == DTYPE_F32 ? NULL : context_carve(&at, context_q_count(c), DTYPE_F32);
    return at - begin;
}

static size_t forward_scratch(const struct context *c) {
    return carve_forward(&(struct ring){.c = c}, 0);
}

static size_t backward_scratch(const struct context *c) {
    return carve_backward(&(struct ring){.c = c}, 0);
}

static struct ring make_ring(struct run *r, const struct op *o) {
    return (struct ring){.run = r, .op = o, .c = o->attributes, .q = run_tensor(r, o->in[0])};
}

/* Keys (which = 0) or values (1) that are here at step t. */
static const void *present(const struct ring *x, int t, int which) {
    if (!t) return run_tensor(x->run, x->op->in[1 + which]);
    return dtype_at(x->travel[(t - 1) % 2], x->c->dtype, which ? context_kv_count(x->c, CONTEXT_KEYS) : 0);
}

static int next_rank(const struct context *c) {
    return (c->rank + 1) % c->ranks;
}

static int previous_rank(const struct context *c) {
    return (c->rank + c->ranks - 1) % c->ranks;
}

/* Passes the keys and values of step t on and fetches those of step t + 1. */
static void start_keys(struct ring *x, int t) {
    const struct context *c = x->c;
    struct comm *cp = x->run->comms.cp;
    for (int which = 0; which < 2; which++) {
        int64_t bytes = context_kv_count(c, which) * (int64_t)dtype_bytes(c->dtype);
        void *into = dtype_at(x->travel[t % 2], c->dtype, which ? context_kv_count(c, CONTEXT_KEYS) : 0);
        x->keys[2 * which] = comm_start_receive(cp, into, bytes, previous_rank(c), TAG_KEYS + which);
        x->keys[2 * which + 1] =
            comm_start_send(cp, present(x, t, which), bytes, next_rank(c), TAG_KEYS + which);
    }
}

static void wait_keys(struct ring *x) {
    for (int i = 0; i < 4; i++) comm_wait(x->keys[i]);
}

/* A block: one half of the queries against one half of the keys of rank `source`. */
struct block {
    int t, source, q_half, k_half;
};

static struct attention_window block_window(const struct context *c, const struct block *b) {
    int64_t first_key = context_chunk(c, b->source, b->k_half) * c->chunk;
    return context_window(c, b->q_half, first_key, c->chunk, c->shape.s);
}

/* Element of row `half * chunk` of q and k or of v, and of o. */
static int64_t head_row(const struct context *c, int half, int which) {
    return half * c->chunk * context_width(c, which);
}

static int64_t sequence_row(const struct context *c, int half) {
    return half * c->chunk * c->shape.b * c->shape.a * context_width(c, CONTEXT_VALUES);
}

static void forward_block(struct ring *x, const struct block *b) {
    const struct context *c = x->c;
    struct attention_forward_args args = context_forward_args(x->run, x->op);
    bool first = !x->started[b->q_half];
    float *o = x->o + sequence_row(c, b->q_half), *lse = x->lse + b->q_half * c->chunk;
    args.q = dtype_at(x->q, c->dtype, head_row(c, b->q_half, CONTEXT_KEYS));
    args.k = dtype_at(present(x, b->t, 0), c->dtype, head_row(c, b->k_half, CONTEXT_KEYS));
    args.v = dtype_at(present(x, b->t, 1), c->dtype, head_row(c, b->k_half, CONTEXT_VALUES));
    args.shape.s = c->chunk;
    args.window = block_window(c, b);
    args.o_is_f32 = true;
    args.o = first ? o : x->part;
    args.lse = first ? lse : x->part_lse;
    attention_forward_call(x->run->stream, &args);
    x->started[b->q_half] = true;
    if (first) return;
    KERNEL_CALL(attention_merge, x->run->stream, .o = o, .lse = lse, .o_part = x->part,
                .lse_part = x->part_lse, .shape = args.shape, .lse_rows = c->shape.s,
                .part_rows = c->shape.s);
}

static void backward_block(struct ring *x, const struct block *b, float *grads) {
    const struct context *c = x->c;
    struct attention_backward_args args = context_backward_args(x->run, x->op);
    int64_t q = head_row(c, b->q_half, CONTEXT_KEYS), k = head_row(c, b->k_half, CONTEXT_KEYS);
    int64_t v = head_row(c, b->k_half, CONTEXT_VALUES), row = sequence_row(c, b->q_half);
    args.q = dtype_at(x->q, c->dtype, q);
    args.k = dtype_at(present(x, b->t, 0), c->dtype, k);
    args.v = dtype_at(present(x, b->t, 1), c->dtype, v);
    args.o = dtype_at(run_tensor(x->run, x->op->out[CONTEXT_OUT]), c->dtype, row);
    args.d_o = dtype_at(run_grad(x->run, x->op->out[CONTEXT_OUT]), c->dtype, row);
    args.lse = x->lse + b->q_half * c->chunk;
    args.dq = x->dq + q;
    args.dk = grads + k;
    args.dv = grads + context_kv_count(c, CONTEXT_KEYS) + v;
    args.shape.s = c->chunk;
    args.window = block_window(c, b);
    args.grads_are_f32 = args.accumulate = true;
    attention_backward_call(x->run->stream, &args);
}

/* The blocks of step t on and under the diagonal, forward or, with `grads`, backward. */
static void run_blocks(struct ring *x, int t, float *grads) {
    const struct context *c = x->c;
    int source = (c->rank + c->ranks - t) % c->ranks;
    for (int n = 0; n < 4; n++) {
        struct block b = {t, source, n / 2, n % 2};
        if (context_chunk(c, source, b.k_half) > context_chunk(c, c->rank, b.q_half)) continue;
        if (grads)
            backward_block(x, &b, grads);
        else
            forward_block(x, &b);
    }
}

static void forward(struct run *r, const struct op *o) {
    struct ring x = make_ring(r, o);
    const struct context *c = x.c;
    void *out = run_tensor(r, o->out[CONTEXT_OUT]);
    carve_forward(&x, (uintptr_t)run_tensor(r, o->out[CONTEXT_FORWARD_SCRATCH]));
    x.lse = run_tensor(r, o->out[CONTEXT_LSE]);
    if (!x.o) x.o = out;
    for (int t = 0; t < c->ranks; t++) {
        bool more = t + 1 < c->ranks;
        if (more) start_keys(&x, t);
        run_blocks(&x, t, NULL);
        if (more) wait_keys(&x);
    }
    context_narrow(r, out, x.o, context_o_count(c), c->dtype);
}

/* Passes the gradients summed so far on; those for the keys of the next step arrive. */
static void start_sums(struct ring *x, const float *grads) {
    const struct context *c = x->c;
    int64_t bytes = context_both_count(c) * 4;
    x->sums[0] = comm_start_receive(x->run->comms.cp, x->arriving, bytes, previous_rank(c), TAG_GRADS);
    x->sums[1] = comm_start_send(x->run->comms.cp, grads, bytes, next_rank(c), TAG_GRADS);
}

static void wait_sums(struct ring *x) {
    for (int i = 0; i < 2; i++) comm_wait(x->sums[i]);
}

static void backward(struct run *r, const struct op *o) {
    struct ring x = make_ring(r, o);
    const struct context *c = x.c;
    int64_t count = context_both_count(c), keys = context_kv_count(c, CONTEXT_KEYS);
    void *dq = run_grad(r, o->in[0]);
    carve_backward(&x, (uintptr_t)run_tensor(r, o->out[CONTEXT_BACKWARD_SCRATCH]));
    x.lse = run_tensor(r, o->out[CONTEXT_LSE]);
    if (!x.dq) x.dq = dq;
    context_zero(r, x.dq, context_q_count(c));
    for (int t = 0; t < c->ranks; t++) {
        bool more = t + 1 < c->ranks;
        float *grads = x.grads[t % 2];
        if (more) start_keys(&x, t);
        context_zero(r, grads, count);
        run_blocks(&x, t, grads);
        if (t) {
            wait_sums(&x);
            KERNEL_CALL(add, r->stream, .y = grads, .a = x.arriving, .b = grads, .n = count,
                        .dtype = DTYPE_F32);
        }
        start_sums(&x, grads);
        if (more) wait_keys(&x);
    }
    context_narrow(r, dq, x.dq, context_q_count(c), c->dtype);
    wait_sums(&x);
    context_narrow(r, run_grad(r, o->in[1]), x.arriving, keys, c->dtype);
    context_narrow(r, run_grad(r, o->in[2]), x.arriving + keys, count - keys, c->dtype);
}

const struct context_way context_ring = {{"attention_ring", forward, backward, .backward_reads_in = 7,
                                          .backward_reads_out = 3, .grad_in = 7,
                                          .classes = OP_ATTENTION | OP_COMMUNICATION},
                                         forward_scratch,
                                         backward_scratch};
