/* Row softmax and its gradient. A row is unpacked to float32 scratch once, so y may alias x and dx may alias
 * dy, and nothing right of the diagonal is read. */
#include "kernels/cpu/attention_blocks.h"
#include "kernels/cpu/math.h"
#include <math.h>

enum { GRAIN = 16 };

static int64_t used_cols(int64_t row, int64_t cols, bool causal) {
    return causal ? row % cols + 1 : cols;
}

/* Sixteen running maxima side by side: compilers do not vectorise one. A NaN is passed over; the sum shows
 * it. */
static float row_max(const float *x, int64_t n) {
    enum { LANES = 16 };
    float lane[LANES], max = -INFINITY;
    int64_t i = 0;
    for (int l = 0; l < LANES; l++) lane[l] = -INFINITY;
    for (; i + LANES <= n; i += LANES) {
        for (int l = 0; l < LANES; l++) lane[l] = x[i + l] > lane[l] ? x[i + l] : lane[l];
    }
    for (; i < n; i++) max = x[i] > max ? x[i] : max;
    for (int l = 0; l < LANES; l++) max = lane[l] > max ? lane[l] : max;
    return max;
}

/* x[n] becomes its softmax. */
static void softmax_row(float *x, int64_t n) {
    float max = row_max(x, n), sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < n; i++) {
        x[i] = math_exp(x[i] - max);
        sum += x[i];
    }
    float factor = 1.0f / sum;
    for (int64_t i = 0; i < n; i++) x[i] *= factor;
}

struct forward_job {
    const struct softmax_forward_args *args;
    float *scratch; /* [threads][cols] */
};

static void forward_rows(void *context, int64_t begin, int64_t end, int thread) {
    const struct forward_job *job = context;
    const struct softmax_forward_args *args = job->args;
    float *x = job->scratch + thread * args->cols;
    for (int64_t row = begin; row < end; row++) {
        int64_t used = used_cols(row, args->cols, args->causal);
        char *y = dtype_at(args->y, args->dtype, row * args->cols);
        row_to_f32(x, dtype_at(args->x, args->dtype, row * args->cols), args->dtype, used);
        softmax_row(x, used);
        row_from_f32(y, x, args->dtype, used);
        memset(dtype_at(y, args->dtype, used), 0, (size_t)(args->cols - used) * dtype_bytes(args->dtype));
    }
}

size_t CPU(softmax_forward_workspace)(const struct stream *stream, const struct softmax_forward_args *args) {
    return (size_t)threads_count(stream->threads) * (size_t)args->cols * sizeof(float);
}

void CPU(softmax_forward)(const struct stream *stream, const struct softmax_forward_args *args) {
    struct forward_job job = {args, stream->workspace};
    threads_for(stream->threads, args->rows, GRAIN, forward_rows, &job);
}

struct backward_job {
    const struct softmax_backward_args *args;
    float *scratch; /* [threads][2][cols] */
};

static void backward_rows(void *context, int64_t begin, int64_t end, int thread) {
    const struct backward_job *job = context;
    const struct softmax_backward_args *args = job->args;
    float *y = job->scratch + thread * 2 * args->cols, *g = y + args->cols;
    for (int64_t row = begin; row < end; row++) {
        int64_t used = used_cols(row, args->cols, args->causal), first = row * args->cols;
        char *dx = dtype_at(args->dx, args->dtype, first);
        float delta = 0;
        row_to_f32(y, dtype_at(args->y, args->dtype, first), args->dtype, used);
        row_to_f32(g, dtype_at(args->dy, args->dtype, first), args->dtype, used);
#pragma omp simd reduction(+ : delta)
        for (int64_t i = 0; i < used; i++) delta += g[i] * y[i];
        for (int64_t i = 0; i < used; i++) g[i] = y[i] * (g[i] - delta);
        row_from_f32(dx, g, args->dtype, used);
        memset(dtype_at(dx, args->dtype, used), 0, (size_t)(args->cols - used) * dtype_bytes(args->dtype));
    }
}

size_t CPU(softmax_backward_workspace)(const struct stream *stream,
                                       const struct softmax_backward_args *args) {
    return (size_t)threads_count(stream->threads) * 2 * (size_t)args->cols * sizeof(float);
}

void CPU(softmax_backward)(const struct stream *stream, const struct softmax_backward_args *args) {
    struct backward_job job = {args, stream->workspace};
    threads_for(stream->threads, args->rows, GRAIN, backward_rows, &job);
}
