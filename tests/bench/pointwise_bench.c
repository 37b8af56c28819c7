/* Speed of the kernels that move memory: pointwise_bench [isa [threads [elements [part of a name]]]]. Bytes
 * are those of <kernel>_cost: operands read once and written once. The first lines are what this machine's
 * memory gives to plain loops, which is the most that the others can reach when their operands do not fit in
 * cache (the default size is 32 Mi elements). With one thread the time is processor time, so that a busy
 * machine disturbs it less. */
#include "core/base/mem.h"
#include "kernels/kernels.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

static struct stream stream;
static int64_t n;        /* elements of a large tensor */
static const char *part; /* only kernels whose label contains it */
static void *tensors[5];
static char *blocks[5]; /* that hold them */
static const struct rng_key key = {.seed = 1};

static double now(void) {
    struct timespec t;
    clock_gettime(threads_count(stream.threads) == 1 ? CLOCK_PROCESS_CPUTIME_ID : CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void report(const char *label, enum dtype dtype, double seconds, double bytes) {
    printf("%-24s %-5s %9.3f ms %7.2f GB/s\n", label, dtype_name(dtype), seconds * 1e3,
           bytes / seconds * 1e-9);
}

#define BENCH(label, type, kernel, ...)                                                                      \
    do {                                                                                                     \
        const struct kernel##_args bench_args = {__VA_ARGS__};                                               \
        double bench_best = 1e30, bench_start = now();                                                       \
        if (!strstr((label), part)) break;                                                                   \
        for (int bench_i = 0; bench_i < 3 || (now() - bench_start < 0.3 && bench_i < 200); bench_i++) {      \
            double bench_t = now();                                                                          \
            kernel##_call(&stream, &bench_args);                                                             \
            bench_t = now() - bench_t;                                                                       \
            bench_best = bench_t < bench_best ? bench_t : bench_best;                                        \
        }                                                                                                    \
        report((label), (type), bench_best, kernel##_cost(&bench_args).bytes);                               \
    } while (0)

static void fill_random(enum dtype dtype) {
    for (int i = 0; i < 5; i++) {
        uint32_t seed = (uint32_t)i;
        for (int64_t j = 0; j < n; j++) {
            seed = seed * 1664525u + 1013904223u;
            store_f32(tensors[i], dtype, j, (float)(seed >> 8) * 0x1p-23f - 1.0f);
        }
    }
}

static _Atomic uint64_t read_sum; /* keeps the loop alive */

static void read_body(void *context, int64_t begin, int64_t end, int thread) {
    const uint64_t *words = context;
    uint64_t sums[8] = {0};
    (void)thread;
    for (int64_t i = begin; i < end; i += 8)
        for (int64_t j = 0; j < 8; j++) sums[j] += words[i + j];
    read_sum += sums[0] + sums[1] + sums[2] + sums[3] + sums[4] + sums[5] + sums[6] + sums[7];
}

static void copy_body(void *context, int64_t begin, int64_t end, int thread) {
    char **pair = context;
    (void)thread;
    memcpy(pair[0] + begin, pair[1] + begin, (size_t)(end - begin));
}

static void bench_memory(void) {
    double best[2] = {1e30, 1e30};
    char *pair[] = {tensors[0], tensors[1]};
    for (int i = 0; i < 5; i++) {
        double t0 = now();
        threads_for(stream.threads, n / 16 * 8, 1 << 16, read_body, tensors[0]);
        double t1 = now();
        threads_for(stream.threads, n * 4, 1 << 20, copy_body, pair);
        double t2 = now();
        best[0] = t1 - t0 < best[0] ? t1 - t0 : best[0], best[1] = t2 - t1 < best[1] ? t2 - t1 : best[1];
    }
    report("memory: read", DTYPE_F32, best[0], (double)(n / 16 * 8) * 8);
    report("memory: copy", DTYPE_F32, best[1], (double)n * 8);
}

static void bench_norm(enum dtype t) {
    enum { COLS = 768 };
    static float dweight[COLS], dbias[COLS];
    int64_t rows = n / COLS;
    void *y = tensors[0], *x = tensors[1], *dy = tensors[2], *w = tensors[3];
    BENCH("layernorm forward", t, norm_forward, .y = y, .x = x, .weight = w, .bias = w, .rows = rows,
          .cols = COLS, .epsilon = 1e-5f, .dtype = t);
    BENCH("rmsnorm forward", t, norm_forward, .y = y, .x = x, .weight = w, .rows = rows, .cols = COLS,
          .epsilon = 1e-5f, .rms = true, .dtype = t);
    BENCH("layernorm backward", t, norm_backward, .dx = y, .dweight = dweight, .dbias = dbias, .dy = dy,
          .x = x, .weight = w, .rows = rows, .cols = COLS, .epsilon = 1e-5f, .dtype = t);
    BENCH("rmsnorm backward", t, norm_backward, .dx = y, .dweight = dweight, .dy = dy, .x = x, .weight = w,
          .rows = rows, .cols = COLS, .epsilon = 1e-5f, .rms = true, .dtype = t);
}

static void bench_activations(enum dtype t) {
    static const char *const names[ACTIVATION_COUNT][2] = {
        {"gelu_tanh forward", "gelu_tanh backward"},       {"gelu_erf forward", "gelu_erf backward"},
        {"squared_relu forward", "squared_relu backward"}, {"swiglu forward", "swiglu backward"},
        {"geglu_quick forward", "geglu_quick backward"},   {"geglu forward", "geglu backward"}};
    enum { COLS = 3072 };
    for (int k = 0; k < ACTIVATION_COUNT; k++) {
        enum activation kind = (enum activation)k;
        int64_t rows = n / COLS / (activation_is_gated(kind) ? 2 : 1);
        BENCH(names[k][0], t, activation_forward, .y = tensors[0], .x = tensors[1], .rows = rows,
              .cols = COLS, .kind = kind, .dtype = t);
        BENCH(names[k][1], t, activation_backward, .dx = tensors[0], .dy = tensors[2], .x = tensors[1],
              .rows = rows, .cols = COLS, .kind = kind, .dtype = t);
    }
}

static void bench_residual(enum dtype t) {
    void *y = tensors[0], *x = tensors[1], *residual = tensors[2];
    BENCH("dropout 0.1", t, dropout, .y = y, .x = x, .n = n, .p = 0.1f, .key = key, .dtype = t);
    BENCH("residual forward", t, residual_forward, .y = y, .residual = residual, .x = x, .n = n, .dtype = t);
    BENCH("residual forward 0.1", t, residual_forward, .y = y, .residual = residual, .x = x, .n = n,
          .p = 0.1f, .key = key, .dtype = t);
    BENCH("residual backward 0.1", t, residual_backward, .dx = y, .dresidual = residual, .dy = x, .n = n,
          .p = 0.1f, .key = key, .accumulate_dresidual = true, .dtype = t);
    BENCH("add", t, add, .y = y, .a = x, .b = residual, .n = n, .dtype = t);
    BENCH("cast from fp32", t, cast, .dst = y, .src = tensors[4], .n = n, .dst_dtype = t,
          .src_dtype = DTYPE_F32);
}

static void bench_loss(enum dtype t) {
    static const int64_t vocabs[] = {50304, 128256};
    for (int i = 0; i < 2; i++) {
        int64_t rows = n / vocabs[i] + 1;
        int32_t *labels = mem_new_array(int32_t, (size_t)rows, "labels");
        float *row = mem_new_array(float, (size_t)rows * 3, "rows");
        for (int64_t r = 0; r < rows; r++) row[r] = 1;
        rows--;
        BENCH(i ? "loss forward 128256" : "loss forward 50304", t, cross_entropy_forward, .loss = row + rows,
              .lse = row + 2 * rows, .logits = tensors[1], .labels = labels, .mask = row, .rows = rows,
              .vocab = vocabs[i], .dtype = t);
        BENCH(i ? "loss backward 128256" : "loss backward 50304", t, cross_entropy_backward,
              .dlogits = tensors[0], .logits = tensors[1], .lse = row + 2 * rows, .labels = labels,
              .mask = row, .rows = rows, .vocab = vocabs[i], .grad_scale = 1, .dtype = t);
        mem_free(labels), mem_free(row);
    }
}

static void bench_embedding(enum dtype t) {
    int64_t h = 768, vocab = n / h / 2, s = 1024, b = vocab / 2 / s + 1;
    int32_t *ids = mem_new_array(int32_t, (size_t)(2 * s * b), "ids"), *positions = ids + s * b;
    for (int64_t i = 0; i < s * b; i++) {
        ids[i] = (int32_t)((uint64_t)i * 2654435761u % (uint64_t)vocab);
        positions[i] = (int32_t)(i % s % vocab);
    }
    BENCH("embedding forward", t, embedding_forward, .y = tensors[0], .weight = tensors[1],
          .position_weight = tensors[2], .tokens = ids, .positions = positions, .s = s, .b = b, .h = h,
          .vocab = vocab, .max_positions = s, .dtype = t);
    BENCH("embedding backward", t, embedding_backward, .dweight = tensors[3], .dposition_weight = tensors[4],
          .dy = tensors[1], .tokens = ids, .positions = positions, .s = s, .b = b, .h = h, .vocab = vocab,
          .max_positions = s, .dtype = t);
    mem_free(ids);
}

static void bench_optimizer(void) {
    struct adamw_args a = {
        .learning_rate = 1e-4f, .beta1 = 0.9f, .beta2 = 0.95f, .epsilon = 1e-8f, .weight_decay = 0.1f};
    double sum;
    int64_t bad;
    memset(tensors[2], 0, (size_t)n * 4); /* v must not be negative */
    for (int model = 0; model < 2; model++)
        BENCH(model ? "adamw with bf16 copy" : "adamw", DTYPE_F32, adamw, .master = tensors[0],
              .m = tensors[1], .v = tensors[2], .grad = tensors[3], .model = model ? tensors[4] : NULL,
              .n = n, .learning_rate = a.learning_rate, .beta1 = a.beta1, .beta2 = a.beta2,
              .epsilon = a.epsilon, .weight_decay = a.weight_decay, .bias_correction1 = 0.1f,
              .bias_correction2 = 0.05f, .grad_scale = 1, .model_dtype = DTYPE_BF16);
    BENCH("sum_squares", DTYPE_F32, sum_squares, .out = &sum, .bad = &bad, .x = tensors[3], .n = n,
          .dtype = DTYPE_F32);
    BENCH("normal_init", DTYPE_F32, normal_init, .x = tensors[0], .n = n, .std = 0.02f, .key = key);
}

int main(int argc, char **argv) {
    static const enum dtype dtypes[] = {DTYPE_BF16, DTYPE_F32, DTYPE_F16};
    stream.kernels = argc > 1 ? kernels_cpu_isa(argv[1]) : kernels_cpu();
    if (!stream.kernels) {
        fprintf(stderr, "this processor cannot run '%s'; sets: generic avx2 avx512 amx\n", argv[1]);
        return 2;
    }
    stream.threads = threads_open(argc > 2 ? (int)strtol(argv[2], NULL, 10) : 0);
    n = argc > 3 ? strtoll(argv[3], NULL, 10) : 32 << 20;
    n = n < 1 << 20 ? 1 << 20 : n;
    part = argc > 4 ? argv[4] : "";
    stream.workspace_bytes = 64 << 20;
    stream.workspace = mem_zalloc(stream.workspace_bytes, "workspace");
    for (int i = 0; i < 5; i++) { /* on huge pages, as the arena of a training run */
        size_t bytes = (size_t)n * 4, page = 2 << 20;
        blocks[i] = mem_alloc(bytes + page, "bench tensor");
        tensors[i] = blocks[i] + (page - (uintptr_t)blocks[i] % page);
        madvise(tensors[i], bytes, MADV_HUGEPAGE);
        memset(tensors[i], 0, bytes);
    }
    printf("%s, %d threads, %lld elements\n", stream.kernels->backend, threads_count(stream.threads),
           (long long)n);
    bench_memory();
    for (int d = 0; d < 3; d++) {
        enum dtype t = dtypes[d];
        fill_random(t);
        bench_norm(t), bench_activations(t), bench_residual(t), bench_loss(t), bench_embedding(t);
    }
    fill_random(DTYPE_F32);
    bench_optimizer();
    for (int i = 0; i < 5; i++) mem_free(blocks[i]);
    mem_free(stream.workspace);
    threads_close(stream.threads);
    return 0;
}
