/* The processor's own peak: how many FLOPs a second all threads reach on registers alone, for utilisation
 * figures. Takes about ten milliseconds. With tile registers, 16-bit products run on them; everything else is
 * float32 multiply-adds. */
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
    (void)context, (void)thread;
    for (int t = 0; t < 8; t++) config.row_bytes[t] = 64, config.rows[t] = 16;
    __asm__ volatile("ldtilecfg %0" : : "m"(config));
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
#elif CPU_ISA_avx2
enum { LANES = 8 };
typedef float vector __attribute__((vector_size(32)));
#else
enum { LANES = 16 };
typedef float vector __attribute__((vector_size(64)));
#endif

static void multiply_adds(void *context, int64_t begin, int64_t end, int thread) {
    vector sum[SUMS], x = {0}, y = {0};
    (void)context, (void)thread;
    for (int k = 0; k < SUMS; k++) sum[k] = x;
    for (int64_t i = begin; i < end; i++)
        for (int n = 0; n < TURNS; n++)
            for (int k = 0; k < SUMS; k++) {
                sum[k] = sum[k] * x + y;
                __asm__ volatile("" : "+x"(sum[k])); /* each one is really computed */
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
    for (int i = 0; i < TRIES; i++) {
        double start = seconds_now();
        threads_for(threads, CHUNKS, 1, body, NULL);
        double rate = flops / (seconds_now() - start);
        if (rate > best) best = rate;
    }
    return best;
}
