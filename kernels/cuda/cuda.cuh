#pragma once
/* What every file of this folder includes: the kernel table's declarations, the way to launch, shared memory,
 * element types and 16-byte accesses. These files are compiled twice: by nvcc, and by a host C++ compiler
 * with tests/cuda_emulation/emulation.h in front (CUDA_EMULATION is then defined), so a kernel uses no more
 * of CUDA than both know; every PTX instruction is behind a function of ptx.cuh.
 *
 *     static __global__ void scale(float *y, const float *x, int64_t n) { ... }
 *     CUDA_LAUNCH(scale, blocks, 256, 0, stream, y, x, n);
 *
 * A kernel whose name has commas goes in parentheses: CUDA_LAUNCH((norm<T, 8>), ...). Threads per block are a
 * multiple of 32. Nothing is launched for an empty tensor. Sums are taken in an order that the shape alone
 * decides: no atomics on floats. */
#ifndef CUDA_EMULATION
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#endif
#define _Noreturn [[noreturn]]
extern "C" {
#include "core/base/check.h"
#include "kernels/kernels.h"
#define KERNEL(name)                                                                                         \
    void cuda_##name(const struct stream *stream, const struct name##_args *args);                           \
    size_t cuda_##name##_workspace(const struct stream *stream, const struct name##_args *args);
#include "kernels/kernels.def"
#undef KERNEL
}
#undef _Noreturn

/* ---- launching ---- */
static inline cudaStream_t cuda_stream(const struct stream *stream) {
    return (cudaStream_t)stream->device_stream;
}

#ifdef CUDA_EMULATION
#define CUDA_LAUNCH(kernel, grid, block, shared_bytes, stream, ...)                                          \
    ((void)(stream), emulated_launch_lambda(#kernel, grid, block, shared_bytes, [&] { kernel(__VA_ARGS__); }))
#define SHARED(type, name, count)                                                                            \
    static const char name##_key = 0;                                                                        \
    type *const name = (type *)emulated_shared(&name##_key, (count) * sizeof(type))
#define SHARED_DYNAMIC(type, name) type *const name = (type *)emulated_shared_dynamic()
#else
/* More than 48 KiB of dynamic shared memory has to be asked for, once per kernel. */
#define CUDA_LAUNCH(kernel, grid, block, shared_bytes, stream, ...)                                          \
    do {                                                                                                     \
        auto launched_kernel = kernel;                                                                       \
        size_t launch_bytes = (shared_bytes);                                                                \
        cudaError_t launch_error = cudaSuccess;                                                              \
        if (launch_bytes > 48 * 1024)                                                                        \
            launch_error =                                                                                   \
                cudaFuncSetAttribute((const void *)launched_kernel,                                          \
                                     cudaFuncAttributeMaxDynamicSharedMemorySize, (int)launch_bytes);        \
        if (launch_error == cudaSuccess) {                                                                   \
            launched_kernel<<<grid, block, launch_bytes, stream>>>(__VA_ARGS__);                             \
            launch_error = cudaGetLastError();                                                               \
        }                                                                                                    \
        CHECK(launch_error == cudaSuccess, "launch of " #kernel ": %s", cudaGetErrorString(launch_error));   \
    } while (0)
#define SHARED(type, name, count) __shared__ __align__(16) type name[count]
#define SHARED_DYNAMIC(type, name)                                                                           \
    extern __shared__ __align__(128) unsigned char shared_dynamic_bytes[];                                   \
    type *const name = reinterpret_cast<type *>(shared_dynamic_bytes)
#endif

/* Blocks of `threads` threads that do `each` elements apiece. */
static inline unsigned cuda_blocks(int64_t n, int64_t threads, int64_t each) {
    return (unsigned)((n + threads * each - 1) / (threads * each));
}

/* ---- element types ---- */
struct bf16 {
    uint16_t bits;
};
struct f16 {
    uint16_t bits;
};

static __device__ __forceinline__ float to_f32(float x) {
    return x;
}

#ifdef CUDA_EMULATION
static inline float to_f32(bf16 x) {
    return bf16_to_f32(x.bits);
}
static inline float to_f32(f16 x) {
    return f16_to_f32(x.bits);
}
static inline void from_f32(bf16 *y, float x) {
    y->bits = f32_to_bf16(x);
}
static inline void from_f32(f16 *y, float x) {
    y->bits = f32_to_f16(x);
}
#else
static __device__ __forceinline__ float to_f32(bf16 x) {
    return __uint_as_float((uint32_t)x.bits << 16);
}
static __device__ __forceinline__ float to_f32(f16 x) {
    return __half2float(__ushort_as_half(x.bits));
}
static __device__ __forceinline__ void from_f32(bf16 *y, float x) {
    y->bits = __bfloat16_as_ushort(__float2bfloat16_rn(x));
}
static __device__ __forceinline__ void from_f32(f16 *y, float x) {
    y->bits = __half_as_ushort(__float2half_rn(x));
}
#endif
static __device__ __forceinline__ void from_f32(float *y, float x) {
    *y = x;
}
/* x as it is after it was stored as a T. */
template <typename T> __device__ __forceinline__ float round_as(float x) {
    T y;
    from_f32(&y, x);
    return to_f32(y);
}

/* Runs the statement with T set to the element type. */
#define BY_DTYPE(dtype, T, ...)                                                                              \
    switch (dtype) {                                                                                         \
    case DTYPE_BF16: {                                                                                       \
        using T = bf16;                                                                                      \
        __VA_ARGS__;                                                                                         \
        break;                                                                                               \
    }                                                                                                        \
    case DTYPE_F16: {                                                                                        \
        using T = f16;                                                                                       \
        __VA_ARGS__;                                                                                         \
        break;                                                                                               \
    }                                                                                                        \
    default: {                                                                                               \
        using T = float;                                                                                     \
        __VA_ARGS__;                                                                                         \
        break;                                                                                               \
    }                                                                                                        \
    }
/* The same for float32 against 16-bit-or-float32 pairs is written as two nested BY_DTYPE. */
#define BY_BOOL(value, B, ...)                                                                               \
    if (value) {                                                                                             \
        constexpr bool B = true;                                                                             \
        __VA_ARGS__;                                                                                         \
    } else {                                                                                                 \
        constexpr bool B = false;                                                                            \
        __VA_ARGS__;                                                                                         \
    }

/* ---- groups of elements ---- */
enum { GROUP = 8 }; /* elements that one thread handles together: 16 bytes of a 16-bit type */

template <typename T, int N> struct alignas(sizeof(T) * N < 16 ? sizeof(T) * N : 16) group { T v[N]; };

/* Elements i .. i + GROUP of p, those from n on as zero. `wide`: p and i suit 16-byte accesses. */
template <typename T>
__device__ __forceinline__ void load_group(float (&out)[GROUP], const void *p, int64_t i, int64_t n,
                                           bool wide) {
    const T *x = static_cast<const T *>(p) + i;
    if (wide && i + GROUP <= n) {
        const group<T, GROUP> g = *reinterpret_cast<const group<T, GROUP> *>(x);
#pragma unroll
        for (int j = 0; j < GROUP; j++) out[j] = to_f32(g.v[j]);
    } else {
#pragma unroll
        for (int j = 0; j < GROUP; j++) out[j] = i + j < n ? to_f32(x[j]) : 0.0f;
    }
}

template <typename T>
__device__ __forceinline__ void store_group(void *p, const float (&in)[GROUP], int64_t i, int64_t n,
                                            bool wide) {
    T *y = static_cast<T *>(p) + i;
    if (wide && i + GROUP <= n) {
        group<T, GROUP> g;
#pragma unroll
        for (int j = 0; j < GROUP; j++) from_f32(&g.v[j], in[j]);
        *reinterpret_cast<group<T, GROUP> *>(y) = g;
    } else {
#pragma unroll
        for (int j = 0; j < GROUP; j++)
            if (i + j < n) from_f32(&y[j], in[j]);
    }
}

/* Whether these pointers all suit 16-byte accesses; NULL does. */
template <typename... P> static inline bool all_wide(P... pointers) {
    const uintptr_t bits[] = {reinterpret_cast<uintptr_t>(pointers)...};
    uintptr_t any = 0;
    for (uintptr_t b : bits) any |= b;
    return any % 16 == 0;
}
