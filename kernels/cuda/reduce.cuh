#pragma once
/* Sums and maxima over a warp and over a block, in a fixed order: a butterfly over the lanes, then over the
 * warps. Every thread takes part and gets the result. */
#include "kernels/cuda/cuda.cuh"

#define FULL_WARP 0xFFFFFFFFu

#ifdef CUDA_EMULATION /* the same additions, after one meeting of the lanes instead of five */
template <typename T> static inline T warp_sum(T x) {
    T all[32];
    const unsigned char(*lanes)[EMULATED_LANE_BYTES] =
        emulated_warp_meet(EMULATED_PLACE("warp_sum"), FULL_WARP, &x, sizeof(T));
    for (int lane = 0; lane < 32; lane++) memcpy(&all[lane], lanes[lane], sizeof(T));
    for (int bits = 16; bits; bits /= 2)
        for (int lane = 0; lane < bits; lane++) all[lane] += all[lane ^ bits];
    return all[0];
}
#else
template <typename T> static __device__ __forceinline__ T warp_sum(T x) {
#pragma unroll
    for (int bits = 16; bits; bits /= 2) x += __shfl_xor_sync(FULL_WARP, x, bits);
    return x;
}
#endif

/* fmaxf drops a NaN; this keeps it. */
static __device__ __forceinline__ float max_or_nan(float a, float b) {
    return a > b || a != a ? a : b;
}

static __device__ __forceinline__ float warp_max(float x) {
#pragma unroll
    for (int bits = 16; bits; bits /= 2) x = max_or_nan(x, __shfl_xor_sync(FULL_WARP, x, bits));
    return x;
}

/* Over a block of THREADS threads, a multiple of 32; 32 needs no shared memory. */
template <int THREADS, typename T> static __device__ __forceinline__ T block_sum(T x) {
    x = warp_sum(x);
    if (THREADS > 32) {
        SHARED(T, parts, THREADS / 32);
        if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = x;
        __syncthreads();
        x = 0;
#pragma unroll
        for (int w = 0; w < THREADS / 32; w++) x += parts[w];
        __syncthreads();
    }
    return x;
}

template <int THREADS> static __device__ __forceinline__ float block_max(float x) {
    x = warp_max(x);
    if (THREADS > 32) {
        SHARED(float, tops, THREADS / 32);
        if (threadIdx.x % 32 == 0) tops[threadIdx.x / 32] = x;
        __syncthreads();
        x = tops[0];
#pragma unroll
        for (int w = 1; w < THREADS / 32; w++) x = max_or_nan(x, tops[w]);
        __syncthreads();
    }
    return x;
}
