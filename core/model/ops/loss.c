/* Cross entropy over the vocabulary: of whole logits, or fused with the output projection in chunks of
 * tokens. Over tensor-parallel ranks each holds some columns of the vocabulary; the log-sum-exp and the
 * label's logit of the whole row are put together from every rank's part, in rank order, so all ranks have
 * the same loss. */
#include "core/model/ops.h"
#include "core/model/run.h"

struct loss_attributes {
    int64_t rows, chunk, hidden;
    int64_t vocab;       /* columns here */
    int64_t columns;     /* of these, columns that are not padding */
    int64_t first_label; /* vocabulary id of column 0 */
    int parts, part;     /* tensor-parallel ranks, and this one */
    bool reduces_grad;   /* fused: the gradient of the hidden states is a sum over the ranks */
};

static struct loss_attributes attributes_of(const struct model *m) {
    int64_t vocab = model_vocab(m), used = m->vocab_used ? m->vocab_used : m->vocab;
    struct loss_attributes l = {.rows = model_seq(m) * m->micro_batch,
                                .chunk = m->loss_chunk,
                                .hidden = m->hidden,
                                .vocab = vocab,
                                .first_label = vocab * m->tp_rank,
                                .parts = (int)model_tp(m),
                                .part = m->tp_rank,
                                .reduces_grad = m->tp > 1 && !model_splits_sequence(m)};
    l.columns = used - l.first_label;
    if (l.columns > vocab) l.columns = vocab;
    if (l.columns <= 0) l.columns = -1; /* padding only */
    if (l.chunk > l.rows || !l.chunk) l.chunk = l.rows;
    return l;
}

static void add_losses(struct run *r, const float *loss, int64_t n) {
    if (!run_is_first_forward(r) || run_is_meta(r)) return;
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += (double)loss[i];
    *r->loss_sum += sum;
}

/* Losses of `rows` tokens from this rank's columns of their logits. `scratch` holds [2, parts, rows]. */
static void cross_entropy(struct run *r, const struct loss_attributes *l, float *loss, float *lse,
                          float *scratch, const void *logits, int64_t first, int64_t rows, enum dtype dtype) {
    const int32_t *labels = r->batch.labels + first;
    const float *mask = r->batch.loss_mask + first;
    if (l->parts == 1) {
        KERNEL_CALL(cross_entropy_forward, r->stream, .loss = loss, .lse = lse, .logits = logits,
                    .labels = labels, .mask = mask, .rows = rows, .vocab = l->vocab, .columns = l->columns,
                    .dtype = dtype);
        return;
    }
    float *lse_parts = scratch, *picked_parts = scratch + l->parts * rows;
    KERNEL_CALL(cross_entropy_forward, r->stream, .lse = lse_parts + l->part * rows,
                .picked = picked_parts + l->part * rows, .logits = logits, .labels = labels, .mask = mask,
                .rows = rows, .vocab = l->vocab, .columns = l->columns, .first_label = l->first_label,
                .dtype = dtype);
    comm_all_gather(r->comms.tp, lse_parts, rows, COMM_F32);
    comm_all_gather(r->comms.tp, picked_parts, rows, COMM_F32);
    KERNEL_CALL(cross_entropy_combine, r->stream, .loss = loss, .lse = lse, .lse_parts = lse_parts,
                .picked_parts = picked_parts, .mask = mask, .rows = rows, .parts = l->parts);
}

static void gradient(struct run *r, const struct loss_attributes *l, void *dlogits, const void *logits,
                     const float *lse, int64_t first, int64_t rows, enum dtype dtype) {
    KERNEL_CALL(cross_entropy_backward, r->stream, .dlogits = dlogits, .logits = logits, .lse = lse,
                .labels = r->batch.labels + first, .mask = r->batch.loss_mask + first, .rows = rows,
                .vocab = l->vocab, .columns = l->columns, .first_label = l->first_label,
                .grad_scale = r->loss_grad_scale, .dtype = dtype);
}

static void add_scratch(struct program *p, int op, const struct loss_attributes *l, int64_t rows) {
    if (l->parts > 1)
        program_output(p, op, "loss_parts", DTYPE_F32, 1, (int64_t[]){2 * l->parts * rows}, false);
}

static float *scratch_of(struct run *r, const struct op *o, int k) {
    return k < o->num_out ? run_tensor(r, o->out[k]) : NULL;
}

/* ---- whole logits: backward reads them and the log-sum-exp, and writes the gradient in their place ---- */

static void cross_entropy_op_forward(struct run *r, const struct op *o) {
    const struct loss_attributes *l = o->attributes;
    cross_entropy(r, l, run_tensor(r, o->out[0]), run_tensor(r, o->out[1]), scratch_of(r, o, 2),
                  run_tensor(r, o->in[0]), 0, l->rows, run_info(r, o->in[0])->dtype);
    add_losses(r, run_tensor(r, o->out[0]), l->rows);
}

static void cross_entropy_op_backward(struct run *r, const struct op *o) {
    const struct loss_attributes *l = o->attributes;
    gradient(r, l, run_grad(r, o->in[0]), run_tensor(r, o->in[0]), run_tensor(r, o->out[1]), 0, l->rows,
             run_info(r, o->in[0])->dtype);
}

static const struct op_def op_cross_entropy = {"cross_entropy",           cross_entropy_op_forward,
                                               cross_entropy_op_backward, .backward_reads_in = 1,
                                               .backward_reads_out = 2,   .grad_in = 1};

void op_add_cross_entropy(struct program *p, const struct model *m, int logits) {
    struct loss_attributes l = attributes_of(m);
    int op = program_op(p, &op_cross_entropy, "cross_entropy", &logits, 1, &l, sizeof(l));
    program_output(p, op, "loss", DTYPE_F32, 1, &l.rows, false);
    program_output(p, op, "loss_log_sum_exp", DTYPE_F32, 1, &l.rows, false);
    add_scratch(p, op, &l, l.rows);
    p->ops[op].grad_of_in0_lives_in = logits;
}

/* ---- fused: the gradient of the hidden states takes their place, chunk by chunk, and waits there for
 * backward ---- */

static void fused_chunk(struct run *r, const struct op *o, int64_t first, int64_t rows) {
    const struct loss_attributes *l = o->attributes;
    const struct param_view *w = run_param(r, o, 0);
    enum dtype dtype = run_info(r, o->in[0])->dtype;
    void *logits = run_tensor(r, o->out[0]), *x = dtype_at(run_tensor(r, o->in[0]), dtype, first * l->hidden);
    float *loss = (float *)run_tensor(r, o->out[1]) + first, *lse = run_tensor(r, o->out[2]);
    KERNEL_CALL(gemm, r->stream, .c = logits, .a = x, .b = w->packed_forward ? w->packed_forward : w->plain,
                .b_packed = w->packed_forward != NULL, .trans_b = true, .m = rows, .n = l->vocab,
                .k = l->hidden, .dtype = dtype, .c_dtype = dtype);
    cross_entropy(r, l, loss, lse, scratch_of(r, o, 3), logits, first, rows, dtype);
    if (!r->training) return;
    gradient(r, l, logits, logits, lse, first, rows, dtype);
    KERNEL_CALL(gemm, r->stream, .c = w->grad, .a = logits, .trans_a = true, .b = x, .m = l->vocab,
                .n = l->hidden, .k = rows, .dtype = dtype, .c_dtype = DTYPE_F32,
                .accumulate = run_param_accumulates(w));
    KERNEL_CALL(gemm, r->stream, .c = x, .a = logits, .b = w->packed_backward ? w->packed_backward : w->plain,
                .b_packed = w->packed_backward != NULL, .m = rows, .n = l->hidden, .k = l->vocab,
                .dtype = dtype, .c_dtype = dtype);
}

static void fused_forward(struct run *r, const struct op *o) {
    const struct loss_attributes *l = o->attributes;
    for (int64_t first = 0; first < l->rows; first += l->chunk)
        fused_chunk(r, o, first, l->rows - first < l->chunk ? l->rows - first : l->chunk);
    if (l->reduces_grad && r->training)
        comm_all_reduce(r->comms.tp, run_tensor(r, o->in[0]), l->rows * l->hidden,
                        comm_dtype_of(run_info(r, o->in[0])->dtype), COMM_SUM);
    add_losses(r, run_tensor(r, o->out[1]), l->rows);
}

static void fused_backward(struct run *r, const struct op *o) {
    (void)r, (void)o; /* forward has made the gradients */
}

static const struct op_def op_linear_cross_entropy = {"linear_cross_entropy", fused_forward, fused_backward,
                                                      .backward_reads_in = 1, .grad_in = 1};

void op_add_linear_cross_entropy(struct program *p, const struct model *m, int hidden) {
    struct loss_attributes l = attributes_of(m);
    int op = program_op(p, &op_linear_cross_entropy, "linear_cross_entropy", &hidden, 1, &l, sizeof(l));
    program_param(
        p, op,
        (struct param_info){.name = m->tied ? "embedding.word_embeddings.weight" : "output_layer.weight",
                            .num_dims = 2,
                            .dims = {l.vocab, m->hidden},
                            .shard = shard_rows(m, m->vocab, m->hidden),
                            .init = PARAM_INIT_NORMAL,
                            .init_std = m->tied ? m->embedding_init_std : m->init_std,
                            .forms = PARAM_FORM_PACKED_FORWARD | PARAM_FORM_PACKED_BACKWARD});
    program_output(p, op, "logits_chunk", m->dtype, 2, (int64_t[]){l.chunk, l.vocab}, false);
    program_output(p, op, "loss", DTYPE_F32, 1, &l.rows, false);
    program_output(p, op, "loss_log_sum_exp", DTYPE_F32, 1, &l.chunk, false);
    add_scratch(p, op, &l, l.chunk);
    p->ops[op].grad_of_in0_lives_in = hidden;
}
