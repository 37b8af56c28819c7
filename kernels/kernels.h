#pragma once
/* The kernel table. A kernel takes one args struct and a stream; it never allocates, never synchronises,
 * never reads config and never fails: shapes are checked by KERNEL_CALL on every backend before the call.
 *
 *     KERNEL_CALL(norm_forward, stream, .y = y, .x = x, .weight = w, .rows = tokens, .cols = hidden, ...);
 *
 * Backends are tables: `reference` (plain loops, double accumulation: the judge), `cpu` (one table per
 * instruction set, picked at run time), `cuda`, and `meta`, which computes nothing and adds up the cost. The
 * args headers under kernels/args/ are the manual of each kernel: shapes, dtypes, formula, what may alias.
 *
 * Rules that hold for every kernel:
 *  - unset fields are zero; sizes are int64_t; pointers to a tensor are void* with a dtype beside them;
 *  - sums are taken in a fixed order that depends on the shape only: same bits on every run, with any thread
 * count;
 *  - arithmetic is float32 inside (double in `reference`), rounded once when a value is stored;
 *  - an `accumulate` flag set means out = out + result, otherwise out is written without being read;
 *  - scratch comes from the stream: at least <name>_workspace(args) bytes, 64-byte aligned, contents
 * undefined. */
#include "core/base/threads.h"
#include "core/tensor/dtype.h"
#include "kernels/args/gemm.h"
#include "kernels/args/norm.h"
#include "kernels/args/attention.h"
#include "kernels/args/mla.h"
#include "kernels/args/pointwise.h"
#include "kernels/args/embedding.h"
#include "kernels/args/loss.h"
#include "kernels/args/optimizer.h"
#include "kernels/args/moe.h"
#include <stdbool.h>

enum kernel_id {
#define KERNEL(name) KERNEL_##name,
#include "kernels/kernels.def"
#undef KERNEL
    KERNEL_COUNT
};

struct kernel_cost {
    double flops; /* multiply-adds count 2; matrix products only count in `gemm_flops` too */
    double gemm_flops;
    double bytes; /* operands read once and written once */
};

struct stream;

struct kernels {
    const char *backend; /* "reference", "cpu avx512", ... */
#define KERNEL(name)                                                                                         \
    void (*name)(const struct stream *stream, const struct name##_args *args);                               \
    size_t (*name##_workspace)(const struct stream *stream, const struct name##_args *args); /* NULL: none   \
                                                                                              */
#include "kernels/kernels.def"
#undef KERNEL
    /* Bytes of the packed form of a k x n right-hand matrix, or 0 when this backend multiplies by the plain
     * matrix. */
    size_t (*gemm_packed_bytes)(enum dtype dtype, int64_t k, int64_t n);
    /* Measures the peak FLOP/s of all threads on registers alone (about 10 ms); NULL: unknown. */
    double (*peak_flops)(struct threads *threads, enum dtype dtype);
};

struct kernel_meter { /* what a meta run adds up */
    struct kernel_cost total;
    struct kernel_cost by_kernel[KERNEL_COUNT];
    int64_t calls[KERNEL_COUNT];
    size_t workspace_bytes; /* the largest request */
};

/* Where kernels run. Plain data, built by the executor; one per backend and thread of execution. */
struct stream {
    const struct kernels *kernels;
    struct threads *threads; /* NULL: the caller's thread alone */
    void *workspace;         /* 64-byte aligned */
    size_t workspace_bytes;
    struct kernel_meter *meter; /* NULL except on meta */
    void *device_stream;        /* of the cuda tables: the cudaStream_t; NULL: the default stream */
};

/* From the .c files of kernels/args, for every kernel: NULL when the args are well formed, otherwise what is
 * wrong; and its cost. */
#define KERNEL(name)                                                                                         \
    const char *name##_check(const struct name##_args *args);                                                \
    struct kernel_cost name##_cost(const struct name##_args *args);
#include "kernels/kernels.def"
#undef KERNEL

/* Call through the table: shape check, workspace check, then the kernel. `name##_call` is generated. */
#define KERNEL(name) void name##_call(const struct stream *stream, const struct name##_args *args);
#include "kernels/kernels.def"
#undef KERNEL
#define KERNEL_CALL(kernel, on_stream, ...)                                                                  \
    kernel##_call((on_stream), &(const struct kernel##_args){__VA_ARGS__})

/* Tables. A slot that a backend does not fill falls back to the next simpler instruction set, then to
 * reference. */
const struct kernels *kernels_reference(void);
const struct kernels *kernels_cpu(void); /* the best set that this processor can run; decided once */
/* By instruction set: "generic", "avx2", "avx512", "amx"; NULL when unknown or not usable on this processor.
 */
const struct kernels *kernels_cpu_isa(const char *isa);
/* The CUDA kernels, NULL when this build has none (docs/cuda.md). Pointers in the args are the device's; a
 * kernel that the table lacks ends the job when it is called, and is named by kernels_cuda_lacks. */
const struct kernels *kernels_cuda(void);
bool kernels_cuda_lacks(enum kernel_id id);
/* A table that adds up costs into stream->meter and asks `like` for workspace and packing sizes. */
struct kernels kernels_meta(const struct kernels *like);
const char *kernel_name(enum kernel_id id);
