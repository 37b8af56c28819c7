/* Cross entropy in plain loops and double precision. */
#include "kernels/reference/reference.h"
#include <math.h>

void reference_cross_entropy_forward(const struct stream *stream,
                                     const struct cross_entropy_forward_args *args) {
    (void)stream;
    const struct cross_entropy_forward_args a = *args;
    for (int64_t r = 0; r < a.rows; r++) {
        double max = -INFINITY, sum = 0;
        for (int64_t v = 0; v < a.vocab; v++) {
            double x = load_f32(a.logits, a.dtype, r * a.vocab + v);
            if (x > max) max = x;
        }
        double base = max == -INFINITY ? 0 : max; /* a row of -infinity has lse = -infinity */
        for (int64_t v = 0; v < a.vocab; v++) sum += exp(load_f32(a.logits, a.dtype, r * a.vocab + v) - base);
        double lse = base + log(sum), loss = 0;
        if (a.mask[r] != 0) loss = a.mask[r] * (lse - load_f32(a.logits, a.dtype, r * a.vocab + a.labels[r]));
        a.lse[r] = (float)lse;
        a.loss[r] = (float)loss;
    }
}

void reference_cross_entropy_backward(const struct stream *stream,
                                      const struct cross_entropy_backward_args *args) {
    (void)stream;
    const struct cross_entropy_backward_args a = *args;
    for (int64_t r = 0; r < a.rows; r++) {
        double scale = (double)a.mask[r] * a.grad_scale, lse = a.lse[r];
        int64_t label = a.mask[r] != 0 ? a.labels[r] : -1;
        for (int64_t v = 0; v < a.vocab; v++) {
            double p = exp(load_f32(a.logits, a.dtype, r * a.vocab + v) - lse) - (v == label ? 1 : 0);
            store_f32(a.dlogits, a.dtype, r * a.vocab + v, a.mask[r] == 0 ? 0 : (float)(p * scale));
        }
    }
}
