/* Embedding lookup in plain loops; the gradient is summed in double precision. */
#include "kernels/reference/reference.h"

enum { COLUMNS = 256 }; /* columns summed at a time, so that the sums fit on the stack */

void reference_embedding_forward(const struct stream *stream, const struct embedding_forward_args *args) {
    (void)stream;
    const struct embedding_forward_args a = *args;
    for (int64_t i = 0; i < a.s; i++)
        for (int64_t j = 0; j < a.b; j++) {
            int64_t token = a.tokens[j * a.s + i];
            int64_t position = a.position_weight ? a.positions[j * a.s + i] : 0;
            for (int64_t c = 0; c < a.h; c++) {
                double y = load_f32(a.weight, a.dtype, token * a.h + c);
                if (a.position_weight) y += load_f32(a.position_weight, a.dtype, position * a.h + c);
                store_f32(a.y, a.dtype, (i * a.b + j) * a.h + c, (float)y);
            }
        }
}

/* Row r of dy, in the order (i, j), belongs to ids[j, i]. */
static int32_t id_of(const int32_t *ids, int64_t r, int64_t s, int64_t b) {
    return ids[r % b * s + r / b];
}

static bool seen_before(const int32_t *ids, int64_t r, int64_t s, int64_t b) {
    for (int64_t q = 0; q < r; q++)
        if (id_of(ids, q, s, b) == id_of(ids, r, s, b)) return true;
    return false;
}

/* Adds, for the table row that `first` is the first to use, the sum over all its uses. */
static void add_row(const struct embedding_backward_args *a, float *table, const int32_t *ids, int64_t first,
                    int64_t begin, int64_t end) {
    double sum[COLUMNS] = {0};
    int32_t id = id_of(ids, first, a->s, a->b);
    for (int64_t r = first; r < a->s * a->b; r++) {
        if (id_of(ids, r, a->s, a->b) != id) continue;
        for (int64_t c = begin; c < end; c++) sum[c - begin] += load_f32(a->dy, a->dtype, r * a->h + c);
    }
    for (int64_t c = begin; c < end; c++) {
        float *out = &table[id * a->h + c];
        *out = (float)(*out + sum[c - begin]);
    }
}

void reference_embedding_backward(const struct stream *stream, const struct embedding_backward_args *args) {
    (void)stream;
    const struct embedding_backward_args *a = args;
    float *tables[] = {a->dweight, a->dposition_weight};
    const int32_t *ids[] = {a->tokens, a->positions};
    for (int t = 0; t < 2; t++) {
        if (!tables[t]) continue;
        for (int64_t r = 0; r < a->s * a->b; r++) {
            if (seen_before(ids[t], r, a->s, a->b)) continue;
            for (int64_t c = 0; c < a->h; c += COLUMNS)
                add_row(a, tables[t], ids[t], r, c, c + COLUMNS < a->h ? c + COLUMNS : a->h);
        }
    }
}
