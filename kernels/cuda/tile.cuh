#pragma once
/* A block's 64 x 64 tile of a matrix product, through shared memory: tensor cores for 16-bit operands,
 * float32 multiply-adds for float32 ones. Used where cuBLASLt does not fit: groups whose sizes the device
 * alone knows, and the triangles of causal attention. */
#include "kernels/cuda/ptx.cuh"

enum { TILE = 64, TILE_DEPTH = 32, TILE_THREADS = 128, TILE_PITCH = TILE_DEPTH + 8 };

/* Of A, which elements (i, p) count; of C, which (i, j) are written. */
enum triangle { WHOLE, A_LOWER, A_UPPER, C_LOWER, C_LOWER_ELSE_ZERO };

struct product { /* C[m, n] (+)= alpha sum over parts of op(A)[m, k] op(B)[k, n], row-major */
    const void *a, *b;
    void *c;
    int64_t m, n, k, lda, ldb, ldc;
    int64_t parts, a_part, b_part; /* how many, and how far apart */
    bool trans_a, trans_b, accumulate;
    enum triangle triangle;
    float alpha;
};

/* x[64, 32] = op(X)[i0 .., p0 ..]; neighbouring threads take neighbouring elements of memory. */
template <typename T>
static __device__ __forceinline__ void load_tile(T *tile, const T *x, int64_t ld, bool columns_first,
                                                 int64_t i0, int64_t p0, int64_t rows, int64_t depth,
                                                 enum triangle triangle) {
    for (int at = (int)threadIdx.x; at < TILE * TILE_DEPTH; at += TILE_THREADS) {
        const int i = columns_first ? at % TILE : at / TILE_DEPTH,
                  p = columns_first ? at / TILE : at % TILE_DEPTH;
        const int64_t row = i0 + i, col = p0 + p;
        bool counts = row < rows && col < depth;
        if (triangle == A_LOWER) counts = counts && col <= row;
        if (triangle == A_UPPER) counts = counts && col >= row;
        T value;
        from_f32(&value, 0.0f);
        if (counts) value = x[columns_first ? col * ld + row : row * ld + col];
        tile[i * TILE_PITCH + p] = value;
    }
}

/* A warp's 32 x 32 quarter: sums[m][n] is the 16 x 8 fragment at (16 m, 8 n), laid out as mma_16816 says.
 * Fragments beyond the `rows`, `cols` and `depth` that are left hold nothing and are passed over. */
template <typename T> struct quarter {
    static __device__ __forceinline__ uint32_t pair(const T *p) {
        return *reinterpret_cast<const uint32_t *>(p);
    }
    static __device__ __forceinline__ void add(float (&sums)[2][4][4], const T *a, const T *b, int lane,
                                               int64_t rows, int64_t cols, int64_t depth) {
        const int r = lane / 4, q = 2 * (lane % 4);
#pragma unroll
        for (int k = 0; k < TILE_DEPTH; k += 16) {
            if (k >= depth) continue;
            uint32_t x[2][4], y[2];
#pragma unroll
            for (int m = 0; m < 2; m++)
#pragma unroll
                for (int i = 0; i < 4; i++)
                    x[m][i] = pair(&a[(16 * m + r + i % 2 * 8) * TILE_PITCH + k + q + i / 2 * 8]);
#pragma unroll
            for (int n = 0; n < 4; n++) {
                if (8 * n >= cols) continue;
#pragma unroll
                for (int i = 0; i < 2; i++) y[i] = pair(&b[(8 * n + r) * TILE_PITCH + k + q + i * 8]);
#pragma unroll
                for (int m = 0; m < 2; m++)
                    if (16 * m < rows) mma_16816<T>(sums[m][n], x[m], y);
            }
        }
    }
};

template <> struct quarter<float> {
    static __device__ __forceinline__ void add(float (&sums)[2][4][4], const float *a, const float *b,
                                               int lane, int64_t rows, int64_t cols, int64_t depth) {
        const int r = lane / 4, q = 2 * (lane % 4);
        for (int k = 0; k < TILE_DEPTH && k < depth; k++)
#pragma unroll
            for (int n = 0; n < 4; n++) {
                if (8 * n >= cols) continue;
                const float y[2] = {b[(8 * n + q) * TILE_PITCH + k], b[(8 * n + q + 1) * TILE_PITCH + k]};
#pragma unroll
                for (int m = 0; m < 2; m++) {
                    if (16 * m >= rows) continue;
                    const float x[2] = {a[(16 * m + r) * TILE_PITCH + k],
                                        a[(16 * m + r + 8) * TILE_PITCH + k]};
#pragma unroll
                    for (int i = 0; i < 4; i++) sums[m][n][i] += x[i / 2] * y[i % 2];
                }
            }
    }
};

/* Tile (i0, j0) by TILE_THREADS threads. */
template <typename T, typename C>
static __device__ __forceinline__ void multiply_tile(const product &g, int64_t i0, int64_t j0) {
    SHARED(T, a_tile, TILE * TILE_PITCH);
    SHARED(T, b_tile, TILE * TILE_PITCH);
    const bool in_c = g.triangle == C_LOWER || g.triangle == C_LOWER_ELSE_ZERO;
    const int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32, i_warp = warp / 2 * 32,
              j_warp = warp % 2 * 32;
    const int64_t begin = g.triangle == A_UPPER ? i0 : 0;
    const int64_t end = in_c && j0 >= i0 + TILE                    ? 0
                        : g.triangle == A_LOWER && i0 + TILE < g.k ? i0 + TILE
                                                                   : g.k;
    float sums[2][4][4] = {{{0}}};
    if (end == 0 && g.triangle == C_LOWER) return;
    for (int64_t part = 0; part < g.parts; part++)
        for (int64_t p0 = begin; p0 < end; p0 += TILE_DEPTH) {
            load_tile<T>(a_tile, static_cast<const T *>(g.a) + part * g.a_part, g.lda, g.trans_a, i0, p0, g.m,
                         g.k, g.triangle);
            load_tile<T>(b_tile, static_cast<const T *>(g.b) + part * g.b_part, g.ldb, !g.trans_b, j0, p0,
                         g.n, g.k, WHOLE);
            __syncthreads();
            quarter<T>::add(sums, a_tile + i_warp * TILE_PITCH, b_tile + j_warp * TILE_PITCH, lane,
                            g.m - i0 - i_warp, g.n - j0 - j_warp, end - p0);
            __syncthreads();
        }
    C *c = static_cast<C *>(g.c);
#pragma unroll
    for (int m = 0; m < 2; m++)
#pragma unroll
        for (int n = 0; n < 4; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const int64_t row = i0 + i_warp + 16 * m + lane / 4 + i / 2 * 8;
                const int64_t col = j0 + j_warp + 8 * n + 2 * (lane % 4) + i % 2;
                if (row >= g.m || col >= g.n || (g.triangle == C_LOWER && col > row)) continue;
                float value = g.alpha * sums[m][n][i];
                if (g.triangle == C_LOWER_ELSE_ZERO && col > row) value = 0;
                if (g.accumulate) value += to_f32(c[row * g.ldc + col]);
                from_f32(&c[row * g.ldc + col], value);
            }
}
