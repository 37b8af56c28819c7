/* Embedding lookup in plain loops; the gradient is summed in double precision. */
#include "kernels/reference/reference.h"

enum { COLUMNS = 256 }; /* columns summed at a time, so that the sums fit on the stack */

/* Row of the table at hand for column i of sequence j, -1 when it is not in it. */
static int64_t id_at(const int32_t *ids, int64_t i, int64_t j, int64_t stride, int64_t first, int64_t rows) {
    int64_t id = ids[j * stride + i] - first;
    return id >= 0 && id < rows ? id : -1;
}

void reference_embedding_forward(const struct stream *stream, const struct embedding_forward_args *args) {
    (void)stream;
    const struct embedding_forward_args a = *args;
    int64_t stride = a.stride ? a.stride : a.s;
    for (int64_t i = 0; i < a.s; i++)
        for (int64_t j = 0; j < a.b; j++) {
            int64_t from = a.first_column + i, token = -1, position = 0;
            if (a.tokens) token = id_at(a.tokens, from, j, stride, a.first_token_id, a.vocab);
            if (a.position_weight) position = a.positions[j * stride + from];
            for (int64_t c = 0; c < a.h; c++) {
                int64_t at = (i * a.b + j) * a.h + c;
                double y = a.accumulate ? load_f32(a.y, a.dtype, at) : 0;
                if (token >= 0) y += load_f32(a.weight, a.dtype, token * a.h + c);
                if (a.position_weight) y += load_f32(a.position_weight, a.dtype, position * a.h + c);
                store_f32(a.y, a.dtype, at, (float)y);
            }
        }
}

/* The gradient of one table: row r of dy, in the order (i, j), goes to row id_of(r). */
struct table {
    float *grad;
    const int32_t *ids;
    int64_t first, rows;
};

static int64_t id_of(const struct embedding_backward_args *a, const struct table *t, int64_t r) {
    return id_at(t->ids, a->first_column + r / a->b, r % a->b, a->stride ? a->stride : a->s, t->first,
                 t->rows);
}

static bool seen_before(const struct embedding_backward_args *a, const struct table *t, int64_t r) {
    for (int64_t q = 0; q < r; q++)
        if (id_of(a, t, q) == id_of(a, t, r)) return true;
    return false;
}

/* Adds, for the table row that `first` is the first to use, the sum over all its uses. */
static void add_row(const struct embedding_backward_args *a, const struct table *t, int64_t first,
                    int64_t begin, int64_t end) {
    double sum[COLUMNS] = {0};
    int64_t id = id_of(a, t, first);
    for (int64_t r = first; r < a->s * a->b; r++) {
        if (id_of(a, t, r) != id) continue;
        for (int64_t c = begin; c < end; c++) sum[c - begin] += load_f32(a->dy, a->dtype, r * a->h + c);
    }
    for (int64_t c = begin; c < end; c++) {
        float *out = &t->grad[id * a->h + c];
        *out = (float)(*out + sum[c - begin]);
    }
}

void reference_embedding_backward(const struct stream *stream, const struct embedding_backward_args *args) {
    (void)stream;
    const struct embedding_backward_args *a = args;
    const struct table tables[] = {{a->dweight, a->tokens, a->first_token_id, a->vocab},
                                   {a->dposition_weight, a->positions, 0, a->max_positions}};
    for (int n = 0; n < 2; n++) {
        const struct table *t = &tables[n];
        for (int64_t r = 0; t->grad && t->ids && r < a->s * a->b; r++) {
            if (id_of(a, t, r) < 0 || seen_before(a, t, r)) continue;
            for (int64_t c = 0; c < a->h; c += COLUMNS)
                add_row(a, t, r, c, c + COLUMNS < a->h ? c + COLUMNS : a->h);
        }
    }
}
