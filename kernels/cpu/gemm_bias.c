/* Column sums. The rows are cut into at most MAX_BLOCKS runs, a cut that depends on the shape only; each run
 * is read once, top to bottom, into its own line of partial sums, and the lines are added in order. */
#include "kernels/cpu/gemm.h"
#include "kernels/cpu/gemm_rows.h"

enum { MAX_BLOCKS = 32, MIN_ROWS = 64, STRIP = 256, COMBINE_GRAIN = 1024 };

struct bias_job {
    const struct bias_backward_args *args;
    float *partial; /* [blocks, cols] */
    int64_t rows_per_block, blocks;
};

static int64_t rows_per_block(int64_t rows) {
    int64_t share = gemm_blocks(rows, MAX_BLOCKS);
    return share < MIN_ROWS ? MIN_ROWS : share;
}

/* Sums a strip of columns over four rows at a time; the strip of sums stays in the first-level cache. */
static void sum_rows(float *restrict sums, const struct bias_backward_args *args, int64_t begin, int64_t end,
                     int64_t column, int64_t count) {
    float line[4][STRIP];
    int64_t i = begin;
    for (int64_t x = 0; x < count; x++) sums[x] = 0;
    for (; i + 4 <= end; i += 4) {
        for (int r = 0; r < 4; r++)
            rows_load(line[r], dtype_at(args->dy, args->dtype, (i + r) * args->cols + column), args->dtype,
                      count);
        for (int64_t x = 0; x < count; x++) sums[x] += (line[0][x] + line[1][x]) + (line[2][x] + line[3][x]);
    }
    for (; i < end; i++) {
        rows_load(line[0], dtype_at(args->dy, args->dtype, i * args->cols + column), args->dtype, count);
        for (int64_t x = 0; x < count; x++) sums[x] += line[0][x];
    }
}

static void sum_blocks(void *context, int64_t begin, int64_t end, int thread) {
    const struct bias_job *job = context;
    int64_t cols = job->args->cols;
    (void)thread;
    for (int64_t block = begin; block < end; block++) {
        int64_t row0 = block * job->rows_per_block,
                row1 = gemm_min(row0 + job->rows_per_block, job->args->rows);
        for (int64_t j = 0; j < cols; j += STRIP)
            sum_rows(job->partial + block * cols + j, job->args, row0, row1, j, gemm_min(STRIP, cols - j));
    }
}

static void combine_blocks(void *context, int64_t begin, int64_t end, int thread) {
    const struct bias_job *job = context;
    const struct bias_backward_args *args = job->args;
    (void)thread;
    for (int64_t j0 = begin; j0 < end; j0 += STRIP) {
        float sums[STRIP] = {0};
        int64_t count = gemm_min(STRIP, end - j0);
        for (int64_t block = 0; block < job->blocks; block++)
            for (int64_t x = 0; x < count; x++) sums[x] += job->partial[block * args->cols + j0 + x];
        for (int64_t x = 0; x < count; x++)
            args->dbias[j0 + x] = (args->accumulate ? args->dbias[j0 + x] : 0) + sums[x];
    }
}

size_t CPU(bias_backward_workspace)(const struct stream *stream, const struct bias_backward_args *args) {
    (void)stream;
    return (size_t)(gemm_blocks(args->rows, rows_per_block(args->rows)) * args->cols) * sizeof(float);
}

void CPU(bias_backward)(const struct stream *stream, const struct bias_backward_args *args) {
    struct bias_job job = {
        .args = args, .partial = stream->workspace, .rows_per_block = rows_per_block(args->rows)};
    job.blocks = gemm_blocks(args->rows, job.rows_per_block);
    threads_for(stream->threads, job.blocks, 1, sum_blocks, &job);
    threads_for(stream->threads, args->cols, COMBINE_GRAIN, combine_blocks, &job);
}
