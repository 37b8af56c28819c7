#pragma once
/* Sums over rows, column by column, in a fixed order: kernels leave partial sums [parts, cols] in the
 * workspace, each over a stretch of rows, and column_sums_launch adds them up. How rows are cut depends on
 * their number alone. */
#include "kernels/cuda/cuda.cuh"

enum { ROW_PARTS = 264 }; /* most stretches: two blocks for each multiprocessor of the largest device */

static inline int64_t rows_per_part(int64_t rows) {
    return (rows + ROW_PARTS - 1) / ROW_PARTS;
}
static inline int64_t row_parts(int64_t rows) {
    return rows ? (rows + rows_per_part(rows) - 1) / rows_per_part(rows) : 0;
}

enum { SUM_COLUMNS = 32, SUM_SLICES = 8 };

/* out[c] (+)= sum over p of parts[p, c]; a block takes 32 columns, cut into 8 slices of parts. */
static __global__ void __launch_bounds__(SUM_COLUMNS *SUM_SLICES)
    column_sums_kernel(float *out, const float *parts, int64_t count, int64_t stride, int64_t cols,
                       bool accumulate) {
    SHARED(float, slices, SUM_COLUMNS *SUM_SLICES);
    const int lane = (int)threadIdx.x % SUM_COLUMNS, slice = (int)threadIdx.x / SUM_COLUMNS;
    const int64_t column = (int64_t)blockIdx.x * SUM_COLUMNS + lane;
    const int64_t each = (count + SUM_SLICES - 1) / SUM_SLICES, first = slice * each;
    const int64_t last = first + each < count ? first + each : count;
    float sum = 0;
    if (column < cols)
        for (int64_t p = first; p < last; p++) sum += parts[p * stride + column];
    slices[threadIdx.x] = sum;
    __syncthreads();
    if (slice || column >= cols) return;
    for (int s = 1; s < SUM_SLICES; s++) sum += slices[s * SUM_COLUMNS + lane];
    out[column] = accumulate ? out[column] + sum : sum;
}

/* Row p of `parts` starts at p * stride. No parts: the sum is zero. */
static inline void column_sums_launch(const struct stream *stream, float *out, const float *parts,
                                      int64_t count, int64_t stride, int64_t cols, bool accumulate) {
    CUDA_LAUNCH(column_sums_kernel, cuda_blocks(cols, SUM_COLUMNS, 1), SUM_COLUMNS * SUM_SLICES, 0,
                cuda_stream(stream), out, parts, count, stride, cols, accumulate);
}
