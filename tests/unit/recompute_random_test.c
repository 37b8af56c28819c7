/* Recompute on random programs: random graphs of small ops in random nested modules, compiled for random
 * selections, give exactly the gradients of a plain reverse pass that keeps everything. Arithmetic is modulo
 * a prime, so sums are exact in any order and equality is owed; memory is poisoned, so a value read from the
 * wrong place cannot agree by luck. */
#include "core/base/mem.h"
#include "core/model/run.h"
#include "recompute/recompute.h"
#include "tests/test.h"

enum { PRIME = 65521, WIDTH = 24, MAX_OPS = 14 };

static uint32_t dice_state = 88172645u;
static uint32_t dice(uint32_t sides) {
    dice_state ^= dice_state << 13, dice_state ^= dice_state >> 17, dice_state ^= dice_state << 5;
    return dice_state % sides;
}

static float modulo(double x) {
    double r = fmod(x, PRIME);
    return (float)(r < 0 ? r + PRIME : r);
}

static void store(float *p, bool accumulate, int i, double value) {
    p[i] = modulo(accumulate ? (double)p[i] + value : value);
}

/* ---- the ops: sum passes its gradient on; product reads both inputs; square reads its input; shift reads
 * nothing; twin has two results of which backward reads the second ---- */

static void sum_forward(struct run *r, const struct op *o) {
    float *y = run_tensor(r, o->out[0]), *a = run_tensor(r, o->in[0]), *b = run_tensor(r, o->in[1]);
    for (int i = 0; i < WIDTH; i++) y[i] = modulo((double)a[i] + (double)b[i]);
}
static void sum_backward(struct run *r, const struct op *o) {
    float *dy = run_grad(r, o->out[0]);
    for (int k = 0; k < 2; k++) {
        float *dx = run_grad(r, o->in[k]);
        if (dx == dy && !run_accumulates(r, k)) continue;
        for (int i = 0; i < WIDTH; i++) store(dx, run_accumulates(r, k), i, (double)dy[i]);
    }
}
static void product_forward(struct run *r, const struct op *o) {
    float *y = run_tensor(r, o->out[0]), *a = run_tensor(r, o->in[0]), *b = run_tensor(r, o->in[1]);
    for (int i = 0; i < WIDTH; i++) y[i] = modulo((double)a[i] * (double)b[i]);
}
static void product_backward(struct run *r, const struct op *o) {
    float *dy = run_grad(r, o->out[0]);
    for (int k = 0; k < 2; k++) {
        float *dx = run_grad(r, o->in[k]), *other = run_tensor(r, o->in[1 - k]);
        for (int i = 0; i < WIDTH; i++) store(dx, run_accumulates(r, k), i, (double)dy[i] * (double)other[i]);
    }
}
static void square_forward(struct run *r, const struct op *o) {
    float *y = run_tensor(r, o->out[0]), *x = run_tensor(r, o->in[0]);
    for (int i = 0; i < WIDTH; i++) y[i] = modulo((double)x[i] * (double)x[i]);
}
static void square_backward(struct run *r, const struct op *o) {
    float *dy = run_grad(r, o->out[0]), *dx = run_grad(r, o->in[0]), *x = run_tensor(r, o->in[0]);
    for (int i = 0; i < WIDTH; i++)
        store(dx, run_accumulates(r, 0), i, modulo(2.0 * (double)x[i]) * (double)dy[i]);
}
static void shift_forward(struct run *r, const struct op *o) {
    float *y = run_tensor(r, o->out[0]), *x = run_tensor(r, o->in[0]);
    for (int i = 0; i < WIDTH; i++) y[i] = modulo(3.0 * (double)x[i] + 7.0);
}
static void shift_backward(struct run *r, const struct op *o) {
    float *dy = run_grad(r, o->out[0]), *dx = run_grad(r, o->in[0]);
    for (int i = 0; i < WIDTH; i++) store(dx, run_accumulates(r, 0), i, 3.0 * (double)dy[i]);
}
static void twin_forward(struct run *r, const struct op *o) { /* y = x^3, aux = x^2 */
    float *y = run_tensor(r, o->out[0]), *aux = run_tensor(r, o->out[1]), *x = run_tensor(r, o->in[0]);
    for (int i = 0; i < WIDTH; i++) {
        aux[i] = modulo((double)x[i] * (double)x[i]);
        y[i] = modulo((double)aux[i] * (double)x[i]);
    }
}
static void twin_backward(struct run *r, const struct op *o) {
    float *dy = run_grad(r, o->out[0]), *dx = run_grad(r, o->in[0]), *aux = run_tensor(r, o->out[1]);
    for (int i = 0; i < WIDTH; i++)
        store(dx, run_accumulates(r, 0), i, modulo(3.0 * (double)aux[i]) * (double)dy[i]);
}

static const struct op_def defs[] = {
    {"sum", sum_forward, sum_backward, .grad_in = 3, .passes_grad = 3},
    {"product", product_forward, product_backward, .backward_reads_in = 3, .grad_in = 3},
    {"square", square_forward, square_backward, .backward_reads_in = 1, .grad_in = 1},
    {"shift", shift_forward, shift_backward, .grad_in = 1},
    {"twin", twin_forward, twin_backward, .backward_reads_out = 2, .grad_in = 1},
};
enum { SUM, PRODUCT, SQUARE, SHIFT, TWIN, KINDS };

/* ---- random programs ---- */

static const int64_t dims[1] = {WIDTH};

static int append(struct program *p, int kind, int a, int b) {
    int op = program_op(p, &defs[kind], defs[kind].name, (int[]){a, b}, kind <= PRODUCT ? 2 : 1, NULL, 0);
    int y = program_output(p, op, "y", DTYPE_F32, 1, dims, true);
    if (kind == TWIN) program_output(p, op, "aux", DTYPE_F32, 1, dims, false);
    return y;
}

static void random_program(struct program *p) {
    int values[2 * MAX_OPS], count = 0, outer[4], depth = 0;
    bool used[4 * MAX_OPS] = {false};
    program_init(p);
    values[count++] = p->input = program_tensor(p, "x", DTYPE_F32, 1, dims);
    int ops = 2 + (int)dice(MAX_OPS - 2);
    for (int i = 0; i < ops; i++) {
        while (depth < 3 && dice(3) == 0) outer[depth++] = program_begin(p, 1 + (int)dice(MODULE_COUNT - 1));
        int kind = (int)dice(KINDS), a = values[dice((uint32_t)count)], b = values[dice((uint32_t)count)];
        if (a == b && kind <= PRODUCT) kind = SQUARE; /* an op does not take one tensor twice */
        int y = append(p, kind, a, b);
        used[a] = true;
        if (kind <= PRODUCT) used[b] = true;
        values[count++] = y;
        while (depth && dice(3) == 0) program_end(p, outer[--depth]);
    }
    while (depth) program_end(p, outer[--depth]);
    int y = append(p, SHIFT, values[count - 1], 0); /* everything that nobody reads is added to the result */
    for (int i = 0; i + 1 < count; i++)
        if (!used[values[i]]) y = append(p, SUM, y, values[i]);
    p->output = y;
}

/* ---- the oracle: forward keeps everything, reverse adds everything up ---- */

static void oracle(const struct program *p, const float *x, const float *dy, float *y_out, float *dx_out) {
    size_t n = (size_t)p->num_tensors * WIDTH;
    double *v = mem_new_array(double, n, "oracle"), *g = mem_new_array(double, n, "oracle");
#define V(t) v[(size_t)(t)*WIDTH + (size_t)i]
#define G(t) g[(size_t)(t)*WIDTH + (size_t)i]
    for (int i = 0; i < WIDTH; i++) {
        V(p->input) = (double)x[i];
        for (int k = 0; k < p->num_ops; k++) {
            const struct op *o = &p->ops[k];
            double a = V(o->in[0]), b = o->num_in > 1 ? V(o->in[1]) : 0, r = 0;
            if (o->def == &defs[SUM]) r = a + b;
            if (o->def == &defs[PRODUCT]) r = a * b;
            if (o->def == &defs[SQUARE]) r = a * a;
            if (o->def == &defs[SHIFT]) r = 3 * a + 7;
            if (o->def == &defs[TWIN]) r = fmod(a * a, PRIME) * a;
            V(o->out[0]) = fmod(r, PRIME);
        }
        G(p->output) = (double)dy[i];
        for (int k = p->num_ops - 1; k >= 0; k--) {
            const struct op *o = &p->ops[k];
            double d = G(o->out[0]), a = V(o->in[0]), da = 0;
            if (o->def == &defs[SUM]) da = d, G(o->in[1]) = fmod(G(o->in[1]) + d, PRIME);
            if (o->def == &defs[PRODUCT])
                da = d * V(o->in[1]), G(o->in[1]) = fmod(G(o->in[1]) + fmod(d * a, PRIME), PRIME);
            if (o->def == &defs[SQUARE]) da = fmod(2 * a, PRIME) * d;
            if (o->def == &defs[SHIFT]) da = 3 * d;
            if (o->def == &defs[TWIN]) da = fmod(3 * fmod(a * a, PRIME), PRIME) * d;
            G(o->in[0]) = fmod(G(o->in[0]) + fmod(da, PRIME), PRIME);
        }
        y_out[i] = (float)V(p->output);
        dx_out[i] = (float)G(p->input);
    }
    mem_free(v);
    mem_free(g);
}

/* ---- the subject ---- */

static int run_compiled(const struct compiled *c, const float *x, const float *dy, float *y_out,
                        float *dx_out) {
    const struct program *p = &c->program;
    size_t work =
        c->forward.work_bytes > c->backward.work_bytes ? c->forward.work_bytes : c->backward.work_bytes;
    size_t row = align_up(WIDTH * sizeof(float)), total = 3 * row + c->frame_bytes + work;
    char *memory = mem_alloc(total, "test"), *boundary = memory, *input = boundary + row,
         *output = input + row;
    char *frame = output + row, *scratch = frame + c->frame_bytes;
    struct stream stream = {.kernels = kernels_reference()};
    struct run run = {.program = p,
                      .stream = &stream,
                      .input = input,
                      .output = output,
                      .frame = frame,
                      .work = scratch,
                      .boundary_grad = boundary};
    memset(memory, 0xFF, total);
    memcpy(input, x, WIDTH * sizeof(float));
    run.code = &c->forward;
    for (int i = 0; i < c->forward.num_instrs; i++) run_instr(&run, i);
    memcpy(y_out, output, WIDTH * sizeof(float));
    memset(scratch, 0xFF, work);
    memcpy(boundary, dy, WIDTH * sizeof(float));
    run.code = &c->backward;
    for (int i = 0; i < c->backward.num_instrs; i++) run_instr(&run, i);
    run_finish(&run);
    memcpy(dx_out, boundary, WIDTH * sizeof(float));
    mem_free(memory);
    int reruns = 0;
    for (int i = 0; i < c->backward.num_instrs; i++) reruns += c->backward.at[i].kind == INSTR_RERUN;
    return reruns;
}

static void check_once(int round, long *reruns_p) {
    struct program p;
    struct compiled c;
    float x[WIDTH], dy[WIDTH], y[WIDTH], dx[WIDTH], y_want[WIDTH], dx_want[WIDTH];
    random_program(&p);
    for (int i = 0; i < WIDTH; i++) x[i] = (float)dice(PRIME), dy[i] = (float)dice(PRIME);
    oracle(&p, x, dy, y_want, dx_want);
    recompute_compile(&p, dice(RECOMPUTE_BIT(MODULE_COUNT)), false, &c);
    *reruns_p += run_compiled(&c, x, dy, y, dx);
    EXPECT(!memcmp(y, y_want, sizeof(y)), "program %d: another result", round);
    EXPECT(!memcmp(dx, dx_want, sizeof(dx)), "program %d: another gradient (%g, wanted %g)", round,
           (double)dx[0], (double)dx_want[0]);
    recompute_free(&c);
}

TEST(random_programs_keep_their_gradients) {
    long reruns = 0;
    for (int i = 0; i < 20000; i++) check_once(i, &reruns);
    EXPECT(reruns > 20000, "only %ld ops were re-run: the test tests nothing", reruns);
}

RUN_TESTS(CASE(random_programs_keep_their_gradients))
