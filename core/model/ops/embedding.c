/* Word embedding plus learned positions. Reads the micro-batch, not a tensor; backward reads no activation.
 * Over tensor-parallel ranks the table is split by rows: each rank looks up what it has, the sum over ranks
 * is the embedding, and positions (whole on every rank) are added after it. */
#include "core/model/ops.h"
#include "core/model/run.h"

struct embedding_attributes {
    int64_t s, b, h, vocab, max_positions;
    int64_t first_token_id;
    bool learned_positions; /* added by this op */
};

static void forward(struct run *r, const struct op *o) {
    const struct embedding_attributes *e = o->attributes;
    KERNEL_CALL(embedding_forward, r->stream, .y = run_tensor(r, o->out[0]),
                .weight = run_param(r, o, 0)->plain,
                .position_weight = e->learned_positions ? run_param(r, o, 1)->plain : NULL,
                .tokens = r->batch.tokens, .positions = r->batch.positions, .s = e->s, .b = e->b, .h = e->h,
                .vocab = e->vocab, .max_positions = e->max_positions, .first_token_id = e->first_token_id,
                .dtype = run_info(r, o->out[0])->dtype);
}

/* The kernel adds rows, so a gradient that nothing has written yet is cleared first. */
static float *cleared_grad(struct run *r, const struct param_view *param, int64_t n) {
    if (!run_param_accumulates(param))
        KERNEL_CALL(fill, r->stream, .y = param->grad, .n = n, .value = 0, .dtype = DTYPE_F32);
    return param->grad;
}

static void backward(struct run *r, const struct op *o) {
    const struct embedding_attributes *e = o->attributes;
    float *dweight = cleared_grad(r, run_param(r, o, 0), e->vocab * e->h);
    float *dposition =
        e->learned_positions ? cleared_grad(r, run_param(r, o, 1), e->max_positions * e->h) : NULL;
    KERNEL_CALL(embedding_backward, r->stream, .dweight = dweight, .dposition_weight = dposition,
                .dy = run_grad(r, o->out[0]), .tokens = r->batch.tokens, .positions = r->batch.positions,
                .s = e->s, .b = e->b, .h = e->h, .vocab = e->vocab, .max_positions = e->max_positions,
                .first_token_id = e->first_token_id, .dtype = run_info(r, o->out[0])->dtype);
}

/* The sum over ranks of a table split by rows, where the sequence stays whole. */
static void forward_reduced(struct run *r, const struct op *o) {
    const struct tensor_info *y = run_info(r, o->out[0]);
    forward(r, o);
    *run_request(r) =
        comm_start_all_reduce(r->comms.tp, run_tensor(r, o->out[0]), y->dims[0] * y->dims[1] * y->dims[2],
                              comm_dtype_of(y->dtype), COMM_SUM);
}

static void forward_reduced_end(struct run *r, const struct op *o) {
    (void)o;
    comm_wait(*run_request(r));
}

static const struct op_def op_embedding = {"embedding", forward, backward, .grad_in = 0};
static const struct op_def op_embedding_reduced = {"embedding", forward_reduced, backward,
                                                   .forward_end = forward_reduced_end, .grad_in = 0};

static void add_position_param(struct program *p, const struct model *m, int op) {
    program_param(p, op,
                  (struct param_info){.name = "embedding.position_embeddings.weight",
                                      .num_dims = 2,
                                      .dims = {m->max_positions, m->hidden},
                                      .shard.full = {m->max_positions, m->hidden},
                                      .sum_over_tensor = model_splits_sequence(m),
                                      .init = PARAM_INIT_NORMAL,
                                      .init_std = m->embedding_init_std,
                                      .forms = PARAM_FORM_PLAIN});
}

static int add_words(struct program *p, const struct model *m) {
    bool split = m->tp > 1;
    struct embedding_attributes e = {.s = model_seq(m),
                                     .b = m->micro_batch,
                                     .h = m->hidden,
                                     .vocab = model_vocab(m),
                                     .max_positions = m->max_positions,
                                     .first_token_id = model_vocab(m) * m->tp_rank,
                                     .learned_positions = m->learned_positions && !split};
    bool reduces = split && !model_splits_sequence(m);
    int op =
        program_op(p, reduces ? &op_embedding_reduced : &op_embedding, "embedding", NULL, 0, &e, sizeof(e));
    program_param(p, op,
                  (struct param_info){.name = "embedding.word_embeddings.weight",
                                      .num_dims = 2,
                                      .dims = {e.vocab, m->hidden},
                                      .shard = shard_rows(m, m->vocab, m->hidden),
                                      .init = PARAM_INIT_NORMAL,
                                      .init_std = m->embedding_init_std,
                                      .forms = PARAM_FORM_PLAIN});
    if (e.learned_positions) add_position_param(p, m, op);
    return program_output(p, op, "embedding", m->dtype, 3, (int64_t[]){e.s, e.b, e.h}, true);
}

/* ---- positions by themselves: y = x + table[position], for this rank's rows ---- */

struct position_attributes {
    int64_t s, b, h, max_positions, stride, first_column;
};

static void position_forward(struct run *r, const struct op *o) {
    const struct position_attributes *e = o->attributes;
    const struct tensor_info *y = run_info(r, o->out[0]);
    run_copy(r, run_tensor(r, o->out[0]), run_tensor(r, o->in[0]), y);
    KERNEL_CALL(embedding_forward, r->stream, .y = run_tensor(r, o->out[0]),
                .position_weight = run_param(r, o, 0)->plain, .positions = r->batch.positions, .s = e->s,
                .b = e->b, .h = e->h, .vocab = 1, .max_positions = e->max_positions, .stride = e->stride,
                .first_column = e->first_column, .accumulate = true, .dtype = y->dtype);
}

static void position_backward(struct run *r, const struct op *o) {
    const struct position_attributes *e = o->attributes;
    const struct tensor_info *y = run_info(r, o->out[0]);
    const void *dy = run_grad(r, o->out[0]);
    KERNEL_CALL(embedding_backward, r->stream,
                .dposition_weight = cleared_grad(r, run_param(r, o, 0), e->max_positions * e->h), .dy = dy,
                .positions = r->batch.positions, .s = e->s, .b = e->b, .h = e->h, .vocab = 1,
                .max_positions = e->max_positions, .stride = e->stride, .first_column = e->first_column,
                .dtype = y->dtype);
    if (run_grad(r, o->in[0]) != dy) run_copy(r, run_grad(r, o->in[0]), dy, y);
}

static const struct op_def op_positions = {"position_embedding", position_forward, position_backward,
                                           .grad_in = 1, .passes_grad = 1};

static int add_positions(struct program *p, const struct model *m, int x) {
    struct position_attributes e = {.s = model_rows(m),
                                    .b = m->micro_batch,
                                    .h = m->hidden,
                                    .max_positions = m->max_positions,
                                    .stride = model_seq(m),
                                    .first_column =
                                        model_splits_sequence(m) ? model_rows(m) * m->tp_rank : 0};
    int op = program_op(p, &op_positions, "position_embedding", &x, 1, &e, sizeof(e));
    add_position_param(p, m, op);
    return program_output(p, op, "position_embedding", m->dtype, 3, (int64_t[]){e.s, e.b, e.h}, true);
}

int op_add_embedding(struct program *p, const struct model *m) {
    int x = add_words(p, m);
    if (m->tp <= 1) return x;
    x = op_add_reduce_scatter(p, m, x);
    return m->learned_positions ? add_positions(p, m, x) : x;
}
