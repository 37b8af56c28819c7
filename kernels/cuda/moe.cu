/* Mixture of experts between routing and the experts: rows gathered and combined, and the router's own
 * gradients. */
#include "kernels/cuda/column_sums.cuh"

enum { THREADS = 128 };

template <typename T>
static __global__ void __launch_bounds__(THREADS) gather_rows_kernel(const gather_rows_args a, bool wide) {
    const int64_t row = blockIdx.x, from = a.index[row] < 0 ? -1 : a.index[row] / a.divisor;
    float v[GROUP] = {0};
    for (int64_t j0 = (int64_t)threadIdx.x * GROUP; j0 < a.cols; j0 += THREADS * GROUP) {
        if (from >= 0) load_group<T>(v, static_cast<const T *>(a.x) + from * a.cols, j0, a.cols, wide);
        store_group<T>(static_cast<T *>(a.y) + row * a.cols, v, j0, a.cols, wide);
    }
}

void cuda_gather_rows(const struct stream *stream, const struct gather_rows_args *args) {
    const bool wide = all_wide(args->y, args->x) && args->cols % GROUP == 0;
    if (args->rows == 0) return;
    BY_DTYPE(args->dtype, T,
             CUDA_LAUNCH(gather_rows_kernel<T>, (unsigned)args->rows, THREADS, 0, cuda_stream(stream), *args,
                         wide))
}

template <typename T>
static __global__ void __launch_bounds__(THREADS, 6)
    combine_rows_kernel(const combine_rows_args a, bool wide) {
    const int64_t row = blockIdx.x;
    T *y = static_cast<T *>(a.y) + row * a.cols;
    for (int64_t j0 = (int64_t)threadIdx.x * GROUP; j0 < a.cols; j0 += THREADS * GROUP) {
        float sum[GROUP] = {0}, v[GROUP];
        if (a.accumulate) load_group<T>(sum, y, j0, a.cols, wide);
        for (int64_t k = 0; k < a.fan; k++) {
            const int64_t from = a.index[row * a.fan + k];
            if (from < 0) continue;
            load_group<T>(v, static_cast<const T *>(a.x) + from * a.cols, j0, a.cols, wide);
#pragma unroll
            for (int j = 0; j < GROUP; j++) sum[j] += v[j];
        }
        store_group<T>(y, sum, j0, a.cols, wide);
    }
}

void cuda_combine_rows(const struct stream *stream, const struct combine_rows_args *args) {
    const bool wide = all_wide(args->y, args->x) && args->cols % GROUP == 0;
    if (args->rows == 0) return;
    BY_DTYPE(args->dtype, T,
             CUDA_LAUNCH(combine_rows_kernel<T>, (unsigned)args->rows, THREADS, 0, cuda_stream(stream), *args,
                         wide))
}

/* ---- router_backward ---- */
enum { EXPERTS_AT_ONCE = 8, TOKEN_PARTS = 16, TOKENS_EACH = 64 };

/* dx: a block per token; every thread adds up all experts for its columns. */
template <typename T>
static __global__ void __launch_bounds__(THREADS) router_dx_kernel(const router_backward_args a, bool wide) {
    const int64_t token = blockIdx.x;
    T *dx = static_cast<T *>(a.dx) + token * a.hidden;
    for (int64_t j0 = (int64_t)threadIdx.x * GROUP; j0 < a.hidden; j0 += THREADS * GROUP) {
        float sum[GROUP] = {0}, v[GROUP];
        if (a.accumulate_dx) load_group<T>(sum, dx, j0, a.hidden, wide);
        for (int64_t e = 0; e < a.experts; e++) {
            const float d = a.dlogits[token * a.experts + e];
            load_group<T>(v, static_cast<const T *>(a.weight) + e * a.hidden, j0, a.hidden, wide);
#pragma unroll
            for (int j = 0; j < GROUP; j++) sum[j] += d * v[j];
        }
        store_group<T>(dx, sum, j0, a.hidden, wide);
    }
}

/* Partial dweight [parts, experts, hidden]: a thread takes a group of columns, 8 experts and a stretch of
 * tokens. */
template <typename T>
static __global__ void __launch_bounds__(THREADS)
    router_dweight_kernel(const router_backward_args a, float *parts, int64_t tokens_each, bool wide) {
    const int64_t j0 = ((int64_t)blockIdx.x * THREADS + threadIdx.x) * GROUP,
                  e0 = blockIdx.y * EXPERTS_AT_ONCE;
    const int64_t begin = blockIdx.z * tokens_each;
    const int64_t end = begin + tokens_each < a.tokens ? begin + tokens_each : a.tokens;
    float sum[EXPERTS_AT_ONCE][GROUP] = {{0}}, v[GROUP];
    if (j0 >= a.hidden) return;
    for (int64_t t = begin; t < end; t++) {
        load_group<T>(v, static_cast<const T *>(a.x) + t * a.hidden, j0, a.hidden, wide);
#pragma unroll
        for (int e = 0; e < EXPERTS_AT_ONCE; e++) {
            const float d = e0 + e < a.experts ? a.dlogits[t * a.experts + e0 + e] : 0.0f;
#pragma unroll
            for (int j = 0; j < GROUP; j++) sum[e][j] += e0 + e < a.experts ? d * v[j] : 0.0f;
        }
    }
#pragma unroll
    for (int e = 0; e < EXPERTS_AT_ONCE; e++)
#pragma unroll
        for (int j = 0; j < GROUP; j++)
            if (e0 + e < a.experts && j0 + j < a.hidden)
                parts[(blockIdx.z * a.experts + e0 + e) * a.hidden + j0 + j] = sum[e][j];
}

static int64_t tokens_per_part(int64_t tokens) {
    const int64_t each = (tokens + TOKEN_PARTS - 1) / TOKEN_PARTS;
    return each < TOKENS_EACH ? (int64_t)TOKENS_EACH : each;
}

static int64_t token_parts(int64_t tokens) {
    return (tokens + tokens_per_part(tokens) - 1) / tokens_per_part(tokens);
}

size_t cuda_router_backward_workspace(const struct stream *, const struct router_backward_args *args) {
    return (size_t)(token_parts(args->tokens) * args->experts * args->hidden) * sizeof(float);
}

void cuda_router_backward(const struct stream *stream, const struct router_backward_args *args) {
    const bool wide = all_wide(args->dx, args->x, args->weight) && args->hidden % GROUP == 0;
    const int64_t parts = token_parts(args->tokens), matrix = args->experts * args->hidden;
    float *partial = static_cast<float *>(stream->workspace);
    const dim3 grid(cuda_blocks(args->hidden, THREADS, GROUP), cuda_blocks(args->experts, EXPERTS_AT_ONCE, 1),
                    (unsigned)parts);
    if (parts)
        BY_DTYPE(args->dtype, T,
                 CUDA_LAUNCH(router_dx_kernel<T>, (unsigned)args->tokens, THREADS, 0, cuda_stream(stream),
                             *args, wide);
                 CUDA_LAUNCH(router_dweight_kernel<T>, grid, THREADS, 0, cuda_stream(stream), *args, partial,
                             tokens_per_part(args->tokens), wide))
    column_sums_launch(stream, args->dweight, partial, parts, matrix, matrix, args->accumulate_dweight);
}
