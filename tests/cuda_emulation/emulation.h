#pragma once
/* Lets a host C++ compiler build the kernels of kernels/cuda and run them on the CPU. It is put in front of
 * every .cu file by the compiler's -include option, and stands in for the part of the CUDA language that the
 * project uses; what is not here does not compile, which is how a kernel finds out that it needs a twin.
 *
 * A launch runs its blocks one after the other in the calling thread, and the threads of a block as fibers:
 * each runs until it waits (__syncthreads, a shuffle, an mma), and the scheduler goes round. Shared memory is
 * filled with NaN at the start of each block, has guard bytes behind it (and poisoned bytes under
 * AddressSanitizer), and is taken with SHARED and SHARED_DYNAMIC of kernels/cuda/cuda.cuh. Copies by cp.async
 * arrive when they are waited for, not before.
 *
 * The job ends with a message, never hangs, when
 *  - threads of a block wait at different barriers, or one waits for a thread that has finished;
 *  - lanes of a warp meet at different instructions, or one names a lane that does not exist or has finished;
 *  - a kernel writes behind its shared memory, takes more than a device has, or is launched with an empty
 * grid, too large a block, or leaves copies that nobody waited for.
 *
 * Not shown by it: races between barriers (threads run in order), the memory model, speed, the last bit of
 * the device's own exp, log, sin and its fused multiply-adds. */
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#define CUDA_EMULATION     1
#define CUDA_EMULATION_PTX "tests/cuda_emulation/ptx.h" /* included by kernels/cuda/ptx.cuh */
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __noinline__
#define __launch_bounds__(...)

struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

typedef struct emulated_stream *cudaStream_t;

struct alignas(8) uint2 {
    uint32_t x, y;
};
struct alignas(16) uint4 {
    uint32_t x, y, z, w;
};
struct alignas(16) float4 {
    float x, y, z, w;
};

/* ---- the running thread ---- */
struct emulated_place { /* of a kernel's source */
    const char *file, *what;
    int line;
};
#define EMULATED_PLACE(what)                                                                                 \
    emulated_place {                                                                                         \
        __FILE__, what, __LINE__                                                                             \
    }

enum { EMULATED_LANE_BYTES = 64 }; /* what a lane hands to the others of its warp */

struct emulated_thread_view {
    dim3 thread, block, block_dim, grid_dim;
    int lane;
};
extern emulated_thread_view emulated_now;
#define threadIdx (emulated_now.thread)
#define blockIdx  (emulated_now.block)
#define blockDim  (emulated_now.block_dim)
#define gridDim   (emulated_now.grid_dim)

void emulated_block_barrier(emulated_place place);
/* Hands `bytes` of `mine` to the warp, waits for the lanes of `mask`, and returns the places of all lanes. */
const unsigned char (*emulated_warp_meet(emulated_place place, uint32_t mask, const void *mine,
                                         size_t bytes))[EMULATED_LANE_BYTES];
void *emulated_shared(const void *key, size_t bytes); /* the same for all threads of a block */
void *emulated_shared_dynamic(void);
void emulated_copy_async(void *dst, const void *src, size_t bytes);
void emulated_copy_commit(void);
void emulated_copy_wait(int groups_left);
void emulated_launch(const char *kernel, dim3 grid, dim3 block, size_t shared_bytes,
                     void (*body)(void *context), void *context);

template <typename F>
void emulated_launch_lambda(const char *kernel, dim3 grid, dim3 block, size_t shared, F f) {
    emulated_launch(
        kernel, grid, block, shared, [](void *context) { (*static_cast<F *>(context))(); }, &f);
}

/* ---- barriers, shuffles, votes ---- */
#define __syncthreads()  emulated_block_barrier(EMULATED_PLACE("__syncthreads"))
#define __syncwarp(mask) emulated_warp_meet(EMULATED_PLACE("__syncwarp"), mask, "", 0)

template <typename T> T emulated_shuffle(emulated_place place, uint32_t mask, T value, int source) {
    const unsigned char(*all)[EMULATED_LANE_BYTES] = emulated_warp_meet(place, mask, &value, sizeof(T));
    T result;
    memcpy(&result, all[source & 31], sizeof(T));
    return result;
}

#define __shfl_sync(mask, value, source) emulated_shuffle(EMULATED_PLACE("__shfl_sync"), mask, value, source)
#define __shfl_xor_sync(mask, value, bits)                                                                   \
    emulated_shuffle(EMULATED_PLACE("__shfl_xor_sync"), mask, value, emulated_now.lane ^ (bits))
#define __shfl_up_sync(mask, value, by)                                                                      \
    emulated_shuffle(EMULATED_PLACE("__shfl_up_sync"), mask, value,                                          \
                     emulated_now.lane >= (int)(by) ? emulated_now.lane - (int)(by) : emulated_now.lane)
#define __shfl_down_sync(mask, value, by)                                                                    \
    emulated_shuffle(EMULATED_PLACE("__shfl_down_sync"), mask, value,                                        \
                     emulated_now.lane + (int)(by) < 32 ? emulated_now.lane + (int)(by) : emulated_now.lane)

static inline uint32_t emulated_ballot(emulated_place place, uint32_t mask, int predicate) {
    const unsigned char(*all)[EMULATED_LANE_BYTES] = emulated_warp_meet(place, mask, &predicate, sizeof(int));
    uint32_t result = 0;
    for (int lane = 0; lane < 32; lane++) {
        int other = 0;
        if (mask >> lane & 1) memcpy(&other, all[lane], sizeof(int));
        result |= (uint32_t)(other != 0) << lane;
    }
    return result;
}
#define __ballot_sync(mask, predicate) emulated_ballot(EMULATED_PLACE("__ballot_sync"), mask, predicate)
#define __any_sync(mask, predicate)    (emulated_ballot(EMULATED_PLACE("__any_sync"), mask, predicate) != 0)

/* ---- atomics: one fiber at a time runs, so they are plain ---- */
template <typename T> static inline T atomicAdd(T *p, T value) {
    T old = *p;
    *p = old + value;
    return old;
}

/* ---- functions of the device ---- */
static inline uint32_t __umulhi(uint32_t a, uint32_t b) {
    return (uint32_t)((uint64_t)a * b >> 32);
}
static inline int __popc(uint32_t a) {
    return __builtin_popcount(a);
}
static inline int __ffs(int a) {
    return __builtin_ffs(a);
}
static inline float rsqrtf(float x) {
    return 1.0f / sqrtf(x);
}
static inline float __uint_as_float(uint32_t bits) {
    float f;
    memcpy(&f, &bits, 4);
    return f;
}
static inline uint32_t __float_as_uint(float f) {
    uint32_t bits;
    memcpy(&bits, &f, 4);
    return bits;
}
