/* Fused attention by tensor cores, for 16-bit types and head sizes 64, 96, 128 and 192 with values of 128.
 *
 * A block has 64 queries, 16 to each of its 4 warps, and goes over the keys that they see, 64 or fewer at a
 * time. Tiles lie in shared memory, rows an odd multiple of 16 bytes apart, so that the eight rows of an
 * ldmatrix fall on different banks. Scores stay in the registers that mma leaves them in: as it happens,
 * those are the registers in which the next mma wants its left operand.
 *
 * Floor of forward, for each batch and query head: 2 (d + dv) FLOPs per query and key seen, half of s * s
 * when causal; memory: q, k, v and o once (k and v once per group). Loads are plain, not pipelined. */
#include "kernels/cuda/attention.cuh"
#include "kernels/cuda/ptx.cuh"

enum { WARPS = 4, THREADS = 32 * WARPS, ROWS = 16 * WARPS, PAD = 8 };

/* tile[rows, SIZE + PAD] = the rows at x, `stride` elements apart; those from `left` on are zero. */
template <typename T, int SIZE>
static __device__ __forceinline__ void fill_tile(T *tile, int rows, const T *x, int64_t stride,
                                                 int64_t left) {
    constexpr int EACH = SIZE / GROUP;
    for (int at = (int)threadIdx.x; at < rows * EACH; at += THREADS) {
        const int row = at / EACH, column = at % EACH * GROUP;
        uint4 value = {0, 0, 0, 0};
        if (row < left) value = *reinterpret_cast<const uint4 *>(x + row * stride + column);
        *reinterpret_cast<uint4 *>(tile + row * (SIZE + PAD) + column) = value;
    }
}

/* c[16, 8 N] += a[16, SIZE] b[8 N, SIZE]^T, both with rows of SIZE + PAD. */
template <typename T, int SIZE, int N>
static __device__ __forceinline__ void add_by_rows(float (&c)[N][4], const T *a, const T *b) {
    const int lane = (int)threadIdx.x % 32;
    a += lane % 16 * (SIZE + PAD) + lane / 16 * 8;
    b += (lane % 8 + lane / 16 * 8) * (SIZE + PAD) + lane / 8 % 2 * 8;
#pragma unroll
    for (int k = 0; k < SIZE; k += 16) {
        uint32_t x[4];
        ldmatrix<false>(x, a + k);
#pragma unroll
        for (int n = 0; n < N; n += 2) {
            uint32_t y[4];
            ldmatrix<false>(y, b + 8 * n * (SIZE + PAD) + k);
            const uint32_t left[2] = {y[0], y[1]}, right[2] = {y[2], y[3]};
            mma_16816<T>(c[n], x, left);
            mma_16816<T>(c[n + 1], x, right);
        }
    }
}

template <typename T> static __device__ __forceinline__ uint32_t pack(float low, float high) {
    T x, y;
    from_f32(&x, low), from_f32(&y, high);
    return x.bits | (uint32_t)y.bits << 16;
}

/* c[16, SIZE] += p[16, 8 N] b[8 N, SIZE]; p as mma leaves its sums. */
template <typename T, int SIZE, int N>
static __device__ __forceinline__ void add_by_columns(float (&c)[SIZE / 8][4], const float (&p)[N][4],
                                                      const T *b) {
    const int lane = (int)threadIdx.x % 32;
    b += lane % 16 * (SIZE + PAD) + lane / 16 * 8;
#pragma unroll
    for (int k = 0; k < N; k += 2) {
        const uint32_t x[4] = {pack<T>(p[k][0], p[k][1]), pack<T>(p[k][2], p[k][3]),
                               pack<T>(p[k + 1][0], p[k + 1][1]), pack<T>(p[k + 1][2], p[k + 1][3])};
#pragma unroll
        for (int n = 0; n < SIZE / 8; n += 2) {
            uint32_t y[4];
            ldmatrix<true>(y, b + 8 * k * (SIZE + PAD) + 8 * n);
            const uint32_t left[2] = {y[0], y[1]}, right[2] = {y[2], y[3]};
            mma_16816<T>(c[n], x, left);
            mma_16816<T>(c[n + 1], x, right);
        }
    }
}

/* row[0 .. SIZE) (+)= factor * the half (0: the first row of a lane, 1: the second) of c. */
template <typename O, int N>
static __device__ __forceinline__ void put_half(O *row, const float (&c)[N][4], int half, float factor,
                                                bool add) {
    row += threadIdx.x % 4 * 2;
#pragma unroll
    for (int n = 0; n < N; n++)
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const float value = factor * c[n][2 * half + i];
            from_f32(&row[8 * n + i], add ? to_f32(row[8 * n + i]) + value : value);
        }
}

/* Over the four lanes that share a row. */
static __device__ __forceinline__ float quad_max(float x) {
    x = max_or_nan(x, __shfl_xor_sync(FULL_WARP, x, 1));
    return max_or_nan(x, __shfl_xor_sync(FULL_WARP, x, 2));
}
static __device__ __forceinline__ float quad_sum(float x) {
    x += __shfl_xor_sync(FULL_WARP, x, 1);
    return x + __shfl_xor_sync(FULL_WARP, x, 2);
}

/* ---- forward ---- */
template <int D, int DV> struct forward_tiles {
    static constexpr int KEYS = D > 128 ? 32 : 64;
    static constexpr size_t BYTES = 2 * ((ROWS + KEYS) * (D + PAD) + KEYS * (DV + PAD));
};

/* Scores of one row to probabilities relative to the running maximum, then dropped. */
template <int N, int DV>
static __device__ __forceinline__ void
soften(const attention &p, float (&score)[N][4], float (&sums)[DV / 8][4], float &most, float &sum, int half,
       int64_t batch, int64_t head, int64_t i, int64_t j0, int64_t seen) {
    const int column = (int)threadIdx.x % 4 * 2;
    float top = -INFINITY, part = 0;
#pragma unroll
    for (int n = 0; n < N; n++)
#pragma unroll
        for (int c = 0; c < 2; c++) {
            float &x = score[n][2 * half + c];
            x = j0 + 8 * n + column + c < seen ? p.scale * x : -INFINITY;
            top = max_or_nan(top, x);
        }
    top = max_or_nan(most, quad_max(top));
    const float base = top == -INFINITY ? 0.0f : top, shrink = most == -INFINITY ? 0.0f : expf(most - base);
#pragma unroll
    for (int n = 0; n < N; n++)
#pragma unroll
        for (int c = 0; c < 2; c++) {
            float &x = score[n][2 * half + c];
            const int64_t j = j0 + 8 * n + column + c;
            x = j < seen ? expf(x - base) : 0.0f;
            part += x;
            if (p.threshold && j < seen) x *= mask_of(p, batch, head, i, j);
        }
    sum = sum * shrink + quad_sum(part), most = top;
#pragma unroll
    for (int n = 0; n < DV / 8; n++) sums[n][2 * half] *= shrink, sums[n][2 * half + 1] *= shrink;
}

template <typename T, typename O, int D, int DV>
static __global__ void __launch_bounds__(THREADS)
    tiles_forward_kernel(const attention p, void *o, float *lse) {
    constexpr int KEYS = forward_tiles<D, DV>::KEYS, N = KEYS / 8;
    SHARED_DYNAMIC(T, q_tile);
    T *k_tile = q_tile + ROWS * (D + PAD), *v_tile = k_tile + KEYS * (D + PAD);
    const int64_t tiles = (p.z.s + ROWS - 1) / ROWS, i0 = (int64_t)blockIdx.x % tiles * ROWS,
                  line = (int64_t)blockIdx.x / tiles;
    const int64_t head = line % p.z.a, batch = line / p.z.a, group = head / (p.z.a / p.z.g);
    const T *k = static_cast<const T *>(p.k) + k_row(p, batch, group, 0, D);
    const T *v = static_cast<const T *>(p.v) + k_row(p, batch, group, 0, DV);
    const int warp = (int)threadIdx.x / 32;
    const int64_t i = i0 + 16 * warp + threadIdx.x % 32 / 4, last = i0 + ROWS < p.z.s ? i0 + ROWS : p.z.s;
    const int64_t seen[2] = {keys_seen(p, i), keys_seen(p, i + 8)}, end = keys_seen(p, last - 1);
    float most[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0}, sums[DV / 8][4] = {{0}};
    fill_tile<T, D>(q_tile, ROWS, static_cast<const T *>(p.q) + q_row(p, batch, head, i0), D, p.z.s - i0);
    for (int64_t j0 = 0; j0 < end; j0 += KEYS) {
        float score[N][4] = {{0}};
        fill_tile<T, D>(k_tile, KEYS, k + j0 * D, D, p.w.keys - j0);
        fill_tile<T, DV>(v_tile, KEYS, v + j0 * DV, DV, p.w.keys - j0);
        __syncthreads();
        add_by_rows<T, D, N>(score, q_tile + 16 * warp * (D + PAD), k_tile);
#pragma unroll
        for (int h = 0; h < 2; h++)
            soften<N, DV>(p, score, sums, most[h], sum[h], h, batch, head, i + 8 * h, j0, seen[h]);
        add_by_columns<T, DV, N>(sums, score, v_tile);
        __syncthreads();
    }
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const int64_t row = i + 8 * h;
        if (row >= p.z.s) continue;
        put_half(static_cast<O *>(o) + o_row(p, batch, head, row), sums, h, seen[h] ? 1.0f / sum[h] : 0.0f,
                 false);
        if (lse && threadIdx.x % 4 == 0)
            lse[(batch * p.z.a + head) * p.w.q_rows + row] =
                !seen[h] ? -INFINITY : (most[h] == -INFINITY ? 0.0f : most[h]) + logf(sum[h]);
    }
}

/* Runs the statement with T, D and DV set. */
#define BY_TILES(p, dtype, ...)                                                                              \
    if ((dtype) == DTYPE_BF16) {                                                                             \
        using T = bf16;                                                                                      \
        BY_HEAD_SIZE(p, __VA_ARGS__)                                                                         \
    } else {                                                                                                 \
        using T = f16;                                                                                       \
        BY_HEAD_SIZE(p, __VA_ARGS__)                                                                         \
    }
#define WITH_HEAD_SIZE(d, dv, ...)                                                                           \
    {                                                                                                        \
        constexpr int D = d, DV = dv;                                                                        \
        __VA_ARGS__;                                                                                         \
    }
#define BY_HEAD_SIZE(p, ...)                                                                                 \
    if ((p).z.d == 64)                                                                                       \
        WITH_HEAD_SIZE(64, 64, __VA_ARGS__)                                                                  \
    else if ((p).z.d == 96)                                                                                  \
        WITH_HEAD_SIZE(96, 96, __VA_ARGS__)                                                                  \
    else if ((p).z.d == 128)                                                                                 \
        WITH_HEAD_SIZE(128, 128, __VA_ARGS__)                                                                \
    else                                                                                                     \
        WITH_HEAD_SIZE(192, 128, __VA_ARGS__)

template <typename T, typename O, int D, int DV>
static void forward(const struct stream *stream, const attention &p, void *o, float *lse) {
    const unsigned blocks = (unsigned)((p.z.s + ROWS - 1) / ROWS * p.z.b * p.z.a);
    CUDA_LAUNCH((tiles_forward_kernel<T, O, D, DV>), blocks, THREADS, (forward_tiles<D, DV>::BYTES),
                cuda_stream(stream), p, o, lse);
}

void attention_tiles_forward(const struct stream *stream, const attention &p, enum dtype dtype, void *o,
                             bool o_is_f32, float *lse) {
    if (o_is_f32) {
        BY_TILES(p, dtype, (forward<T, float, D, DV>(stream, p, o, lse)))
    } else {
        BY_TILES(p, dtype, (forward<T, T, D, DV>(stream, p, o, lse)))
    }
}

/* ---- backward ---- */
/* Floor of dq: 2 (2 d + dv) FLOPs per query and key seen, of dk and dv: 4 (d + dv); scores and dO v^T are
 * computed in both passes, so that each sum has one owner and one order. */
template <int D, int DV> struct backward_tiles {
    static constexpr int OTHERS =
        D > 128 ? 16 : 32; /* keys of a step of dq, queries of a step of dk and dv */
    static constexpr size_t BYTES = 2 * (ROWS + OTHERS) * (D + PAD + DV + PAD) + 2 * OTHERS * sizeof(float);
};

template <typename T, typename O, int D, int DV>
static __global__ void __launch_bounds__(THREADS) tiles_dq_kernel(const attention p, void *dq, bool add) {
    constexpr int KEYS = backward_tiles<D, DV>::OTHERS, N = KEYS / 8;
    SHARED_DYNAMIC(T, q_tile);
    T *do_tile = q_tile + ROWS * (D + PAD), *k_tile = do_tile + ROWS * (DV + PAD),
      *v_tile = k_tile + KEYS * (D + PAD);
    const int64_t tiles = (p.z.s + ROWS - 1) / ROWS, i0 = (int64_t)blockIdx.x % tiles * ROWS,
                  line = (int64_t)blockIdx.x / tiles;
    const int64_t head = line % p.z.a, batch = line / p.z.a, group = head / (p.z.a / p.z.g);
    const T *k = static_cast<const T *>(p.k) + k_row(p, batch, group, 0, D);
    const T *v = static_cast<const T *>(p.v) + k_row(p, batch, group, 0, DV);
    const int warp = (int)threadIdx.x / 32, column = (int)threadIdx.x % 4 * 2;
    const int64_t i = i0 + 16 * warp + threadIdx.x % 32 / 4, last = i0 + ROWS < p.z.s ? i0 + ROWS : p.z.s;
    const int64_t end = keys_seen(p, last - 1);
    int64_t seen[2];
    float lse[2], delta[2], sums[D / 8][4] = {{0}};
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const int64_t row = i + 8 * h;
        const bool counts = row < p.z.s;
        seen[h] = counts ? keys_seen(p, row) : 0;
        lse[h] = counts ? p.lse[line * p.w.q_rows + row] : 0.0f;
        delta[h] = counts ? p.delta[line * p.z.s + row] : 0.0f;
    }
    fill_tile<T, D>(q_tile, ROWS, static_cast<const T *>(p.q) + q_row(p, batch, head, i0), D, p.z.s - i0);
    fill_tile<T, DV>(do_tile, ROWS, static_cast<const T *>(p.d_o) + o_row(p, batch, head, i0),
                     p.z.b * p.z.a * DV, p.z.s - i0);
    for (int64_t j0 = 0; j0 < end; j0 += KEYS) {
        float score[N][4] = {{0}}, grad[N][4] = {{0}};
        fill_tile<T, D>(k_tile, KEYS, k + j0 * D, D, p.w.keys - j0);
        fill_tile<T, DV>(v_tile, KEYS, v + j0 * DV, DV, p.w.keys - j0);
        __syncthreads();
        add_by_rows<T, D, N>(score, q_tile + 16 * warp * (D + PAD), k_tile);
        add_by_rows<T, DV, N>(grad, do_tile + 16 * warp * (DV + PAD), v_tile);
#pragma unroll
        for (int n = 0; n < N; n++)
#pragma unroll
            for (int c = 0; c < 4; c++) {
                const int64_t j = j0 + 8 * n + column + c % 2;
                const bool counts = j < seen[c / 2];
                const float prob = counts ? expf(p.scale * score[n][c] - lse[c / 2]) : 0.0f;
                const float keep = p.threshold && counts ? mask_of(p, batch, head, i + c / 2 * 8, j) : 1.0f;
                score[n][c] = counts ? prob * (keep * grad[n][c] - delta[c / 2]) : 0.0f;
            }
        add_by_columns<T, D, N>(sums, score, k_tile);
        __syncthreads();
    }
#pragma unroll
    for (int h = 0; h < 2; h++)
        if (i + 8 * h < p.z.s)
            put_half(static_cast<O *>(dq) + q_row(p, batch, head, i + 8 * h), sums, h, p.scale, add);
}

/* The same with the roles turned: a block has 64 keys, and goes over the group's heads, in order, and the
 * queries that see them. */
template <typename T, typename O, int D, int DV>
static __global__ void __launch_bounds__(THREADS)
    tiles_dkv_kernel(const attention p, void *dk, void *dv, bool add) {
    constexpr int QUERIES = backward_tiles<D, DV>::OTHERS, N = QUERIES / 8;
    SHARED_DYNAMIC(T, k_tile);
    T *v_tile = k_tile + ROWS * (D + PAD), *q_tile = v_tile + ROWS * (DV + PAD),
      *do_tile = q_tile + QUERIES * (D + PAD);
    float *lse = reinterpret_cast<float *>(do_tile + QUERIES * (DV + PAD)), *delta = lse + QUERIES;
    const int64_t tiles = (p.w.keys + ROWS - 1) / ROWS, j0 = (int64_t)blockIdx.x % tiles * ROWS,
                  line = (int64_t)blockIdx.x / tiles;
    const int64_t group = line % p.z.g, batch = line / p.z.g, per_group = p.z.a / p.z.g;
    const int64_t sees = p.causal ? p.w.first_key + j0 - p.w.first_query : 0, first = sees > 0 ? sees : 0;
    const int warp = (int)threadIdx.x / 32, column = (int)threadIdx.x % 4 * 2;
    const int64_t j = j0 + 16 * warp + threadIdx.x % 32 / 4;
    float sums_k[D / 8][4] = {{0}}, sums_v[DV / 8][4] = {{0}};
    fill_tile<T, D>(k_tile, ROWS, static_cast<const T *>(p.k) + k_row(p, batch, group, j0, D), D,
                    p.w.keys - j0);
    fill_tile<T, DV>(v_tile, ROWS, static_cast<const T *>(p.v) + k_row(p, batch, group, j0, DV), DV,
                     p.w.keys - j0);
    for (int64_t head = group * per_group; head < (group + 1) * per_group; head++)
        for (int64_t i0 = first; i0 < p.z.s; i0 += QUERIES) {
            const int64_t at = batch * p.z.a + head;
            float score[N][4] = {{0}}, grad[N][4] = {{0}};
            fill_tile<T, D>(q_tile, QUERIES, static_cast<const T *>(p.q) + q_row(p, batch, head, i0), D,
                            p.z.s - i0);
            fill_tile<T, DV>(do_tile, QUERIES, static_cast<const T *>(p.d_o) + o_row(p, batch, head, i0),
                             p.z.b * p.z.a * DV, p.z.s - i0);
            if (threadIdx.x < QUERIES) {
                const int64_t i = i0 + threadIdx.x;
                lse[threadIdx.x] = i < p.z.s ? p.lse[at * p.w.q_rows + i] : 0.0f;
                delta[threadIdx.x] = i < p.z.s ? p.delta[at * p.z.s + i] : 0.0f;
            }
            __syncthreads();
            add_by_rows<T, D, N>(score, k_tile + 16 * warp * (D + PAD), q_tile);
            add_by_rows<T, DV, N>(grad, v_tile + 16 * warp * (DV + PAD), do_tile);
#pragma unroll
            for (int n = 0; n < N; n++)
#pragma unroll
                for (int c = 0; c < 4; c++) {
                    const int row = 8 * n + column + c % 2;
                    const int64_t i = i0 + row, key = j + c / 2 * 8;
                    const bool counts = i < p.z.s && key < keys_seen(p, i);
                    const float prob = counts ? expf(p.scale * score[n][c] - lse[row]) : 0.0f;
                    const float keep = p.threshold && counts ? mask_of(p, batch, head, i, key) : 1.0f;
                    score[n][c] = prob * keep;
                    grad[n][c] = counts ? prob * (keep * grad[n][c] - delta[row]) : 0.0f;
                }
            add_by_columns<T, DV, N>(sums_v, score, do_tile);
            add_by_columns<T, D, N>(sums_k, grad, q_tile);
            __syncthreads();
        }
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const int64_t key = j + 8 * h;
        if (key >= p.w.keys) continue;
        put_half(static_cast<O *>(dk) + k_row(p, batch, group, key, D), sums_k, h, p.scale, add);
        put_half(static_cast<O *>(dv) + k_row(p, batch, group, key, DV), sums_v, h, 1.0f, add);
    }
}

template <typename T, typename O, int D, int DV>
static void backward(const struct stream *stream, const attention &p, void *dq, void *dk, void *dv,
                     bool add) {
    const unsigned queries = (unsigned)((p.z.s + ROWS - 1) / ROWS * p.z.b * p.z.a),
                   keys = (unsigned)((p.w.keys + ROWS - 1) / ROWS * p.z.b * p.z.g);
    CUDA_LAUNCH((tiles_dq_kernel<T, O, D, DV>), queries, THREADS, (backward_tiles<D, DV>::BYTES),
                cuda_stream(stream), p, dq, add);
    CUDA_LAUNCH((tiles_dkv_kernel<T, O, D, DV>), keys, THREADS, (backward_tiles<D, DV>::BYTES),
                cuda_stream(stream), p, dk, dv, add);
}

void attention_tiles_backward(const struct stream *stream, const attention &p, enum dtype dtype, void *dq,
                              void *dk, void *dv, bool grads_are_f32, bool add) {
    if (grads_are_f32) {
        BY_TILES(p, dtype, (backward<T, float, D, DV>(stream, p, dq, dk, dv, add)))
    } else {
        BY_TILES(p, dtype, (backward<T, T, D, DV>(stream, p, dq, dk, dv, add)))
    }
}
