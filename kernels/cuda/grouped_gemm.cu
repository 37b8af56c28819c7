/* One product per expert, in one launch: the device alone knows how rows are shared out, so a block finds its
 * group and tile itself, and blocks beyond the last tile return. */
#include "kernels/cuda/tile.cuh"

/* The operands of group g. */
template <typename T, typename C>
static __device__ product group_product(const grouped_gemm_args &a, int64_t g) {
    const int64_t first = a.offsets[g], rows = a.offsets[g + 1] - first, matrix = a.n * a.k;
    product p = {};
    p.parts = 1, p.alpha = 1, p.accumulate = a.accumulate;
    if (a.sums_rows) {
        p.c = static_cast<C *>(a.c) + g * matrix;
        p.a = static_cast<const T *>(a.a) + first * a.n;
        p.b = static_cast<const T *>(a.b) + first * a.k;
        p.trans_a = true;
        p.m = a.n, p.n = a.k, p.k = rows;
        p.lda = a.n, p.ldb = a.k, p.ldc = a.k;
    } else {
        p.c = static_cast<C *>(a.c) + first * a.n;
        p.a = static_cast<const T *>(a.a) + first * a.k;
        p.b = static_cast<const T *>(a.b) + g * matrix;
        p.trans_b = a.trans_b;
        p.m = rows, p.n = a.n, p.k = a.k;
        p.lda = a.k, p.ldb = a.trans_b ? a.k : a.n, p.ldc = a.n;
    }
    return p;
}

/* Row tile blockIdx.x among all groups' row tiles. */
template <typename T, typename C>
static __global__ void __launch_bounds__(TILE_THREADS, 3) rows_kernel(const grouped_gemm_args a) {
    int64_t tile = blockIdx.x;
    for (int64_t g = 0; g < a.groups; g++) {
        const int64_t tiles = (a.offsets[g + 1] - a.offsets[g] + TILE - 1) / TILE;
        if (tile < tiles) {
            multiply_tile<T, C>(group_product<T, C>(a, g), tile * TILE, (int64_t)blockIdx.y * TILE);
            return;
        }
        tile -= tiles;
    }
}

template <typename T, typename C>
static __global__ void __launch_bounds__(TILE_THREADS, 3) weights_kernel(const grouped_gemm_args a) {
    multiply_tile<T, C>(group_product<T, C>(a, blockIdx.z), (int64_t)blockIdx.x * TILE,
                        (int64_t)blockIdx.y * TILE);
}

template <typename T, typename C>
static void launch(const struct stream *stream, const grouped_gemm_args &a) {
    if (a.sums_rows) {
        const dim3 grid(cuda_blocks(a.n, TILE, 1), cuda_blocks(a.k, TILE, 1), (unsigned)a.groups);
        CUDA_LAUNCH((weights_kernel<T, C>), grid, TILE_THREADS, 0, cuda_stream(stream), a);
    } else if (a.rows) {
        const dim3 grid(cuda_blocks(a.rows, TILE, 1) + (unsigned)a.groups, cuda_blocks(a.n, TILE, 1));
        CUDA_LAUNCH((rows_kernel<T, C>), grid, TILE_THREADS, 0, cuda_stream(stream), a);
    }
}

void cuda_grouped_gemm(const struct stream *stream, const struct grouped_gemm_args *args) {
    CHECK(!args->b_packed, "CUDA multiplies by plain matrices");
    if (args->groups == 0 || args->n == 0 || (args->sums_rows && args->k == 0)) return;
    if (args->c_dtype == args->dtype) {
        BY_DTYPE(args->dtype, T, (launch<T, T>(stream, *args)))
    } else {
        BY_DTYPE(args->dtype, T, (launch<T, float>(stream, *args)))
    }
}
