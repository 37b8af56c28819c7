/* Kernels that hold a shard: of the vocabulary (embedding, cross entropy), of the sequence (embedding), and
 * the copy that moves blocks between the two. The oracles work on the whole, in double. */
#include "tests/kernels/compare.h"

#define FOR_EACH_TABLE(k)                                                                                    \
    for (int k##_index = -1; k##_index < ISA_COUNT; k##_index++)                                             \
        for (const struct kernels *k = k##_index < 0 ? kernels_reference()                                   \
                                                     : table_named(isa_names[k##_index]);                    \
             k; k = NULL)

/* ---- embedding ---- */
enum { WORDS = 23, POSITIONS = 9, STRIDE = 7, BATCH = 3 };

struct words {
    struct tensor weight, position_weight, y, dy, dweight, dposition_weight;
    int32_t tokens[BATCH * STRIDE], positions[BATCH * STRIDE];
    int64_t h, s, first_column, first, count; /* columns at hand, and tokens of the shard */
    enum dtype t;
};

static struct words words_new(enum dtype t, int64_t h, int64_t first, int64_t count, int64_t first_column,
                              int64_t s) {
    struct words w = {.h = h, .s = s, .first_column = first_column, .first = first, .count = count, .t = t};
    w.weight = tensor_random(t, WORDS * h, false, 1, -1, 1);
    w.position_weight = tensor_random(t, POSITIONS * h, true, 2, -1, 1);
    w.y = tensor_random(t, s * BATCH * h, true, 3, -1, 1);
    w.dy = tensor_random(t, s * BATCH * h, false, 4, -1, 1);
    w.dweight = tensor_random(DTYPE_F32, count * h, true, 5, -1, 1);
    w.dposition_weight = tensor_random(DTYPE_F32, POSITIONS * h, true, 6, -1, 1);
    for (int i = 0; i < BATCH * STRIDE; i++) {
        w.tokens[i] = i * 5 % WORDS, w.positions[i] = i % STRIDE * 4 % POSITIONS;
    }
    return w;
}

static void words_free(struct words *w) {
    struct tensor *all[] = {&w->weight, &w->position_weight, &w->y,
                            &w->dy,     &w->dweight,         &w->dposition_weight};
    for (int i = 0; i < 6; i++) tensor_free(all[i]);
}

enum { USE_WORDS = 1, USE_POSITIONS = 2, USE_SUM = 4 };

/* Whether element n of y takes part in a table's row; *row_p gets the row of the whole table. */
static bool word_of(const struct words *w, int64_t n, int uses, int64_t *row_p) {
    int64_t i = n / w->h / BATCH, j = n / w->h % BATCH;
    *row_p = w->tokens[j * STRIDE + w->first_column + i];
    return (uses & USE_WORDS) && *row_p >= w->first && *row_p < w->first + w->count;
}

static int64_t position_of(const struct words *w, int64_t n) {
    return w->positions[n / w->h % BATCH * STRIDE + w->first_column + n / w->h / BATCH];
}

static void check_embedding_forward(const struct kernels *k, struct words *w, int uses) {
    struct tensor before = tensor_copy(&w->y);
    const char *shard = (const char *)w->weight.data + (size_t)(w->first * w->h) * dtype_bytes(w->t);
    RUN(k, embedding_forward, .y = w->y.data, .weight = uses & USE_WORDS ? shard : NULL,
        .position_weight = uses & USE_POSITIONS ? w->position_weight.data : NULL,
        .tokens = uses & USE_WORDS ? w->tokens : NULL, .positions = w->positions, .s = w->s, .b = BATCH,
        .h = w->h, .vocab = w->count, .max_positions = POSITIONS, .first_token_id = w->first,
        .stride = STRIDE, .first_column = w->first_column, .accumulate = uses & USE_SUM, .dtype = w->t);
    int64_t bad = 0, row;
    for (int64_t n = 0; n < w->y.n; n++) {
        double y = uses & USE_SUM ? tensor_at(&before, n) : 0;
        if (word_of(w, n, uses, &row)) y += tensor_at(&w->weight, row * w->h + n % w->h);
        if (uses & USE_POSITIONS) y += tensor_at(&w->position_weight, position_of(w, n) * w->h + n % w->h);
        /* |y| <= 3: one rounding to dtype, two to float32 */
        bad += !(fabs(tensor_at(&w->y, n) - y) <= unit_roundoff(w->t) * fabs(y) + 3 * 0x1p-23);
    }
    EXPECT(!bad, "%s %s, uses %d: %d elements are wrong", k->backend, dtype_name(w->t), uses, (int)bad);
    tensor_free(&before);
}

static void check_embedding_backward(const struct kernels *k, struct words *w, int uses) {
    struct tensor word = tensor_copy(&w->dweight), position = tensor_copy(&w->dposition_weight);
    RUN(k, embedding_backward, .dweight = uses & USE_WORDS ? w->dweight.data : NULL,
        .dposition_weight = uses & USE_POSITIONS ? w->dposition_weight.data : NULL, .dy = w->dy.data,
        .tokens = w->tokens, .positions = w->positions, .s = w->s, .b = BATCH, .h = w->h, .vocab = w->count,
        .max_positions = POSITIONS, .first_token_id = w->first, .stride = STRIDE,
        .first_column = w->first_column, .dtype = w->t);
    double *sums = mem_new_array(double, (size_t)((WORDS + POSITIONS) * w->h), "sums");
    int64_t row;
    for (int64_t n = 0; n < w->dy.n; n++) {
        double dy = tensor_at(&w->dy, n);
        if (word_of(w, n, uses, &row)) sums[row * w->h + n % w->h] += dy;
        if (uses & USE_POSITIONS) sums[(WORDS + position_of(w, n)) * w->h + n % w->h] += dy;
    }
    for (int64_t n = 0; n < word.n; n++) /* at most 21 additions to a sum of that size */
        EXPECT_NEAR(tensor_at(&w->dweight, n), tensor_at(&word, n) + sums[w->first * w->h + n], 1e-4);
    for (int64_t n = 0; n < position.n; n++)
        EXPECT_NEAR(tensor_at(&w->dposition_weight, n), tensor_at(&position, n) + sums[WORDS * w->h + n],
                    1e-4);
    mem_free(sums), tensor_free(&word), tensor_free(&position);
}

TEST(an_embedding_shard_takes_its_tokens_and_columns_only) {
    static const int64_t shards[][2] = {{0, WORDS}, {0, 8}, {8, 8}, {16, 7}, {22, 1}};
    static const int64_t columns[][2] = {{0, STRIDE}, {0, 3}, {3, 4}, {6, 1}};
    FOR_EACH_TABLE(k)
    FOR_EACH_DTYPE(t)
    for (int n = 0; n < 5 * 4 * 8; n++) {
        const int64_t *shard = shards[n / 32], *column = columns[n / 8 % 4];
        int uses = n % 8;
        if (!(uses & (USE_WORDS | USE_POSITIONS))) continue;
        struct words w = words_new(t, n % 2 ? 37 : 64, shard[0], shard[1], column[0], column[1]);
        check_embedding_forward(k, &w, uses);
        if (!(uses & USE_SUM)) check_embedding_backward(k, &w, uses);
        words_free(&w);
    }
}

TEST(the_shards_of_an_embedding_add_up_to_the_bit) {
    FOR_EACH_TABLE(k) {
        struct words whole = words_new(DTYPE_BF16, 64, 0, WORDS, 0, STRIDE);
        struct words sum = words_new(DTYPE_BF16, 64, 0, WORDS, 0, STRIDE);
        RUN(k, embedding_forward, .y = whole.y.data, .weight = whole.weight.data, .tokens = whole.tokens,
            .s = STRIDE, .b = BATCH, .h = 64, .vocab = WORDS, .dtype = DTYPE_BF16);
        for (int64_t first = 0; first < WORDS; first += 8) {
            const char *shard = (const char *)sum.weight.data + first * 64 * 2;
            RUN(k, embedding_forward, .y = sum.y.data, .weight = shard, .tokens = sum.tokens, .s = STRIDE,
                .b = BATCH, .h = 64, .vocab = first < 16 ? 8 : WORDS - 16, .first_token_id = first,
                .accumulate = first > 0, .dtype = DTYPE_BF16);
        }
        expect_same_bits("y", k, &sum.y, &whole.y);
        words_free(&whole), words_free(&sum);
    }
}

/* ---- cross entropy ---- */
enum { ROWS = 11 };

/* A vocabulary of `vocab` columns of which the first `real` are words, in shards of `width` columns. */
struct loss_case {
    int64_t vocab, real, width;
};

static const struct loss_case loss_cases[] = {
    {512, 300, 128}, {10000, 9999, 5000}, {8, 3, 2}, {96, 96, 32}, {40, 37, 40}};

struct whole {
    struct tensor logits; /* [ROWS, vocab] */
    int32_t labels[ROWS];
    float mask[ROWS];
    double lse[ROWS], loss[ROWS];
};

static struct whole whole_new(const struct loss_case *c, enum dtype t) {
    struct whole w = {.logits = tensor_random(t, ROWS * c->vocab, false, 3, -6, 6)};
    for (int r = 0; r < ROWS; r++) {
        w.mask[r] = r % 4 == 3 ? 0 : r % 2 ? 0.5f : 1;
        w.labels[r] = w.mask[r] == 0 ? -100 : (int32_t)((r * 7919 + c->real - 1) % c->real);
        if (r == ROWS - 1) w.labels[r] = (int32_t)c->real - 1; /* in another shard: behind the last row */
        for (int64_t v = 0; v < c->real; v++) w.lse[r] += exp(tensor_at(&w.logits, r * c->vocab + v));
        w.lse[r] = log(w.lse[r]);
        if (w.mask[r] == 0) continue;
        w.loss[r] = w.mask[r] * (w.lse[r] - tensor_at(&w.logits, r * c->vocab + w.labels[r]));
    }
    for (int64_t n = 0; n < w.logits.n; n++) /* the padding must not be read as a logit */
        if (n % c->vocab >= c->real) store_f32(w.logits.data, t, n, n % 2 ? NAN : 1e4f);
    return w;
}

static int64_t counting(const struct loss_case *c, int64_t first) {
    int64_t left = c->real - first;
    return left <= 0 ? -1 : left < c->width ? left : left == c->width ? 0 : c->width;
}

/* Cuts columns [first, first + width) out. */
static struct tensor shard_of(const struct whole *w, const struct loss_case *c, int64_t first) {
    struct tensor shard = tensor_new(w->logits.dtype, ROWS * c->width, true);
    size_t size = dtype_bytes(shard.dtype);
    for (int64_t r = 0; r < ROWS; r++)
        memcpy((char *)shard.data + (size_t)(r * c->width) * size,
               (char *)w->logits.data + (size_t)(r * c->vocab + first) * size, (size_t)c->width * size);
    return shard;
}

static void check_gradient(const struct kernels *k, const struct whole *w, const struct loss_case *c,
                           int64_t first, const struct tensor *lse) {
    struct tensor logits = shard_of(w, c, first);
    RUN(k, cross_entropy_backward, .dlogits = logits.data, .logits = logits.data, .lse = lse->data,
        .labels = w->labels, .mask = w->mask, .rows = ROWS, .vocab = c->width, .first_label = first,
        .columns = counting(c, first), .grad_scale = 0.5f, .dtype = logits.dtype);
    int64_t bad = 0;
    for (int64_t n = 0; n < logits.n; n++) {
        int64_t r = n / c->width, v = first + n % c->width;
        double x = tensor_at(&w->logits, r * c->vocab + v), truth = 0;
        if (v < c->real) truth = (exp(x - w->lse[r]) - (v == w->labels[r])) * w->mask[r] * 0.5;
        double bound = unit_roundoff(logits.dtype) * fabs(truth) + 32 * 0x1p-23; /* as in loss_test.c */
        bad +=
            !(fabs(tensor_at(&logits, n) - truth) <= bound) || (v >= c->real && tensor_at(&logits, n) != 0);
    }
    EXPECT(!bad, "%s %s: %d gradients of the shard at %d are wrong", k->backend, dtype_name(logits.dtype),
           (int)bad, (int)first);
    tensor_free(&logits);
}

static void check_shards(const struct kernels *k, struct threads *team, const struct loss_case *c,
                         enum dtype t, int64_t stride) {
    struct whole w = whole_new(c, t);
    int64_t parts = c->vocab / c->width;
    struct tensor lses = tensor_new(DTYPE_F32, parts * stride, false);
    struct tensor picks = tensor_new(DTYPE_F32, parts * stride, false);
    struct tensor lse = tensor_new(DTYPE_F32, ROWS, true), loss = tensor_new(DTYPE_F32, ROWS, true);
    for (int64_t p = 0; p < parts; p++) {
        struct tensor logits = shard_of(&w, c, p * c->width);
        RUN_ON(team, k, cross_entropy_forward, .lse = (float *)lses.data + p * stride,
               .picked = (float *)picks.data + p * stride, .logits = logits.data, .labels = w.labels,
               .mask = w.mask, .rows = ROWS, .vocab = c->width, .first_label = p * c->width,
               .columns = counting(c, p * c->width), .dtype = t);
        for (int r = 0; r < ROWS; r++) {
            bool here = w.mask[r] != 0 && w.labels[r] / c->width == p;
            float pick = tensor_at(&picks, p * stride + r), part = tensor_at(&lses, p * stride + r);
            EXPECT(pick == (here ? tensor_at(&w.logits, r * c->vocab + w.labels[r]) : 0), "%s: picked %g",
                   k->backend, (double)pick);
            EXPECT(counting(c, p * c->width) >= 0 || part == -INFINITY, "%s: lse of no column", k->backend);
        }
        tensor_free(&logits);
    }
    RUN_ON(team, k, cross_entropy_combine, .loss = loss.data, .lse = lse.data, .lse_parts = lses.data,
           .picked_parts = picks.data, .mask = w.mask, .rows = ROWS, .parts = parts,
           .part_stride = stride == ROWS ? 0 : stride);
    for (int r = 0; r < ROWS;
         r++) { /* as lse_error of loss_test.c: sums of some 10000, a number of size 15 */
        EXPECT_NEAR(tensor_at(&lse, r), w.lse[r], 176 * 0x1p-24 + 16 * 0x1p-23);
        EXPECT_NEAR(tensor_at(&loss, r), w.loss[r], 2 * (176 * 0x1p-24 + 16 * 0x1p-23));
        EXPECT(w.mask[r] != 0 || tensor_at(&loss, r) == 0, "%s: loss out of the mask", k->backend);
    }
    for (int64_t p = 0; p < parts; p++) check_gradient(k, &w, c, p * c->width, &lse);
    tensor_free(&lses), tensor_free(&picks), tensor_free(&lse), tensor_free(&loss), tensor_free(&w.logits);
}

TEST(the_shards_of_a_cross_entropy_give_loss_and_gradient_of_the_whole) {
    struct threads *team = threads_open(2);
    FOR_EACH_TABLE(k)
    FOR_EACH_DTYPE(t)
    for (size_t i = 0; i < sizeof(loss_cases) / sizeof(loss_cases[0]); i++)
        check_shards(k, team, &loss_cases[i], t, i % 2 ? ROWS : 2 * ROWS + 3);
    threads_close(team);
}

/* One shard that is all of a padded vocabulary: loss directly, without `picked`. */
TEST(padding_columns_of_a_whole_vocabulary_are_left_out) {
    const struct loss_case *c = &loss_cases[4];
    FOR_EACH_TABLE(k)
    FOR_EACH_DTYPE(t) {
        struct whole w = whole_new(c, t);
        struct tensor lse = tensor_new(DTYPE_F32, ROWS, false), loss = tensor_new(DTYPE_F32, ROWS, false);
        RUN(k, cross_entropy_forward, .loss = loss.data, .lse = lse.data, .logits = w.logits.data,
            .labels = w.labels, .mask = w.mask, .rows = ROWS, .vocab = c->vocab, .columns = c->real,
            .dtype = t);
        for (int r = 0; r < ROWS; r++) EXPECT_NEAR(tensor_at(&loss, r), w.loss[r], 1e-5);
        tensor_free(&lse), tensor_free(&loss), tensor_free(&w.logits);
    }
}

TEST(a_nan_in_one_shard_reaches_the_loss) {
    FOR_EACH_TABLE(k) {
        float lses[4] = {1, NAN, -INFINITY, -INFINITY}, picks[4] = {0, 0, 0, 0}, mask[2] = {1, 1};
        float lse[2], loss[2];
        RUN(k, cross_entropy_combine, .loss = loss, .lse = lse, .lse_parts = lses, .picked_parts = picks,
            .mask = mask, .rows = 2, .parts = 2);
        EXPECT(lse[0] == 1 && loss[0] == 1, "%s: an empty shard adds nothing", k->backend);
        EXPECT(isnan(lse[1]) && isnan(loss[1]), "%s: NaN vanished", k->backend);
    }
}

/* ---- copy_blocks ---- */
TEST(blocks_are_copied_where_the_strides_say) {
    static const int64_t sizes[][3] = {{3, 5, 7}, {1, 1, 1}, {4, 1, 33}, {2, 300, 64}, {0, 2, 2}, {2, 2, 0}};
    static const enum dtype dtypes[] = {DTYPE_F32, DTYPE_BF16, DTYPE_I32};
    struct threads *team = threads_open(2);
    FOR_EACH_TABLE(k)
    for (int n = 0; n < 18; n++) {
        int64_t n0 = sizes[n / 3][0], n1 = sizes[n / 3][1], n2 = sizes[n / 3][2], gap = 3;
        enum dtype t = dtypes[n % 3];
        int64_t row = n2 + gap, count = n0 * n1 * row + gap;
        struct tensor src = tensor_new(t, count, true), dst = tensor_new(t, count, false);
        for (int64_t i = 0; i < count; i++) store_f32(src.data, t, i, (float)(i % 251));
        /* src [n0, n1, row] to dst [n1, n0, row] */
        RUN_ON(team, k, copy_blocks, .dst = dst.data, .src = src.data, .n0 = n0, .n1 = n1, .n2 = n2,
               .dst_stride0 = row, .dst_stride1 = n0 * row, .src_stride0 = n1 * row, .src_stride1 = row,
               .dtype = t);
        int64_t bad = 0;
        for (int64_t at = 0; at < count; at++) {
            int64_t column = at % row, i = n0 ? at / row % n0 : 0, j = n0 ? at / row / n0 : 0;
            unsigned char untouched[4] = {0xFF, 0xFF, 0xFF, 0xFF};
            bool inside = at < n0 * n1 * row && column < n2;
            const void *expected = inside ? dtype_at(src.data, t, (i * n1 + j) * row + column) : untouched;
            bad += memcmp(dtype_at(dst.data, t, at), expected, dtype_bytes(t)) != 0;
        }
        EXPECT(!bad, "%s %s: %d elements are wrong", k->backend, dtype_name(t), (int)bad);
        tensor_free(&src), tensor_free(&dst);
    }
    threads_close(team);
}

TEST(malformed_shards_are_refused) {
    struct embedding_forward_args e = {.s = 4, .b = 1, .h = 2, .vocab = 3, .stride = 8, .first_column = 5};
    EXPECT_CONTAINS(embedding_forward_check(&e), "first_column");
    e.first_column = 4;
    EXPECT(!embedding_forward_check(&e), "well formed");
    struct cross_entropy_forward_args f = {.rows = 1, .vocab = 4, .columns = 5};
    EXPECT_CONTAINS(cross_entropy_forward_check(&f), "columns");
    struct cross_entropy_combine_args c = {.rows = 4, .parts = 2, .part_stride = 3};
    EXPECT_CONTAINS(cross_entropy_combine_check(&c), "part_stride");
    c.parts = 0;
    EXPECT_CONTAINS(cross_entropy_combine_check(&c), "parts");
    struct copy_blocks_args b = {.n0 = 1, .n1 = -1, .n2 = 1};
    EXPECT_CONTAINS(copy_blocks_check(&b), "negative");
    b.n1 = 3, b.n2 = 5;
    EXPECT_EQ(copy_blocks_cost(&b).bytes, 2.0 * 15 * 4);
}

RUN_TESTS(CASE(an_embedding_shard_takes_its_tokens_and_columns_only),
          CASE(the_shards_of_an_embedding_add_up_to_the_bit),
          CASE(the_shards_of_a_cross_entropy_give_loss_and_gradient_of_the_whole),
          CASE(padding_columns_of_a_whole_vocabulary_are_left_out), CASE(a_nan_in_one_shard_reaches_the_loss),
          CASE(blocks_are_copied_where_the_strides_say), CASE(malformed_shards_are_refused))
