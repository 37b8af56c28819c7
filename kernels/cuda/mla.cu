/* Multi-latent attention between its projections: every element by its formula in kernels/args/mla.h. */
#include "kernels/cuda/cuda.cuh"

enum { THREADS = 256 };

template <typename T>
static __global__ void __launch_bounds__(THREADS) latent_split_kernel(const mla_latent_split_forward_args a) {
    const int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x, width = a.rank + a.dr;
    const int64_t row = i / width, col = i % width;
    if (row >= a.rows) return;
    const T x = static_cast<const T *>(a.x)[i];
    if (col < a.rank)
        static_cast<T *>(a.latent)[row * a.rank + col] = x;
    else
        static_cast<T *>(a.k_pe)[row * a.dr + col - a.rank] = x;
}

template <typename T>
static __global__ void __launch_bounds__(THREADS) latent_join_kernel(const mla_latent_split_backward_args a) {
    const int64_t i = (int64_t)blockIdx.x * THREADS + threadIdx.x, width = a.rank + a.dr;
    const int64_t row = i / width, col = i % width;
    if (row >= a.rows) return;
    static_cast<T *>(a.dx)[i] = col < a.rank ? static_cast<const T *>(a.dlatent)[row * a.rank + col]
                                             : static_cast<const T *>(a.dk_pe)[row * a.dr + col - a.rank];
}

void cuda_mla_latent_split_forward(const struct stream *stream,
                                   const struct mla_latent_split_forward_args *args) {
    const int64_t n = args->rows * (args->rank + args->dr);
    if (n == 0) return;
    BY_DTYPE(args->dtype, T,
             CUDA_LAUNCH(latent_split_kernel<T>, cuda_blocks(n, THREADS, 1), THREADS, 0, cuda_stream(stream),
                         *args))
}

void cuda_mla_latent_split_backward(const struct stream *stream,
                                    const struct mla_latent_split_backward_args *args) {
    const int64_t n = args->rows * (args->rank + args->dr);
    if (n == 0) return;
    BY_DTYPE(args->dtype, T,
             CUDA_LAUNCH(latent_join_kernel<T>, cuda_blocks(n, THREADS, 1), THREADS, 0, cuda_stream(stream),
                         *args))
}

/* First element of a head of a token in [b, a, s, width]. */
static __device__ __forceinline__ int64_t head_row(const mla_shape &z, int64_t token, int64_t head,
                                                   int64_t width) {
    return ((token % z.b * z.a + head) * z.s + token / z.b) * width;
}

/* Element n of the rotation of x. */
template <typename T>
static __device__ __forceinline__ float rotated(const mla_assemble_forward_args &a, const T *x,
                                                int64_t position, int64_t n) {
    const int64_t half = a.shape.dr / 2, i = n % half;
    const float c = a.cos[position * half + i], s = a.sin[position * half + i];
    const float even = to_f32(x[2 * i]), odd = to_f32(x[2 * i + 1]);
    return n < half ? even * c - odd * s : odd * c + even * s;
}

/* A thread per (token, head, column): columns of the key and query first, then those of the value. */
template <typename T>
static __global__ void __launch_bounds__(THREADS) assemble_forward_kernel(const mla_assemble_forward_args a) {
    const mla_shape z = a.shape;
    const int64_t d = z.dn + z.dr, wide = z.dn + z.dv, width = d + z.dv;
    const int64_t at = (int64_t)blockIdx.x * THREADS + threadIdx.x, n = at / width, i = at % width;
    if (n >= z.s * z.b * z.a) return;
    const int64_t token = n / z.a, head = n % z.a, position = token / z.b;
    const T *q_in = static_cast<const T *>(a.q_in) + n * d, *kv = static_cast<const T *>(a.kv) + n * wide;
    const int64_t q = head_row(z, token, head, d);
    if (i >= d) {
        static_cast<T *>(a.v)[head_row(z, token, head, z.dv) + i - d] = kv[z.dn + i - d];
    } else if (i < z.dn) {
        static_cast<T *>(a.q)[q + i] = q_in[i];
        static_cast<T *>(a.k)[q + i] = kv[i];
    } else {
        const T *k_pe = static_cast<const T *>(a.k_pe) + token * z.dr;
        from_f32(&static_cast<T *>(a.q)[q + i], rotated(a, q_in + z.dn, position, i - z.dn));
        from_f32(&static_cast<T *>(a.k)[q + i], rotated(a, k_pe, position, i - z.dn));
    }
}

void cuda_mla_assemble_forward(const struct stream *stream, const struct mla_assemble_forward_args *args) {
    const mla_shape z = args->shape;
    const int64_t n = z.s * z.b * z.a * (z.dn + z.dr + z.dv);
    if (n == 0) return;
    BY_DTYPE(args->dtype, T,
             CUDA_LAUNCH(assemble_forward_kernel<T>, cuda_blocks(n, THREADS, 1), THREADS, 0,
                         cuda_stream(stream), *args))
}

/* The gradient of x from that of y, where x pairs even and odd: n = 2i + odd. */
static __device__ __forceinline__ float unrotated(const mla_assemble_backward_args &a, float low, float high,
                                                  int64_t position, int64_t n) {
    const int64_t half = a.shape.dr / 2, i = n / 2;
    const float c = a.cos[position * half + i], s = a.sin[position * half + i];
    return n % 2 ? high * c - low * s : low * c + high * s;
}

template <typename T>
static __global__ void __launch_bounds__(THREADS)
    assemble_backward_kernel(const mla_assemble_backward_args a) {
    const mla_shape z = a.shape;
    const int64_t d = z.dn + z.dr, wide = z.dn + z.dv, width = d + z.dv, half = z.dr / 2;
    const int64_t at = (int64_t)blockIdx.x * THREADS + threadIdx.x, n = at / width, i = at % width;
    if (n >= z.s * z.b * z.a) return;
    const int64_t token = n / z.a, head = n % z.a, q = head_row(z, token, head, d);
    const T *dq = static_cast<const T *>(a.dq) + q, *dk = static_cast<const T *>(a.dk) + q;
    T *dq_in = static_cast<T *>(a.dq_in) + n * d, *dkv = static_cast<T *>(a.dkv) + n * wide;
    if (i >= d) {
        dkv[z.dn + i - d] = static_cast<const T *>(a.dv)[head_row(z, token, head, z.dv) + i - d];
    } else if (i < z.dn) {
        dq_in[i] = dq[i];
        dkv[i] = dk[i];
    } else {
        const int64_t pair = z.dn + (i - z.dn) / 2;
        from_f32(&dq_in[i], unrotated(a, to_f32(dq[pair]), to_f32(dq[pair + half]), token / z.b, i - z.dn));
    }
}

/* dk_pe sums over the heads, in order. */
template <typename T>
static __global__ void __launch_bounds__(THREADS) assemble_pe_kernel(const mla_assemble_backward_args a) {
    const mla_shape z = a.shape;
    const int64_t d = z.dn + z.dr, half = z.dr / 2;
    const int64_t at = (int64_t)blockIdx.x * THREADS + threadIdx.x, token = at / z.dr, i = at % z.dr;
    if (token >= z.s * z.b) return;
    float low = 0, high = 0;
    for (int64_t head = 0; head < z.a; head++) {
        const T *dk = static_cast<const T *>(a.dk) + head_row(z, token, head, d) + z.dn + i / 2;
        low += to_f32(dk[0]), high += to_f32(dk[half]);
    }
    from_f32(&static_cast<T *>(a.dk_pe)[at], unrotated(a, low, high, token / z.b, i));
}

void cuda_mla_assemble_backward(const struct stream *stream, const struct mla_assemble_backward_args *args) {
    const mla_shape z = args->shape;
    const int64_t tokens = z.s * z.b, n = tokens * z.a * (z.dn + z.dr + z.dv);
    if (n == 0) return;
    BY_DTYPE(args->dtype, T,
             CUDA_LAUNCH(assemble_backward_kernel<T>, cuda_blocks(n, THREADS, 1), THREADS, 0,
                         cuda_stream(stream), *args);
             CUDA_LAUNCH(assemble_pe_kernel<T>, cuda_blocks(tokens * z.dr, THREADS, 1), THREADS, 0,
                         cuda_stream(stream), *args))
}
