/* Attention over a sequence that is split over ranks, by each of the three ways, against the reference kernel
 * on the whole sequence. The op runs alone: its tensors lie side by side in one poisoned stretch, each with a
 * guard behind it. */
#include "core/base/mem.h"
#include "core/model/ops.h"
#include "core/model/run.h"
#include "tests/parallel/parallel.h"

enum { GUARD = 64, MAX_TENSORS = 16 };
static const char *const way_names[] = {"p2p", "all_gather", "a2a"};

struct setting {
    enum model_cp_comm way;
    enum dtype dtype;
    float dropout;
    int64_t chunk, b, a, g, d; /* a and g: per rank of the ring, so that heads can be exchanged */
    int tp_rank;               /* of two */
    int64_t dv;                /* head size of values; 0: d */
};

static int64_t value_dim(const struct setting *s) {
    return s->dv ? s->dv : s->d;
}

/* Everything on every rank: inputs and the truth, of this tensor-parallel rank's heads. */
struct whole {
    struct attention_shape z;
    struct attention_window w;
    void *q, *k, *v, *d_o, *o, *dq, *dk, *dv; /* [b, a|g, seq, d], [seq, b, a * d]; values dv for d */
    float *lse;
    int64_t nq, no, nk, nv;
};

static void *new_random(int64_t n, enum dtype dtype, uint64_t seed) {
    void *p = mem_alloc((size_t)n * dtype_bytes(dtype), "random");
    for (int64_t i = 0; i < n; i++) {
        seed = seed * 6364136223846793005u + 1442695040888963407u;
        store_f32(p, dtype, i, (float)((double)(seed >> 33) * 0x1p-30 - 1) * 1.5f);
    }
    return p;
}

static void *new_zeros(int64_t n, enum dtype dtype) {
    return mem_zalloc((size_t)n * dtype_bytes(dtype), "zeros");
}

static void *poisoned(size_t bytes) {
    void *p = mem_alloc(bytes, "poisoned");
    memset(p, 0xFF, bytes);
    return p;
}

/* Runs the whole with `kernels`. */
static void whole_run(struct whole *x, const struct setting *s, const struct kernels *kernels,
                      struct rng_key key) {
    struct attention_forward_args f = {.o = x->o, .lse = x->lse, .q = x->q, .k = x->k, .v = x->v};
    struct attention_backward_args b = {.dq = x->dq, .dk = x->dk, .dv = x->dv, .d_o = x->d_o, .o = x->o};
    struct stream stream = {.kernels = kernels};
    f.shape = b.shape = x->z, f.window = b.window = x->w;
    f.scale = b.scale = (float)(1 / sqrt((double)s->d));
    f.dropout = b.dropout = s->dropout, f.key = b.key = key, f.causal = b.causal = true;
    f.dtype = b.dtype = s->dtype;
    b.lse = x->lse, b.q = x->q, b.k = x->k, b.v = x->v;
    stream.workspace_bytes = 1 << 24, stream.workspace = mem_alloc(stream.workspace_bytes, "workspace");
    attention_forward_call(&stream, &f);
    attention_backward_call(&stream, &b);
    mem_free(stream.workspace);
}

static struct whole whole_open(const struct setting *s, int ranks) {
    struct whole x = {.z = {.s = 2 * ranks * s->chunk,
                            .b = s->b,
                            .a = s->a * ranks,
                            .g = s->g * ranks,
                            .d = s->d,
                            .dv = s->dv}};
    x.w = (struct attention_window){.first_head = x.z.a * s->tp_rank, .heads = 2 * x.z.a, .seq = x.z.s};
    int64_t rows = x.z.b * x.z.s;
    x.nq = rows * x.z.a * s->d, x.no = rows * x.z.a * value_dim(s);
    x.nk = rows * x.z.g * s->d, x.nv = rows * x.z.g * value_dim(s);
    x.q = new_random(x.nq, s->dtype, 1), x.d_o = new_random(x.no, s->dtype, 2);
    x.k = new_random(x.nk, s->dtype, 3), x.v = new_random(x.nv, s->dtype, 4);
    x.o = new_zeros(x.no, s->dtype), x.dq = new_zeros(x.nq, s->dtype);
    x.dk = new_zeros(x.nk, s->dtype), x.dv = new_zeros(x.nv, s->dtype);
    x.lse = new_zeros(x.nq / x.z.d, DTYPE_F32);
    return x;
}

static void whole_close(struct whole *x) {
    void *const all[] = {x->q, x->k, x->v, x->d_o, x->o, x->dq, x->dk, x->dv, x->lse};
    for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++) mem_free(all[i]);
}

/* Position in the whole sequence of local row i: chunk `rank`, then its mirror image. */
static int64_t position(int64_t i, int64_t chunk, int rank, int ranks) {
    return i < chunk ? rank * chunk + i : (2 * ranks - 1 - rank) * chunk + i - chunk;
}

/* The local rows of [lines, seq, width] as [lines, 2 chunk, width]. */
static void cut(void *local, const void *whole, enum dtype dtype, int64_t lines, int64_t width, int64_t chunk,
                int rank, int ranks) {
    for (int64_t line = 0; line < lines; line++)
        for (int64_t i = 0; i < 2 * chunk; i++)
            memcpy(
                dtype_at(local, dtype, (line * 2 * chunk + i) * width),
                dtype_at(whole, dtype, (line * 2 * ranks * chunk + position(i, chunk, rank, ranks)) * width),
                (size_t)width * dtype_bytes(dtype));
}

/* ---- the op, alone ---- */
struct alone {
    struct program p;
    struct code code;
    struct instr at;
    struct stream stream;
    struct run run;
    size_t bytes; /* of one copy of all tensors: values first, gradients behind them */
    int qkv[3], out;
};

static void alone_open(struct alone *x, const struct setting *s, struct comm *cp) {
    int ranks = comm_size(cp);
    struct model m = {.heads = 2 * s->a * ranks,
                      .groups = 2 * s->g * ranks,
                      .head_dim = s->d,
                      .value_dim = s->dv,
                      .hidden = 2 * s->a * ranks * s->d,
                      .seq = 2 * ranks * s->chunk,
                      .micro_batch = s->b,
                      .dtype = s->dtype,
                      .flash = true,
                      .attention_dropout = s->dropout,
                      .tp = 2,
                      .tp_rank = s->tp_rank,
                      .cp = ranks,
                      .cp_rank = comm_rank(cp),
                      .cp_comm = s->way};
    *x = (struct alone){.code = {0}};
    program_init(&x->p);
    for (int i = 0; i < 3; i++)
        x->qkv[i] = program_tensor(&x->p, "qkv", s->dtype, 4,
                                   (int64_t[]){s->b, i ? model_groups(&m) : model_heads(&m), model_seq(&m),
                                               i < 2 ? s->d : value_dim(s)});
    x->out = op_add_attention_context(&x->p, &m, x->qkv);
    x->p.input = x->p.output = -1;
    code_init(&x->code, x->p.num_tensors);
    for (int t = 0; t < x->p.num_tensors; t++) {
        x->p.tensors[t].home = HOME_WORK;
        x->code.work_offset[t] = x->bytes;
        x->bytes += align_up(x->p.tensors[t].bytes) + GUARD;
    }
    for (int t = 0; t < x->p.num_tensors; t++)
        x->code.grad_place[t] = (int64_t)(x->bytes + x->code.work_offset[t]);
    x->stream = (struct stream){.kernels = kernels_cpu(), .workspace_bytes = 1 << 24};
    x->stream.workspace = mem_alloc(x->stream.workspace_bytes, "workspace");
    x->run = (struct run){.program = &x->p,
                          .code = &x->code,
                          .at = &x->at,
                          .stream = &x->stream,
                          .work = poisoned(2 * x->bytes),
                          .rng = {.seed = 5, .iteration = 2, .micro_batch = 1},
                          .training = true,
                          .comms = {.cp = cp}};
}

static void alone_close(struct alone *x) {
    mem_free(x->run.work), mem_free(x->stream.workspace);
    code_free(&x->code);
    program_free(&x->p);
}

static void check_guards(const struct alone *x, const struct setting *s) {
    for (int t = 0; t < x->p.num_tensors; t++)
        for (int copy = 0; copy < 2; copy++) {
            const unsigned char *p = (unsigned char *)x->run.work + (copy ? x->bytes : 0) +
                                     x->code.work_offset[t] + x->p.tensors[t].bytes;
            size_t n = align_up(x->p.tensors[t].bytes) - x->p.tensors[t].bytes + GUARD, broken = 0;
            for (size_t i = 0; i < n; i++) broken += p[i] != 0xFF;
            EXPECT(!broken, "%s wrote %d bytes behind %s", way_names[s->way], (int)broken,
                   x->p.tensors[t].name);
        }
}

/* Largest error, in units of the largest number of the truth; infinite when something is not finite. */
static double error_of(const void *got, const void *truth, enum dtype dtype, int64_t n) {
    double worst = 0, largest = 1e-30;
    for (int64_t i = 0; i < n; i++) {
        double x = (double)load_f32(got, dtype, i), y = (double)load_f32(truth, dtype, i);
        if (!isfinite(x)) return (double)INFINITY;
        worst = fmax(worst, fabs(x - y)), largest = fmax(largest, fabs(y));
    }
    return worst / largest;
}

/* Of float32: sums of some 200 products, softmax of scores of size 5. Of the others: the kernels round
 * probabilities and score gradients once, and the result once; o moves delta by its rounding. */
static double tolerance_of(enum dtype dtype) {
    return dtype == DTYPE_F32 ? 3e-6 : dtype == DTYPE_BF16 ? 4 * 0x1p-8 : 4 * 0x1p-11;
}

static void compare(struct alone *x, const struct setting *s, const struct whole *w, bool to_the_bit) {
    struct comm *cp = x->run.comms.cp;
    int rank = comm_rank(cp), ranks = comm_size(cp);
    const void *truth[] = {w->o, w->dq, w->dk, w->dv};
    static const char *const names[] = {"o", "dq", "dk", "dv"};
    for (int i = 0; i < 4; i++) {
        const void *got = i ? run_grad(&x->run, x->qkv[i - 1]) : run_tensor(&x->run, x->out);
        const int64_t sizes[] = {w->no, w->nq, w->nk, w->nv};
        int64_t n = sizes[i] / ranks, lines = i == 0 ? 1 : s->b * (i < 2 ? w->z.a : w->z.g);
        int64_t width = i == 0 ? s->b * w->z.a * value_dim(s) : i == 3 ? value_dim(s) : s->d;
        void *part = new_zeros(n, s->dtype);
        cut(part, truth[i], s->dtype, lines, width, s->chunk, rank, ranks);
        double error = error_of(got, part, s->dtype, n);
        EXPECT(error <= tolerance_of(s->dtype), "%s %s %s, dropout %g, chunk %d: off by %.3g",
               way_names[s->way], dtype_name(s->dtype), names[i], (double)s->dropout, (int)s->chunk, error);
        EXPECT(!to_the_bit || !memcmp(got, part, (size_t)n * dtype_bytes(s->dtype)), "%s %s %s: bits differ",
               way_names[s->way], dtype_name(s->dtype), names[i]);
        mem_free(part);
    }
}

/* `kernels` compute the truth. */
static void check(const struct setting *s, struct comm *cp, const struct kernels *kernels, bool to_the_bit) {
    struct alone x;
    struct whole w = whole_open(s, comm_size(cp));
    int rank = comm_rank(cp), ranks = comm_size(cp);
    alone_open(&x, s, cp);
    const struct op *o = &x.p.ops[0];
    whole_run(&w, s, kernels, run_rng(&x.run, o));
    const void *in[] = {w.q, w.k, w.v};
    for (int i = 0; i < 3; i++)
        cut(run_tensor(&x.run, x.qkv[i]), in[i], s->dtype, s->b * (i ? w.z.g : w.z.a),
            i < 2 ? s->d : value_dim(s), s->chunk, rank, ranks);
    cut(run_grad(&x.run, x.out), w.d_o, s->dtype, 1, s->b * w.z.a * value_dim(s), s->chunk, rank, ranks);
    x.at.kind = INSTR_FORWARD;
    o->def->forward(&x.run, o);
    x.at.kind = INSTR_BACKWARD;
    o->def->backward(&x.run, o);
    check_guards(&x, s);
    compare(&x, s, &w, to_the_bit);
    alone_close(&x);
    whole_close(&w);
}

static struct comm *open_all(void) {
    int ranks[64], size = comm_world_size(world);
    for (int i = 0; i < size; i++) ranks[i] = i;
    return comm_open(world, "context-parallel", ranks, size);
}

static const struct setting settings[] = {
    {.dropout = 0, .chunk = 5, .b = 2, .a = 2, .g = 1, .d = 16},
    {.dropout = 0.1f, .chunk = 16, .b = 1, .a = 1, .g = 1, .d = 32, .tp_rank = 1},
    {.dropout = 0.1f, .chunk = 7, .b = 2, .a = 2, .g = 2, .d = 24, .tp_rank = 1},
    /* multi-latent attention: values narrower than keys, and wider */
    {.dropout = 0.1f, .chunk = 6, .b = 2, .a = 2, .g = 2, .d = 24, .dv = 16},
    {.dropout = 0, .chunk = 9, .b = 1, .a = 2, .g = 1, .d = 8, .dv = 20, .tp_rank = 1},
};
enum { NUM_SETTINGS = (int)(sizeof(settings) / sizeof(settings[0])) };

TEST(a_split_sequence_gives_the_attention_of_the_whole) {
    if (comm_world_size(world) < 2) SKIP("one rank");
    struct comm *cp = open_all();
    for (int i = 0; i < NUM_SETTINGS * 9; i++) {
        struct setting s = settings[i / 9];
        s.way = (enum model_cp_comm)(i / 3 % 3), s.dtype = (enum dtype)(i % 3);
        check(&s, cp, kernels_reference(), false);
    }
    comm_close(cp);
}

TEST(exchanged_heads_are_computed_to_the_bit) {
    if (comm_world_size(world) < 2) SKIP("one rank");
    struct comm *cp = open_all();
    for (int i = 0; i < NUM_SETTINGS * 3; i++) {
        struct setting s = settings[i / 3];
        s.way = MODEL_CP_A2A, s.dtype = (enum dtype)(i % 3);
        check(&s, cp, kernels_cpu(), true);
    }
    comm_close(cp);
}

/* The work under the diagonal is shared out evenly: every rank has the same, and all of it is the whole. */
TEST(every_rank_has_the_same_share_of_the_causal_work) {
    int ranks = comm_world_size(world);
    if (ranks < 2) SKIP("one rank");
    struct setting s = settings[1];
    struct whole w = whole_open(&s, ranks);
    char any = 0;
    struct attention_forward_args all = {
        .o = &any, .q = &any, .k = &any, .v = &any, .shape = w.z, .causal = true};
    double whole = attention_forward_cost(&all).gemm_flops;
    /* a rank's blocks are squares of c keys; the n diagonal ones of the halves count c (c + 1) / 2 */
    for (int way = 0; way < 2; way++) {
        struct comm *cp = open_all();
        struct alone x;
        s.way = (enum model_cp_comm)way;
        alone_open(&x, &s, cp);
        struct kernels table = kernels_meta(kernels_cpu());
        struct kernel_meter meter = {0};
        x.stream.kernels = &table, x.stream.meter = &meter;
        x.at.kind = INSTR_FORWARD;
        x.p.ops[0].def->forward(&x.run, &x.p.ops[0]);
        EXPECT_EQ(meter.total.gemm_flops * ranks, whole);
        alone_close(&x);
        comm_close(cp);
    }
    whole_close(&w);
}

RUN_PARALLEL_TESTS("2 3 4", CASE(a_split_sequence_gives_the_attention_of_the_whole),
                   CASE(exchanged_heads_are_computed_to_the_bit),
                   CASE(every_rank_has_the_same_share_of_the_causal_work))
