/* Speed of gemm on the shapes of training, beside the machine's own limits measured in the same run.
 *
 *     gemm_bench [threads [isa [seconds per row]]]      isa: generic avx2 avx512 amx, default the best
 *
 * Prints one `limit` line per limit and one `gemm` line per shape: tab-separated, least time of all repeats.
 */
#include "core/base/mem.h"
#include "core/base/threads.h"
#include "kernels/kernels.h"
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* ---- limits ---- */
enum { COPY_TRIES = 10 };

struct copy {
    char *to;
    const char *from;
};

static void copy_chunk(void *context, int64_t begin, int64_t end, int thread) {
    const struct copy *copy = context;
    (void)thread;
    memcpy(copy->to + begin, copy->from + begin, (size_t)(end - begin));
}

/* Bytes read plus bytes written per second. */
static double copy_bandwidth(struct threads *team) {
    enum { BYTES = 256 << 20 };
    struct copy copy = {mem_zalloc(BYTES, "copy"), mem_zalloc(BYTES, "copy")};
    double best = 0;
    for (int i = 0; i < COPY_TRIES; i++) {
        double start = now();
        threads_for(team, BYTES, 4 << 20, copy_chunk, &copy);
        double rate = 2.0 * BYTES / (now() - start);
        if (rate > best) best = rate;
    }
    mem_free(copy.to);
    mem_free((void *)(uintptr_t)copy.from);
    return best;
}

/* ---- products ---- */
enum use { FORWARD, INPUT_GRADIENT, WEIGHT_GRADIENT };
static const char *const use_names[] = {"forward", "dx", "dw"};

static const struct shape { /* y[t, out] = x[t, in] W[out, in]^T */
    int64_t t, in, out;
} shapes[] = {
    {1024, 768, 768},   {1024, 768, 2304},  {1024, 768, 3072},  {1024, 3072, 768},    {1024, 768, 50304},
    {4096, 768, 768},   {4096, 768, 2304},  {4096, 768, 3072},  {4096, 3072, 768},    {4096, 2048, 2048},
    {4096, 2048, 8192}, {4096, 8192, 2048}, {16384, 768, 3072}, {2048, 2048, 128256}, {512, 768, 3072},
};

static void fill(void *p, enum dtype dtype, int64_t n) {
    uint32_t state = 1;
    for (int64_t i = 0; i < n; i++) {
        state = state * 1664525u + 1013904223u;
        store_f32(p, dtype, i, (float)(state >> 8) * 0x1p-23f - 1.0f);
    }
}

static void *tensor(enum dtype dtype, int64_t n) {
    void *p = mem_alloc((size_t)n * dtype_bytes(dtype), "tensor");
    fill(p, dtype, n);
    return p;
}

static struct gemm_args product(const struct shape *s, enum use use, enum dtype dtype) {
    switch (use) {
    case FORWARD:
        return (struct gemm_args){
            .m = s->t, .n = s->out, .k = s->in, .trans_b = true, .dtype = dtype, .c_dtype = dtype};
    case INPUT_GRADIENT:
        return (struct gemm_args){.m = s->t, .n = s->in, .k = s->out, .dtype = dtype, .c_dtype = dtype};
    default:
        return (struct gemm_args){.m = s->out,
                                  .n = s->in,
                                  .k = s->t,
                                  .trans_a = true,
                                  .accumulate = true,
                                  .dtype = dtype,
                                  .c_dtype = DTYPE_F32};
    }
}

static void measure(const struct kernels *kernels, struct threads *team, const struct shape *s, enum use use,
                    enum dtype dtype, double seconds, double peak) {
    struct stream stream = {.kernels = kernels, .threads = team};
    struct gemm_args args = product(s, use, dtype);
    void *a = tensor(dtype, args.m * args.k), *b = tensor(dtype, args.k * args.n), *packed = NULL;
    args.c = tensor(args.c_dtype, args.m * args.n);
    args.a = a, args.b = b;
    size_t packed_bytes = use == WEIGHT_GRADIENT ? 0 : kernels->gemm_packed_bytes(dtype, args.k, args.n);
    double pack_best = 0;
    if (packed_bytes) {
        packed = mem_alloc(packed_bytes, "packed");
        for (int i = 0; i < 3; i++) {
            double start = now();
            KERNEL_CALL(gemm_pack, &stream, .dst = packed, .src = b, .k = args.k, .n = args.n,
                        .trans = args.trans_b, .dtype = dtype, .src_dtype = dtype);
            double time = now() - start;
            if (!i || time < pack_best) pack_best = time;
        }
        args.b = packed, args.b_packed = true;
    }
    stream.workspace_bytes = kernels->gemm_workspace(&stream, &args);
    stream.workspace = mem_alloc(stream.workspace_bytes, "workspace");
    gemm_call(&stream, &args);
    double best = 1e30, from = now();
    for (int i = 0; i < 5 || now() - from < seconds; i++) {
        double start = now();
        gemm_call(&stream, &args);
        double time = now() - start;
        if (time < best) best = time;
    }
    double flops = gemm_cost(&args).gemm_flops;
    printf("gemm\t%-11s\t%s\t%-7s\tt %-6" PRId64 "in %-6" PRId64 "out %-7" PRId64 "%9.3f ms\t%.3f TFLOP/s",
           kernels->backend, dtype_name(dtype), use_names[use], s->t, s->in, s->out, best * 1e3,
           flops / best * 1e-12);
    if (dtype == DTYPE_BF16 && peak > 0) printf("\t%3.0f%% of tile peak", 100 * flops / best / peak);
    if (packed_bytes)
        printf("\tpack %.2f ms %.1f GB/s", pack_best * 1e3,
               2e-9 * (double)(args.k * args.n) * (double)dtype_bytes(dtype) / pack_best);
    printf("\tworkspace %.1f MB\n", (double)stream.workspace_bytes * 1e-6);
    mem_free(a), mem_free(b), mem_free(packed), mem_free(args.c), mem_free(stream.workspace);
}

int main(int argc, char **argv) {
    int count = argc > 1 ? (int)strtol(argv[1], NULL, 10) : 0;
    const struct kernels *kernels = argc > 2 ? kernels_cpu_isa(argv[2]) : kernels_cpu();
    double seconds = argc > 3 ? strtod(argv[3], NULL) : 0.3;
    if (!kernels) {
        fprintf(stderr, "gemm_bench: this processor does not run '%s'\n", argv[2]);
        return 2;
    }
    struct threads *team = threads_open(count);
    bool has_tiles = !strcmp(kernels->backend, "cpu amx");
    double peak = has_tiles ? kernels->peak_flops(team, DTYPE_BF16) : 0;
    setvbuf(stdout, NULL, _IOLBF, 0);
    printf("limit\tthreads %d\ttile peak %.2f TFLOP/s\tcopy %.1f GB/s\n", threads_count(team), peak * 1e-12,
           copy_bandwidth(team) * 1e-9);
    static const enum dtype dtypes[] = {DTYPE_BF16, DTYPE_F32};
    for (size_t d = 0; d < 2; d++)
        for (size_t i = 0; i < sizeof(shapes) / sizeof(shapes[0]); i++)
            for (int use = FORWARD; use <= WEIGHT_GRADIENT; use++) {
                double flops = 2.0 * (double)shapes[i].t * (double)shapes[i].in * (double)shapes[i].out;
                bool tiles = dtypes[d] == DTYPE_BF16 && has_tiles;
                if (flops > (tiles ? 2e12 : 4e10)) continue;
                measure(kernels, team, &shapes[i], (enum use)use, dtypes[d], seconds, peak);
            }
    threads_close(team);
    return 0;
}
