/* Multi-latent attention between its projections: cutting the latent from the positional key, and assembling
 * the heads. Both are linear, so backward reads gradients only. */
#include "core/model/ops.h"
#include "core/model/run.h"

/* ---- latent_split ---- */

struct latent_attributes {
    int64_t rows, rank, dr;
};

static void latent_forward(struct run *r, const struct op *o) {
    const struct latent_attributes *l = o->attributes;
    KERNEL_CALL(mla_latent_split_forward, r->stream, .latent = run_tensor(r, o->out[0]),
                .k_pe = run_tensor(r, o->out[1]), .x = run_tensor(r, o->in[0]), .rows = l->rows,
                .rank = l->rank, .dr = l->dr, .dtype = run_info(r, o->in[0])->dtype);
}

static void latent_backward(struct run *r, const struct op *o) {
    const struct latent_attributes *l = o->attributes;
    KERNEL_CALL(mla_latent_split_backward, r->stream, .dx = run_grad(r, o->in[0]),
                .dlatent = run_grad(r, o->out[0]), .dk_pe = run_grad(r, o->out[1]), .rows = l->rows,
                .rank = l->rank, .dr = l->dr, .dtype = run_info(r, o->in[0])->dtype);
}

static const struct op_def op_latent_split = {"latent_split", latent_forward, latent_backward, .grad_in = 1};

void op_add_latent_split(struct program *p, const struct model *m, int kv_down, int latents[2]) {
    struct latent_attributes l = {model_rows(m) * m->micro_batch, m->kv_rank, m->rotary_dim};
    int op = program_op(p, &op_latent_split, "latent_split", &kv_down, 1, &l, sizeof(l));
    latents[0] = program_output(p, op, "kv_latent", m->dtype, 3,
                                (int64_t[]){model_rows(m), m->micro_batch, m->kv_rank}, true);
    latents[1] = program_output(p, op, "key_positions", m->dtype, 3,
                                (int64_t[]){model_rows(m), m->micro_batch, m->rotary_dim}, true);
}

/* ---- mla_assemble ---- */

static void assemble_forward(struct run *r, const struct op *o) {
    const struct mla_shape *z = o->attributes;
    KERNEL_CALL(mla_assemble_forward, r->stream, .q = run_tensor(r, o->out[0]), .k = run_tensor(r, o->out[1]),
                .v = run_tensor(r, o->out[2]), .q_in = run_tensor(r, o->in[0]), .kv = run_tensor(r, o->in[1]),
                .k_pe = run_tensor(r, o->in[2]), .shape = *z, .cos = r->rotary_cos, .sin = r->rotary_sin,
                .dtype = run_info(r, o->in[0])->dtype);
}

static void assemble_backward(struct run *r, const struct op *o) {
    const struct mla_shape *z = o->attributes;
    KERNEL_CALL(mla_assemble_backward, r->stream, .dq_in = run_grad(r, o->in[0]),
                .dkv = run_grad(r, o->in[1]), .dk_pe = run_grad(r, o->in[2]), .dq = run_grad(r, o->out[0]),
                .dk = run_grad(r, o->out[1]), .dv = run_grad(r, o->out[2]), .shape = *z, .cos = r->rotary_cos,
                .sin = r->rotary_sin, .dtype = run_info(r, o->in[0])->dtype);
}

static void assemble_backward_reduced(struct run *r, const struct op *o) {
    const struct tensor_info *k_pe = run_info(r, o->in[2]);
    CHECK(!run_accumulates(r, 2), "%s: a sum over ranks cannot be added to another gradient", o->name);
    assemble_backward(r, o);
    *run_request(r) = comm_start_all_reduce(r->comms.tp, run_grad(r, o->in[2]),
                                            (int64_t)(k_pe->bytes / dtype_bytes(k_pe->dtype)),
                                            comm_dtype_of(k_pe->dtype), COMM_SUM);
}

static void reduce_end(struct run *r, const struct op *o) {
    (void)o;
    comm_wait(*run_request(r));
}

static const struct op_def op_assemble = {"mla_assemble", assemble_forward, assemble_backward, .grad_in = 7};
static const struct op_def op_assemble_reduced = {"mla_assemble", assemble_forward, assemble_backward_reduced,
                                                  .backward_end = reduce_end, .grad_in = 7};

void op_add_mla_assemble(struct program *p, const struct model *m, int q, int kv, int k_pe, int qkv_out[3]) {
    static const char *const names[3] = {"query", "key", "value"};
    struct mla_shape z = {.s = model_seq(m),
                          .b = m->micro_batch,
                          .a = model_heads(m),
                          .dn = m->plain_dim,
                          .dr = m->rotary_dim,
                          .dv = m->value_dim};
    bool reduces = m->tp > 1 && !model_splits_sequence(m);
    int op = program_op(p, reduces ? &op_assemble_reduced : &op_assemble, "mla_assemble",
                        (int[]){q, kv, k_pe}, 3, &z, sizeof(z));
    for (int i = 0; i < 3; i++)
        qkv_out[i] = program_output(p, op, names[i], m->dtype, 4,
                                    (int64_t[]){z.b, z.a, z.s, i < 2 ? z.dn + z.dr : z.dv}, true);
}
