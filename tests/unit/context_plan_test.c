/* How a plan sees context-parallel attention: what it keeps, and where its scratch lies. */
#include "core/model/model.h"
#include "recompute/recompute.h"
#include "tests/test.h"

enum { OUT, LSE, FORWARD_SCRATCH, BACKWARD_SCRATCH };

static struct model split_model(enum model_cp_comm way, int ranks, enum dtype dtype) {
    return (struct model){.layers = 1,
                          .hidden = 64,
                          .heads = 12,
                          .groups = 6,
                          .head_dim = 16,
                          .ffn = 64,
                          .seq = 24 * ranks,
                          .micro_batch = 2,
                          .vocab = 64,
                          .dtype = dtype,
                          .rms = true,
                          .flash = true,
                          .rotary_interpolation = 1,
                          .activation = ACTIVATION_SWIGLU,
                          .cp = ranks,
                          .cp_rank = ranks - 1,
                          .cp_comm = way};
}

static void compile(struct compiled *c, const struct model *m, recompute_set selected) {
    struct program p;
    program_init(&p);
    build_layers(&p, m, 0, 1);
    recompute_compile(&p, selected, false, c);
}

static const struct op *attention_of(const struct compiled *c) {
    for (int i = 0; i < c->program.num_ops; i++)
        if (c->program.ops[i].backward_scratch_out) return &c->program.ops[i];
    return NULL;
}

TEST(scratch_is_never_kept_and_lies_only_where_it_is_used) {
    for (int n = 0; n < 6; n++) {
        struct compiled c;
        struct model m = split_model((enum model_cp_comm)(n / 2), 2, DTYPE_BF16);
        compile(&c, &m, n % 2 ? RECOMPUTE_BIT(MODULE_core_attn) : 0);
        const struct op *o = attention_of(&c);
        const struct tensor_info *t = c.program.tensors;
        EXPECT(o && o->num_out == 4, "the op has four outputs");
        EXPECT(t[o->out[FORWARD_SCRATCH]].home == HOME_WORK && t[o->out[BACKWARD_SCRATCH]].home == HOME_WORK,
               "scratch is work memory");
        EXPECT(t[o->out[LSE]].home == (n % 2 ? HOME_WORK : HOME_KEEP),
               "lse is kept unless attention is re-run");
        EXPECT(c.forward.work_offset[o->out[FORWARD_SCRATCH]] != SIZE_MAX, "forward has its scratch");
        EXPECT(c.forward.work_offset[o->out[BACKWARD_SCRATCH]] == SIZE_MAX, "and not that of backward");
        EXPECT(c.backward.work_offset[o->out[BACKWARD_SCRATCH]] != SIZE_MAX, "backward has its scratch");
        EXPECT((c.backward.work_offset[o->out[FORWARD_SCRATCH]] != SIZE_MAX) == (n % 2),
               "and that of forward when it re-runs it");
        recompute_free(&c);
    }
}

/* Closed forms of the comments of core/model/ops/context_*.c, before alignment: q is as large as o. */
TEST(scratch_has_the_bytes_of_its_buffers) {
    for (int n = 0; n < 12; n++) {
        enum model_cp_comm way = (enum model_cp_comm)(n / 4);
        int ranks = n % 2 ? 3 : 2;
        bool wide = n / 2 % 2;
        struct compiled c;
        struct model m = split_model(way, ranks, wide ? DTYPE_F32 : DTYPE_BF16);
        compile(&c, &m, 0);
        const struct op *o = attention_of(&c);
        size_t size = wide ? 4 : 2, rows = 2 * 24, q = rows * 12 * 16, kv = rows * 6 * 16, part = rows * 12;
        size_t travel = 2 * kv * size * (ranks > 2 ? 2 : 1), own = wide ? 0 : q * 4, all = kv * (size_t)ranks;
        size_t forward[] = {travel + q / 2 * 4 + part * 4 + own, 3 * all * size, (3 * q + 2 * kv) * size};
        size_t backward[] = {travel + 6 * kv * 4 + own, all * 4 + 2 * all * size + 2 * all * 4 + own,
                             (5 * q + 4 * kv) * size};
        EXPECT_EQ(c.program.tensors[o->out[FORWARD_SCRATCH]].bytes, forward[way]);
        EXPECT_EQ(c.program.tensors[o->out[BACKWARD_SCRATCH]].bytes, backward[way]);
        recompute_free(&c);
    }
}

RUN_TESTS(CASE(scratch_is_never_kept_and_lies_only_where_it_is_used),
          CASE(scratch_has_the_bytes_of_its_buffers))
