#include "parallel/comm/sum.h"
#include <string.h>

enum { BLOCK = 512 }; /* elements whose accumulators stay in the first-level cache */

/* The loops over a block are compiled for AVX2 too, and the program picks when it starts. Not for FMA: no
 * product may be merged into a sum. */
#if defined(__x86_64__) && defined(__gnu_linux__) && !defined(__SANITIZE_ADDRESS__) &&                       \
    !defined(__SANITIZE_THREAD__)
#define WIDE __attribute__((target_clones("avx2", "default")))
#else
#define WIDE
#endif

static const void *input_of(const struct comm_sum *sum, int member, size_t offset) {
    return (member == sum->rank ? (const char *)sum->own : sum->pieces + (size_t)member * sum->stride) +
           offset;
}

/* ---- float32 accumulators for the three float types ---- */

WIDE static void load_block(float *restrict acc, const void *in, enum comm_dtype dtype, int n) {
    const uint16_t *h = in;
    if (dtype == COMM_F32)
        memcpy(acc, in, (size_t)n * sizeof(float));
    else if (dtype == COMM_BF16)
        for (int i = 0; i < n; i++) acc[i] = bf16_to_f32(h[i]);
    else
        for (int i = 0; i < n; i++) acc[i] = f16_to_f32(h[i]);
}

WIDE static void store_block(void *out, const float *restrict acc, enum comm_dtype dtype, int n) {
    uint16_t *h = out;
    if (dtype == COMM_F32)
        memcpy(out, acc, (size_t)n * sizeof(float));
    else if (dtype == COMM_BF16)
        for (int i = 0; i < n; i++) h[i] = f32_to_bf16(acc[i]);
    else
        for (int i = 0; i < n; i++) h[i] = f32_to_f16(acc[i]);
}

#define COMBINE(type, add)                                                                                   \
    WIDE static void combine_##type(type *restrict acc, const type *restrict x, enum comm_reduce op,         \
                                    int n) {                                                                 \
        if (op == COMM_SUM)                                                                                  \
            for (int i = 0; i < n; i++) acc[i] = (type)(add);                                                \
        else if (op == COMM_MAX)                                                                             \
            for (int i = 0; i < n; i++) acc[i] = x[i] > acc[i] || x[i] != x[i] ? x[i] : acc[i];              \
        else                                                                                                 \
            for (int i = 0; i < n; i++) acc[i] = x[i] < acc[i] || x[i] != x[i] ? x[i] : acc[i];              \
    }
COMBINE(float, acc[i] + x[i])
COMBINE(double, acc[i] + x[i])
COMBINE(int32_t, (uint32_t)acc[i] + (uint32_t)x[i])
COMBINE(int64_t, (uint64_t)acc[i] + (uint64_t)x[i])
COMBINE(uint8_t, acc[i] + x[i])

static void sum_floats(const struct comm_sum *sum, void *out, int64_t count) {
    float acc[BLOCK], x[BLOCK];
    size_t bytes = comm_dtype_bytes(sum->dtype);
    for (int64_t begin = 0; begin < count; begin += BLOCK) {
        int n = count - begin < BLOCK ? (int)(count - begin) : BLOCK;
        size_t offset = (size_t)begin * bytes;
        load_block(acc, input_of(sum, 0, offset), sum->dtype, n);
        for (int j = 1; j < sum->members; j++) {
            const void *in = input_of(sum, j, offset);
            if (sum->dtype != COMM_F32) load_block(x, in, sum->dtype, n);
            combine_float(acc, sum->dtype == COMM_F32 ? in : x, sum->op, n);
        }
        store_block((char *)out + offset, acc, sum->dtype, n);
    }
}

/* ---- types that are their own accumulators ---- */

#define SUM_PLAIN(type)                                                                                      \
    static void sum_##type(const struct comm_sum *sum, void *out, int64_t count) {                           \
        type acc[BLOCK];                                                                                     \
        for (int64_t begin = 0; begin < count; begin += BLOCK) {                                             \
            int n = count - begin < BLOCK ? (int)(count - begin) : BLOCK;                                    \
            size_t offset = (size_t)begin * sizeof(type);                                                    \
            memcpy(acc, input_of(sum, 0, offset), (size_t)n * sizeof(type));                                 \
            for (int j = 1; j < sum->members; j++)                                                           \
                combine_##type(acc, input_of(sum, j, offset), sum->op, n);                                   \
            memcpy((char *)out + offset, acc, (size_t)n * sizeof(type));                                     \
        }                                                                                                    \
    }
SUM_PLAIN(double)
SUM_PLAIN(int32_t)
SUM_PLAIN(int64_t)
SUM_PLAIN(uint8_t)

void comm_sum_run(const struct comm_sum *sum, void *out, int64_t count) {
    static void (*const run[COMM_DTYPE_COUNT])(const struct comm_sum *, void *, int64_t) = {
        [COMM_F32] = sum_floats,  [COMM_BF16] = sum_floats, [COMM_F16] = sum_floats, [COMM_F64] = sum_double,
        [COMM_I32] = sum_int32_t, [COMM_I64] = sum_int64_t, [COMM_U8] = sum_uint8_t,
    };
    run[sum->dtype](sum, out, count);
}
