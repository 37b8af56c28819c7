/* Context parallelism by exchanging heads for sequence (Jacobs et al. 2023, DeepSpeed Ulysses): an all-to-all
 * gives each rank a / n of the query heads and g / n of the groups over the whole sequence, attention is the
 * ordinary kernel, and a second all-to-all brings its output back. Each head is computed as one rank would,
 * to the bit. lse stays as it was computed: [b, a / n, seq]. */
#include "core/model/ops/context.h"
#include "parallel/comm/comm.h"

struct heads {
    char *send, *receive;   /* one exchange, as large as q or o */
    char *q, *k, *v;        /* whole: [b, heads / n, seq, d] */
    char *o, *d_o, *dkv[2]; /* backward; o and d_o [seq, b, a / n * d] */
};

static size_t carve(struct heads *x, const struct context *c, uintptr_t at, bool backward) {
    uintptr_t begin = at;
    int64_t q = context_q_count(c), o = context_o_count(c), most = q > o ? q : o;
    char **const as_kv[] = {&x->k, &x->v, &x->dkv[0], &x->dkv[1]};
    x->send = context_carve(&at, most, c->dtype);
    x->receive = context_carve(&at, most, c->dtype);
    x->q = context_carve(&at, q, c->dtype);
    if (backward) x->o = context_carve(&at, o, c->dtype), x->d_o = context_carve(&at, o, c->dtype);
    for (int i = 0; i < (backward ? 4 : 2); i++)
        *as_kv[i] = context_carve(&at, context_kv_count(c, i % 2), c->dtype);
    return at - begin;
}

static size_t forward_scratch(const struct context *c) {
    return carve(&(struct heads){0}, c, 0, false);
}

static size_t backward_scratch(const struct context *c) {
    return carve(&(struct heads){0}, c, 0, true);
}

/* A tensor's two layouts. Local: n0 blocks (one per rank), each n1 pieces of n2 elements, the pieces
 * local_step apart and the blocks local_block apart. Whole: [lines, seq, width]. */
struct layout {
    int64_t n1, n2, local_block, local_step, lines, width;
};

/* [b, heads, s, width] and [b, heads / n, seq, width] */
static struct layout by_heads(const struct context *c, int64_t heads, int which) {
    int64_t width = context_width(c, which), part = heads / c->ranks, piece = part * c->shape.s * width;
    return (struct layout){c->shape.b, piece, piece, heads * c->shape.s * width, c->shape.b * part, width};
}

/* [s, b, a * width] and [seq, b, a / n * width], of values */
static struct layout by_sequence(const struct context *c) {
    int64_t width = context_width(c, CONTEXT_VALUES), piece = c->shape.a / c->ranks * width;
    return (struct layout){c->shape.s * c->shape.b, piece, piece, c->shape.a * width, 1, c->shape.b * piece};
}

static void copy_local(const struct run *r, const struct context *c, const struct layout *l, void *dst,
                       const void *src, bool pack) {
    int64_t block = l->n1 * l->n2;
    KERNEL_CALL(copy_blocks, r->stream, .dst = dst, .src = src, .n0 = c->ranks, .n1 = l->n1, .n2 = l->n2,
                .dst_stride0 = pack ? block : l->local_block, .dst_stride1 = pack ? l->n2 : l->local_step,
                .src_stride0 = pack ? l->local_block : block, .src_stride1 = pack ? l->local_step : l->n2,
                .dtype = c->dtype);
}

static void exchange(const struct run *r, const struct context *c, const struct layout *l,
                     const struct heads *x) {
    comm_all_to_all(r->comms.cp, x->receive, x->send, l->n1 * l->n2, comm_dtype_of(c->dtype));
}

static void to_whole(const struct run *r, const struct context *c, const struct heads *x, struct layout l,
                     void *whole, const void *local) {
    copy_local(r, c, &l, x->send, local, true);
    exchange(r, c, &l, x);
    context_unfold(r, c, whole, x->receive, l.lines, l.width, c->dtype);
}

/* `whole` may be x->receive. */
static void to_local(const struct run *r, const struct context *c, const struct heads *x, struct layout l,
                     void *local, const void *whole) {
    context_fold(r, c, x->send, whole, l.lines, l.width, c->dtype);
    exchange(r, c, &l, x);
    copy_local(r, c, &l, local, x->receive, false);
}

static void fetch_qkv(struct run *r, const struct op *o, const struct heads *x) {
    const struct context *c = o->attributes;
    to_whole(r, c, x, by_heads(c, c->shape.a, CONTEXT_KEYS), x->q, run_tensor(r, o->in[0]));
    to_whole(r, c, x, by_heads(c, c->shape.g, CONTEXT_KEYS), x->k, run_tensor(r, o->in[1]));
    to_whole(r, c, x, by_heads(c, c->shape.g, CONTEXT_VALUES), x->v, run_tensor(r, o->in[2]));
}

static struct attention_shape whole_shape(const struct context *c) {
    return (struct attention_shape){.s = c->seq,
                                    .b = c->shape.b,
                                    .a = c->shape.a / c->ranks,
                                    .g = c->shape.g / c->ranks,
                                    .d = c->shape.d,
                                    .dv = c->shape.dv};
}

static struct attention_window whole_window(const struct context *c) {
    return (struct attention_window){
        .first_head = c->first_head + c->shape.a / c->ranks * c->rank, .heads = c->heads, .seq = c->seq};
}

static void forward(struct run *r, const struct op *o) {
    const struct context *c = o->attributes;
    struct heads x = {0};
    struct attention_forward_args args = context_forward_args(r, o);
    carve(&x, c, (uintptr_t)run_tensor(r, o->out[CONTEXT_FORWARD_SCRATCH]), false);
    fetch_qkv(r, o, &x);
    args.o = x.receive; /* free until its own exchange */
    args.lse = run_tensor(r, o->out[CONTEXT_LSE]);
    args.q = x.q, args.k = x.k, args.v = x.v;
    args.shape = whole_shape(c);
    args.window = whole_window(c);
    attention_forward_call(r->stream, &args);
    to_local(r, c, &x, by_sequence(c), run_tensor(r, o->out[CONTEXT_OUT]), x.receive);
}

static void backward(struct run *r, const struct op *o) {
    const struct context *c = o->attributes;
    struct heads x = {0};
    struct attention_backward_args args = context_backward_args(r, o);
    carve(&x, c, (uintptr_t)run_tensor(r, o->out[CONTEXT_BACKWARD_SCRATCH]), true);
    fetch_qkv(r, o, &x);
    to_whole(r, c, &x, by_sequence(c), x.o, run_tensor(r, o->out[CONTEXT_OUT]));
    to_whole(r, c, &x, by_sequence(c), x.d_o, run_grad(r, o->out[CONTEXT_OUT]));
    args.dq = x.receive, args.dk = x.dkv[0], args.dv = x.dkv[1];
    args.o = x.o, args.d_o = x.d_o;
    args.lse = run_tensor(r, o->out[CONTEXT_LSE]);
    args.q = x.q, args.k = x.k, args.v = x.v;
    args.shape = whole_shape(c);
    args.window = whole_window(c);
    attention_backward_call(r->stream, &args);
    to_local(r, c, &x, by_heads(c, c->shape.a, CONTEXT_KEYS), run_grad(r, o->in[0]), x.receive);
    for (int i = 0; i < 2; i++)
        to_local(r, c, &x, by_heads(c, c->shape.g, i), run_grad(r, o->in[1 + i]), x.dkv[i]);
}

const struct context_way context_heads = {{"attention_heads", forward, backward, .backward_reads_in = 7,
                                           .backward_reads_out = 3, .grad_in = 7,
                                           .classes = OP_ATTENTION | OP_COMMUNICATION},
                                          forward_scratch,
                                          backward_scratch};
