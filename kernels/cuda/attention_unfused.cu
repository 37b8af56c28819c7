/* The unfused chain's products: one launch for all heads, triangles skipped where the mask is causal. */
#include "kernels/cuda/tile.cuh"

/* An operand of head z of `heads`: p + z / heads * outer + z % heads / divide * inner elements. */
struct heads_of {
    int64_t outer, inner, divide;
};

struct batched {
    product one;
    heads_of a, b, c;
    int64_t heads;
};

static __device__ __forceinline__ int64_t offset_of(const heads_of &h, int64_t z, int64_t heads) {
    return z / heads * h.outer + z % heads / h.divide * h.inner;
}

template <typename T>
static __global__ void __launch_bounds__(TILE_THREADS, 3) batched_kernel(const batched x) {
    product p = x.one;
    p.a = static_cast<const T *>(p.a) + offset_of(x.a, blockIdx.z, x.heads);
    p.b = static_cast<const T *>(p.b) + offset_of(x.b, blockIdx.z, x.heads);
    p.c = static_cast<T *>(p.c) + offset_of(x.c, blockIdx.z, x.heads);
    multiply_tile<T, T>(p, (int64_t)blockIdx.x * TILE, (int64_t)blockIdx.y * TILE);
}

static void launch(const struct stream *stream, const batched &x, int64_t batches, enum dtype dtype) {
    const dim3 grid(cuda_blocks(x.one.m, TILE, 1), cuda_blocks(x.one.n, TILE, 1),
                    (unsigned)(batches * x.heads));
    BY_DTYPE(dtype, T, CUDA_LAUNCH(batched_kernel<T>, grid, TILE_THREADS, 0, cuda_stream(stream), x))
}

/* How the heads of a tensor lie: [b, heads, s, cols] by query head, the same by group, [s, b, a * d]. */
static heads_of by_head(const attention_shape &z, int64_t cols) {
    const heads_of h = {z.a * z.s * cols, z.s * cols, 1};
    return h;
}
static heads_of by_group(const attention_shape &z, int64_t cols) {
    const heads_of h = {z.g * z.s * cols, z.s * cols, z.a / z.g};
    return h;
}
static heads_of in_hidden(const attention_shape &z) {
    const heads_of h = {z.a * z.d, z.d, 1};
    return h;
}
/* Per group: the first of its query heads; the others are parts of one sum. */
static heads_of group_of(heads_of heads, const attention_shape &z) {
    heads.inner *= z.a / z.g;
    return heads;
}
static heads_of group_own(heads_of heads) {
    heads.divide = 1;
    return heads;
}

static batched batched_of(const void *a, heads_of of_a, int64_t lda, bool trans_a, const void *b,
                          heads_of of_b, int64_t ldb, bool trans_b, void *c, heads_of of_c, int64_t ldc) {
    batched x = {};
    x.one.a = a, x.one.b = b, x.one.c = c;
    x.one.lda = lda, x.one.ldb = ldb, x.one.ldc = ldc;
    x.one.trans_a = trans_a, x.one.trans_b = trans_b;
    x.one.parts = 1, x.one.alpha = 1;
    x.a = of_a, x.b = of_b, x.c = of_c;
    return x;
}

static void set_size(batched *x, int64_t m, int64_t n, int64_t k, int64_t heads, enum triangle triangle,
                     bool causal) {
    x->one.m = m, x->one.n = n, x->one.k = k;
    x->one.triangle = causal ? triangle : WHOLE;
    x->heads = heads;
}

void cuda_attention_scores_forward(const struct stream *stream,
                                   const struct attention_scores_forward_args *args) {
    const attention_shape z = args->shape;
    batched x = batched_of(args->q, by_head(z, z.d), z.d, false, args->k, by_group(z, z.d), z.d, true,
                           args->scores, by_head(z, z.s), z.s);
    set_size(&x, z.s, z.s, z.d, z.a, C_LOWER, args->causal);
    x.one.alpha = args->scale;
    launch(stream, x, z.b, args->dtype);
}

void cuda_attention_scores_backward(const struct stream *stream,
                                    const struct attention_scores_backward_args *args) {
    const attention_shape z = args->shape;
    batched x = batched_of(args->dscores, by_head(z, z.s), z.s, false, args->k, by_group(z, z.d), z.d, false,
                           args->dq, by_head(z, z.d), z.d);
    set_size(&x, z.s, z.d, z.s, z.a, A_LOWER, args->causal);
    x.one.alpha = args->scale;
    launch(stream, x, z.b, args->dtype);
    x = batched_of(args->dscores, group_of(by_head(z, z.s), z), z.s, true, args->q,
                   group_of(by_head(z, z.d), z), z.d, false, args->dk, group_own(by_group(z, z.d)), z.d);
    set_size(&x, z.s, z.d, z.s, z.g, A_UPPER, args->causal);
    x.one.alpha = args->scale;
    x.one.parts = z.a / z.g, x.one.a_part = z.s * z.s, x.one.b_part = z.s * z.d;
    launch(stream, x, z.b, args->dtype);
}

void cuda_attention_context_forward(const struct stream *stream,
                                    const struct attention_context_forward_args *args) {
    const attention_shape z = args->shape;
    batched x = batched_of(args->probs, by_head(z, z.s), z.s, false, args->v, by_group(z, z.d), z.d, false,
                           args->o, in_hidden(z), z.b * z.a * z.d);
    set_size(&x, z.s, z.d, z.s, z.a, A_LOWER, args->causal);
    launch(stream, x, z.b, args->dtype);
}

void cuda_attention_context_backward(const struct stream *stream,
                                     const struct attention_context_backward_args *args) {
    const attention_shape z = args->shape;
    const int64_t row = z.b * z.a * z.d;
    batched x = batched_of(args->d_o, in_hidden(z), row, false, args->v, by_group(z, z.d), z.d, true,
                           args->dprobs, by_head(z, z.s), z.s);
    set_size(&x, z.s, z.s, z.d, z.a, C_LOWER_ELSE_ZERO, args->causal);
    launch(stream, x, z.b, args->dtype);
    x = batched_of(args->probs, group_of(by_head(z, z.s), z), z.s, true, args->d_o, group_of(in_hidden(z), z),
                   row, false, args->dv, group_own(by_group(z, z.d)), z.d);
    set_size(&x, z.s, z.d, z.s, z.g, A_UPPER, args->causal);
    x.one.parts = z.a / z.g, x.one.a_part = z.s * z.s, x.one.b_part = z.d;
    launch(stream, x, z.b, args->dtype);
}
