/* Speed of the attention kernels: attention_bench [isa [threads]]. For each shape the best of several runs,
 * GFLOP/s of the causal matrix products that attention_*_cost counts. */
#include "core/base/mem.h"
#include "kernels/kernels.h"
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

struct shape_row {
    struct attention_shape z;
    enum dtype dtype;
    float dropout;
};

static const struct shape_row rows[] = {
    {{.s = 256, .b = 4, .a = 12, .g = 12, .d = 64}, DTYPE_BF16, 0},
    {{.s = 1024, .b = 2, .a = 12, .g = 12, .d = 64}, DTYPE_BF16, 0},
    {{.s = 1024, .b = 2, .a = 12, .g = 12, .d = 64}, DTYPE_BF16, 0.1f},
    {{.s = 2048, .b = 1, .a = 32, .g = 8, .d = 64}, DTYPE_BF16, 0},
    {{.s = 2048, .b = 1, .a = 32, .g = 8, .d = 128}, DTYPE_BF16, 0},
    {{.s = 1024, .b = 1, .a = 12, .g = 12, .d = 64}, DTYPE_F32, 0},
    {{.s = 1024, .b = 1, .a = 12, .g = 12, .d = 64}, DTYPE_F32, 0.1f},
    {{.s = 1024, .b = 1, .a = 12, .g = 12, .d = 64}, DTYPE_F16, 0},
};

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void *new_tensor(int64_t n, enum dtype dtype, uint32_t seed) {
    void *p = mem_alloc((size_t)n * dtype_bytes(dtype), "bench tensor");
    for (int64_t i = 0; i < n; i++) {
        seed = seed * 1664525u + 1013904223u;
        store_f32(p, dtype, i, (float)(seed >> 8) * 0x1p-23f - 1.0f);
    }
    return p;
}

static void run(struct stream *stream, const struct shape_row *row) {
    const struct attention_shape *z = &row->z;
    int64_t nq = z->s * z->b * z->a * z->d, nkv = z->s * z->b * z->g * z->d;
    enum dtype t = row->dtype;
    void *x[] = {new_tensor(nq, t, 1),  new_tensor(nkv, t, 2), new_tensor(nkv, t, 3),
                 new_tensor(nq, t, 4),  new_tensor(nq, t, 5),  new_tensor(nq, t, 6),
                 new_tensor(nkv, t, 7), new_tensor(nkv, t, 8), new_tensor(z->s * z->b * z->a, DTYPE_F32, 9)};
    struct attention_forward_args f = {.o = x[3],
                                       .lse = x[8],
                                       .q = x[0],
                                       .k = x[1],
                                       .v = x[2],
                                       .shape = *z,
                                       .scale = 0.125f,
                                       .dropout = row->dropout,
                                       .causal = true,
                                       .dtype = t};
    struct attention_backward_args b = {.dq = x[5],
                                        .dk = x[6],
                                        .dv = x[7],
                                        .d_o = x[4],
                                        .o = x[3],
                                        .lse = x[8],
                                        .q = x[0],
                                        .k = x[1],
                                        .v = x[2],
                                        .shape = *z,
                                        .scale = 0.125f,
                                        .dropout = row->dropout,
                                        .causal = true,
                                        .dtype = t};
    double best_f = 1e30, best_b = 1e30, start = now();
    size_t need_f = stream->kernels->attention_forward_workspace(stream, &f);
    size_t need_b = stream->kernels->attention_backward_workspace(stream, &b);
    stream->workspace_bytes = need_f > need_b ? need_f : need_b;
    stream->workspace = mem_alloc(stream->workspace_bytes, "workspace");
    for (int i = 0; i < 3 || (now() - start < 1.5 && i < 200); i++) {
        double t0 = now();
        attention_forward_call(stream, &f);
        double t1 = now();
        attention_backward_call(stream, &b);
        double t2 = now();
        best_f = t1 - t0 < best_f ? t1 - t0 : best_f, best_b = t2 - t1 < best_b ? t2 - t1 : best_b;
    }
    double flops_f = attention_forward_cost(&f).gemm_flops, flops_b = attention_backward_cost(&b).gemm_flops;
    printf("%-4s s %4d b %d a %2d g %2d d %3d dropout %.1f: forward %7.2f ms %7.1f GFLOP/s, backward %7.2f "
           "ms %7.1f "
           "GFLOP/s, both %7.1f GFLOP/s, workspace %.1f + %.1f MB\n",
           dtype_name(t), (int)z->s, (int)z->b, (int)z->a, (int)z->g, (int)z->d, (double)row->dropout,
           best_f * 1e3, flops_f / best_f * 1e-9, best_b * 1e3, flops_b / best_b * 1e-9,
           (flops_f + flops_b) / (best_f + best_b) * 1e-9, (double)need_f * 1e-6, (double)need_b * 1e-6);
    for (size_t i = 0; i < sizeof(x) / sizeof(x[0]); i++) mem_free(x[i]);
    mem_free(stream->workspace);
}

#define TIMED(name, args_p)                                                                                  \
    do {                                                                                                     \
        double best = 1e30, begin = now();                                                                   \
        stream->workspace_bytes =                                                                            \
            stream->kernels->name##_workspace ? stream->kernels->name##_workspace(stream, (args_p)) : 0;     \
        stream->workspace = mem_alloc(stream->workspace_bytes, "workspace");                                 \
        for (int run_ = 0; run_ < 3 || (now() - begin < 0.5 && run_ < 200); run_++) {                        \
            double t0 = now();                                                                               \
            name##_call(stream, (args_p));                                                                   \
            double took = now() - t0;                                                                        \
            best = took < best ? took : best;                                                                \
        }                                                                                                    \
        struct kernel_cost cost = name##_cost(args_p);                                                       \
        printf("  %-28s %8.2f ms %7.1f GFLOP/s %6.1f GB/s\n", #name, best * 1e3,                             \
               cost.gemm_flops / best * 1e-9, cost.bytes / best * 1e-9);                                     \
        mem_free(stream->workspace);                                                                         \
    } while (0)

/* The unfused chain and the split of the projection around it. */
static void run_chain(struct stream *stream, const struct shape_row *row) {
    struct attention_shape z = row->z;
    int64_t nq = z.s * z.b * z.a * z.d, nkv = z.s * z.b * z.g * z.d, ns = z.b * z.a * z.s * z.s;
    enum dtype t = row->dtype;
    void *q = new_tensor(nq, t, 1), *k = new_tensor(nkv, t, 2), *v = new_tensor(nkv, t, 3),
         *o = new_tensor(nq, t, 4);
    void *x = new_tensor(ns, t, 5), *y = new_tensor(ns, t, 6), *qkv = new_tensor(nq + 2 * nkv, t, 7),
         *dx = new_tensor(ns, t, 9);
    float *angles = new_tensor(z.s * z.d / 2, DTYPE_F32, 8);
    printf("%s s %d b %d a %d g %d d %d, unfused and split with rotary:\n", dtype_name(t), (int)z.s, (int)z.b,
           (int)z.a, (int)z.g, (int)z.d);
    TIMED(attention_scores_forward,
          (&(struct attention_scores_forward_args){
              .scores = x, .q = q, .k = k, .shape = z, .scale = 0.1f, .causal = true, .dtype = t}));
    TIMED(softmax_forward, (&(struct softmax_forward_args){
                               .y = y, .x = x, .rows = ns / z.s, .cols = z.s, .causal = true, .dtype = t}));
    TIMED(attention_context_forward,
          (&(struct attention_context_forward_args){
              .o = o, .probs = y, .v = v, .shape = z, .causal = true, .dtype = t}));
    TIMED(attention_context_backward,
          (&(struct attention_context_backward_args){
              .dprobs = x, .dv = k, .d_o = o, .probs = y, .v = v, .shape = z, .causal = true, .dtype = t}));
    TIMED(softmax_backward,
          (&(struct softmax_backward_args){
              .dx = x, .dy = x, .y = y, .rows = ns / z.s, .cols = z.s, .causal = true, .dtype = t}));
    TIMED(attention_scores_backward, (&(struct attention_scores_backward_args){.dq = o,
                                                                               .dk = v,
                                                                               .dscores = x,
                                                                               .q = q,
                                                                               .k = k,
                                                                               .shape = z,
                                                                               .scale = 0.1f,
                                                                               .causal = true,
                                                                               .dtype = t}));
    TIMED(qkv_split_forward, (&(struct qkv_split_forward_args){.q = q,
                                                               .k = k,
                                                               .v = v,
                                                               .qkv = qkv,
                                                               .shape = z,
                                                               .cos = angles,
                                                               .sin = angles,
                                                               .rotary_dim = z.d,
                                                               .dtype = t}));
    TIMED(qkv_split_backward, (&(struct qkv_split_backward_args){.dqkv = qkv,
                                                                 .dq = q,
                                                                 .dk = k,
                                                                 .dv = v,
                                                                 .shape = z,
                                                                 .cos = angles,
                                                                 .sin = angles,
                                                                 .rotary_dim = z.d,
                                                                 .dtype = t}));
    mem_free(q), mem_free(k), mem_free(v), mem_free(o), mem_free(x), mem_free(y), mem_free(qkv),
        mem_free(angles), mem_free(dx);
}

int main(int argc, char **argv) {
    const struct kernels *kernels = argc > 1 ? kernels_cpu_isa(argv[1]) : kernels_cpu();
    if (!kernels) {
        fprintf(stderr, "this processor cannot run '%s'; sets: generic avx2 avx512 amx\n", argv[1]);
        return 2;
    }
    struct threads *team = threads_open(argc > 2 ? (int)strtol(argv[2], NULL, 10) : 0);
    struct stream stream = {.kernels = kernels, .threads = team};
    printf("%s, %d threads\n", kernels->backend, threads_count(team));
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) run(&stream, &rows[i]);
    run_chain(&stream, &rows[1]);
    run_chain(&stream, &rows[5]);
    threads_close(team);
    return 0;
}
