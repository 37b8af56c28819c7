#pragma once
/* What the conformance tests of the kernels share: guarded tensors, the backends of this machine, and a
 * comparison whose tolerance is derived.
 *
 * A tensor is surrounded by guard bytes (checked when it is freed) and may start one element off alignment.
 * Outputs are filled with NaN before a call, so an element that was not written fails the comparison.
 *
 * Tolerance: both sides round the result to the dtype once, so they may land on neighbouring values even when
 * their exact results agree: 2 u |expected|, with u the unit roundoff of the dtype (half a unit in the last
 * place). On top comes the float32 error of the kernel, which the caller states as a count of float32
 * roundings times a bound on the magnitude of the numbers they happen to. */
#include "core/base/mem.h"
#include "kernels/kernels.h"
#include "tests/kernels/tables.h"
#include "tests/test.h"

enum { GUARD = 64 };

struct tensor {
    char *block;
    void *data;
    int64_t n;
    enum dtype dtype;
};

static const enum dtype float_dtypes[] = {DTYPE_F32, DTYPE_BF16, DTYPE_F16};
#define FOR_EACH_DTYPE(t)                                                                                    \
    for (int t##_index = 0; t##_index < 3; t##_index++)                                                      \
        for (enum dtype t = float_dtypes[t##_index], t##_once = 0; !t##_once; t##_once = 1)
/* Runs the body with `k` set to the table of each instruction set that this processor can run. */
#define FOR_EACH_ISA(k)                                                                                      \
    for (int k##_index = 0; k##_index < ISA_COUNT; k##_index++)                                              \
        for (const struct kernels *k = table_named(isa_names[k##_index]); k; k = NULL)

static inline struct tensor tensor_new(enum dtype dtype, int64_t n, bool unaligned) {
    size_t bytes = (size_t)n * dtype_bytes(dtype), offset = GUARD + (unaligned ? dtype_bytes(dtype) : 0);
    struct tensor t = {mem_alloc(bytes + 2 * GUARD + 8, "test tensor"), NULL, n, dtype};
    memset(t.block, 0xA5, bytes + 2 * GUARD + 8);
    t.data = t.block + offset;
    memset(t.data, 0xFF, bytes);
    return t;
}

static inline void tensor_free(struct tensor *t) {
    size_t bytes = (size_t)t->n * dtype_bytes(t->dtype), before = (size_t)((char *)t->data - t->block);
    int broken = 0;
    for (size_t i = 0; i < bytes + 2 * GUARD + 8; i++)
        if (i < before || i >= before + bytes) broken += (unsigned char)t->block[i] != 0xA5;
    EXPECT(!broken, "%d bytes next to a tensor of %lld elements were overwritten", broken, (long long)t->n);
    mem_free(t->block);
}

static inline void tensor_poison(struct tensor *t) {
    memset(t->data, 0xFF, (size_t)t->n * dtype_bytes(t->dtype));
}

/* Uniform in [low, high), rounded to the dtype. */
static inline struct tensor tensor_random(enum dtype dtype, int64_t n, bool unaligned, uint32_t seed,
                                          double low, double high) {
    struct tensor t = tensor_new(dtype, n, unaligned);
    uint64_t state = seed * 0x9E3779B97F4A7C15u + 1;
    for (int64_t i = 0; i < n; i++) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        store_f32(t.data, dtype, i, (float)(low + (high - low) * ((double)(state >> 33) * 0x1p-31)));
    }
    return t;
}

static inline struct tensor tensor_copy(const struct tensor *from) {
    struct tensor t = tensor_new(from->dtype, from->n, false);
    memcpy(t.data, from->data, (size_t)t.n * dtype_bytes(t.dtype));
    return t;
}

static inline float tensor_at(const struct tensor *t, int64_t i) {
    return load_f32(t->data, t->dtype, i);
}

static inline double unit_roundoff(enum dtype dtype) {
    return dtype == DTYPE_BF16 ? 0x1p-8 : dtype == DTYPE_F16 ? 0x1p-11 : 0x1p-24;
}

/* Finiteness first: a NaN must not pass. Returns the number of bad elements. */
static inline int64_t expect_close(const char *what, const struct kernels *k, const struct tensor *got,
                                   const struct tensor *expected, double error) {
    int64_t bad = 0, first = -1;
    for (int64_t i = 0; i < got->n; i++) {
        double a = tensor_at(got, i), b = tensor_at(expected, i);
        double tolerance = 2 * unit_roundoff(got->dtype) * fabs(b) + error;
        if (got->dtype == DTYPE_F16) tolerance += 0x1p-24; /* the smallest subnormal */
        if (isfinite(a) && isfinite(b) && fabs(a - b) <= tolerance) continue;
        if (!bad++) first = i;
    }
    EXPECT(!bad, "%s (%s, %s): %lld of %lld differ; [%lld] is %.9g, not %.9g", what, k->backend,
           dtype_name(got->dtype), (long long)bad, (long long)got->n, (long long)first, tensor_at(got, first),
           tensor_at(expected, first));
    return bad;
}

static inline void expect_same_bits(const char *what, const struct kernels *k, const struct tensor *got,
                                    const struct tensor *expected) {
    EXPECT(!memcmp(got->data, expected->data, (size_t)got->n * dtype_bytes(got->dtype)),
           "%s (%s, %s): bits differ", what, k->backend, dtype_name(got->dtype));
}

/* Runs a kernel with a guarded workspace of exactly the size it asks for, filled with NaN. */
static inline void *workspace_open(size_t bytes) {
    char *p = mem_alloc(bytes + GUARD, "test workspace");
    memset(p, 0xFF, bytes);
    memset(p + bytes, 0xA5, GUARD);
    return p;
}

static inline void workspace_close(void *workspace, size_t bytes) {
    int broken = 0;
    for (size_t i = 0; i < GUARD; i++) broken += ((unsigned char *)workspace)[bytes + i] != 0xA5;
    EXPECT(!broken, "%d bytes behind the workspace were overwritten", broken);
    mem_free(workspace);
}

#define RUN_ON(team, k, kernel, ...)                                                                         \
    do {                                                                                                     \
        const struct kernel##_args run_args = {__VA_ARGS__};                                                 \
        struct stream run_stream = {.kernels = (k), .threads = (team)};                                      \
        if ((k)->kernel##_workspace)                                                                         \
            run_stream.workspace_bytes = (k)->kernel##_workspace(&run_stream, &run_args);                    \
        run_stream.workspace = workspace_open(run_stream.workspace_bytes);                                   \
        kernel##_call(&run_stream, &run_args);                                                               \
        workspace_close(run_stream.workspace, run_stream.workspace_bytes);                                   \
    } while (0)
#define RUN(k, kernel, ...) RUN_ON(NULL, k, kernel, __VA_ARGS__)
