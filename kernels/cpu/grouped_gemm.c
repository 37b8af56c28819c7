/* One product per group. Weight gradients and the vector engine take the groups one after the other, each
 * with all threads. Products with packed weights on tile registers are cut into areas first, of all groups,
 * which the threads then take in turn: many small groups keep them as busy as one large product. How rows are
 * shared out is only known when the kernel runs, so workspace is that of the worst case. */
#include "kernels/cpu/gemm.h"

static struct gemm_args product_of(const struct grouped_gemm_args *args, int64_t g, size_t packed_bytes) {
    size_t size = dtype_bytes(args->dtype), c_size = dtype_bytes(args->c_dtype);
    int64_t first = args->offsets[g], rows = args->offsets[g + 1] - first, matrix = args->n * args->k;
    struct gemm_args p = {.dtype = args->dtype, .c_dtype = args->c_dtype, .accumulate = args->accumulate};
    if (args->sums_rows) {
        p.c = (char *)args->c + (size_t)(g * matrix) * c_size;
        p.a = (const char *)args->a + (size_t)(first * args->n) * size;
        p.b = (const char *)args->b + (size_t)(first * args->k) * size;
        p.trans_a = true;
        p.m = args->n, p.n = args->k, p.k = rows;
        return p;
    }
    p.c = (char *)args->c + (size_t)(first * args->n) * c_size;
    p.a = (const char *)args->a + (size_t)(first * args->k) * size;
    p.b = (const char *)args->b + (args->b_packed ? (size_t)g * packed_bytes : (size_t)(g * matrix) * size);
    p.trans_b = args->trans_b;
    p.b_packed = args->b_packed;
    p.m = rows, p.n = args->n, p.k = args->k;
    return p;
}

/* All rows in one group: the engines need most then. */
static struct gemm_args largest_of(const struct grouped_gemm_args *args) {
    struct gemm_args p = {.dtype = args->dtype,
                          .c_dtype = args->c_dtype,
                          .b_packed = args->b_packed,
                          .trans_b = args->trans_b,
                          .trans_a = args->sums_rows,
                          .m = args->sums_rows ? args->n : args->rows,
                          .n = args->sums_rows ? args->k : args->n,
                          .k = args->sums_rows ? args->rows : args->k};
    return p;
}

#if CPU_ISA_amx
/* Areas of every group, cut for so many threads; begins[g] is the first area of group g. */
static int64_t count_areas(const struct grouped_gemm_args *args, int64_t *begins, int64_t threads,
                           size_t packed_bytes) {
    int64_t areas = 0;
    for (int64_t g = 0; g < args->groups; g++) {
        struct gemm_args p = product_of(args, g, packed_bytes);
        begins[g] = areas;
        areas += CPU(gemm_tiles_areas)(&p, threads);
    }
    begins[args->groups] = areas;
    return areas;
}

enum { ENOUGH_AREAS = 8 }; /* for each thread: then the last one to finish keeps nobody waiting */

struct area_job {
    const struct grouped_gemm_args *args;
    const int64_t *begins;
    unsigned char *thread_space;
    size_t thread_bytes, packed_bytes;
    int64_t threads;
};

static void area_body(void *context, int64_t begin, int64_t end, int thread) {
    const struct area_job *job = context;
    for (int64_t area = begin; area < end; area++) {
        int64_t low = 0, high = job->args->groups - 1; /* the last group that begins at or before the area */
        while (low < high) {
            int64_t middle = (low + high + 1) / 2;
            if (job->begins[middle] <= area)
                low = middle;
            else
                high = middle - 1;
        }
        struct gemm_args p = product_of(job->args, low, job->packed_bytes);
        CPU(gemm_tiles_run)
        (&p, job->threads, area - job->begins[low], job->thread_space + (size_t)thread * job->thread_bytes);
    }
}

static size_t begins_bytes(const struct grouped_gemm_args *args) {
    return ((size_t)args->groups + 8) / 8 * 64;
}

static void run_areas(const struct stream *stream, const struct grouped_gemm_args *args) {
    int64_t *begins = stream->workspace, threads = threads_count(stream->threads);
    struct gemm_args largest = largest_of(args);
    struct area_job job = {args,
                           begins,
                           (unsigned char *)stream->workspace + begins_bytes(args),
                           CPU(gemm_tiles_thread_bound)(&largest),
                           CPU(gemm_tiles_packed_bytes)(args->k, args->n),
                           1};
    int64_t areas = count_areas(args, begins, 1, job.packed_bytes);
    if (areas < ENOUGH_AREAS * threads) {
        job.threads = threads;
        areas = count_areas(args, begins, threads, job.packed_bytes);
    }
    threads_for(stream->threads, areas, 1, area_body, &job);
}
#endif

size_t CPU(grouped_gemm_workspace)(const struct stream *stream, const struct grouped_gemm_args *args) {
    struct gemm_args largest = largest_of(args);
    size_t bytes = CPU(gemm_simd_workspace)(&largest); /* of empty sums, too */
#if CPU_ISA_amx
    if (args->dtype == DTYPE_BF16) {
        size_t tiles = (size_t)threads_count(stream->threads) * CPU(gemm_tiles_thread_bound)(&largest) +
                       CPU(gemm_tiles_pack_bound)(&largest) + begins_bytes(args);
        if (tiles > bytes) bytes = tiles;
    }
#endif
    (void)stream;
    return bytes;
}

void CPU(grouped_gemm)(const struct stream *stream, const struct grouped_gemm_args *args) {
    size_t packed_bytes = 0;
#if CPU_ISA_amx
    if (args->dtype == DTYPE_BF16 && args->b_packed) {
        run_areas(stream, args);
        return;
    }
#endif
    for (int64_t g = 0; g < args->groups; g++) {
        struct gemm_args p = product_of(args, g, packed_bytes);
        bool empty = !p.m || !p.n || (!p.k && p.accumulate);
        if (empty) continue;
#if CPU_ISA_amx
        if (args->dtype == DTYPE_BF16 && p.k) {
            CPU(gemm_tiles)(stream, &p);
            continue;
        }
#endif
        CPU(gemm_simd)(stream, &p);
    }
}
