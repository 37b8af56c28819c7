/* Cross entropy: a block per row reads the logits once, with a running maximum; a shard of the vocabulary at
 * a time. */
#include "kernels/cuda/reduce.cuh"

enum { THREADS = 256 };

static __host__ __device__ __forceinline__ int64_t num_columns(int64_t vocab, int64_t columns) {
    return columns < 0 ? 0 : columns > 0 ? columns : vocab;
}

/* Column of the row's label, -1 when the row does not count or the label is not in this shard. */
static __device__ __forceinline__ int64_t label_column(const int32_t *labels, const float *mask, int64_t row,
                                                       int64_t first, int64_t n) {
    if (mask[row] == 0) return -1;
    const int64_t column = labels[row] - first;
    return column >= 0 && column < n ? column : -1;
}

/* What is subtracted before an exponential: a row of -infinity has lse = -infinity, not NaN. */
static __device__ __forceinline__ float base_of(float most) {
    return most == -INFINITY ? 0.0f : most;
}

template <typename T>
static __global__ void __launch_bounds__(THREADS)
    cross_entropy_forward_kernel(const cross_entropy_forward_args a, bool wide) {
    const int64_t row = blockIdx.x, n = num_columns(a.vocab, a.columns);
    const T *logits = static_cast<const T *>(a.logits) + row * a.vocab;
    float most = -INFINITY, sum = 0;
    for (int64_t j0 = (int64_t)threadIdx.x * GROUP; j0 < n; j0 += THREADS * GROUP) {
        float v[GROUP], top = most;
        load_group<T>(v, logits, j0, n, wide);
#pragma unroll
        for (int j = 0; j < GROUP; j++)
            if (j0 + j < n) top = max_or_nan(top, v[j]);
        const float base = base_of(top);
        sum *= expf(base_of(most) - base);
#pragma unroll
        for (int j = 0; j < GROUP; j++)
            if (j0 + j < n) sum += expf(v[j] - base);
        most = top;
    }
    const float top = block_max<THREADS>(most), base = base_of(top);
    sum = block_sum<THREADS>(most == -INFINITY ? 0.0f : sum * expf(most - base));
    if (threadIdx.x) return;
    const float lse = base + logf(sum);
    const int64_t label = label_column(a.labels, a.mask, row, a.first_label, n);
    const float picked = label >= 0 ? to_f32(logits[label]) : 0.0f;
    a.lse[row] = lse;
    if (a.picked) a.picked[row] = picked;
    if (a.loss) a.loss[row] = a.mask[row] != 0 ? a.mask[row] * (lse - picked) : 0.0f;
}

void cuda_cross_entropy_forward(const struct stream *stream, const struct cross_entropy_forward_args *args) {
    const bool wide = all_wide(args->logits) && args->vocab % GROUP == 0;
    if (args->rows == 0) return;
    BY_DTYPE(args->dtype, T,
             CUDA_LAUNCH(cross_entropy_forward_kernel<T>, (unsigned)args->rows, THREADS, 0,
                         cuda_stream(stream), *args, wide))
}

static __global__ void __launch_bounds__(THREADS)
    cross_entropy_combine_kernel(const cross_entropy_combine_args a) {
    const int64_t row = (int64_t)blockIdx.x * THREADS + threadIdx.x,
                  stride = a.part_stride ? a.part_stride : a.rows;
    if (row >= a.rows) return;
    float most = -INFINITY, sum = 0, picked = 0;
    for (int64_t p = 0; p < a.parts; p++) most = max_or_nan(most, a.lse_parts[p * stride + row]);
    const float base = base_of(most);
    for (int64_t p = 0; p < a.parts; p++) {
        sum += expf(a.lse_parts[p * stride + row] - base);
        picked += a.picked_parts[p * stride + row];
    }
    const float lse = base + logf(sum);
    a.lse[row] = lse;
    a.loss[row] = a.mask[row] != 0 ? a.mask[row] * (lse - picked) : 0.0f;
}

void cuda_cross_entropy_combine(const struct stream *stream, const struct cross_entropy_combine_args *args) {
    if (args->rows == 0) return;
    CUDA_LAUNCH(cross_entropy_combine_kernel, cuda_blocks(args->rows, THREADS, 1), THREADS, 0,
                cuda_stream(stream), *args);
}

template <typename T>
static __global__ void __launch_bounds__(THREADS)
    cross_entropy_backward_kernel(const cross_entropy_backward_args a, int64_t groups, bool wide) {
    const int64_t at = (int64_t)blockIdx.x * THREADS + threadIdx.x, row = at / groups,
                  j0 = at % groups * GROUP;
    if (row >= a.rows) return;
    const int64_t n = num_columns(a.vocab, a.columns),
                  label = label_column(a.labels, a.mask, row, a.first_label, n);
    const float scale = a.mask[row] * a.grad_scale, lse = a.lse[row];
    float v[GROUP];
    load_group<T>(v, static_cast<const T *>(a.logits) + row * a.vocab, j0, a.vocab, wide);
#pragma unroll
    for (int j = 0; j < GROUP; j++) {
        const bool counts = a.mask[row] != 0 && j0 + j < n;
        v[j] = counts ? (expf(v[j] - lse) - (j0 + j == label ? 1.0f : 0.0f)) * scale : 0.0f;
    }
    store_group<T>(static_cast<T *>(a.dlogits) + row * a.vocab, v, j0, a.vocab, wide);
}

void cuda_cross_entropy_backward(const struct stream *stream,
                                 const struct cross_entropy_backward_args *args) {
    const bool wide = all_wide(args->dlogits, args->logits) && args->vocab % GROUP == 0;
    const int64_t groups = (args->vocab + GROUP - 1) / GROUP;
    if (args->rows == 0) return;
    BY_DTYPE(args->dtype, T,
             CUDA_LAUNCH(cross_entropy_backward_kernel<T>, cuda_blocks(args->rows * groups, THREADS, 1),
                         THREADS, 0, cuda_stream(stream), *args, groups, wide))
}
