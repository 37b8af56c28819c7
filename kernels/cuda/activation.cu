/* Activations and their gradients, plain and scaled per row, and the gate of a row. */
#include "kernels/cuda/reduce.cuh"

enum { THREADS = 256 };

/* f(x) and f'(x). Infinities: f(-inf) is NaN only where the formula is 0 * inf, as in the reference. */
struct valued {
    float value, slope;
};

template <int KIND> static __device__ __forceinline__ valued activate(float x) {
    valued out;
    if (KIND == ACTIVATION_GELU_TANH) {
        const float t = tanhf(0.79788456080286536f * x * (1 + 0.044715f * x * x));
        out.value = 0.5f * x * (1 + t);
        out.slope =
            0.5f * (1 + t) + 0.5f * x * (1 - t * t) * 0.79788456080286536f * (1 + 3 * 0.044715f * x * x);
    } else if (KIND == ACTIVATION_GELU_ERF || KIND == ACTIVATION_GEGLU) {
        const float cdf = 0.5f * erfcf(-x * 0.70710678118654752f);
        out.value = x * cdf;
        out.slope = cdf + x * 0.39894228040143268f * expf(-0.5f * x * x);
    } else if (KIND == ACTIVATION_SQUARED_RELU) {
        const float positive = x < 0 ? 0 : x;
        out.value = positive * positive;
        out.slope = 2 * positive;
    } else {
        const float beta = KIND == ACTIVATION_GEGLU_QUICK ? 1.702f : 1.0f, s = 1 / (1 + expf(-beta * x));
        out.value = x * s;
        out.slope = s + beta * x * s * (1 - s);
    }
    return out;
}

static __host__ __device__ constexpr bool gated(int kind) {
    return kind >= ACTIVATION_SWIGLU;
}

#define BY_KIND(kind, KIND, ...)                                                                             \
    switch (kind) {                                                                                          \
        BY_KIND_CASE(ACTIVATION_GELU_TANH, KIND, __VA_ARGS__)                                                \
        BY_KIND_CASE(ACTIVATION_GELU_ERF, KIND, __VA_ARGS__)                                                 \
        BY_KIND_CASE(ACTIVATION_SQUARED_RELU, KIND, __VA_ARGS__)                                             \
        BY_KIND_CASE(ACTIVATION_SWIGLU, KIND, __VA_ARGS__)                                                   \
        BY_KIND_CASE(ACTIVATION_GEGLU_QUICK, KIND, __VA_ARGS__)                                              \
        BY_KIND_CASE(ACTIVATION_GEGLU, KIND, __VA_ARGS__)                                                    \
    default:                                                                                                 \
        break;                                                                                               \
    }
#define BY_KIND_CASE(value, KIND, ...)                                                                       \
    case value: {                                                                                            \
        constexpr int KIND = value;                                                                          \
        __VA_ARGS__;                                                                                         \
        break;                                                                                               \
    }

/* What the four kernels share. Rows of x are cols or 2 * cols long, those of y and dy cols. */
struct act {
    void *y;  /* forward */
    void *dx; /* backward */
    const void *dy, *x;
    const float *scales; /* with index: y times scales[index[row]] */
    float *dscales;
    const int32_t *index;
    int64_t rows, cols, groups; /* groups of elements in a row */
    bool wide;
};

/* One thread per group of a row. */
template <typename T, int KIND>
static __global__ void __launch_bounds__(THREADS) act_forward_kernel(const act a) {
    const int64_t at = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (at >= a.rows * a.groups) return;
    const int64_t row = at / a.groups, j0 = at % a.groups * GROUP;
    const T *x = static_cast<const T *>(a.x) + row * a.cols * (gated(KIND) ? 2 : 1);
    float v[GROUP], up[GROUP], scale = 1;
    if (a.index) scale = a.index[row] < 0 ? 0.0f : a.scales[a.index[row]];
    load_group<T>(v, x, j0, a.cols, a.wide);
    if (gated(KIND)) load_group<T>(up, x + a.cols, j0, a.cols, a.wide);
#pragma unroll
    for (int j = 0; j < GROUP; j++) {
        v[j] = activate<KIND>(v[j]).value;
        if (gated(KIND)) v[j] *= up[j];
        if (a.index) v[j] = a.index[row] < 0 ? 0.0f : v[j] * scale;
    }
    store_group<T>(static_cast<T *>(a.y) + row * a.cols, v, j0, a.cols, a.wide);
}

/* dx of one group, and the group's part of the scale's gradient. */
template <typename T, int KIND>
static __device__ __forceinline__ float act_backward_group(const act &a, int64_t row, int64_t j0,
                                                           float scale) {
    const int64_t in = a.cols * (gated(KIND) ? 2 : 1);
    const T *x = static_cast<const T *>(a.x) + row * in;
    T *dx = static_cast<T *>(a.dx) + row * in;
    float v[GROUP], up[GROUP], dy[GROUP], sum = 0;
    load_group<T>(v, x, j0, a.cols, a.wide);
    if (gated(KIND)) load_group<T>(up, x + a.cols, j0, a.cols, a.wide);
    load_group<T>(dy, static_cast<const T *>(a.dy) + row * a.cols, j0, a.cols, a.wide);
#pragma unroll
    for (int j = 0; j < GROUP; j++) {
        const valued f = activate<KIND>(v[j]);
        const float other = gated(KIND) ? up[j] : 1.0f;
        const bool is_empty = a.index && a.index[row] < 0; /* zeros, whatever x and dy hold */
        if (a.index && j0 + j < a.cols) sum += dy[j] * (f.value * other);
        v[j] = dy[j] * other * f.slope;
        up[j] = dy[j] * f.value;
        if (a.index) v[j] *= scale, up[j] *= scale;
        if (is_empty) v[j] = up[j] = 0;
    }
    store_group<T>(dx, v, j0, a.cols, a.wide);
    if (gated(KIND)) store_group<T>(dx + a.cols, up, j0, a.cols, a.wide);
    return sum;
}

template <typename T, int KIND>
static __global__ void __launch_bounds__(THREADS) act_backward_kernel(const act a) {
    const int64_t at = (int64_t)blockIdx.x * THREADS + threadIdx.x;
    if (at >= a.rows * a.groups) return;
    act_backward_group<T, KIND>(a, at / a.groups, at % a.groups * GROUP, 1.0f);
}

/* One block per row, which sums the gradient of the row's scale. */
template <typename T, int KIND>
static __global__ void __launch_bounds__(THREADS) act_backward_scaled_kernel(const act a) {
    const int64_t row = blockIdx.x;
    const float scale = a.index[row] < 0 ? 0.0f : a.scales[a.index[row]];
    float sum = 0;
    for (int64_t j0 = (int64_t)threadIdx.x * GROUP; j0 < a.cols; j0 += THREADS * GROUP)
        sum += act_backward_group<T, KIND>(a, row, j0, scale);
    sum = block_sum<THREADS>(sum);
    if (threadIdx.x == 0 && a.index[row] >= 0) a.dscales[a.index[row]] = sum;
}

static act act_of(int64_t rows, int64_t cols) {
    act a = {};
    a.rows = rows, a.cols = cols, a.groups = (cols + GROUP - 1) / GROUP;
    return a;
}

static void forward(const struct stream *stream, act a, enum activation kind, enum dtype dtype) {
    if (a.rows == 0) return;
    a.wide = all_wide(a.y, a.x) && a.cols % GROUP == 0;
    BY_DTYPE(dtype, T,
             BY_KIND(kind, K,
                     CUDA_LAUNCH((act_forward_kernel<T, K>), cuda_blocks(a.rows * a.groups, THREADS, 1),
                                 THREADS, 0, cuda_stream(stream), a)))
}

void cuda_activation_forward(const struct stream *stream, const struct activation_forward_args *args) {
    act a = act_of(args->rows, args->cols);
    a.y = args->y, a.x = args->x;
    forward(stream, a, args->kind, args->dtype);
}

void cuda_scaled_activation_forward(const struct stream *stream,
                                    const struct scaled_activation_forward_args *args) {
    act a = act_of(args->rows, args->cols);
    a.y = args->y, a.x = args->x, a.scales = args->scales, a.index = args->index;
    forward(stream, a, args->kind, args->dtype);
}

void cuda_activation_backward(const struct stream *stream, const struct activation_backward_args *args) {
    act a = act_of(args->rows, args->cols);
    a.dx = args->dx, a.dy = args->dy, a.x = args->x;
    a.wide = all_wide(a.dx, a.dy, a.x) && a.cols % GROUP == 0;
    if (a.rows == 0) return;
    BY_DTYPE(args->dtype, T,
             BY_KIND(args->kind, K,
                     CUDA_LAUNCH((act_backward_kernel<T, K>), cuda_blocks(a.rows * a.groups, THREADS, 1),
                                 THREADS, 0, cuda_stream(stream), a)))
}

void cuda_scaled_activation_backward(const struct stream *stream,
                                     const struct scaled_activation_backward_args *args) {
    act a = act_of(args->rows, args->cols);
    a.dx = args->dx, a.dy = args->dy, a.x = args->x;
    a.scales = args->scales, a.dscales = args->dscales, a.index = args->index;
    a.wide = all_wide(a.dx, a.dy, a.x) && a.cols % GROUP == 0;
    if (a.rows == 0) return;
    BY_DTYPE(args->dtype, T,
             BY_KIND(args->kind, K,
                     CUDA_LAUNCH((act_backward_scaled_kernel<T, K>), (unsigned)a.rows, THREADS, 0,
                                 cuda_stream(stream), a)))
}

/* ---- gate: y[i, :] = x[i, :] sigmoid(g[i]) ---- */
template <typename T>
static __global__ void __launch_bounds__(THREADS) gate_forward_kernel(const gate_forward_args a) {
    const int64_t row = blockIdx.x;
    const bool wide = a.cols % GROUP == 0 && ((uintptr_t)a.y | (uintptr_t)a.x) % 16 == 0;
    const float s = 1 / (1 + expf(-to_f32(static_cast<const T *>(a.g)[row])));
    float v[GROUP];
    for (int64_t j0 = (int64_t)threadIdx.x * GROUP; j0 < a.cols; j0 += THREADS * GROUP) {
        load_group<T>(v, static_cast<const T *>(a.x) + row * a.cols, j0, a.cols, wide);
#pragma unroll
        for (int j = 0; j < GROUP; j++) v[j] *= s;
        store_group<T>(static_cast<T *>(a.y) + row * a.cols, v, j0, a.cols, wide);
    }
}

template <typename T>
static __global__ void __launch_bounds__(THREADS) gate_backward_kernel(const gate_backward_args a) {
    const int64_t row = blockIdx.x;
    const bool wide = a.cols % GROUP == 0 && ((uintptr_t)a.dx | (uintptr_t)a.dy | (uintptr_t)a.x) % 16 == 0;
    const float s = 1 / (1 + expf(-to_f32(static_cast<const T *>(a.g)[row])));
    float x[GROUP], dy[GROUP], sum = 0;
    for (int64_t j0 = (int64_t)threadIdx.x * GROUP; j0 < a.cols; j0 += THREADS * GROUP) {
        load_group<T>(x, static_cast<const T *>(a.x) + row * a.cols, j0, a.cols, wide);
        load_group<T>(dy, static_cast<const T *>(a.dy) + row * a.cols, j0, a.cols, wide);
#pragma unroll
        for (int j = 0; j < GROUP; j++) {
            if (j0 + j < a.cols) sum += x[j] * dy[j];
            dy[j] *= s;
        }
        store_group<T>(static_cast<T *>(a.dx) + row * a.cols, dy, j0, a.cols, wide);
    }
    sum = block_sum<THREADS>(sum);
    if (threadIdx.x == 0) from_f32(&static_cast<T *>(a.dg)[row], sum * s * (1 - s));
}

void cuda_gate_forward(const struct stream *stream, const struct gate_forward_args *args) {
    if (args->rows == 0) return;
    BY_DTYPE(
        args->dtype, T,
        CUDA_LAUNCH(gate_forward_kernel<T>, (unsigned)args->rows, THREADS, 0, cuda_stream(stream), *args))
}

void cuda_gate_backward(const struct stream *stream, const struct gate_backward_args *args) {
    if (args->rows == 0) return;
    BY_DTYPE(
        args->dtype, T,
        CUDA_LAUNCH(gate_backward_kernel<T>, (unsigned)args->rows, THREADS, 0, cuda_stream(stream), *args))
}
