/* LayerNorm and RMSNorm: a block per row; a row of up to 8192 columns is held in registers. The gradients of
 * weight and bias are summed per thread over a block's rows, then over blocks. */
#include "kernels/cuda/column_sums.cuh"
#include "kernels/cuda/reduce.cuh"

struct moments {
    float mean, r;
};

/* The row of x, group by group: `held` when the row fits. Forward and backward get the same bits. */
template <typename T, int THREADS, bool FITS>
static __device__ __forceinline__ moments row_moments(const T *x, const float (&held)[GROUP], int64_t cols,
                                                      bool rms, float epsilon, bool wide) {
    float v[GROUP], sum = 0;
    moments m = {0, 0};
    if (!rms) {
        for (int64_t j0 = (int64_t)threadIdx.x * GROUP; j0 < cols; j0 += THREADS * GROUP) {
            if (!FITS) load_group<T>(v, x, j0, cols, wide);
#pragma unroll
            for (int j = 0; j < GROUP; j++) sum += FITS ? held[j] : v[j];
            if (FITS) break;
        }
        m.mean = block_sum<THREADS>(sum) / (float)cols;
    }
    sum = 0;
    for (int64_t j0 = (int64_t)threadIdx.x * GROUP; j0 < cols; j0 += THREADS * GROUP) {
        if (!FITS) load_group<T>(v, x, j0, cols, wide);
#pragma unroll
        for (int j = 0; j < GROUP; j++) {
            const float d = (FITS ? held[j] : v[j]) - m.mean;
            if (j0 + j < cols) sum += d * d;
        }
        if (FITS) break;
    }
    m.r = 1.0f / sqrtf(block_sum<THREADS>(sum) / (float)cols + epsilon);
    return m;
}

template <typename T, int THREADS, bool FITS>
static __global__ void __launch_bounds__(THREADS) norm_forward_kernel(const norm_forward_args a, bool wide) {
    const T *x = static_cast<const T *>(a.x) + blockIdx.x * a.cols;
    T *y = static_cast<T *>(a.y) + blockIdx.x * a.cols;
    const int64_t first = (int64_t)threadIdx.x * GROUP;
    const float one = a.zero_centered ? 1.0f : 0.0f;
    float v[GROUP], w[GROUP], bias[GROUP] = {0};
    if (FITS && first < a.cols) load_group<T>(v, x, first, a.cols, wide);
    const moments m = row_moments<T, THREADS, FITS>(x, v, a.cols, a.rms, a.epsilon, wide);
    for (int64_t j0 = first; j0 < a.cols; j0 += THREADS * GROUP) {
        if (!FITS) load_group<T>(v, x, j0, a.cols, wide);
        load_group<T>(w, a.weight, j0, a.cols, wide);
        if (a.bias) load_group<T>(bias, a.bias, j0, a.cols, wide);
#pragma unroll
        for (int j = 0; j < GROUP; j++) v[j] = (v[j] - m.mean) * m.r * (one + w[j]) + bias[j];
        store_group<T>(y, v, j0, a.cols, wide);
        if (FITS) break;
    }
}

/* dweight and dbias of a thread's columns: in registers when the row fits, else in the workspace. */
struct sums {
    float w[GROUP], b[GROUP];
};

static __device__ __forceinline__ void save_sums(float *dweight, float *dbias, const sums &s, int64_t j0,
                                                 int64_t cols, bool add) {
#pragma unroll
    for (int j = 0; j < GROUP; j++)
        if (j0 + j < cols) {
            dweight[j0 + j] = add ? dweight[j0 + j] + s.w[j] : s.w[j];
            dbias[j0 + j] = add ? dbias[j0 + j] + s.b[j] : s.b[j];
        }
}

/* g = dy w: dx = r (g - mean(g) - hat mean(g hat)); RMSNorm has no mean(g). parts: [blocks, 2, cols]. */
template <typename T, int THREADS, bool FITS>
static __global__ void __launch_bounds__(THREADS)
    norm_backward_kernel(const norm_backward_args a, float *parts, int64_t rows_each, bool wide) {
    const int64_t begin = blockIdx.x * rows_each,
                  end = begin + rows_each < a.rows ? begin + rows_each : a.rows;
    const int64_t first = (int64_t)threadIdx.x * GROUP;
    const float one = a.zero_centered ? 1.0f : 0.0f;
    float *dweight = parts + blockIdx.x * 2 * a.cols, *dbias = dweight + a.cols;
    float x[GROUP] = {0}, dy[GROUP] = {0}, w[GROUP] = {0};
    sums s = {{0}, {0}};
    if (FITS && first < a.cols) load_group<T>(w, a.weight, first, a.cols, wide);
    for (int64_t row = begin; row < end; row++) {
        const T *x_row = static_cast<const T *>(a.x) + row * a.cols;
        const T *dy_row = static_cast<const T *>(a.dy) + row * a.cols;
        T *dx_row = static_cast<T *>(a.dx) + row * a.cols;
        if (FITS && first < a.cols) {
            load_group<T>(x, x_row, first, a.cols, wide);
            load_group<T>(dy, dy_row, first, a.cols, wide);
        }
        const moments m = row_moments<T, THREADS, FITS>(x_row, x, a.cols, a.rms, a.epsilon, wide);
        float sum_g = 0, sum_g_hat = 0;
        for (int64_t j0 = first; j0 < a.cols; j0 += THREADS * GROUP) {
            if (!FITS) {
                load_group<T>(x, x_row, j0, a.cols, wide);
                load_group<T>(dy, dy_row, j0, a.cols, wide);
                load_group<T>(w, a.weight, j0, a.cols, wide);
            }
#pragma unroll
            for (int j = 0; j < GROUP; j++) {
                const float hat = (x[j] - m.mean) * m.r, g = dy[j] * (one + w[j]);
                if (j0 + j >= a.cols) continue;
                sum_g += g;
                sum_g_hat += g * hat;
                s.w[j] = (FITS ? s.w[j] : 0.0f) + dy[j] * hat;
                s.b[j] = (FITS ? s.b[j] : 0.0f) + dy[j];
            }
            if (!FITS) save_sums(dweight, dbias, s, j0, a.cols, row > begin);
            if (FITS) break;
        }
        if (!a.rms) sum_g = block_sum<THREADS>(sum_g) / (float)a.cols;
        sum_g_hat = block_sum<THREADS>(sum_g_hat) / (float)a.cols;
        for (int64_t j0 = first; j0 < a.cols; j0 += THREADS * GROUP) {
            float out[GROUP], old[GROUP] = {0};
            if (!FITS) {
                load_group<T>(x, x_row, j0, a.cols, wide);
                load_group<T>(dy, dy_row, j0, a.cols, wide);
                load_group<T>(w, a.weight, j0, a.cols, wide);
            }
            if (a.accumulate_dx) load_group<T>(old, dx_row, j0, a.cols, wide);
#pragma unroll
            for (int j = 0; j < GROUP; j++) {
                const float hat = (x[j] - m.mean) * m.r, g = dy[j] * (one + w[j]);
                const float dx = m.r * ((a.rms ? g : g - sum_g) - hat * sum_g_hat);
                out[j] = a.accumulate_dx ? old[j] + dx : dx;
            }
            store_group<T>(dx_row, out, j0, a.cols, wide);
            if (FITS) break;
        }
    }
    if (FITS && first < a.cols) save_sums(dweight, dbias, s, first, a.cols, false);
}

/* Threads for a row: all of it in registers where 1024 threads can hold it. */
#define BY_COLUMNS(cols, THREADS, FITS, ...)                                                                 \
    if ((cols) <= 32 * GROUP) {                                                                              \
        constexpr int THREADS = 32;                                                                          \
        constexpr bool FITS = true;                                                                          \
        __VA_ARGS__;                                                                                         \
    } else if ((cols) <= 128 * GROUP) {                                                                      \
        constexpr int THREADS = 128;                                                                         \
        constexpr bool FITS = true;                                                                          \
        __VA_ARGS__;                                                                                         \
    } else if ((cols) <= 512 * GROUP) {                                                                      \
        constexpr int THREADS = 512;                                                                         \
        constexpr bool FITS = true;                                                                          \
        __VA_ARGS__;                                                                                         \
    } else if ((cols) <= 1024 * GROUP) {                                                                     \
        constexpr int THREADS = 1024;                                                                        \
        constexpr bool FITS = true;                                                                          \
        __VA_ARGS__;                                                                                         \
    } else {                                                                                                 \
        constexpr int THREADS = 1024;                                                                        \
        constexpr bool FITS = false;                                                                         \
        __VA_ARGS__;                                                                                         \
    }

void cuda_norm_forward(const struct stream *stream, const struct norm_forward_args *args) {
    const bool wide = all_wide(args->y, args->x, args->weight, args->bias) && args->cols % GROUP == 0;
    if (args->rows == 0) return;
    BY_DTYPE(args->dtype, T,
             BY_COLUMNS(args->cols, N, F,
                        CUDA_LAUNCH((norm_forward_kernel<T, N, F>), (unsigned)args->rows, N, 0,
                                    cuda_stream(stream), *args, wide)))
}

size_t cuda_norm_backward_workspace(const struct stream *, const struct norm_backward_args *args) {
    return (size_t)(row_parts(args->rows) * 2 * args->cols) * sizeof(float);
}

void cuda_norm_backward(const struct stream *stream, const struct norm_backward_args *args) {
    const bool wide = all_wide(args->dx, args->dy, args->x, args->weight) && args->cols % GROUP == 0;
    float *parts = static_cast<float *>(stream->workspace);
    const int64_t count = row_parts(args->rows);
    if (count)
        BY_DTYPE(args->dtype, T,
                 BY_COLUMNS(args->cols, N, F,
                            CUDA_LAUNCH((norm_backward_kernel<T, N, F>), (unsigned)count, N, 0,
                                        cuda_stream(stream), *args, parts, rows_per_part(args->rows), wide)))
    column_sums_launch(stream, args->dweight, parts, count, 2 * args->cols, args->cols,
                       args->accumulate_params);
    if (args->dbias)
        column_sums_launch(stream, args->dbias, parts + args->cols, count, 2 * args->cols, args->cols,
                           args->accumulate_params);
}

/* ---- bias_backward ---- */
enum { BIAS_LANES = 32, BIAS_SLICES = 8 };

/* A block: a stretch of rows of 256 columns; its 8 slices take every eighth row. */
template <typename T>
static __global__ void __launch_bounds__(BIAS_LANES *BIAS_SLICES)
    bias_backward_kernel(float *parts, const void *dy, int64_t rows, int64_t cols, int64_t rows_each,
                         bool wide) {
    SHARED(float, slices, BIAS_LANES *BIAS_SLICES *GROUP);
    const int lane = (int)threadIdx.x % BIAS_LANES, slice = (int)threadIdx.x / BIAS_LANES;
    const int64_t j0 = ((int64_t)blockIdx.x * BIAS_LANES + lane) * GROUP, begin = blockIdx.y * rows_each;
    const int64_t end = begin + rows_each < rows ? begin + rows_each : rows;
    float v[GROUP], sum[GROUP] = {0};
    if (j0 < cols)
        for (int64_t row = begin + slice; row < end; row += BIAS_SLICES) {
            load_group<T>(v, static_cast<const T *>(dy) + row * cols, j0, cols, wide);
#pragma unroll
            for (int j = 0; j < GROUP; j++) sum[j] += v[j];
        }
#pragma unroll
    for (int j = 0; j < GROUP; j++) slices[(slice * GROUP + j) * BIAS_LANES + lane] = sum[j];
    __syncthreads();
    if (slice || j0 >= cols) return;
#pragma unroll
    for (int j = 0; j < GROUP; j++) {
        for (int s = 1; s < BIAS_SLICES; s++) sum[j] += slices[(s * GROUP + j) * BIAS_LANES + lane];
        if (j0 + j < cols) parts[blockIdx.y * cols + j0 + j] = sum[j];
    }
}

size_t cuda_bias_backward_workspace(const struct stream *, const struct bias_backward_args *args) {
    return (size_t)(row_parts(args->rows) * args->cols) * sizeof(float);
}

void cuda_bias_backward(const struct stream *stream, const struct bias_backward_args *args) {
    const bool wide = all_wide(args->dy) && args->cols % GROUP == 0;
    float *parts = static_cast<float *>(stream->workspace);
    const int64_t count = row_parts(args->rows);
    const dim3 grid(cuda_blocks(args->cols, BIAS_LANES, GROUP), (unsigned)count);
    if (args->cols == 0) return;
    if (count)
        BY_DTYPE(args->dtype, T,
                 CUDA_LAUNCH(bias_backward_kernel<T>, grid, BIAS_LANES * BIAS_SLICES, 0, cuda_stream(stream),
                             parts, args->dy, args->rows, args->cols, rows_per_part(args->rows), wide))
    column_sums_launch(stream, args->dbias, parts, count, args->cols, args->cols, args->accumulate);
}
