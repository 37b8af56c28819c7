/* Softmax over the rows of stored scores, its gradient, and the merge of attention over two sets of keys. */
#include "kernels/cuda/reduce.cuh"

enum { THREADS = 128 };

static __device__ __forceinline__ int64_t used_columns(int64_t row, int64_t cols, bool causal) {
    return causal ? row % cols + 1 : cols;
}

template <typename T>
static __global__ void __launch_bounds__(THREADS)
    softmax_forward_kernel(const softmax_forward_args a, bool wide) {
    const int64_t row = blockIdx.x, used = used_columns(row, a.cols, a.causal);
    const T *x = static_cast<const T *>(a.x) + row * a.cols;
    T *y = static_cast<T *>(a.y) + row * a.cols;
    float most = -INFINITY, sum = 0, v[GROUP];
    for (int64_t j0 = (int64_t)threadIdx.x * GROUP; j0 < used; j0 += THREADS * GROUP) {
        load_group<T>(v, x, j0, used, wide);
#pragma unroll
        for (int j = 0; j < GROUP; j++)
            if (j0 + j < used) most = max_or_nan(most, v[j]);
    }
    most = block_max<THREADS>(most);
    for (int64_t j0 = (int64_t)threadIdx.x * GROUP; j0 < used; j0 += THREADS * GROUP) {
        load_group<T>(v, x, j0, used, wide);
#pragma unroll
        for (int j = 0; j < GROUP; j++)
            if (j0 + j < used) sum += expf(v[j] - most);
    }
    sum = block_sum<THREADS>(sum);
    for (int64_t j0 = (int64_t)threadIdx.x * GROUP; j0 < a.cols; j0 += THREADS * GROUP) {
        load_group<T>(v, x, j0, used, wide);
#pragma unroll
        for (int j = 0; j < GROUP; j++) v[j] = j0 + j < used ? expf(v[j] - most) / sum : 0.0f;
        store_group<T>(y, v, j0, a.cols, wide);
    }
}

template <typename T>
static __global__ void __launch_bounds__(THREADS)
    softmax_backward_kernel(const softmax_backward_args a, bool wide) {
    const int64_t row = blockIdx.x, used = used_columns(row, a.cols, a.causal);
    const T *y = static_cast<const T *>(a.y) + row * a.cols,
            *dy = static_cast<const T *>(a.dy) + row * a.cols;
    float v[GROUP], g[GROUP], delta = 0;
    for (int64_t j0 = (int64_t)threadIdx.x * GROUP; j0 < used; j0 += THREADS * GROUP) {
        load_group<T>(v, y, j0, used, wide);
        load_group<T>(g, dy, j0, used, wide);
#pragma unroll
        for (int j = 0; j < GROUP; j++)
            if (j0 + j < used) delta += v[j] * g[j];
    }
    delta = block_sum<THREADS>(delta);
    for (int64_t j0 = (int64_t)threadIdx.x * GROUP; j0 < a.cols; j0 += THREADS * GROUP) {
        load_group<T>(v, y, j0, used, wide);
        load_group<T>(g, dy, j0, used, wide);
#pragma unroll
        for (int j = 0; j < GROUP; j++) v[j] = j0 + j < used ? v[j] * (g[j] - delta) : 0.0f;
        store_group<T>(static_cast<T *>(a.dx) + row * a.cols, v, j0, a.cols, wide);
    }
}

void cuda_softmax_forward(const struct stream *stream, const struct softmax_forward_args *args) {
    const bool wide = all_wide(args->y, args->x) && args->cols % GROUP == 0;
    BY_DTYPE(args->dtype, T,
             CUDA_LAUNCH(softmax_forward_kernel<T>, (unsigned)args->rows, THREADS, 0, cuda_stream(stream),
                         *args, wide))
}

void cuda_softmax_backward(const struct stream *stream, const struct softmax_backward_args *args) {
    const bool wide = all_wide(args->dx, args->dy, args->y) && args->cols % GROUP == 0;
    BY_DTYPE(args->dtype, T,
             CUDA_LAUNCH(softmax_backward_kernel<T>, (unsigned)args->rows, THREADS, 0, cuda_stream(stream),
                         *args, wide))
}

/* ---- attention_merge: a warp per row of o ---- */
static __device__ __forceinline__ float merged_lse(float a, float b) {
    const float most = a > b ? a : b;
    if (most == -INFINITY) return a != a ? a : b; /* no keys on either side, or NaN */
    return most + logf(expf(a - most) + expf(b - most));
}

static __global__ void __launch_bounds__(THREADS) merge_kernel(const attention_merge_args a, int64_t count) {
    const int64_t row = ((int64_t)blockIdx.x * THREADS + threadIdx.x) / 32, lane = threadIdx.x % 32;
    if (row >= count) return;
    const attention_shape &z = a.shape;
    const int64_t dv = z.dv ? z.dv : z.d, head = row % z.a, batch = row / z.a % z.b, i = row / (z.a * z.b);
    float *lse = &a.lse[(batch * z.a + head) * (a.lse_rows ? a.lse_rows : z.s) + i];
    const float part = a.lse_part[(batch * z.a + head) * (a.part_rows ? a.part_rows : z.s) + i];
    const float old = a.first ? -INFINITY : *lse, both = merged_lse(old, part);
    for (int64_t n = row * dv + lane; n < (row + 1) * dv; n += 32) {
        float sum = 0;
        if (part == -INFINITY) {
            sum = old != -INFINITY ? a.o[n] * expf(old - both) : 0.0f;
        } else {
            if (old != -INFINITY) sum = a.o[n] * expf(old - both);
            sum += a.o_part[n] * expf(part - both);
        }
        a.o[n] = sum;
    }
    __syncwarp(FULL_WARP);
    if (lane == 0) *lse = both;
}

void cuda_attention_merge(const struct stream *stream, const struct attention_merge_args *args) {
    const int64_t count = args->shape.s * args->shape.b * args->shape.a;
    CUDA_LAUNCH(merge_kernel, cuda_blocks(count, THREADS / 32, 1), THREADS, 0, cuda_stream(stream), *args,
                count);
}
