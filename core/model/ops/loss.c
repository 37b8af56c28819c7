/* Cross entropy over the vocabulary: of whole logits, or fused with the output projection in chunks of
 * tokens. */
#include "core/model/ops.h"
#include "core/model/run.h"

static void add_losses(struct run *r, const float *loss, int64_t n) {
    if (!run_is_first_forward(r) || run_is_meta(r)) return;
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += (double)loss[i];
    *r->loss_sum += sum;
}

/* ---- whole logits: backward reads them and the log-sum-exp, and writes the gradient in their place ---- */

static void cross_entropy_op_forward(struct run *r, const struct op *o) {
    const struct tensor_info *x = run_info(r, o->in[0]);
    int64_t rows = x->dims[0] * x->dims[1];
    KERNEL_CALL(cross_entropy_forward, r->stream, .loss = run_tensor(r, o->out[0]),
                .lse = run_tensor(r, o->out[1]), .logits = run_tensor(r, o->in[0]), .labels = r->batch.labels,
                .mask = r->batch.loss_mask, .rows = rows, .vocab = x->dims[2], .dtype = x->dtype);
    add_losses(r, run_tensor(r, o->out[0]), rows);
}

static void cross_entropy_op_backward(struct run *r, const struct op *o) {
    const struct tensor_info *x = run_info(r, o->in[0]);
    KERNEL_CALL(cross_entropy_backward, r->stream, .dlogits = run_grad(r, o->in[0]),
                .logits = run_tensor(r, o->in[0]), .lse = run_tensor(r, o->out[1]), .labels = r->batch.labels,
                .mask = r->batch.loss_mask, .rows = x->dims[0] * x->dims[1], .vocab = x->dims[2],
                .grad_scale = r->loss_grad_scale, .dtype = x->dtype);
}

static const struct op_def op_cross_entropy = {"cross_entropy",           cross_entropy_op_forward,
                                               cross_entropy_op_backward, .backward_reads_in = 1,
                                               .backward_reads_out = 2,   .grad_in = 1};

void op_add_cross_entropy(struct program *p, const struct model *m, int logits) {
    int64_t rows[] = {m->seq * m->micro_batch};
    int op = program_op(p, &op_cross_entropy, "cross_entropy", &logits, 1, NULL, 0);
    program_output(p, op, "loss", DTYPE_F32, 1, rows, false);
    program_output(p, op, "loss_log_sum_exp", DTYPE_F32, 1, rows, false);
    p->ops[op].grad_of_in0_lives_in = logits;
}

/* ---- fused: the gradient of the hidden states takes their place, chunk by chunk, and waits there for
 * backward ---- */

struct fused_attributes {
    int64_t rows, chunk, hidden, vocab;
};

static void fused_chunk(struct run *r, const struct op *o, int64_t first, int64_t rows) {
    const struct fused_attributes *f = o->attributes;
    const struct param_view *w = run_param(r, o, 0);
    enum dtype dtype = run_info(r, o->in[0])->dtype;
    void *logits = run_tensor(r, o->out[0]), *x = dtype_at(run_tensor(r, o->in[0]), dtype, first * f->hidden);
    float *loss = (float *)run_tensor(r, o->out[1]) + first, *lse = run_tensor(r, o->out[2]);
    const int32_t *labels = r->batch.labels + first;
    const float *mask = r->batch.loss_mask + first;
    KERNEL_CALL(gemm, r->stream, .c = logits, .a = x, .b = w->packed_forward ? w->packed_forward : w->plain,
                .b_packed = w->packed_forward != NULL, .trans_b = true, .m = rows, .n = f->vocab,
                .k = f->hidden, .dtype = dtype, .c_dtype = dtype);
    KERNEL_CALL(cross_entropy_forward, r->stream, .loss = loss, .lse = lse, .logits = logits,
                .labels = labels, .mask = mask, .rows = rows, .vocab = f->vocab, .dtype = dtype);
    if (!r->training) return;
    KERNEL_CALL(cross_entropy_backward, r->stream, .dlogits = logits, .logits = logits, .lse = lse,
                .labels = labels, .mask = mask, .rows = rows, .vocab = f->vocab,
                .grad_scale = r->loss_grad_scale, .dtype = dtype);
    KERNEL_CALL(gemm, r->stream, .c = w->grad, .a = logits, .trans_a = true, .b = x, .m = f->vocab,
                .n = f->hidden, .k = rows, .dtype = dtype, .c_dtype = DTYPE_F32,
                .accumulate = run_param_accumulates(w));
    KERNEL_CALL(gemm, r->stream, .c = x, .a = logits, .b = w->packed_backward ? w->packed_backward : w->plain,
                .b_packed = w->packed_backward != NULL, .m = rows, .n = f->hidden, .k = f->vocab,
                .dtype = dtype, .c_dtype = dtype);
}

static void fused_forward(struct run *r, const struct op *o) {
    const struct fused_attributes *f = o->attributes;
    for (int64_t first = 0; first < f->rows; first += f->chunk)
        fused_chunk(r, o, first, f->rows - first < f->chunk ? f->rows - first : f->chunk);
    add_losses(r, run_tensor(r, o->out[1]), f->rows);
}

static void fused_backward(struct run *r, const struct op *o) {
    (void)r, (void)o; /* forward has made the gradients */
}

static const struct op_def op_linear_cross_entropy = {"linear_cross_entropy", fused_forward, fused_backward,
                                                      .backward_reads_in = 1, .grad_in = 1};

void op_add_linear_cross_entropy(struct program *p, const struct model *m, int hidden, const char *weight) {
    struct fused_attributes f = {m->seq * m->micro_batch, m->loss_chunk, m->hidden, m->vocab};
    if (f.chunk > f.rows) f.chunk = f.rows;
    int op = program_op(p, &op_linear_cross_entropy, "linear_cross_entropy", &hidden, 1, &f, sizeof(f));
    program_param(p, op,
                  (struct param_info){.name = weight,
                                      .num_dims = 2,
                                      .dims = {m->vocab, m->hidden},
                                      .init = PARAM_INIT_NORMAL,
                                      .init_std = m->init_std,
                                      .forms = PARAM_FORM_PACKED_FORWARD | PARAM_FORM_PACKED_BACKWARD});
    program_output(p, op, "logits_chunk", m->dtype, 2, (int64_t[]){f.chunk, f.vocab}, false);
    program_output(p, op, "loss", DTYPE_F32, 1, (int64_t[]){f.rows}, false);
    program_output(p, op, "loss_log_sum_exp", DTYPE_F32, 1, (int64_t[]){f.chunk}, false);
    p->ops[op].grad_of_in0_lives_in = hidden;
}
