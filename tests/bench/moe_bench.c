/* Mixture of experts on the CPU: grouped products beside one dense product of the same total size, in the
 * same run, and the share of dispatch (routing, permute, unpermute, and their backward) in a layer's time.
 *
 *     moe_bench [threads [isa [seconds per row]]]
 *
 * Tab-separated: `grouped` lines have the rates in GFLOP/s and their quotient, the `layer` lines
 * milliseconds. Least time of all repeats; dense and grouped take turns, so that a busy machine harms both.
 */
#include "core/base/mem.h"
#include "core/base/threads.h"
#include "core/base/check.h"
#include "kernels/kernels.h"
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void *tensor(enum dtype dtype, int64_t n) {
    void *p = mem_zalloc((size_t)n * dtype_bytes(dtype), "tensor");
    uint32_t state = 1;
    for (int64_t i = 0; i < n; i++) {
        state = state * 1664525u + 1013904223u;
        store_f32(p, dtype, i, ((float)(state >> 8) * 0x1p-23f - 1.0f) * 0.1f);
    }
    return p;
}

static struct stream stream;
static double seconds_per_row = 0.5;

/* ---- products ---- */

static const struct shape { /* rows in all, shared evenly */
    int64_t experts, rows, in, out;
} shapes[] = {
    {8, 4096, 768, 3072},   {8, 4096, 3072, 768},   {8, 4096, 2048, 2048},
    {16, 8192, 1024, 1024}, {64, 16384, 512, 1024}, {64, 4096, 768, 1024},
};

enum use { FORWARD, INPUT_GRADIENT, WEIGHT_GRADIENT, USES };

struct bench {
    struct shape s;
    enum dtype dtype;
    void *x, *y, *w, *packed[2]; /* packed: of one dense matrix, of every expert's */
    float *dw;
    int32_t *offsets;
};

static void pack(struct bench *b, enum use use) {
    int64_t k = use == FORWARD ? b->s.in : b->s.out, n = use == FORWARD ? b->s.out : b->s.in;
    size_t bytes = stream.kernels->gemm_packed_bytes(b->dtype, k, n);
    for (int i = 0; i < 2 && bytes; i++)
        for (int64_t g = 0; g < (i ? b->s.experts : 1); g++)
            KERNEL_CALL(gemm_pack, &stream, .dst = (char *)b->packed[i] + (size_t)g * bytes,
                        .src = dtype_at(b->w, b->dtype, g * k * n), .k = k, .n = n, .trans = use == FORWARD,
                        .dtype = b->dtype, .src_dtype = b->dtype);
}

static void dense(const struct bench *b, enum use use) {
    bool packed = b->packed[0] && use != WEIGHT_GRADIENT;
    if (use == WEIGHT_GRADIENT) {
        KERNEL_CALL(gemm, &stream, .c = b->dw, .a = b->y, .trans_a = true, .b = b->x, .m = b->s.out,
                    .n = b->s.in, .k = b->s.rows, .dtype = b->dtype, .c_dtype = DTYPE_F32,
                    .accumulate = true);
        return;
    }
    KERNEL_CALL(gemm, &stream, .c = use == FORWARD ? b->y : b->x, .a = use == FORWARD ? b->x : b->y,
                .b = packed ? b->packed[0] : b->w, .b_packed = packed, .trans_b = use == FORWARD,
                .m = b->s.rows, .n = use == FORWARD ? b->s.out : b->s.in,
                .k = use == FORWARD ? b->s.in : b->s.out, .dtype = b->dtype, .c_dtype = b->dtype);
}

static void grouped(const struct bench *b, enum use use) {
    bool packed = b->packed[1] && use != WEIGHT_GRADIENT;
    if (use == WEIGHT_GRADIENT) {
        KERNEL_CALL(grouped_gemm, &stream, .c = b->dw, .a = b->y, .b = b->x, .offsets = b->offsets,
                    .groups = b->s.experts, .rows = b->s.rows, .n = b->s.out, .k = b->s.in, .sums_rows = true,
                    .accumulate = true, .dtype = b->dtype, .c_dtype = DTYPE_F32);
        return;
    }
    KERNEL_CALL(grouped_gemm, &stream, .c = use == FORWARD ? b->y : b->x, .a = use == FORWARD ? b->x : b->y,
                .b = packed ? b->packed[1] : b->w, .offsets = b->offsets, .groups = b->s.experts,
                .rows = b->s.rows, .n = use == FORWARD ? b->s.out : b->s.in,
                .k = use == FORWARD ? b->s.in : b->s.out, .b_packed = packed,
                .trans_b = use == FORWARD && !packed, .dtype = b->dtype, .c_dtype = b->dtype);
}

static double seconds_of(void (*fn)(const struct bench *, enum use), const struct bench *b, enum use use) {
    double start = now();
    fn(b, use);
    return now() - start;
}

static void measure_products(struct shape s, enum dtype dtype) {
    static const char *const names[USES] = {"forward", "dx", "dw"};
    int64_t matrix = s.in * s.out;
    size_t packed = stream.kernels->gemm_packed_bytes(dtype, s.in, s.out),
           back = stream.kernels->gemm_packed_bytes(dtype, s.out, s.in), most = packed > back ? packed : back;
    struct bench b = {.s = s, .dtype = dtype};
    b.x = tensor(dtype, s.rows * s.in), b.y = tensor(dtype, s.rows * s.out);
    b.w = tensor(dtype, s.experts * matrix);
    b.dw = mem_zalloc((size_t)(s.experts * matrix) * 4, "gradient");
    if (most)
        b.packed[0] = mem_zalloc(most, "packed"),
        b.packed[1] = mem_zalloc(most * (size_t)s.experts, "packed");
    b.offsets = mem_new_array(int32_t, (size_t)s.experts + 1, "offsets");
    for (int64_t g = 0; g <= s.experts; g++) b.offsets[g] = (int32_t)(g * s.rows / s.experts);
    for (int use = 0; use < USES; use++) {
        double best[2] = {1e9, 1e9}, flops = 2.0 * (double)s.rows * (double)matrix;
        if (use != WEIGHT_GRADIENT) pack(&b, (enum use)use);
        for (double end = now() + seconds_per_row; now() < end;)
            for (int i = 0; i < 2; i++) {
                double t = seconds_of(i ? grouped : dense, &b, (enum use)use);
                if (t < best[i]) best[i] = t;
            }
        printf("grouped\t%s\t%s\tE=%lld rows=%lld in=%lld out=%lld\tdense %.1f\tgrouped %.1f\t%.2f\n",
               dtype_name(dtype), names[use], (long long)s.experts, (long long)s.rows, (long long)s.in,
               (long long)s.out, flops / best[0] * 1e-9, flops / best[1] * 1e-9, best[0] / best[1]);
        fflush(stdout);
    }
    void *all[] = {b.x, b.y, b.w, b.dw, b.packed[0], b.packed[1], b.offsets};
    for (size_t i = 0; i < ARRAY_COUNT(all); i++) mem_free(all[i]);
}

/* ---- a layer ---- */

enum part { ROUTE, PERMUTE, PRODUCTS, ACTIVATION, PARTS };

struct layer {
    int64_t tokens, hidden, ffn, experts, topk;
    enum dtype dtype;
};

struct clock {
    double begin, *sums;
};

static void lap(struct clock *c, enum part part) {
    double t = now();
    c->sums[part] += t - c->begin;
    c->begin = t;
}

struct tensors {
    void *x, *rows, *u, *a, *y, *out, *w1, *w2, *wr, *du;
    float *dw1, *dw2, *dwr, *logits, *probs, *dprobs, *dlogits;
    int32_t *experts, *offsets, *row_of_slot, *slot_of_row, *counts;
};

static void product(const struct layer *l, const struct tensors *t, void *c, const void *a, const void *b,
                    int64_t n, int64_t k, bool sums_rows, bool packed) {
    KERNEL_CALL(grouped_gemm, &stream, .c = c, .a = a, .b = b, .offsets = t->offsets, .groups = l->experts,
                .rows = l->tokens * l->topk, .n = n, .k = k, .sums_rows = sums_rows, .b_packed = packed,
                .dtype = l->dtype, .c_dtype = sums_rows ? DTYPE_F32 : l->dtype);
}

/* Forward and backward of the experts of one layer (SwiGLU), each part timed. */
static void run_layer(const struct layer *l, const struct tensors *t, bool packed, double sums[PARTS]) {
    struct router_shape s = {.tokens = l->tokens, .experts = l->experts, .topk = l->topk, .count_sets = 1};
    int64_t rows = l->tokens * l->topk, h = l->hidden, f = l->ffn;
    struct clock c = {now(), sums};
    double balance = 0;
    KERNEL_CALL(gemm, &stream, .c = t->logits, .a = t->x, .b = t->wr, .trans_b = true, .m = l->tokens,
                .n = l->experts, .k = h, .dtype = l->dtype, .c_dtype = DTYPE_F32);
    KERNEL_CALL(route_forward, &stream, .probs = t->probs, .experts = t->experts, .offsets = t->offsets,
                .row_of_slot = t->row_of_slot, .slot_of_row = t->slot_of_row, .counts = t->counts,
                .logits = t->logits, .shape = s);
    KERNEL_CALL(route_losses, &stream, .balance_sum = &balance, .logits = t->logits, .counts = t->counts,
                .shape = s);
    lap(&c, ROUTE);
    KERNEL_CALL(gather_rows, &stream, .y = t->rows, .x = t->x, .index = t->slot_of_row, .rows = rows,
                .cols = h, .divisor = l->topk, .dtype = l->dtype);
    lap(&c, PERMUTE);
    product(l, t, t->u, t->rows, t->w1, 2 * f, h, false, packed);
    lap(&c, PRODUCTS);
    KERNEL_CALL(scaled_activation_forward, &stream, .y = t->a, .x = t->u, .scales = t->probs,
                .index = t->slot_of_row, .rows = rows, .cols = f, .kind = ACTIVATION_SWIGLU,
                .dtype = l->dtype);
    lap(&c, ACTIVATION);
    product(l, t, t->y, t->a, t->w2, h, f, false, packed);
    lap(&c, PRODUCTS);
    KERNEL_CALL(combine_rows, &stream, .y = t->out, .x = t->y, .index = t->row_of_slot, .rows = l->tokens,
                .cols = h, .fan = l->topk, .dtype = l->dtype);
    /* backward */
    KERNEL_CALL(gather_rows, &stream, .y = t->y, .x = t->out, .index = t->slot_of_row, .rows = rows,
                .cols = h, .divisor = l->topk, .dtype = l->dtype);
    lap(&c, PERMUTE);
    product(l, t, t->dw2, t->y, t->a, h, f, true, false);
    product(l, t, t->a, t->y, t->w2, f, h, false, packed);
    lap(&c, PRODUCTS);
    KERNEL_CALL(scaled_activation_backward, &stream, .dx = t->du, .dscales = t->dprobs, .dy = t->a, .x = t->u,
                .scales = t->probs, .index = t->slot_of_row, .rows = rows, .cols = f,
                .kind = ACTIVATION_SWIGLU, .dtype = l->dtype);
    lap(&c, ACTIVATION);
    KERNEL_CALL(gather_rows, &stream, .y = t->rows, .x = t->x, .index = t->slot_of_row, .rows = rows,
                .cols = h, .divisor = l->topk, .dtype = l->dtype);
    lap(&c, PERMUTE);
    product(l, t, t->dw1, t->du, t->rows, 2 * f, h, true, false);
    product(l, t, t->rows, t->du, t->w1, h, 2 * f, false, packed);
    lap(&c, PRODUCTS);
    KERNEL_CALL(combine_rows, &stream, .y = t->out, .x = t->rows, .index = t->row_of_slot, .rows = l->tokens,
                .cols = h, .fan = l->topk, .dtype = l->dtype);
    lap(&c, PERMUTE);
    KERNEL_CALL(route_backward, &stream, .dlogits = t->dlogits, .dprobs = t->dprobs, .logits = t->logits,
                .experts = t->experts, .counts = t->counts, .shape = s, .balance_scale = 0.01f);
    KERNEL_CALL(router_backward, &stream, .dx = t->out, .dweight = t->dwr, .dlogits = t->dlogits, .x = t->x,
                .weight = t->wr, .tokens = l->tokens, .experts = l->experts, .hidden = h,
                .accumulate_dx = true, .dtype = l->dtype);
    lap(&c, ROUTE);
}

static void measure_layer(struct layer l) {
    int64_t rows = l.tokens * l.topk, h = l.hidden, f = l.ffn, e = l.experts;
    const struct kernels *k = stream.kernels;
    size_t p1 = k->gemm_packed_bytes(l.dtype, h, 2 * f), p2 = k->gemm_packed_bytes(l.dtype, f, h);
    size_t q1 = k->gemm_packed_bytes(l.dtype, 2 * f, h), q2 = k->gemm_packed_bytes(l.dtype, h, f);
    size_t most1 = p1 > q1 ? p1 : q1, most2 = p2 > q2 ? p2 : q2, plain = (size_t)(h * f) * 4;
    struct tensors t = {.x = tensor(l.dtype, l.tokens * h),
                        .rows = tensor(l.dtype, rows * h),
                        .u = tensor(l.dtype, rows * 2 * f),
                        .a = tensor(l.dtype, rows * f),
                        .y = tensor(l.dtype, rows * h),
                        .out = tensor(l.dtype, l.tokens * h),
                        .w1 = mem_zalloc((size_t)e * (most1 > plain ? most1 : 2 * plain), "weight"),
                        .w2 = mem_zalloc((size_t)e * (most2 > plain ? most2 : 2 * plain), "weight"),
                        .wr = tensor(l.dtype, e * h),
                        .du = tensor(l.dtype, rows * 2 * f),
                        .dw1 = tensor(DTYPE_F32, e * 2 * f * h),
                        .dw2 = tensor(DTYPE_F32, e * f * h),
                        .dwr = tensor(DTYPE_F32, e * h),
                        .logits = tensor(DTYPE_F32, l.tokens * e),
                        .probs = tensor(DTYPE_F32, rows),
                        .dprobs = tensor(DTYPE_F32, rows),
                        .dlogits = tensor(DTYPE_F32, l.tokens * e),
                        .experts = tensor(DTYPE_I32, rows),
                        .offsets = tensor(DTYPE_I32, e + 1),
                        .row_of_slot = tensor(DTYPE_I32, rows),
                        .slot_of_row = tensor(DTYPE_I32, rows),
                        .counts = tensor(DTYPE_I32, e)};
    double best = 1e9, of_best[PARTS] = {0};
    for (double end = now() + 2 * seconds_per_row; now() < end;) {
        double sums[PARTS] = {0}, total = 0;
        run_layer(&l, &t, p1 != 0, sums);
        for (int i = 0; i < PARTS; i++) total += sums[i];
        if (total >= best) continue;
        best = total;
        for (int i = 0; i < PARTS; i++) of_best[i] = sums[i];
    }
    printf("layer\t%s\ttokens=%lld h=%lld f=%lld E=%lld k=%lld\tproducts %.1f\tactivation %.1f\troute %.1f\t"
           "permute %.1f\tdispatch %.1f%%\n",
           dtype_name(l.dtype), (long long)l.tokens, (long long)h, (long long)f, (long long)e,
           (long long)l.topk, of_best[PRODUCTS] * 1e3, of_best[ACTIVATION] * 1e3, of_best[ROUTE] * 1e3,
           of_best[PERMUTE] * 1e3, 100 * (of_best[ROUTE] + of_best[PERMUTE]) / best);
    void *all[] = {t.x,       t.rows,    t.u,       t.a,           t.y,           t.out,    t.w1,    t.w2,
                   t.wr,      t.du,      t.dw1,     t.dw2,         t.dwr,         t.logits, t.probs, t.dprobs,
                   t.dlogits, t.experts, t.offsets, t.row_of_slot, t.slot_of_row, t.counts};
    for (size_t i = 0; i < ARRAY_COUNT(all); i++) mem_free(all[i]);
}

int main(int argc, char **argv) {
    enum { WORKSPACE = 512 << 20 };
    stream.threads = threads_open(argc > 1 ? (int)strtol(argv[1], NULL, 10) : 0);
    stream.kernels = argc > 2 ? kernels_cpu_isa(argv[2]) : kernels_cpu();
    if (argc > 3) seconds_per_row = strtod(argv[3], NULL);
    if (!stream.kernels) {
        fprintf(stderr, "moe_bench: this processor cannot run %s\n", argv[2]);
        return 2;
    }
    stream.workspace = mem_zalloc(WORKSPACE, "workspace");
    stream.workspace_bytes = WORKSPACE;
    printf("# %s, %d threads; GFLOP/s, then grouped / dense\n", stream.kernels->backend,
           threads_count(stream.threads));
    for (size_t i = 0; i < ARRAY_COUNT(shapes); i++) measure_products(shapes[i], DTYPE_BF16);
    measure_products(shapes[0], DTYPE_F32);
    measure_products(shapes[4], DTYPE_F32);
    static const struct layer layers[] = {{2048, 1024, 3584, 8, 2, DTYPE_BF16},
                                          {2048, 2048, 1408, 16, 4, DTYPE_BF16},
                                          {1024, 1024, 512, 64, 8, DTYPE_BF16},
                                          {1024, 768, 3072, 8, 2, DTYPE_F32}};
    for (size_t i = 0; i < ARRAY_COUNT(layers); i++) measure_layer(layers[i]);
    mem_free(stream.workspace);
    threads_close(stream.threads);
    return 0;
}
