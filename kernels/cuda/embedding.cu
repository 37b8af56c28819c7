/* Embedding lookup, and its gradient in a fixed order: the warp of the first use of a table row finds the
 * later ones. */
#include "kernels/cuda/reduce.cuh"

enum { THREADS = 128 };

/* Row of the table at hand for row r = (i, j) of dy, -1 when it is not in it. */
struct lookup {
    const int32_t *ids;
    int64_t stride, first_column, b, first, rows;
};

static __device__ __forceinline__ int64_t id_of(const lookup &t, int64_t r) {
    const int64_t id = t.ids[r % t.b * t.stride + t.first_column + r / t.b] - t.first;
    return id >= 0 && id < t.rows ? id : -1;
}

template <typename T>
static __global__ void __launch_bounds__(THREADS)
    embedding_forward_kernel(const embedding_forward_args a, const lookup tokens, const lookup positions,
                             bool wide) {
    const int64_t r = blockIdx.x, token = tokens.ids ? id_of(tokens, r) : -1;
    const int64_t position = a.position_weight ? id_of(positions, r) : -1;
    T *y = static_cast<T *>(a.y) + r * a.h;
    for (int64_t j0 = (int64_t)threadIdx.x * GROUP; j0 < a.h; j0 += THREADS * GROUP) {
        float sum[GROUP] = {0}, v[GROUP];
        if (a.accumulate) load_group<T>(sum, y, j0, a.h, wide);
        if (token >= 0) {
            load_group<T>(v, static_cast<const T *>(a.weight) + token * a.h, j0, a.h, wide);
#pragma unroll
            for (int j = 0; j < GROUP; j++) sum[j] += v[j];
        }
        if (position >= 0) {
            load_group<T>(v, static_cast<const T *>(a.position_weight) + position * a.h, j0, a.h, wide);
#pragma unroll
            for (int j = 0; j < GROUP; j++) sum[j] += v[j];
        }
        store_group<T>(y, sum, j0, a.h, wide);
    }
}

void cuda_embedding_forward(const struct stream *stream, const struct embedding_forward_args *args) {
    const int64_t stride = args->stride ? args->stride : args->s;
    const lookup tokens = {args->tokens,         stride,     args->first_column, args->b,
                           args->first_token_id, args->vocab};
    const lookup positions = {args->positions, stride, args->first_column, args->b, 0, args->max_positions};
    const bool wide = all_wide(args->y, args->weight, args->position_weight) && args->h % GROUP == 0;
    if (args->s * args->b == 0) return;
    BY_DTYPE(args->dtype, T,
             CUDA_LAUNCH(embedding_forward_kernel<T>, (unsigned)(args->s * args->b), THREADS, 0,
                         cuda_stream(stream), *args, tokens, positions, wide))
}

/* One warp for row r of dy and 256 columns. */
template <typename T>
static __global__ void __launch_bounds__(32)
    embedding_backward_kernel(float *grad, const void *dy, const lookup table, int64_t count, int64_t h,
                              bool wide) {
    const int64_t r = blockIdx.x, id = id_of(table, r), lane = threadIdx.x;
    const int64_t j0 = ((int64_t)blockIdx.y * 32 + lane) * GROUP;
    if (id < 0) return;
    for (int64_t q = 0; q < r; q += 32)
        if (__any_sync(FULL_WARP, q + lane < r && id_of(table, q + lane) == id)) return;
    float sum[GROUP] = {0}, v[GROUP];
    for (int64_t q = r; q < count; q += 32) {
        uint32_t uses = __ballot_sync(FULL_WARP, q + lane < count && id_of(table, q + lane) == id);
        for (; uses; uses &= uses - 1) {
            const int64_t use = q + __ffs((int)uses) - 1;
            if (j0 >= h) continue;
            load_group<T>(v, static_cast<const T *>(dy) + use * h, j0, h, wide);
#pragma unroll
            for (int j = 0; j < GROUP; j++) sum[j] += v[j];
        }
    }
#pragma unroll
    for (int j = 0; j < GROUP; j++)
        if (j0 + j < h) grad[id * h + j0 + j] += sum[j];
}

static void table_backward(const struct stream *stream, const struct embedding_backward_args *args,
                           float *grad, const lookup table) {
    const bool wide = all_wide(args->dy) && args->h % GROUP == 0;
    const int64_t count = args->s * args->b;
    if (!grad || !table.ids || !count) return;
    BY_DTYPE(args->dtype, T,
             CUDA_LAUNCH(embedding_backward_kernel<T>, dim3((unsigned)count, cuda_blocks(args->h, 32, GROUP)),
                         32, 0, cuda_stream(stream), grad, args->dy, table, count, args->h, wide))
}

void cuda_embedding_backward(const struct stream *stream, const struct embedding_backward_args *args) {
    const int64_t stride = args->stride ? args->stride : args->s;
    const lookup tokens = {args->tokens,         stride,     args->first_column, args->b,
                           args->first_token_id, args->vocab};
    const lookup positions = {args->positions, stride, args->first_column, args->b, 0, args->max_positions};
    table_backward(stream, args, args->dweight, tokens);
    table_backward(stream, args, args->dposition_weight, positions);
}
