/* LayerNorm and RMSNorm in plain loops and double precision. */
#include "kernels/reference/reference.h"
#include <math.h>

enum { COLUMNS = 256 }; /* columns of dweight summed at a time, so that the sums fit on the stack */

struct row_stats {
    double mean, r;
};

static struct row_stats row_stats(const void *x, enum dtype dtype, int64_t row, int64_t cols, bool rms,
                                  double epsilon) {
    struct row_stats stats = {0, 0};
    double sum = 0;
    if (!rms) {
        for (int64_t j = 0; j < cols; j++) stats.mean += load_f32(x, dtype, row * cols + j);
        stats.mean /= (double)cols;
    }
    for (int64_t j = 0; j < cols; j++) {
        double d = load_f32(x, dtype, row * cols + j) - stats.mean;
        sum += d * d;
    }
    stats.r = 1 / sqrt(sum / (double)cols + epsilon);
    return stats;
}

static double scale_of(const void *weight, enum dtype dtype, int64_t j, bool zero_centered) {
    return (zero_centered ? 1.0 : 0.0) + load_f32(weight, dtype, j);
}

void reference_norm_forward(const struct stream *stream, const struct norm_forward_args *args) {
    (void)stream;
    const struct norm_forward_args a = *args;
    for (int64_t i = 0; i < a.rows; i++) {
        struct row_stats stats = row_stats(a.x, a.dtype, i, a.cols, a.rms, a.epsilon);
        for (int64_t j = 0; j < a.cols; j++) {
            double hat = (load_f32(a.x, a.dtype, i * a.cols + j) - stats.mean) * stats.r;
            double bias = a.bias ? load_f32(a.bias, a.dtype, j) : 0;
            double y = hat * scale_of(a.weight, a.dtype, j, a.zero_centered) + bias;
            store_f32(a.y, a.dtype, i * a.cols + j, (float)y);
        }
    }
}

/* dweight[j] = sum over rows of dy * hat, dbias[j] = sum over rows of dy. Read before dx may overwrite dy. */
static void params_backward(const struct norm_backward_args *a, int64_t begin, int64_t end) {
    double dweight[COLUMNS] = {0}, dbias[COLUMNS] = {0};
    for (int64_t i = 0; i < a->rows; i++) {
        struct row_stats stats = row_stats(a->x, a->dtype, i, a->cols, a->rms, a->epsilon);
        for (int64_t j = begin; j < end; j++) {
            double hat = (load_f32(a->x, a->dtype, i * a->cols + j) - stats.mean) * stats.r;
            double dy = load_f32(a->dy, a->dtype, i * a->cols + j);
            dweight[j - begin] += dy * hat;
            dbias[j - begin] += dy;
        }
    }
    for (int64_t j = begin; j < end; j++) {
        double old_weight = a->accumulate_params ? a->dweight[j] : 0;
        a->dweight[j] = (float)(old_weight + dweight[j - begin]);
        if (!a->dbias) continue;
        double old_bias = a->accumulate_params ? a->dbias[j] : 0;
        a->dbias[j] = (float)(old_bias + dbias[j - begin]);
    }
}

/* With g = dy * w: dx = r * (g - mean(g) - hat * mean(g * hat)); RMSNorm has no mean(g). */
static void row_backward(const struct norm_backward_args *a, int64_t i) {
    struct row_stats stats = row_stats(a->x, a->dtype, i, a->cols, a->rms, a->epsilon);
    double sum_g = 0, sum_g_hat = 0;
    for (int64_t j = 0; j < a->cols; j++) {
        double hat = (load_f32(a->x, a->dtype, i * a->cols + j) - stats.mean) * stats.r;
        double g =
            load_f32(a->dy, a->dtype, i * a->cols + j) * scale_of(a->weight, a->dtype, j, a->zero_centered);
        sum_g += g;
        sum_g_hat += g * hat;
    }
    double mean_g = a->rms ? 0 : sum_g / (double)a->cols, mean_g_hat = sum_g_hat / (double)a->cols;
    for (int64_t j = 0; j < a->cols; j++) {
        int64_t e = i * a->cols + j;
        double hat = (load_f32(a->x, a->dtype, e) - stats.mean) * stats.r;
        double g = load_f32(a->dy, a->dtype, e) * scale_of(a->weight, a->dtype, j, a->zero_centered);
        double old = a->accumulate_dx ? load_f32(a->dx, a->dtype, e) : 0;
        store_f32(a->dx, a->dtype, e, (float)(old + stats.r * (g - mean_g - hat * mean_g_hat)));
    }
}

void reference_norm_backward(const struct stream *stream, const struct norm_backward_args *args) {
    (void)stream;
    for (int64_t j = 0; j < args->cols; j += COLUMNS)
        params_backward(args, j, j + COLUMNS < args->cols ? j + COLUMNS : args->cols);
    for (int64_t i = 0; i < args->rows; i++) row_backward(args, i);
}
