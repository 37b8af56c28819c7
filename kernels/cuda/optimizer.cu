/* Optimizer arithmetic over flat buffers: one pass over memory. */
#include "kernels/cuda/philox.cuh"
#include "kernels/cuda/reduce.cuh"

enum { THREADS = 256, SUM_BLOCKS = 1056 };

template <typename T>
static __global__ void __launch_bounds__(THREADS) adamw_kernel(const adamw_args a, bool wide) {
    const int64_t i = ((int64_t)blockIdx.x * THREADS + threadIdx.x) * GROUP;
    if (i >= a.n) return;
    float master[GROUP], m[GROUP], v[GROUP], g[GROUP];
    load_group<float>(master, a.master, i, a.n, wide);
    load_group<float>(m, a.m, i, a.n, wide);
    load_group<float>(v, a.v, i, a.n, wide);
    load_group<float>(g, a.grad, i, a.n, wide);
#pragma unroll
    for (int j = 0; j < GROUP; j++) {
        const float x = g[j] * a.grad_scale;
        m[j] = a.beta1 * m[j] + (1 - a.beta1) * x;
        v[j] = a.beta2 * v[j] + (1 - a.beta2) * x * x;
        float update = m[j] / a.bias_correction1 / (sqrtf(v[j] / a.bias_correction2) + a.epsilon);
        update += a.weight_decay * master[j];
        master[j] -= a.learning_rate * update;
    }
    store_group<float>(a.master, master, i, a.n, wide);
    store_group<float>(a.m, m, i, a.n, wide);
    store_group<float>(a.v, v, i, a.n, wide);
    if (a.model) store_group<T>(a.model, master, i, a.n, wide);
}

void cuda_adamw(const struct stream *stream, const struct adamw_args *args) {
    const bool wide = all_wide(args->master, args->m, args->v, args->grad, args->model);
    if (args->n == 0) return;
    BY_DTYPE(args->model_dtype, T,
             CUDA_LAUNCH(adamw_kernel<T>, cuda_blocks(args->n, THREADS, GROUP), THREADS, 0,
                         cuda_stream(stream), *args, wide))
}

/* ---- sum_squares ---- */
struct partial {
    double sum;
    int64_t bad;
};

static int64_t sum_blocks(int64_t n) {
    const int64_t blocks = cuda_blocks(n, THREADS, GROUP);
    return blocks < SUM_BLOCKS ? blocks : (int64_t)SUM_BLOCKS;
}

template <typename T>
static __global__ void __launch_bounds__(THREADS)
    squares_kernel(partial *partials, const void *x, int64_t n, bool wide) {
    const int64_t stride = (int64_t)gridDim.x * THREADS * GROUP;
    double sum = 0;
    int64_t bad = 0;
    for (int64_t i = ((int64_t)blockIdx.x * THREADS + threadIdx.x) * GROUP; i < n; i += stride) {
        float v[GROUP];
        load_group<T>(v, x, i, n, wide);
#pragma unroll
        for (int j = 0; j < GROUP; j++) {
            sum += (double)v[j] * (double)v[j];
            bad += (__float_as_uint(v[j]) & 0x7F800000u) == 0x7F800000u;
        }
    }
    sum = block_sum<THREADS>(sum);
    bad = block_sum<THREADS>(bad);
    if (threadIdx.x == 0) {
        const partial p = {sum, bad};
        partials[blockIdx.x] = p;
    }
}

static __global__ void __launch_bounds__(THREADS)
    squares_total_kernel(const sum_squares_args a, const partial *partials, int64_t count) {
    double sum = 0;
    int64_t bad = 0;
    for (int64_t i = threadIdx.x; i < count; i += THREADS) sum += partials[i].sum, bad += partials[i].bad;
    sum = block_sum<THREADS>(sum);
    bad = block_sum<THREADS>(bad);
    if (threadIdx.x) return;
    *a.out = a.accumulate ? *a.out + sum : sum;
    if (a.bad) *a.bad = a.accumulate ? *a.bad + bad : bad;
}

size_t cuda_sum_squares_workspace(const struct stream *, const struct sum_squares_args *args) {
    return (size_t)sum_blocks(args->n) * sizeof(partial);
}

void cuda_sum_squares(const struct stream *stream, const struct sum_squares_args *args) {
    const bool wide = all_wide(args->x);
    const int64_t count = sum_blocks(args->n);
    partial *partials = static_cast<partial *>(stream->workspace);
    if (count)
        BY_DTYPE(args->dtype, T,
                 CUDA_LAUNCH(squares_kernel<T>, (unsigned)count, THREADS, 0, cuda_stream(stream), partials,
                             args->x, args->n, wide))
    CUDA_LAUNCH(squares_total_kernel, 1, THREADS, 0, cuda_stream(stream), *args, partials, count);
}

/* ---- normal_init ---- */
/* rng_normal_pair of core/base/rng.h. */
static __device__ __forceinline__ void normal_pair(uint32_t a, uint32_t b, float &x, float &y) {
    const double u = ((double)a + 1.0) * (1.0 / 4294967296.0), v = (double)b * (1.0 / 4294967296.0);
    const double radius = sqrt(-2.0 * log(u)), angle = 6.283185307179586 * v;
    x = (float)(radius * cos(angle));
    y = (float)(radius * sin(angle));
}

static __global__ void __launch_bounds__(THREADS) normal_kernel(const normal_init_args a) {
    const uint64_t block = a.first_element / 4 + (uint64_t)blockIdx.x * THREADS + threadIdx.x;
    if (4 * block >= a.first_element + (uint64_t)a.n) return;
    const philox_words words = philox(a.key, block);
    float x[4];
    normal_pair(words.w[0], words.w[1], x[0], x[1]);
    normal_pair(words.w[2], words.w[3], x[2], x[3]);
#pragma unroll
    for (int j = 0; j < 4; j++) {
        const uint64_t e = 4 * block + (uint64_t)j;
        if (e >= a.first_element && e < a.first_element + (uint64_t)a.n)
            a.x[e - a.first_element] = x[j] * a.std;
    }
}

void cuda_normal_init(const struct stream *stream, const struct normal_init_args *args) {
    if (args->n == 0) return;
    CUDA_LAUNCH(normal_kernel, cuda_blocks(args->n + 3, THREADS, 4), THREADS, 0, cuda_stream(stream), *args);
}
