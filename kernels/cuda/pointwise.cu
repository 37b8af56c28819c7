/* Element-wise kernels: one pass over memory, a group of elements per thread. Activations have a file of
 * their own. */
#include "kernels/cuda/philox.cuh"

enum { THREADS = 256 };

/* ---- dropout, residual, add: y = (base) + drop(x) ---- */
struct mix {
    void *y;
    const void *x, *base; /* base NULL: nothing is added */
    int64_t n;
    dropper drop;
    bool wide;
};

template <typename T> static __global__ void __launch_bounds__(THREADS) mix_kernel(const mix m) {
    const int64_t i = ((int64_t)blockIdx.x * THREADS + threadIdx.x) * GROUP;
    if (i >= m.n) return;
    float x[GROUP], base[GROUP];
    load_group<T>(x, m.x, i, m.n, m.wide);
    drop_group(x, m.drop, i);
    if (m.base) {
        load_group<T>(base, m.base, i, m.n, m.wide);
#pragma unroll
        for (int j = 0; j < GROUP; j++) x[j] += base[j];
    }
    store_group<T>(m.y, x, i, m.n, m.wide);
}

static void mix_launch(const struct stream *stream, mix m, enum dtype dtype) {
    if (m.n == 0 || (!m.drop.on && !m.base && m.y == m.x)) return;
    m.wide = all_wide(m.y, m.x, m.base);
    BY_DTYPE(dtype, T,
             CUDA_LAUNCH(mix_kernel<T>, cuda_blocks(m.n, THREADS, GROUP), THREADS, 0, cuda_stream(stream), m))
}

void cuda_dropout(const struct stream *stream, const struct dropout_args *args) {
    const mix m = {args->y, args->x, nullptr, args->n, dropper_of(args->p, args->key, args->first_element),
                   false};
    mix_launch(stream, m, args->dtype);
}

void cuda_residual_forward(const struct stream *stream, const struct residual_forward_args *args) {
    const mix m = {
        args->y, args->x, args->residual, args->n, dropper_of(args->p, args->key, args->first_element),
        false};
    mix_launch(stream, m, args->dtype);
}

void cuda_add(const struct stream *stream, const struct add_args *args) {
    const mix m = {args->y, args->b, args->a, args->n, dropper_of(0, rng_key(), 0), false};
    mix_launch(stream, m, args->dtype);
}

/* Both outputs from one read of dy. */
struct residual_gradients {
    void *dx, *dresidual; /* NULL: not asked for, or there already */
    const void *dy;
    int64_t n;
    dropper drop;
    bool add_dx, add_dresidual, wide;
};

template <typename T>
static __global__ void __launch_bounds__(THREADS) residual_backward_kernel(const residual_gradients g) {
    const int64_t i = ((int64_t)blockIdx.x * THREADS + threadIdx.x) * GROUP;
    if (i >= g.n) return;
    float dy[GROUP], out[GROUP], old[GROUP] = {0};
    load_group<T>(dy, g.dy, i, g.n, g.wide);
    if (g.dresidual) {
        if (g.add_dresidual) load_group<T>(old, g.dresidual, i, g.n, g.wide);
#pragma unroll
        for (int j = 0; j < GROUP; j++) out[j] = g.add_dresidual ? old[j] + dy[j] : dy[j];
        store_group<T>(g.dresidual, out, i, g.n, g.wide);
    }
    if (g.dx) {
        if (g.add_dx) load_group<T>(old, g.dx, i, g.n, g.wide);
        drop_group(dy, g.drop, i);
#pragma unroll
        for (int j = 0; j < GROUP; j++) out[j] = g.add_dx ? old[j] + dy[j] : dy[j];
        store_group<T>(g.dx, out, i, g.n, g.wide);
    }
}

void cuda_residual_backward(const struct stream *stream, const struct residual_backward_args *args) {
    residual_gradients g = {args->dx,
                            args->dresidual,
                            args->dy,
                            args->n,
                            dropper_of(args->p, args->key, args->first_element),
                            args->accumulate_dx,
                            args->accumulate_dresidual,
                            all_wide(args->dx, args->dresidual, args->dy)};
    if (g.dx == g.dy && !g.add_dx) g.dx = nullptr;
    if (g.dresidual == g.dy && !g.add_dresidual) g.dresidual = nullptr;
    if (g.n == 0 || (!g.dx && !g.dresidual)) return;
    BY_DTYPE(args->dtype, T,
             CUDA_LAUNCH(residual_backward_kernel<T>, cuda_blocks(g.n, THREADS, GROUP), THREADS, 0,
                         cuda_stream(stream), g))
}

/* ---- cast, fill, copy_blocks ---- */
template <typename To, typename From>
static __global__ void __launch_bounds__(THREADS)
    cast_kernel(void *dst, const void *src, int64_t n, bool wide) {
    const int64_t i = ((int64_t)blockIdx.x * THREADS + threadIdx.x) * GROUP;
    if (i >= n) return;
    float x[GROUP];
    load_group<From>(x, src, i, n, wide);
    store_group<To>(dst, x, i, n, wide);
}

void cuda_cast(const struct stream *stream, const struct cast_args *args) {
    const bool wide = all_wide(args->dst, args->src);
    if (args->n == 0) return;
    BY_DTYPE(args->dst_dtype, To,
             BY_DTYPE(args->src_dtype, From,
                      CUDA_LAUNCH((cast_kernel<To, From>), cuda_blocks(args->n, THREADS, GROUP), THREADS, 0,
                                  cuda_stream(stream), args->dst, args->src, args->n, wide)))
}

template <typename T>
static __global__ void __launch_bounds__(THREADS) fill_kernel(void *y, float value, int64_t n, bool wide) {
    const int64_t i = ((int64_t)blockIdx.x * THREADS + threadIdx.x) * GROUP;
    float x[GROUP];
    if (i >= n) return;
#pragma unroll
    for (int j = 0; j < GROUP; j++) x[j] = value;
    store_group<T>(y, x, i, n, wide);
}

void cuda_fill(const struct stream *stream, const struct fill_args *args) {
    const bool wide = all_wide(args->y);
    if (args->n == 0) return;
    BY_DTYPE(args->dtype, T,
             CUDA_LAUNCH(fill_kernel<T>, cuda_blocks(args->n, THREADS, GROUP), THREADS, 0,
                         cuda_stream(stream), args->y, args->value, args->n, wide))
}

/* Words are 16, 4 or 2 bytes, whichever all addresses and sizes are multiples of. */
struct block_copy {
    void *dst;
    const void *src;
    int64_t n1, words; /* of a row */
    int64_t dst_stride0, dst_stride1, src_stride0, src_stride1, total;
};

template <typename Word>
static __global__ void __launch_bounds__(THREADS) copy_blocks_kernel(const block_copy c) {
    const int64_t at = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (at >= c.total) return;
    const int64_t row = at / c.words, k = at % c.words, i = row / c.n1, j = row % c.n1;
    static_cast<Word *>(c.dst)[i * c.dst_stride0 + j * c.dst_stride1 + k] =
        static_cast<const Word *>(c.src)[i * c.src_stride0 + j * c.src_stride1 + k];
}

void cuda_copy_blocks(const struct stream *stream, const struct copy_blocks_args *args) {
    const struct copy_blocks_args &a = *args;
    const int64_t bytes = (int64_t)dtype_bytes(a.dtype);
    const int64_t offsets[] = {a.n2, a.dst_stride0, a.dst_stride1, a.src_stride0, a.src_stride1};
    uint64_t any = (uint64_t)(reinterpret_cast<uintptr_t>(a.dst) | reinterpret_cast<uintptr_t>(a.src));
    if (a.n0 * a.n1 * a.n2 == 0) return;
    for (int64_t offset : offsets) any |= (uint64_t)(offset * bytes);
    const int64_t word = any % 16 == 0 ? 16 : bytes;
    const int64_t words = a.n2 * bytes / word;
    const block_copy c = {a.dst,
                          a.src,
                          a.n1,
                          words,
                          a.dst_stride0 * bytes / word,
                          a.dst_stride1 * bytes / word,
                          a.src_stride0 * bytes / word,
                          a.src_stride1 * bytes / word,
                          a.n0 * a.n1 * words};
    const unsigned blocks = cuda_blocks(c.total, THREADS, 1);
    if (word == 16) {
        CUDA_LAUNCH(copy_blocks_kernel<uint4>, blocks, THREADS, 0, cuda_stream(stream), c);
    } else if (word == 4) {
        CUDA_LAUNCH(copy_blocks_kernel<uint32_t>, blocks, THREADS, 0, cuda_stream(stream), c);
    } else {
        CUDA_LAUNCH(copy_blocks_kernel<uint16_t>, blocks, THREADS, 0, cuda_stream(stream), c);
    }
}
