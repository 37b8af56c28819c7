/* Word embedding plus learned positions. Reads the micro-batch, not a tensor; backward reads no activation.
 */
#include "core/model/ops.h"
#include "core/model/run.h"

struct embedding_attributes {
    int64_t s, b, h, vocab, max_positions;
    bool learned_positions;
};

static void forward(struct run *r, const struct op *o) {
    const struct embedding_attributes *e = o->attributes;
    KERNEL_CALL(embedding_forward, r->stream, .y = run_tensor(r, o->out[0]),
                .weight = run_param(r, o, 0)->plain,
                .position_weight = e->learned_positions ? run_param(r, o, 1)->plain : NULL,
                .tokens = r->batch.tokens, .positions = r->batch.positions, .s = e->s, .b = e->b, .h = e->h,
                .vocab = e->vocab, .max_positions = e->max_positions, .dtype = run_info(r, o->out[0])->dtype);
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
                .dtype = run_info(r, o->out[0])->dtype);
}

static const struct op_def op_embedding = {"embedding", forward, backward, .grad_in = 0};

int op_add_embedding(struct program *p, const struct model *m) {
    struct embedding_attributes e = {m->seq,   m->micro_batch,   m->hidden,
                                     m->vocab, m->max_positions, m->learned_positions};
    int op = program_op(p, &op_embedding, "embedding", NULL, 0, &e, sizeof(e));
    struct param_info info = {.name = "embedding.word_embeddings.weight",
                              .num_dims = 2,
                              .dims = {m->vocab, m->hidden},
                              .init = PARAM_INIT_NORMAL,
                              .init_std = m->embedding_init_std,
                              .forms = PARAM_FORM_PLAIN};
    program_param(p, op, info);
    if (m->learned_positions) {
        info.name = "embedding.position_embeddings.weight";
        info.dims[0] = m->max_positions;
        program_param(p, op, info);
    }
    return program_output(p, op, "embedding", m->dtype, 3, (int64_t[]){m->seq, m->micro_batch, m->hidden},
                          true);
}
