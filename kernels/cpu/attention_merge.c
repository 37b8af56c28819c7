/* Folds the attention over some keys into that over others. */
#include "kernels/cpu/cpu.h"
#include "kernels/cpu/simd.h"
#include <math.h>

enum { CHUNK = 16384 }; /* elements of o that one thread takes at a time, at least one row */

/* What the two sides weigh. A side without keys weighs nothing and is not read. */
struct weights {
    float old, part, lse;
};

static struct weights weigh(float old, float part) {
    struct weights w = {.lse = old > part ? old : part};
    if (old == -INFINITY) {
        w.part = 1, w.lse = part; /* o_part as it is; it is 0 when it has no keys either */
    } else if (part == -INFINITY) {
        w.old = 1, w.lse = old;
    } else {
        float a = expf(old - w.lse), b = expf(part - w.lse), sum = a + b; /* NaN stays NaN */
        w.old = a / sum, w.part = b / sum, w.lse += logf(sum);
    }
    return w;
}

static void merge_head(float *o, const float *part, struct weights w, int64_t d) {
    if (w.part == 0) return;
    if (w.old == 0) {
        SIMD_LOOP for (int64_t n = 0; n < d; n++) o[n] = part[n] * w.part;
        return;
    }
    SIMD_LOOP for (int64_t n = 0; n < d; n++) o[n] = o[n] * w.old + part[n] * w.part;
}

static void merge_body(void *context, int64_t begin, int64_t end, int thread) {
    const struct attention_merge_args *x = context;
    const struct attention_shape *z = &x->shape;
    int64_t dv = attention_value_dim(z);
    (void)thread;
    for (int64_t row = begin; row < end; row++) {
        for (int64_t head = 0; head < z->a; head++) {
            int64_t line = row % z->b * z->a + head, i = row / z->b, at = (row * z->a + head) * dv;
            float *lse = &x->lse[line * x->lse_rows + i];
            float part = x->lse_part[line * x->part_rows + i];
            struct weights w = weigh(x->first ? -INFINITY : *lse, part);
            merge_head(x->o + at, x->o_part + at, w, dv);
            *lse = w.lse;
        }
    }
}

void CPU(attention_merge)(const struct stream *stream, const struct attention_merge_args *args) {
    struct attention_merge_args x = *args;
    if (!x.lse_rows) x.lse_rows = x.shape.s;
    if (!x.part_rows) x.part_rows = x.shape.s;
    int64_t grain = simd_rows_per_chunk(CHUNK, x.shape.a * attention_value_dim(&x.shape));
    threads_for(stream->threads, x.shape.s * x.shape.b, grain, merge_body, &x);
}
