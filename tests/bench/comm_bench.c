/* Speed of the collectives: mpirun -np N comm_bench [largest MiB]. Best of several repeats, the slowest
 * rank's time counts. "GB/s" is the bytes that each rank must send by the ring bound, over the time;
 * "latency" rows are the small sizes. The last lines show how much of a reduce-scatter hides behind a loop
 * that computes. */
#include "core/base/check.h"
#include "core/base/mem.h"
#include "parallel/comm/comm.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static struct comm *all;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static double slowest(double seconds) {
    comm_all_reduce(all, &seconds, 1, COMM_F64, COMM_MAX);
    return seconds;
}

/* One call on `bytes` of buffer. */
static void call(enum comm_kind kind, void *buf, int64_t bytes, enum comm_dtype dtype) {
    int64_t count = bytes / (int64_t)comm_dtype_bytes(dtype);
    if (kind == COMM_KIND_ALL_REDUCE) comm_all_reduce(all, buf, count, dtype, COMM_SUM);
    if (kind == COMM_KIND_REDUCE_SCATTER) comm_reduce_scatter(all, buf, count / comm_size(all), dtype);
    if (kind == COMM_KIND_ALL_GATHER) comm_all_gather(all, buf, count / comm_size(all), dtype);
}

static double best_of(enum comm_kind kind, void *buf, int64_t bytes, enum comm_dtype dtype) {
    double best = 1e30, start = now();
    for (int i = 0; i < 3 || (i < 200 && slowest(now() - start) < 0.5); i++) {
        comm_barrier(all);
        double t = now();
        call(kind, buf, bytes, dtype);
        t = slowest(now() - t);
        if (t < best) best = t;
    }
    return best;
}

static void bench(enum comm_kind kind, enum comm_dtype dtype, const char *name, void *buf, int64_t largest) {
    int size = comm_size(all);
    double factor = (kind == COMM_KIND_ALL_REDUCE ? 2.0 : 1.0) * (size - 1) / size;
    for (int64_t bytes = 1024; bytes <= largest; bytes *= 8) {
        double t = best_of(kind, buf, bytes, dtype);
        if (!comm_rank(all))
            printf("%-15s %-5s %10lld KiB %12.1f us %8.2f GB/s\n", comm_kind_name(kind), name,
                   (long long)(bytes >> 10), t * 1e6, factor * (double)bytes / t * 1e-9);
    }
}

static volatile float sink;
static void compute(double seconds) {
    float x = 1;
    for (double end = now() + seconds; now() < end;)
        for (int i = 0; i < 1000; i++) x = x * 1.0001f + 0.5f;
    sink = x;
}

/* How long the caller stands still for a request that had 0, 1 and 2 times its own time to run. */
static void bench_overlap(void *buf, int64_t bytes) {
    double alone = best_of(COMM_KIND_REDUCE_SCATTER, buf, bytes, COMM_F32);
    for (int factor = 0; factor <= 2; factor++) {
        double best = 1e30;
        for (int i = 0; i < 20; i++) {
            comm_barrier(all);
            struct comm_request *request =
                comm_start_reduce_scatter(all, buf, bytes / 4 / comm_size(all), COMM_F32);
            compute(factor * alone);
            double t = now();
            comm_wait(request);
            t = slowest(now() - t);
            if (t < best) best = t;
        }
        if (!comm_rank(all))
            printf("reduce-scatter of %lld MiB beside %5.1f ms of compute: %7.2f ms exposed of %.2f\n",
                   (long long)(bytes >> 20), factor * alone * 1e3, best * 1e3, alone * 1e3);
    }
}

int main(int argc, char **argv) {
    struct comm_world *world;
    struct err err;
    int ranks[1024];
    if (comm_world_open(&world, &err)) die(STATUS_USAGE, "%s", err.text);
    int size = comm_world_size(world);
    CHECK(size <= 1024, "at most 1024 ranks");
    for (int i = 0; i < size; i++) ranks[i] = i;
    all = comm_open(world, "all", ranks, size);
    int64_t largest = (argc > 1 ? strtol(argv[1], NULL, 10) : 64) << 20;
    void *buf = mem_zalloc((size_t)largest, "benchmark buffer");
    if (!comm_rank(all)) printf("%d ranks\n", size);
    bench(COMM_KIND_ALL_REDUCE, COMM_F32, "fp32", buf, largest);
    bench(COMM_KIND_ALL_REDUCE, COMM_BF16, "bf16", buf, largest);
    bench(COMM_KIND_REDUCE_SCATTER, COMM_F32, "fp32", buf, largest);
    bench(COMM_KIND_ALL_GATHER, COMM_BF16, "bf16", buf, largest);
    bench_overlap(buf, largest);
    mem_free(buf);
    comm_close(all);
    comm_world_close(world);
    return 0;
}
