/* Fused attention for every dtype, head size and window: a warp per query (forward and dq) or per key (dk and
 * dv), 32 scores at a time with a running maximum; scores are never stored. Float32 multiply-adds; what
 * tensor cores can do goes to attention_tiles.cu. */
#include "kernels/cuda/attention.cuh"

enum {
    WARPS = 4,
    THREADS = 32 * WARPS,
    COLUMNS = 16
}; /* of a row that one lane can hold: head sizes up to 512 */

template <typename T> static __device__ __forceinline__ float dot(const T *x, const T *y, int64_t n) {
    float sum = 0;
    for (int64_t c = 0; c < n; c++) sum += to_f32(x[c]) * to_f32(y[c]);
    return sum;
}

/* A lane's columns of a row: lane, lane + 32, ... */
template <typename T>
static __device__ __forceinline__ void add_row(float (&sums)[COLUMNS], float factor, const T *row,
                                               int64_t size) {
#pragma unroll
    for (int c = 0; c < COLUMNS; c++) {
        const int64_t n = threadIdx.x % 32 + 32 * c;
        if (n < size) sums[c] += factor * to_f32(row[n]);
    }
}

/* [begin] (+)= factor * sums */
template <typename O>
static __device__ __forceinline__ void put_row(O *row, const float (&sums)[COLUMNS], float factor,
                                               int64_t size, bool add) {
#pragma unroll
    for (int c = 0; c < COLUMNS; c++) {
        const int64_t n = threadIdx.x % 32 + 32 * c;
        if (n < size) from_f32(&row[n], add ? to_f32(row[n]) + factor * sums[c] : factor * sums[c]);
    }
}

template <typename T, typename O>
static __global__ void __launch_bounds__(THREADS)
    attention_forward_kernel(const attention p, void *o, float *lse) {
    SHARED(float, all_probs, THREADS);
    float *probs = all_probs + threadIdx.x / 32 * 32;
    const int64_t at = (int64_t)blockIdx.x * WARPS + threadIdx.x / 32, i = at % p.z.s,
                  head = at / p.z.s % p.z.a;
    const int64_t batch = at / p.z.s / p.z.a, group = head / (p.z.a / p.z.g), lane = threadIdx.x % 32;
    if (batch >= p.z.b) return;
    const T *q = static_cast<const T *>(p.q) + q_row(p, batch, head, i);
    const T *k = static_cast<const T *>(p.k) + k_row(p, batch, group, 0, p.z.d);
    const T *v = static_cast<const T *>(p.v) + k_row(p, batch, group, 0, p.dv);
    const int64_t seen = keys_seen(p, i);
    float most = -INFINITY, sum = 0, sums[COLUMNS] = {0};
    for (int64_t j0 = 0; j0 < seen; j0 += 32) {
        const bool counts = j0 + lane < seen;
        const float score = counts ? p.scale * dot(q, k + (j0 + lane) * p.z.d, p.z.d) : -INFINITY;
        const float top = max_or_nan(most, warp_max(score)), base = top == -INFINITY ? 0.0f : top;
        const float shrink = most == -INFINITY ? 0.0f : expf(most - base),
                    prob = counts ? expf(score - base) : 0.0f;
        sum = sum * shrink + warp_sum(prob);
#pragma unroll
        for (int c = 0; c < COLUMNS; c++) sums[c] *= shrink;
        probs[lane] = counts ? prob * mask_of(p, batch, head, i, j0 + lane) : 0.0f;
        __syncwarp(FULL_WARP);
        for (int64_t j = 0; j < 32 && j0 + j < seen; j++) add_row(sums, probs[j], v + (j0 + j) * p.dv, p.dv);
        __syncwarp(FULL_WARP);
        most = top;
    }
    put_row(static_cast<O *>(o) + o_row(p, batch, head, i), sums, seen ? 1.0f / sum : 0.0f, p.dv, false);
    if (lse && lane == 0)
        lse[(batch * p.z.a + head) * p.w.q_rows + i] =
            !seen ? -INFINITY : (most == -INFINITY ? 0.0f : most) + logf(sum);
}

void cuda_attention_forward(const struct stream *stream, const struct attention_forward_args *args) {
    attention p =
        attention_of(args->shape, args->window, args->scale, args->dropout, args->key, args->causal);
    const unsigned blocks = cuda_blocks(p.z.b * p.z.a * p.z.s, WARPS, 1);
    CHECK(p.z.d <= 32 * COLUMNS && p.dv <= 32 * COLUMNS, "attention on CUDA has head sizes up to %d",
          32 * COLUMNS);
    p.q = args->q, p.k = args->k, p.v = args->v;
    if (attention_has_tiles(p, args->dtype)) {
        attention_tiles_forward(stream, p, args->dtype, args->o, args->o_is_f32, args->lse);
    } else if (args->o_is_f32) {
        BY_DTYPE(args->dtype, T,
                 CUDA_LAUNCH((attention_forward_kernel<T, float>), blocks, THREADS, 0, cuda_stream(stream), p,
                             args->o, args->lse))
    } else {
        BY_DTYPE(args->dtype, T,
                 CUDA_LAUNCH((attention_forward_kernel<T, T>), blocks, THREADS, 0, cuda_stream(stream), p,
                             args->o, args->lse))
    }
}

/* ---- backward ---- */
/* delta[b, a, s] = sum of dO * o over a row. */
template <typename T>
static __global__ void __launch_bounds__(THREADS) delta_kernel(const attention p, float *delta) {
    const int64_t at = (int64_t)blockIdx.x * WARPS + threadIdx.x / 32, i = at % p.z.s,
                  head = at / p.z.s % p.z.a;
    const int64_t batch = at / p.z.s / p.z.a;
    if (batch >= p.z.b) return;
    const int64_t row = o_row(p, batch, head, i);
    float sum = 0;
    for (int64_t n = threadIdx.x % 32; n < p.dv; n += 32)
        sum += to_f32(static_cast<const T *>(p.d_o)[row + n]) * to_f32(static_cast<const T *>(p.o)[row + n]);
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0) delta[at] = sum;
}

/* Of one score: the probability after dropout, and the gradient of the scaled score. */
struct pair {
    float dropped, dscore;
};

template <typename T>
static __device__ __forceinline__ pair pair_at(const attention &p, int64_t batch, int64_t head, int64_t group,
                                               int64_t i, int64_t j) {
    const T *q = static_cast<const T *>(p.q) + q_row(p, batch, head, i);
    const T *k = static_cast<const T *>(p.k) + k_row(p, batch, group, j, p.z.d);
    const T *v = static_cast<const T *>(p.v) + k_row(p, batch, group, j, p.dv);
    const T *d_o = static_cast<const T *>(p.d_o) + o_row(p, batch, head, i);
    const float lse = p.lse[(batch * p.z.a + head) * p.w.q_rows + i];
    const float prob = expf(p.scale * dot(q, k, p.z.d) - lse), keep = mask_of(p, batch, head, i, j);
    const float delta = p.delta[(batch * p.z.a + head) * p.z.s + i];
    const pair out = {prob * keep, prob * (keep * dot(d_o, v, p.dv) - delta)};
    return out;
}

template <typename T, typename O>
static __global__ void __launch_bounds__(THREADS) attention_dq_kernel(const attention p, void *dq, bool add) {
    SHARED(float, all_scores, THREADS);
    float *dscores = all_scores + threadIdx.x / 32 * 32;
    const int64_t at = (int64_t)blockIdx.x * WARPS + threadIdx.x / 32, i = at % p.z.s,
                  head = at / p.z.s % p.z.a;
    const int64_t batch = at / p.z.s / p.z.a, group = head / (p.z.a / p.z.g), lane = threadIdx.x % 32;
    if (batch >= p.z.b) return;
    const T *k = static_cast<const T *>(p.k) + k_row(p, batch, group, 0, p.z.d);
    const int64_t seen = keys_seen(p, i);
    float sums[COLUMNS] = {0};
    for (int64_t j0 = 0; j0 < seen; j0 += 32) {
        dscores[lane] = j0 + lane < seen ? pair_at<T>(p, batch, head, group, i, j0 + lane).dscore : 0.0f;
        __syncwarp(FULL_WARP);
        for (int64_t j = 0; j < 32 && j0 + j < seen; j++)
            add_row(sums, dscores[j], k + (j0 + j) * p.z.d, p.z.d);
        __syncwarp(FULL_WARP);
    }
    put_row(static_cast<O *>(dq) + q_row(p, batch, head, i), sums, p.scale, p.z.d, add);
}

/* Sums over the group's heads, in order, and the queries that see key j. */
template <typename T, typename O>
static __global__ void __launch_bounds__(THREADS)
    attention_dkv_kernel(const attention p, void *dk, void *dv, bool add) {
    SHARED(float, all_scores, THREADS);
    SHARED(float, all_probs, THREADS);
    float *dscores = all_scores + threadIdx.x / 32 * 32, *probs = all_probs + threadIdx.x / 32 * 32;
    const int64_t at = (int64_t)blockIdx.x * WARPS + threadIdx.x / 32, j = at % p.w.keys,
                  group = at / p.w.keys % p.z.g;
    const int64_t batch = at / p.w.keys / p.z.g, per_group = p.z.a / p.z.g, lane = threadIdx.x % 32;
    if (batch >= p.z.b) return;
    const int64_t sees = p.causal ? p.w.first_key + j - p.w.first_query : 0, first = sees > 0 ? sees : 0;
    float sums_k[COLUMNS] = {0}, sums_v[COLUMNS] = {0};
    for (int64_t head = group * per_group; head < (group + 1) * per_group; head++)
        for (int64_t i0 = first; i0 < p.z.s; i0 += 32) {
            pair x = {0, 0};
            if (i0 + lane < p.z.s) x = pair_at<T>(p, batch, head, group, i0 + lane, j);
            dscores[lane] = x.dscore, probs[lane] = x.dropped;
            __syncwarp(FULL_WARP);
            for (int64_t i = 0; i < 32 && i0 + i < p.z.s; i++) {
                add_row(sums_k, dscores[i], static_cast<const T *>(p.q) + q_row(p, batch, head, i0 + i),
                        p.z.d);
                add_row(sums_v, probs[i], static_cast<const T *>(p.d_o) + o_row(p, batch, head, i0 + i),
                        p.dv);
            }
            __syncwarp(FULL_WARP);
        }
    put_row(static_cast<O *>(dk) + k_row(p, batch, group, j, p.z.d), sums_k, p.scale, p.z.d, add);
    put_row(static_cast<O *>(dv) + k_row(p, batch, group, j, p.dv), sums_v, 1.0f, p.dv, add);
}

size_t cuda_attention_backward_workspace(const struct stream *, const struct attention_backward_args *args) {
    return (size_t)(args->shape.b * args->shape.a * args->shape.s) * sizeof(float);
}

template <typename T, typename O>
static void backward(const struct stream *stream, const struct attention_backward_args *args,
                     const attention &p, float *delta) {
    const unsigned queries = cuda_blocks(p.z.b * p.z.a * p.z.s, WARPS, 1),
                   keys = cuda_blocks(p.z.b * p.z.g * p.w.keys, WARPS, 1);
    CUDA_LAUNCH(delta_kernel<T>, queries, THREADS, 0, cuda_stream(stream), p, delta);
    if (attention_has_tiles(p, args->dtype)) {
        attention_tiles_backward(stream, p, args->dtype, args->dq, args->dk, args->dv, args->grads_are_f32,
                                 args->accumulate);
        return;
    }
    CUDA_LAUNCH((attention_dq_kernel<T, O>), queries, THREADS, 0, cuda_stream(stream), p, args->dq,
                args->accumulate);
    CUDA_LAUNCH((attention_dkv_kernel<T, O>), keys, THREADS, 0, cuda_stream(stream), p, args->dk, args->dv,
                args->accumulate);
}

void cuda_attention_backward(const struct stream *stream, const struct attention_backward_args *args) {
    attention p =
        attention_of(args->shape, args->window, args->scale, args->dropout, args->key, args->causal);
    float *delta = static_cast<float *>(stream->workspace);
    CHECK(p.z.d <= 32 * COLUMNS && p.dv <= 32 * COLUMNS, "attention on CUDA has head sizes up to %d",
          32 * COLUMNS);
    p.q = args->q, p.k = args->k, p.v = args->v, p.d_o = args->d_o, p.o = args->o;
    p.lse = args->lse, p.delta = delta;
    if (args->grads_are_f32) {
        BY_DTYPE(args->dtype, T, (backward<T, float>(stream, args, p, delta)))
    } else {
        BY_DTYPE(args->dtype, T, (backward<T, T>(stream, args, p, delta)))
    }
}
