#include "kernels/kernels.h"

static const char *check_shape(int64_t s, int64_t b, int64_t h, int64_t vocab, int64_t max_positions,
                               int has_positions, enum dtype dtype) {
    if (s < 0 || b < 0) return "s and b must not be negative";
    if (h < 1) return "h must be at least 1";
    if (vocab < 1) return "vocab must be at least 1";
    if (has_positions && max_positions < 1) return "max_positions must be at least 1";
    if (!dtype_is_float(dtype)) return "dtype must be fp32, bf16 or fp16";
    return NULL;
}

static const char *check_columns(int64_t s, int64_t stride, int64_t first_column) {
    if (first_column < 0 || first_column + s > (stride ? stride : s)) {
        return "the columns from first_column to first_column + s must lie within the stride";
    }
    return NULL;
}

const char *embedding_forward_check(const struct embedding_forward_args *args) {
    const char *wrong = check_shape(args->s, args->b, args->h, args->vocab, args->max_positions,
                                    args->position_weight != NULL, args->dtype);
    return wrong ? wrong : check_columns(args->s, args->stride, args->first_column);
}

struct kernel_cost embedding_forward_cost(const struct embedding_forward_args *args) {
    double tokens = (double)args->s * (double)args->b, n = tokens * (double)args->h;
    bool words = args->tokens || args->weight || !args->position_weight;
    double tables = (words ? 1 : 0) + (args->position_weight ? 1 : 0), y = args->accumulate ? 2 : 1;
    return (struct kernel_cost){.flops = n * (tables + y - 2),
                                .bytes = n * (tables + y) * (double)dtype_bytes(args->dtype) +
                                         4 * tokens * tables};
}

const char *embedding_backward_check(const struct embedding_backward_args *args) {
    const char *wrong = check_shape(args->s, args->b, args->h, args->vocab, args->max_positions,
                                    args->dposition_weight != NULL, args->dtype);
    return wrong ? wrong : check_columns(args->s, args->stride, args->first_column);
}

/* Each row of dy is read once; each gradient row that it goes to is read and written. */
struct kernel_cost embedding_backward_cost(const struct embedding_backward_args *args) {
    double tokens = (double)args->s * (double)args->b, n = tokens * (double)args->h;
    double tables = (args->dweight ? 1 : 0) + (args->dposition_weight ? 1 : 0);
    return (struct kernel_cost){.flops = n * tables,
                                .bytes = n * ((double)dtype_bytes(args->dtype) + 8 * tables) +
                                         4 * tokens * tables};
}
