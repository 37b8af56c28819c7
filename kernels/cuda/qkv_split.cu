/* qkv_split: a warp per head of a token. With QK norm the gradients of the norms' weights are summed per
 * stretch of heads first, then over stretches. */
#include "kernels/cuda/column_sums.cuh"
#include "kernels/cuda/reduce.cuh"

enum { WARPS = 4, THREADS = 32 * WARPS };
enum part { PART_Q, PART_K, PART_V };

/* What forward and backward share. */
struct splitter {
    attention_shape z;
    qkv_split_norm norm;
    const float *cos, *sin;
    int64_t rotary; /* 0: none */
    bool interleaved;
};

/* A head of a token: which part, where in qkv, where in q, k or v. */
struct head {
    enum part part;
    int64_t position, row, out_row;
    const void *weight, *bias; /* of its norm; NULL: none */
};

static __device__ __forceinline__ head head_at(const splitter &s, int64_t n) {
    const attention_shape &z = s.z;
    const int64_t all = z.a + 2 * z.g, token = n / all, per_group = z.a / z.g;
    int64_t i = n % all, heads = z.g;
    head h = {PART_V, token / z.b, 0, 0, nullptr, nullptr};
    int64_t column;
    if (i < z.a) {
        h.part = PART_Q, heads = z.a, h.weight = s.norm.q_weight, h.bias = s.norm.q_bias;
        column = i / per_group * (per_group + 2) + i % per_group;
    } else {
        i -= z.a;
        if (i < z.g)
            h.part = PART_K, h.weight = s.norm.k_weight, h.bias = s.norm.k_bias;
        else
            i -= z.g;
        column = i * (per_group + 2) + per_group + (h.part == PART_V);
    }
    h.row = (token * all + column) * z.d;
    h.out_row = ((token % z.b * heads + i) * z.s + h.position) * z.d;
    return h;
}

struct moments {
    float mean, r;
};

template <typename T>
static __device__ __forceinline__ moments head_moments(const splitter &s, const T *x, int lane) {
    moments m = {0, 0};
    float sum = 0;
    if (!s.norm.rms) {
        for (int64_t n = lane; n < s.z.d; n += 32) sum += to_f32(x[n]);
        m.mean = warp_sum(sum) / (float)s.z.d;
    }
    sum = 0;
    for (int64_t n = lane; n < s.z.d; n += 32) sum += (to_f32(x[n]) - m.mean) * (to_f32(x[n]) - m.mean);
    m.r = 1.0f / sqrtf(warp_sum(sum) / (float)s.z.d + s.norm.epsilon);
    return m;
}

template <typename T>
static __device__ __forceinline__ float weight_at(const splitter &s, const head &h, int64_t n) {
    return to_f32(static_cast<const T *>(h.weight)[n]) + (s.norm.zero_centered ? 1.0f : 0.0f);
}

/* Partner of element n in its rotary pair, and the angle's cosine and sine; the first of a pair is `first`.
 */
struct turn {
    int64_t other;
    bool first;
    float c, s;
};

static __device__ __forceinline__ turn turn_at(const splitter &s, int64_t position, int64_t n) {
    const int64_t half = s.rotary / 2, pair = s.interleaved ? n / 2 : n % half;
    turn t;
    t.first = s.interleaved ? n % 2 == 0 : n < half;
    t.other = s.interleaved ? n ^ 1 : t.first ? n + half : n - half;
    t.c = s.cos[position * half + pair], t.s = s.sin[position * half + pair];
    return t;
}

/* Element n after the norm. */
template <typename T>
static __device__ __forceinline__ float normed(const splitter &s, const head &h, const T *x, moments m,
                                               int64_t n) {
    if (!h.weight) return to_f32(x[n]);
    const float bias = h.bias ? to_f32(static_cast<const T *>(h.bias)[n]) : 0.0f;
    return (to_f32(x[n]) - m.mean) * m.r * weight_at<T>(s, h, n) + bias;
}

template <typename T>
static __global__ void __launch_bounds__(THREADS)
    split_kernel(const splitter s, void *q, void *k, void *v, const void *qkv, int64_t count) {
    const int64_t n0 = (int64_t)blockIdx.x * WARPS + threadIdx.x / 32;
    const int lane = (int)threadIdx.x % 32;
    if (n0 >= count) return;
    const head h = head_at(s, n0);
    const T *x = static_cast<const T *>(qkv) + h.row;
    T *y = static_cast<T *>(h.part == PART_Q ? q : h.part == PART_K ? k : v) + h.out_row;
    moments m = {0, 0};
    if (h.weight) m = head_moments(s, x, lane);
    for (int64_t n = lane; n < s.z.d; n += 32) {
        float value = normed(s, h, x, m, n);
        if (h.part != PART_V && n < s.rotary) {
            const turn t = turn_at(s, h.position, n);
            const float other = normed(s, h, x, m, t.other);
            value = t.first ? value * t.c - other * t.s : value * t.c + other * t.s;
        }
        from_f32(&y[n], value);
    }
}

/* Gradient of element n of the norm's output: the rotation turned back. */
template <typename T>
static __device__ __forceinline__ float unrotated(const splitter &s, const head &h, const T *grad,
                                                  int64_t n) {
    const float g = to_f32(grad[n]);
    if (h.part == PART_V || n >= s.rotary) return g;
    const turn t = turn_at(s, h.position, n);
    const float other = to_f32(grad[t.other]);
    return t.first ? g * t.c + other * t.s : g * t.c - other * t.s;
}

struct gradients {
    const void *dq, *dk, *dv, *qkv;
};

template <typename T> static __device__ __forceinline__ const T *grad_of(const gradients &g, const head &h) {
    return static_cast<const T *>(h.part == PART_Q ? g.dq : h.part == PART_K ? g.dk : g.dv) + h.out_row;
}

template <typename T>
static __global__ void __launch_bounds__(THREADS)
    merge_kernel(const splitter s, void *dqkv, const gradients in, int64_t count) {
    const int64_t n0 = (int64_t)blockIdx.x * WARPS + threadIdx.x / 32;
    const int lane = (int)threadIdx.x % 32;
    if (n0 >= count) return;
    const head h = head_at(s, n0);
    const T *grad = grad_of<T>(in, h);
    T *dx = static_cast<T *>(dqkv) + h.row;
    if (!h.weight) {
        for (int64_t n = lane; n < s.z.d; n += 32) from_f32(&dx[n], unrotated(s, h, grad, n));
        return;
    }
    const T *x = static_cast<const T *>(in.qkv) + h.row;
    const moments m = head_moments(s, x, lane);
    float sum = 0, sum_hat = 0;
    for (int64_t n = lane; n < s.z.d; n += 32) {
        const float g = unrotated(s, h, grad, n) * weight_at<T>(s, h, n);
        sum += g;
        sum_hat += g * (to_f32(x[n]) - m.mean) * m.r;
    }
    sum = warp_sum(sum) / (float)s.z.d;
    sum_hat = warp_sum(sum_hat) / (float)s.z.d;
    for (int64_t n = lane; n < s.z.d; n += 32) {
        const float g = unrotated(s, h, grad, n) * weight_at<T>(s, h, n), hat = (to_f32(x[n]) - m.mean) * m.r;
        from_f32(&dx[n], m.r * (g - (s.norm.rms ? 0.0f : sum) - hat * sum_hat));
    }
}

/* Partial gradients of a norm's weight and bias, [stretches, 2, d]: a warp goes over a stretch of heads, 32
 * columns wide. `first` and `every` name the heads of q or of k among a token's. */
template <typename T>
static __global__ void __launch_bounds__(32)
    param_kernel(const splitter s, float *parts, const gradients in, int64_t first, int64_t every,
                 int64_t rows, int64_t rows_each) {
    const int64_t begin = blockIdx.x * rows_each, end = begin + rows_each < rows ? begin + rows_each : rows;
    const int64_t n = (int64_t)blockIdx.y * 32 + threadIdx.x, all = s.z.a + 2 * s.z.g;
    float sum = 0, sum_hat = 0;
    for (int64_t row = begin; row < end; row++) {
        const head h = head_at(s, row / every * all + first + row % every);
        const T *x = static_cast<const T *>(in.qkv) + h.row;
        const moments m = head_moments(s, x, (int)threadIdx.x);
        if (n >= s.z.d) continue;
        const float g = unrotated(s, h, grad_of<T>(in, h), n);
        sum += g;
        sum_hat += g * (to_f32(x[n]) - m.mean) * m.r;
    }
    if (n >= s.z.d) return;
    parts[blockIdx.x * 2 * s.z.d + n] = sum_hat;
    parts[(blockIdx.x * 2 + 1) * s.z.d + n] = sum;
}

void cuda_qkv_split_forward(const struct stream *stream, const struct qkv_split_forward_args *args) {
    const splitter s = {args->shape,
                        args->norm,
                        args->cos,
                        args->sin,
                        args->cos ? args->rotary_dim : 0,
                        args->rotary_interleaved};
    const int64_t count = s.z.s * s.z.b * (s.z.a + 2 * s.z.g);
    BY_DTYPE(args->dtype, T,
             CUDA_LAUNCH(split_kernel<T>, cuda_blocks(count, WARPS, 1), THREADS, 0, cuda_stream(stream), s,
                         args->q, args->k, args->v, args->qkv, count))
}

size_t cuda_qkv_split_backward_workspace(const struct stream *, const struct qkv_split_backward_args *args) {
    const attention_shape &z = args->shape;
    return args->norm.q_weight ? (size_t)(row_parts(z.s * z.b * z.a) * 2 * z.d) * sizeof(float) : 0;
}

static void params_backward(const struct stream *stream, const struct qkv_split_backward_args *args,
                            const splitter &s, const gradients &in, bool of_k) {
    float *parts = static_cast<float *>(stream->workspace);
    float *dweight = of_k ? args->dk_weight : args->dq_weight, *dbias = of_k ? args->dk_bias : args->dq_bias;
    const int64_t every = of_k ? s.z.g : s.z.a, rows = s.z.s * s.z.b * every, count = row_parts(rows);
    const dim3 grid((unsigned)count, cuda_blocks(s.z.d, 32, 1));
    BY_DTYPE(args->dtype, T,
             CUDA_LAUNCH(param_kernel<T>, grid, 32, 0, cuda_stream(stream), s, parts, in, of_k ? s.z.a : 0,
                         every, rows, rows_per_part(rows)))
    column_sums_launch(stream, dweight, parts, count, 2 * s.z.d, s.z.d, args->accumulate_params);
    if (args->norm.q_bias)
        column_sums_launch(stream, dbias, parts + s.z.d, count, 2 * s.z.d, s.z.d, args->accumulate_params);
}

void cuda_qkv_split_backward(const struct stream *stream, const struct qkv_split_backward_args *args) {
    const splitter s = {args->shape,
                        args->norm,
                        args->cos,
                        args->sin,
                        args->cos ? args->rotary_dim : 0,
                        args->rotary_interleaved};
    const gradients in = {args->dq, args->dk, args->dv, args->qkv};
    const int64_t count = s.z.s * s.z.b * (s.z.a + 2 * s.z.g);
    BY_DTYPE(args->dtype, T,
             CUDA_LAUNCH(merge_kernel<T>, cuda_blocks(count, WARPS, 1), THREADS, 0, cuda_stream(stream), s,
                         args->dqkv, in, count))
    if (!args->norm.q_weight) return;
    params_backward(stream, args, s, in, false);
    params_backward(stream, args, s, in, true);
}
