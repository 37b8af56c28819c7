/* Cross entropy in plain loops and double precision. */
#include "kernels/reference/reference.h"
#include <math.h>

/* Columns that count. */
static int64_t num_columns(int64_t vocab, int64_t columns) {
    return columns < 0 ? 0 : columns > 0 ? columns : vocab;
}

/* The column of row r's label, -1 when the row does not count or the label is not in this shard. */
static int64_t label_column(const int32_t *labels, const float *mask, int64_t r, int64_t first, int64_t n) {
    if (mask[r] == 0) return -1;
    int64_t column = labels[r] - first;
    return column >= 0 && column < n ? column : -1;
}

void reference_cross_entropy_forward(const struct stream *stream,
                                     const struct cross_entropy_forward_args *args) {
    (void)stream;
    const struct cross_entropy_forward_args a = *args;
    int64_t n = num_columns(a.vocab, a.columns);
    for (int64_t r = 0; r < a.rows; r++) {
        double max = -INFINITY, sum = 0;
        for (int64_t v = 0; v < n; v++) {
            double x = load_f32(a.logits, a.dtype, r * a.vocab + v);
            if (x > max) max = x;
        }
        double base = max == -INFINITY ? 0 : max; /* a row of -infinity has lse = -infinity */
        for (int64_t v = 0; v < n; v++) sum += exp(load_f32(a.logits, a.dtype, r * a.vocab + v) - base);
        int64_t label = label_column(a.labels, a.mask, r, a.first_label, n);
        double lse = base + log(sum), picked = 0;
        if (label >= 0) picked = load_f32(a.logits, a.dtype, r * a.vocab + label);
        a.lse[r] = (float)lse;
        if (a.picked) a.picked[r] = (float)picked;
        if (a.loss) a.loss[r] = a.mask[r] != 0 ? (float)(a.mask[r] * (lse - picked)) : 0;
    }
}

void reference_cross_entropy_combine(const struct stream *stream,
                                     const struct cross_entropy_combine_args *args) {
    (void)stream;
    const struct cross_entropy_combine_args a = *args;
    int64_t stride = a.part_stride ? a.part_stride : a.rows;
    for (int64_t r = 0; r < a.rows; r++) {
        double max = -INFINITY, sum = 0, picked = 0;
        for (int64_t p = 0; p < a.parts; p++) max = fmax(max, a.lse_parts[p * stride + r]);
        double base = max == -INFINITY ? 0 : max;
        for (int64_t p = 0; p < a.parts; p++) {
            sum += exp(a.lse_parts[p * stride + r] - base);
            picked += a.picked_parts[p * stride + r];
        }
        double lse = base + log(sum);
        a.lse[r] = (float)lse;
        a.loss[r] = a.mask[r] != 0 ? (float)(a.mask[r] * (lse - picked)) : 0;
    }
}

void reference_cross_entropy_backward(const struct stream *stream,
                                      const struct cross_entropy_backward_args *args) {
    (void)stream;
    const struct cross_entropy_backward_args a = *args;
    int64_t n = num_columns(a.vocab, a.columns);
    for (int64_t r = 0; r < a.rows; r++) {
        double scale = (double)a.mask[r] * a.grad_scale, lse = a.lse[r];
        int64_t label = label_column(a.labels, a.mask, r, a.first_label, n);
        for (int64_t v = 0; v < a.vocab; v++) {
            double p = exp(load_f32(a.logits, a.dtype, r * a.vocab + v) - lse) - (v == label ? 1 : 0);
            bool counts = a.mask[r] != 0 && v < n;
            store_f32(a.dlogits, a.dtype, r * a.vocab + v, counts ? (float)(p * scale) : 0);
        }
    }
}
