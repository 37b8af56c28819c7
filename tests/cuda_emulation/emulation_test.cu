/* The emulation itself: what threads of a block do together, and that every way to go wrong ends with a
 * message. Run as a child, because the message is the last thing that the process says. */
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/reduce.cuh"
extern "C" {
#include "tests/test.h"
}
#include <sys/wait.h>
#include <unistd.h>

/* ---- what works ---- */
static __global__ void reverse_kernel(int *out) {
    SHARED(int, mine, 64);
    mine[threadIdx.x] = (int)(blockIdx.x * 100 + threadIdx.x);
    __syncthreads();
    out[blockIdx.x * 64 + threadIdx.x] = mine[63 - threadIdx.x];
}

TEST(threads_of_a_block_see_what_was_written_before_a_barrier) {
    int out[3 * 64];
    CUDA_LAUNCH(reverse_kernel, 3, 64, 0, nullptr, out);
    for (int i = 0; i < 3 * 64; i++) EXPECT_EQ(out[i], i / 64 * 100 + 63 - i % 64);
}

static __global__ void warp_kernel(int *out, double *sums) {
    const int lane = (int)threadIdx.x % 32, x = (int)threadIdx.x;
    int *of_thread = out + threadIdx.x * 5;
    of_thread[0] = __shfl_sync(FULL_WARP, x, 7);
    of_thread[1] = __shfl_xor_sync(FULL_WARP, x, 5);
    of_thread[2] = __shfl_up_sync(FULL_WARP, x, 3);
    of_thread[3] = __shfl_down_sync(FULL_WARP, x, 3);
    of_thread[4] = (int)__ballot_sync(FULL_WARP, lane % 3 == 0);
    sums[threadIdx.x] = block_sum<64>((double)x);
}

TEST(lanes_exchange_values) {
    int out[64 * 5];
    double sums[64];
    CUDA_LAUNCH(warp_kernel, 1, 64, 0, nullptr, out, sums);
    for (int t = 0; t < 64; t++) {
        int lane = t % 32, base = t - lane;
        EXPECT_EQ(out[t * 5], base + 7);
        EXPECT_EQ(out[t * 5 + 1], base + (lane ^ 5));
        EXPECT_EQ(out[t * 5 + 2], lane < 3 ? t : t - 3);
        EXPECT_EQ(out[t * 5 + 3], lane > 28 ? t : t + 3);
        EXPECT_EQ((uint32_t)out[t * 5 + 4], 0x49249249u);
        EXPECT(sums[t] == 63 * 64 / 2, "sum %g", sums[t]);
    }
}

/* Fragments filled by the layout of the PTX manual, as ptx.cuh says it; small integers, so sums are exact. */
template <typename T> static __global__ void mma_kernel(float *c, const T *a, const T *b) {
    const int r = (int)threadIdx.x / 4, q = 2 * ((int)threadIdx.x % 4);
    uint32_t x[4], y[2];
    float sums[4];
    for (int i = 0; i < 4; i++) memcpy(&x[i], &a[(r + i % 2 * 8) * 16 + q + i / 2 * 8], 4);
    for (int i = 0; i < 2; i++) memcpy(&y[i], &b[r * 16 + q + i * 8], 4); /* b lies column by column */
    for (int i = 0; i < 4; i++) sums[i] = c[(r + i / 2 * 8) * 8 + q + i % 2];
    mma_16816<T>(sums, x, y);
    for (int i = 0; i < 4; i++) c[(r + i / 2 * 8) * 8 + q + i % 2] = sums[i];
}

template <typename T> static void check_mma(void) {
    T a[16 * 16], b[8 * 16];
    float c[16 * 8];
    for (int i = 0; i < 256; i++) from_f32(&a[i], (float)(i * 7 % 11 - 5));
    for (int i = 0; i < 128; i++) from_f32(&b[i], (float)(i * 5 % 13 - 6));
    for (int i = 0; i < 128; i++) c[i] = (float)i;
    CUDA_LAUNCH(mma_kernel<T>, 1, 32, 0, nullptr, c, a, b);
    for (int i = 0; i < 16; i++)
        for (int j = 0; j < 8; j++) {
            int sum = i * 8 + j;
            for (int k = 0; k < 16; k++) sum += ((i * 16 + k) * 7 % 11 - 5) * ((j * 16 + k) * 5 % 13 - 6);
            EXPECT(c[i * 8 + j] == (float)sum, "c[%d, %d] is %g, not %d", i, j, (double)c[i * 8 + j], sum);
        }
}

TEST(a_warp_multiplies_matrices) {
    check_mma<bf16>();
    check_mma<f16>();
}

template <bool TRANSPOSED> static __global__ void ldmatrix_kernel(uint32_t *out) {
    SHARED(uint16_t, tile, 32 * 8);
    for (int i = 0; i < 8; i++) tile[threadIdx.x * 8 + i] = (uint16_t)(threadIdx.x * 8 + i);
    __syncwarp(FULL_WARP);
    uint32_t x[4];
    ldmatrix<TRANSPOSED>(x, tile + threadIdx.x * 8);
    for (int m = 0; m < 4; m++) out[threadIdx.x * 4 + m] = x[m];
}

TEST(a_warp_loads_matrices_as_they_lie_and_transposed) {
    uint32_t straight[128], transposed[128];
    CUDA_LAUNCH(ldmatrix_kernel<false>, 1, 32, 0, nullptr, straight);
    CUDA_LAUNCH(ldmatrix_kernel<true>, 1, 32, 0, nullptr, transposed);
    for (int at = 0; at < 128; at++) { /* matrix m holds 64 m + 8 row + column */
        const uint32_t first = (uint32_t)(at % 4 * 64), row = (uint32_t)(at / 16), pair = at / 4 % 4 * 2;
        const uint32_t along = first + 8 * row + pair, down = first + 8 * pair + row;
        EXPECT(straight[at] == (along | (along + 1) << 16), "lane %d holds %x", at / 4, straight[at]);
        EXPECT(transposed[at] == (down | (down + 8) << 16), "lane %d holds %x", at / 4, transposed[at]);
    }
}

static __global__ void poison_kernel(float *out) {
    SHARED_DYNAMIC(float, given);
    SHARED(float, own, 32);
    out[threadIdx.x] = given[threadIdx.x] + own[threadIdx.x];
    given[threadIdx.x] = own[threadIdx.x] = 1;
}

TEST(shared_memory_is_not_a_number_before_it_is_written_in_every_block) {
    float out[32];
    CUDA_LAUNCH(poison_kernel, 3, 32, 32 * sizeof(float), nullptr, out);
    for (int i = 0; i < 32; i++) EXPECT(isnan(out[i]), "[%d] is %g", i, (double)out[i]);
}

/* ---- what goes wrong ---- */
static __global__ void some_leave_kernel(int *out) {
    if (threadIdx.x >= 40) return;
    __syncthreads();
    out[threadIdx.x] = 1;
}
static __global__ void two_barriers_kernel(int *out) {
    if (threadIdx.x < 32)
        __syncthreads();
    else
        out[threadIdx.x] = 1, __syncthreads();
}
static __global__ void lane_left_kernel(int *out) {
    if (threadIdx.x == 9) return;
    out[threadIdx.x] = __shfl_xor_sync(FULL_WARP, (int)threadIdx.x, 1);
}
static __global__ void lanes_apart_kernel(int *out) {
    if (threadIdx.x % 2)
        out[threadIdx.x] = __shfl_xor_sync(FULL_WARP, 1, 1);
    else
        out[threadIdx.x] = __shfl_sync(FULL_WARP, 1, 1);
}
static __global__ void overrun_kernel(volatile int *out) {
    SHARED_DYNAMIC(int, given);
    volatile int *p = given;
    p[threadIdx.x + 1] = 1;
    *out = p[0];
}
static __global__ void nothing_kernel(void) {}

static void go_wrong(int way) {
    int out[64];
    switch (way) {
    case 0:
        CUDA_LAUNCH(some_leave_kernel, 1, 64, 0, nullptr, out);
        break;
    case 1:
        CUDA_LAUNCH(two_barriers_kernel, 1, 64, 0, nullptr, out);
        break;
    case 2:
        CUDA_LAUNCH(lane_left_kernel, 1, 32, 0, nullptr, out);
        break;
    case 3:
        CUDA_LAUNCH(lanes_apart_kernel, 1, 32, 0, nullptr, out);
        break;
    case 4:
        CUDA_LAUNCH(overrun_kernel, 1, 32, 32 * sizeof(int), nullptr, out);
        break;
    case 5:
        CUDA_LAUNCH(nothing_kernel, dim3(1, 65536), 32, 0, nullptr);
        break;
    case 6:
        CUDA_LAUNCH(nothing_kernel, 0, 32, 0, nullptr);
        break;
    default:
        CUDA_LAUNCH(nothing_kernel, 1, 32, 200 * 1024, nullptr);
        break;
    }
}

/* What a child says before it ends; it must not end well. */
static void expect_message(int way, const char *const parts[2]) {
    char text[20000];
    size_t size = 0;
    ssize_t got;
    int pipes[2], status = 0;
    if (pipe(pipes)) return;
    fflush(stdout);
    const pid_t child = fork();
    if (child == 0) {
        dup2(pipes[1], 2);
        go_wrong(way);
        _exit(0);
    }
    close(pipes[1]);
    while (size < sizeof(text) - 1 && (got = read(pipes[0], text + size, sizeof(text) - 1 - size)) > 0)
        size += (size_t)got;
    text[size] = 0;
    close(pipes[0]);
    waitpid(child, &status, 0);
    EXPECT(WIFEXITED(status) && WEXITSTATUS(status) != 0, "way %d ended well", way);
    /* AddressSanitizer, where it is on, is first to see memory overrun */
    EXPECT(strstr(text, parts[0]) || (parts[1] && strstr(text, parts[1])), "way %d says: %.300s", way, text);
}

TEST(mistakes_end_with_a_message_that_names_kernel_and_place) {
    static const char *const messages[][2] = {
        {"some_leave_kernel, block (0, 0, 0): threads wait for each other: thread 0 waits at __syncthreads",
         nullptr},
        {"threads wait at different barriers", nullptr},
        {"a lane is waited for that does not come", nullptr},
        {"lanes of a warp meet at different instructions", nullptr},
        {"overrun_kernel: it wrote behind its dynamic shared memory", "AddressSanitizer"},
        {"blocks in y or z: 65536", nullptr},
        {"an empty grid", nullptr},
        {"bytes of dynamic shared memory: 204800", nullptr},
    };
    for (int way = 0; way < (int)ARRAY_COUNT(messages); way++) expect_message(way, messages[way]);
}

RUN_TESTS(CASE(threads_of_a_block_see_what_was_written_before_a_barrier), CASE(lanes_exchange_values),
          CASE(a_warp_multiplies_matrices), CASE(a_warp_loads_matrices_as_they_lie_and_transposed),
          CASE(shared_memory_is_not_a_number_before_it_is_written_in_every_block),
          CASE(mistakes_end_with_a_message_that_names_kernel_and_place))
