/* Experts over ranks: how much of a layer's time (forward and backward) is dispatch: counts, permute,
 * exchange, return, unpermute, and their backward. Each rank has one thread.
 *
 *     mpirun -np N expert_bench [isa [seconds per row]]
 *
 * Tab-separated, on rank 0: dispatcher, sizes, milliseconds of products, dispatch and the rest (router,
 * activation), and dispatch's share. Each op counts with the least time of all repeats, the slowest rank's;
 * ranks meet before an op that communicates, so that uneven load is not taken for dispatch. One rank: no
 * exchange. */
#include "core/base/check.h"
#include "core/base/mem.h"
#include "core/base/threads.h"
#include "core/model/model.h"
#include "core/model/run.h"
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static struct comm *all;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

enum part { PRODUCTS, DISPATCH, REST, PARTS };

static enum part part_of(const char *op) {
    static const char *const dispatch[] = {
        "permute",       "unpermute",     "row_probs",      "expert_counts",  "expert_exchange",
        "expert_return", "expert_gather", "expert_choices", "expert_permute", "expert_combine"};
    for (size_t i = 0; i < ARRAY_COUNT(dispatch); i++)
        if (!strcmp(op, dispatch[i])) return DISPATCH;
    return !strcmp(op, "experts_fc1") || !strcmp(op, "experts_fc2") ? PRODUCTS : REST;
}

struct layer {
    struct compiled compiled;
    struct run run;
    struct stream stream;
    struct router_state router;
    struct router_state *routers[1];
    struct param_view *views;
    const struct param_view **view_list;
    bool *written;
};

static void *filled(size_t bytes, enum dtype dtype, uint32_t state) {
    void *p = mem_zalloc(bytes, "bench");
    for (int64_t i = 0; i < (int64_t)(bytes / dtype_bytes(dtype)); i++) {
        state = state * 1664525u + 1013904223u;
        store_f32(p, dtype, i, ((float)(state >> 8) * 0x1p-23f - 1.0f) * 0.1f);
    }
    return p;
}

/* Weights in every form; what they are does not matter, except the router's. */
static void open_params(struct layer *l, const struct model *m) {
    const struct program *p = &l->compiled.program;
    size_t n = (size_t)p->num_params;
    l->views = mem_new_array(struct param_view, n, "bench");
    l->view_list = mem_new_array(const struct param_view *, n, "bench");
    l->written = mem_new_array(bool, n, "bench");
    for (size_t i = 0; i < n; i++) {
        const struct param_info *info = &p->params[i];
        int64_t groups = info->groups ? info->groups : 1, rows = info->dims[0] / groups, cols = info->dims[1];
        size_t count = (size_t)(info->dims[0] * cols);
        size_t forward = l->stream.kernels->gemm_packed_bytes(m->dtype, cols, rows) * (size_t)groups;
        size_t backward = l->stream.kernels->gemm_packed_bytes(m->dtype, rows, cols) * (size_t)groups;
        bool packs = forward && info->forms & PARAM_FORM_PACKED_FORWARD;
        l->views[i] = (struct param_view){.plain = filled(count * dtype_bytes(m->dtype), m->dtype, 7),
                                          .packed_forward = packs ? mem_zalloc(forward, "bench") : NULL,
                                          .packed_backward = packs ? mem_zalloc(backward, "bench") : NULL,
                                          .grad = mem_zalloc(count * 4, "bench"),
                                          .grad_written = &l->written[i]};
        l->view_list[i] = &l->views[i];
    }
}

static void open_layer(struct layer *l, const struct model *m, const struct kernels *kernels,
                       struct threads *threads) {
    enum { WORKSPACE = 256 << 20 };
    struct program p;
    program_init(&p);
    *l = (struct layer){0};
    p.input = program_tensor(&p, "hidden", m->dtype, 3, (int64_t[]){m->seq, 1, m->hidden});
    p.output = build_moe(&p, m, p.input);
    recompute_compile(&p, RECOMPUTE_BIT(MODULE_tensor_gather) | RECOMPUTE_BIT(MODULE_moe_permute), false,
                      &l->compiled);
    const struct compiled *c = &l->compiled;
    size_t hidden = c->program.tensors[c->program.input].bytes;
    size_t work =
        c->forward.work_bytes > c->backward.work_bytes ? c->forward.work_bytes : c->backward.work_bytes;
    l->stream = (struct stream){.kernels = kernels,
                                .threads = threads,
                                .workspace = mem_zalloc(WORKSPACE, "bench"),
                                .workspace_bytes = WORKSPACE};
    open_params(l, m);
    l->routers[0] = &l->router;
    l->run = (struct run){.program = &c->program,
                          .stream = &l->stream,
                          .input = filled(hidden, m->dtype, 1 + (uint32_t)comm_rank(all)),
                          .output = mem_zalloc(hidden, "bench"),
                          .frame = mem_zalloc(c->frame_bytes, "bench"),
                          .work = mem_zalloc(work, "bench"),
                          .boundary_grad = filled(hidden, m->dtype, 3),
                          .params = l->view_list,
                          .comms = {.expert = all},
                          .routers = l->routers};
}

static void close_layer(struct layer *l) {
    for (int i = 0; i < l->compiled.program.num_params; i++) {
        mem_free((void *)(uintptr_t)l->views[i].plain);
        mem_free((void *)(uintptr_t)l->views[i].packed_forward);
        mem_free((void *)(uintptr_t)l->views[i].packed_backward);
        mem_free(l->views[i].grad);
    }
    void *blocks[] = {
        l->stream.workspace, l->run.input,         l->run.output, l->run.frame,
        l->run.work,         l->run.boundary_grad, l->views,      (void *)(uintptr_t)l->view_list,
        l->written};
    for (size_t i = 0; i < ARRAY_COUNT(blocks); i++) mem_free(blocks[i]);
    recompute_free(&l->compiled);
}

/* Lowers best[i] to the time of instruction i. */
static void run_list(struct layer *l, const struct code *code, double *best) {
    l->run.code = code;
    for (int i = 0; i < code->num_instrs; i++) {
        if (part_of(l->compiled.program.ops[code->at[i].op].name) == DISPATCH) comm_barrier(all);
        double begin = now();
        run_instr(&l->run, i);
        double time = now() - begin;
        if (time < best[i] || best[i] == 0) best[i] = time;
    }
}

static void add_times(const struct layer *l, const struct code *code, double *best, double sums[PARTS]) {
    comm_all_reduce(all, best, code->num_instrs, COMM_F64, COMM_MAX);
    for (int i = 0; i < code->num_instrs; i++)
        sums[part_of(l->compiled.program.ops[code->at[i].op].name)] += best[i];
}

static void measure(const struct model *m, const struct kernels *kernels, struct threads *threads,
                    double seconds) {
    struct layer l;
    open_layer(&l, m, kernels, threads);
    const struct code *lists[2] = {&l.compiled.forward, &l.compiled.backward};
    double sums[PARTS] = {0}, *best[2];
    for (int k = 0; k < 2; k++) best[k] = mem_new_array(double, (size_t)lists[k]->num_instrs, "bench");
    for (double begin = now(), go_on = 1; go_on > 0;) {
        for (int k = 0; k < 2; k++) run_list(&l, lists[k], best[k]);
        go_on = now() - begin < seconds;
        comm_all_reduce(all, &go_on, 1, COMM_F64, COMM_MAX);
    }
    for (int k = 0; k < 2; k++) add_times(&l, lists[k], best[k], sums);
    if (!comm_rank(all))
        printf("%s\ttokens=%lld h=%lld f=%lld E=%lld k=%lld EP=%d\tproducts %.1f\tdispatch %.1f\trest %.1f\t"
               "dispatch %.1f%%\n",
               m->ep == 1       ? "one rank"
               : m->moe.gathers ? "allgather"
                                : "alltoall",
               (long long)m->seq, (long long)m->hidden, (long long)m->moe.ffn, (long long)m->moe.experts,
               (long long)m->moe.topk, m->ep, sums[PRODUCTS] * 1e3, sums[DISPATCH] * 1e3, sums[REST] * 1e3,
               100 * sums[DISPATCH] / (sums[0] + sums[1] + sums[2]));
    for (int k = 0; k < 2; k++) mem_free(best[k]);
    close_layer(&l);
}

int main(int argc, char **argv) {
    static const int64_t sizes[][5] = {
        {2048, 1024, 3584, 8, 2}, {2048, 2048, 1408, 16, 4}, {1024, 1024, 512, 64, 8}};
    struct comm_world *world;
    struct err err;
    int everyone[1024];
    if (comm_world_open(&world, &err)) {
        fprintf(stderr, "expert_bench: %s\n", err.text);
        return 2;
    }
    for (int i = 0; i < comm_world_size(world); i++) everyone[i] = i;
    all = comm_open(world, "expert", everyone, comm_world_size(world));
    struct threads *threads = threads_open(1);
    const struct kernels *kernels = argc > 1 ? kernels_cpu_isa(argv[1]) : kernels_cpu();
    CHECK(kernels, "this processor cannot run %s", argv[1]);
    for (size_t i = 0; i < ARRAY_COUNT(sizes); i++)
        for (int gathers = 0; gathers < (comm_size(all) > 1 ? 2 : 1); gathers++) {
            const int64_t *s = sizes[i];
            struct model m = {.layers = 1,
                              .hidden = s[1],
                              .seq = s[0],
                              .micro_batch = 1,
                              .dtype = DTYPE_BF16,
                              .activation = ACTIVATION_SWIGLU,
                              .moe = {.experts = s[3], .topk = s[4], .ffn = s[2], .gathers = gathers},
                              .ep = comm_size(all),
                              .ep_rank = comm_rank(all)};
            measure(&m, kernels, threads, argc > 2 ? strtod(argv[2], NULL) : 2);
        }
    threads_close(threads);
    comm_close(all);
    comm_world_close(world);
    return 0;
}
