/* The processor's own peak: how many FLOPs a second all threads reach on registers alone, for utilisation
 * figures. Takes about ten milliseconds. With tile registers, 16-bit products run on them; everything else is
 * float32 multiply-adds. The numbers are not zero: a processor that multiplies zeros draws less power and
 * runs at a higher clock than real work ever sees (4.1 against 3.4 TFLOP/s a core on tiles, measured). */
#include "kernels/cpu/cpu.h"
#include <time.h>
#if !CPU_ISA_generic
#include <immintrin.h>
#endif

enum { TURNS = 2000, CHUNKS = 64, TRIES = 8 };

#if CPU_ISA_amx
enum { TILE_FLOPS = 4 * 2 * 16 * 16 * 32 }; /* of one turn: four products of 16 x 32 by 32 x 16 */

static void tile_products(void *context, int64_t begin, int64_t end, int thread) {
    struct {
        uint8_t palette, start_row, reserved[14];
        uint16_t row_bytes[16];
        uint8_t rows[16];
    } config = {.palette = 1};
    (void)thread;
    for (int t = 0; t < 8; t++) config.row_bytes[t] = 64, config.rows[t] = 16;
    __asm__ volatile("ldtilecfg %0\n\ttileloadd (%1,%2,1), %%tmm4\n\ttileloadd (%1,%2,1), %%tmm5\n\t"
                     "tileloadd (%1,%2,1), %%tmm6\n\ttileloadd (%1,%2,1), %%tmm7"
                     :
                     : "m"(config), "r"(context), "r"((int64_t)64)
                     : "memory");
    for (int64_t i = begin; i < end; i++)
        for (int n = 0; n < TURNS; n++)
            __asm__ volatile("tdpbf16ps %tmm6, %tmm4, %tmm0\n\ttdpbf16ps %tmm7, %tmm4, %tmm1\n\t"
                             "tdpbf16ps %tmm6, %tmm5, %tmm2\n\ttdpbf16ps %tmm7, %tmm5, %tmm3");
    __asm__ volatile("tilerelease");
}
#endif

/* Twelve independent sums, enough to hide the latency of a multiply-add. */
enum { SUMS = 12 };
#if CPU_ISA_generic
enum { LANES = 4 };
typedef float vector __attribute__((vector_size(16)));
#define multiply_add(a, b, c) ((a) * (b) + (c))
#elif CPU_ISA_avx2
enum { LANES = 8 };
typedef __m256 vector;
#define multiply_add(a, b, c) _mm256_fmadd_ps(a, b, c)
#else
enum { LANES = 16 };
typedef __m512 vector;
#define multiply_add(a, b, c) _mm512_fmadd_ps(a, b, c)
#endif

/* Makes the compiler believe that the value is used. */
#if defined(__x86_64__)
#define KEEP(v) __asm__ volatile("" : "+x"(v))
#elif defined(__aarch64__)
#define KEEP(v) __asm__ volatile("" : "+w"(v))
#else
#define KEEP(v) __asm__ volatile("" : "+m"(v))
#endif

static void multiply_adds(void *context, int64_t begin, int64_t end, int thread) {
    vector sum[SUMS], x, y;
    (void)context, (void)thread;
    for (int lane = 0; lane < LANES; lane++) x[lane] = 0.7f + 0.01f * (float)lane, y[lane] = 0.3f;
#pragma GCC unroll 12
    for (int k = 0; k < SUMS; k++) sum[k] = x;
    for (int64_t n = 0; n < (end - begin) * TURNS; n++) {
#pragma GCC unroll 12
        for (int k = 0; k < SUMS; k++) {
            sum[k] = multiply_add(sum[k], x, y);
            KEEP(sum[k]);
        }
    }
}

static double seconds_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

double CPU(peak_flops)(struct threads *threads, enum dtype dtype) {
    threads_fn body = multiply_adds;
    double flops = (double)CHUNKS * TURNS * SUMS * LANES * 2, best = 0;
#if CPU_ISA_amx
    if (dtype == DTYPE_BF16) body = tile_products, flops = (double)CHUNKS * TURNS * TILE_FLOPS;
#endif
    (void)dtype;
    uint16_t numbers[16 * 32];
    for (int i = 0; i < 16 * 32; i++) numbers[i] = f32_to_bf16((float)(i * 37 % 101) * 0.02f - 1.0f);
    for (int i = 0; i < TRIES; i++) {
        double start = seconds_now();
        threads_for(threads, CHUNKS, 1, body, numbers);
        double rate = flops / (seconds_now() - start);
        if (rate > best) best = rate;
    }
    return best;
}
