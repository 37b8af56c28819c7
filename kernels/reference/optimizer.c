/* Optimizer arithmetic in plain loops and double precision. */
#include "kernels/reference/reference.h"
#include <math.h>

void reference_adamw(const struct stream *stream, const struct adamw_args *args) {
    (void)stream;
    const struct adamw_args a = *args;
    for (int64_t i = 0; i < a.n; i++) {
        double g = (double)a.grad[i] * a.grad_scale;
        double m = (double)a.beta1 * a.m[i] + (1 - (double)a.beta1) * g;
        double v = (double)a.beta2 * a.v[i] + (1 - (double)a.beta2) * g * g;
        double update = m / a.bias_correction1 / (sqrt(v / a.bias_correction2) + a.epsilon);
        update += (double)a.weight_decay * a.master[i];
        a.m[i] = (float)m;
        a.v[i] = (float)v;
        a.master[i] = (float)(a.master[i] - a.learning_rate * update);
        if (a.model) store_f32(a.model, a.model_dtype, i, a.master[i]);
    }
}

void reference_sum_squares(const struct stream *stream, const struct sum_squares_args *args) {
    (void)stream;
    const struct sum_squares_args a = *args;
    double sum = 0;
    int64_t bad = 0;
    for (int64_t i = 0; i < a.n; i++) {
        double x = load_f32(a.x, a.dtype, i);
        sum += x * x;
        bad += !isfinite(x);
    }
    *a.out = (a.accumulate ? *a.out : 0) + sum;
    if (a.bad) *a.bad = (a.accumulate ? *a.bad : 0) + bad;
}

void reference_normal_init(const struct stream *stream, const struct normal_init_args *args) {
    (void)stream;
    const struct normal_init_args a = *args;
    for (int64_t i = 0; i < a.n; i++) {
        uint64_t e = a.first_element + (uint64_t)i;
        struct rng_words words = rng_philox(a.key, e / 4);
        uint64_t pair = e % 4 / 2;
        float x[2];
        rng_normal_pair(words.w[2 * pair], words.w[2 * pair + 1], &x[0], &x[1]);
        a.x[i] = x[e % 2] * a.std;
    }
}
