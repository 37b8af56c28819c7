#include "tests/kernels/compare.h"

struct shape {
    int64_t rows, cols;
};

static const struct shape shapes[] = {{0, 5},   {1, 1},   {1, 7},    {3, 31},  {2, 32},   {5, 33},
                                      {9, 100}, {17, 64}, {33, 768}, {600, 3}, {3, 4097}, {1031, 130}};

struct variant {
    bool rms, zero_centered, accumulate;
    double offset; /* mean of x: the subtraction must not lose digits */
};

static const struct variant variants[] = {{false, false, false, 0},
                                          {false, true, true, 0},
                                          {true, false, true, 0},
                                          {true, true, false, 0},
                                          {false, false, false, 3}};

struct norm_case {
    struct tensor x, dy, weight, bias, y, dx, dweight, dbias;
    struct shape s;
    struct variant v;
    enum dtype t;
};

static struct norm_case case_new(struct shape s, struct variant v, enum dtype t, bool unaligned) {
    int64_t n = s.rows * s.cols;
    struct norm_case c = {.s = s, .v = v, .t = t};
    double w = v.zero_centered ? 0 : 1;
    c.x = tensor_random(t, n, unaligned, 1, v.offset - 2, v.offset + 2);
    c.dy = tensor_random(t, n, unaligned, 2, -1, 1);
    c.weight = tensor_random(t, s.cols, unaligned, 3, w - 0.5, w + 0.5);
    c.bias = tensor_random(t, s.cols, unaligned, 4, -1, 1);
    c.y = tensor_new(t, n, unaligned);
    c.dx = v.accumulate ? tensor_random(t, n, unaligned, 5, -1, 1) : tensor_new(t, n, unaligned);
    c.dweight = v.accumulate ? tensor_random(DTYPE_F32, s.cols, unaligned, 6, -1, 1)
                             : tensor_new(DTYPE_F32, s.cols, unaligned);
    c.dbias = v.accumulate ? tensor_random(DTYPE_F32, s.cols, unaligned, 7, -1, 1)
                           : tensor_new(DTYPE_F32, s.cols, unaligned);
    return c;
}

static void case_free(struct norm_case *c) {
    struct tensor *all[] = {&c->x, &c->dy, &c->weight, &c->bias, &c->y, &c->dx, &c->dweight, &c->dbias};
    for (int i = 0; i < 8; i++) tensor_free(all[i]);
}

enum { EPSILON_EXPONENT = -10 }; /* large enough that one column does not blow up 1 / sqrt */

static void forward(const struct kernels *k, struct threads *team, const struct norm_case *c, void *y) {
    RUN_ON(team, k, norm_forward, .y = y, .x = c->x.data, .weight = c->weight.data,
           .bias = c->v.rms ? NULL : c->bias.data, .rows = c->s.rows, .cols = c->s.cols,
           .epsilon = ldexpf(1, EPSILON_EXPONENT), .rms = c->v.rms, .zero_centered = c->v.zero_centered,
           .dtype = c->t);
}

static void backward(const struct kernels *k, struct threads *team, const struct norm_case *c,
                     const void *dy) {
    RUN_ON(team, k, norm_backward, .dx = c->dx.data, .dweight = c->dweight.data,
           .dbias = c->v.rms ? NULL : c->dbias.data, .dy = dy, .x = c->x.data, .weight = c->weight.data,
           .rows = c->s.rows, .cols = c->s.cols, .epsilon = ldexpf(1, EPSILON_EXPONENT), .rms = c->v.rms,
           .zero_centered = c->v.zero_centered, .accumulate_dx = c->v.accumulate,
           .accumulate_params = c->v.accumulate, .dtype = c->t);
}

/* Roundings on the way to a normalised value: a lane of cols / 32 additions, its tree, and about 16 more. */
static double row_roundings(const struct norm_case *c) {
    return (double)(c->s.cols / 32 + 24) * 0x1p-24;
}

/* hat is at most (|x - mean|) r <= 4 r; the mean is off by eps |offset|. 1 / sqrt(var + epsilon) is about 1
 * for rows of several columns, but up to 32 = epsilon^-1/2 for rows that happen to be nearly constant. */
static double magnitude(const struct norm_case *c) {
    double r = c->s.cols < 8 ? 32 : 2;
    return (4 + fabs(c->v.offset)) * r * 2;
}

static void check_forward(struct shape s, struct variant v, enum dtype t, const struct kernels *k) {
    struct norm_case c = case_new(s, v, t, k->backend[4] == 'a');
    struct tensor expected = tensor_new(t, c.y.n, false);
    forward(kernels_reference(), NULL, &c, expected.data);
    forward(k, NULL, &c, c.y.data);
    expect_close("y", k, &c.y, &expected, row_roundings(&c) * magnitude(&c));
    forward(k, NULL, &c, c.x.data); /* y may alias x */
    expect_same_bits("y in place of x", k, &c.x, &c.y);
    tensor_free(&expected);
    case_free(&c);
}

static void check_backward(struct shape s, struct variant v, enum dtype t, const struct kernels *k) {
    struct norm_case c = case_new(s, v, t, k->backend[4] == 'a'), e = case_new(s, v, t, false);
    if (v.rms) memset(c.dbias.data, 0, (size_t)s.cols * 4), memset(e.dbias.data, 0, (size_t)s.cols * 4);
    backward(kernels_reference(), NULL, &e, e.dy.data);
    backward(k, NULL, &c, c.dy.data);
    double r = s.cols < 8 ? 32 : 2;
    /* dx has a factor r more than a normalised value; a dx already there adds one rounding to the dtype. */
    double rounding = v.accumulate ? 2 * unit_roundoff(t) * (magnitude(&c) * r + 1) * 0x1p-2 : 0;
    expect_close("dx", k, &c.dx, &e.dx, 2 * row_roundings(&c) * magnitude(&c) * r * r + rounding);
    /* rows terms of size |dy hat|, each with its own error, plus a sum of rows roundings. */
    double rows = (double)s.rows;
    expect_close("dweight", k, &c.dweight, &e.dweight,
                 rows * (row_roundings(&c) + rows * 0x1p-26) * magnitude(&c));
    expect_close("dbias", k, &c.dbias, &e.dbias, (rows + 1) * rows * 0x1p-25 + 0x1p-23);
    if (!v.accumulate) {
        struct norm_case a = case_new(s, v, t, false);
        mem_free(a.dx.block);
        a.dx = a.dy; /* dx may alias dy */
        backward(k, NULL, &a, a.dy.data);
        expect_same_bits("dx in place of dy", k, &a.dx, &c.dx);
        a.dx = tensor_new(t, 0, false);
        case_free(&a);
    }
    case_free(&c);
    case_free(&e);
}

TEST(forward_agrees_with_reference) {
    FOR_EACH_ISA(k)
    FOR_EACH_DTYPE(t)
    for (size_t i = 0; i < sizeof(shapes) / sizeof(*shapes); i++)
        for (size_t v = 0; v < sizeof(variants) / sizeof(*variants); v++)
            check_forward(shapes[i], variants[v], t, k);
}

TEST(backward_agrees_with_reference) {
    FOR_EACH_ISA(k)
    FOR_EACH_DTYPE(t)
    for (size_t i = 0; i < sizeof(shapes) / sizeof(*shapes); i++)
        for (size_t v = 0; v < sizeof(variants) / sizeof(*variants); v++)
            check_backward(shapes[i], variants[v], t, k);
}

/* L = sum(y * dy) on the float32 reference forward, moved by +-h and +-2h: the error is O(h^4) plus
 * float32 rounding of y / h. */
static double slope(struct norm_case *c, struct tensor *input, int64_t i) {
    static const double weight[] = {1, -8, 8, -1};
    double old = tensor_at(input, i), h = 0x1p-6, sum = 0;
    for (int s = 0; s < 4; s++) {
        store_f32(input->data, input->dtype, i, (float)(old + (s < 2 ? s - 2 : s - 1) * h));
        forward(kernels_reference(), NULL, c, c->y.data);
        double loss = 0;
        for (int64_t j = 0; j < c->y.n; j++) loss += (double)tensor_at(&c->y, j) * tensor_at(&c->dy, j);
        sum += weight[s] * loss;
    }
    store_f32(input->data, input->dtype, i, (float)old);
    return sum / (12 * h);
}

TEST(backward_is_the_derivative_of_forward) {
    for (size_t v = 0; v < sizeof(variants) / sizeof(*variants); v++) {
        struct variant variant = variants[v];
        variant.accumulate = false;
        struct norm_case c = case_new((struct shape){4, 12}, variant, DTYPE_F32, false);
        backward(kernels_reference(), NULL, &c, c.dy.data);
        /* y is of order 4 with relative error 2^-24; four values divided by 12 h / 18 */
        double tolerance = 1e-4;
        for (int64_t i = 0; i < c.x.n; i++) EXPECT_NEAR(tensor_at(&c.dx, i), slope(&c, &c.x, i), tolerance);
        for (int64_t j = 0; j < 12; j++) {
            EXPECT_NEAR(tensor_at(&c.dweight, j), slope(&c, &c.weight, j), tolerance);
            if (!variant.rms) EXPECT_NEAR(tensor_at(&c.dbias, j), slope(&c, &c.bias, j), tolerance);
        }
        case_free(&c);
    }
}

TEST(bits_do_not_depend_on_threads) {
    static const struct shape some[] = {{1031, 130}, {70, 768}, {3, 4097}};
    FOR_EACH_ISA(k)
    for (int i = 0; i < 3; i++) {
        struct norm_case one = case_new(some[i], variants[0], DTYPE_BF16, false);
        forward(k, NULL, &one, one.y.data);
        backward(k, NULL, &one, one.dy.data);
        for (int threads = 1; threads <= MOST_TEAM; threads++) {
            struct threads *team = threads_open(threads);
            struct norm_case c = case_new(some[i], variants[0], DTYPE_BF16, threads == 2);
            forward(k, team, &c, c.y.data);
            backward(k, team, &c, c.dy.data);
            expect_same_bits("y", k, &c.y, &one.y);
            expect_same_bits("dx", k, &c.dx, &one.dx);
            expect_same_bits("dweight", k, &c.dweight, &one.dweight);
            expect_same_bits("dbias", k, &c.dbias, &one.dbias);
            case_free(&c);
            threads_close(team);
        }
        case_free(&one);
    }
}

/* One bad element spoils its own row and nothing else; in backward also the sums over rows. */
static void check_bad_input(const struct kernels *k, enum dtype t, struct variant v, float bad,
                            int64_t column) {
    struct norm_case c = case_new((struct shape){3, 77}, v, t, false);
    store_f32(c.x.data, t, 77 + column, bad);
    forward(k, NULL, &c, c.y.data);
    backward(k, NULL, &c, c.dy.data);
    for (int64_t i = 0; i < c.y.n; i++) {
        bool spoilt = i / 77 == 1 && (isnan(bad) || !v.rms || i % 77 == column);
        EXPECT(!spoilt == isfinite(tensor_at(&c.y, i)), "%s: y[%d] is %g", k->backend, (int)i,
               tensor_at(&c.y, i));
        if (i / 77 == 1 && isnan(bad)) EXPECT(isnan(tensor_at(&c.dx, i)), "%s: dx[%d]", k->backend, (int)i);
        if (i / 77 != 1) EXPECT(isfinite(tensor_at(&c.dx, i)), "%s: dx[%d]", k->backend, (int)i);
    }
    EXPECT(!isfinite(tensor_at(&c.dweight, column)), "%s: the bad element vanished", k->backend);
    case_free(&c);
}

TEST(nan_and_infinity_stay_visible_and_stay_in_their_row) {
    FOR_EACH_ISA(k)
    FOR_EACH_DTYPE(t)
    for (int64_t column = 0; column < 77; column += 19)
        for (int v = 0; v < 4; v += 3) {
            struct variant variant = variants[v];
            check_bad_input(k, t, variant, NAN, column);
            check_bad_input(k, t, variant, INFINITY, column);
        }
}

TEST(check_names_what_is_wrong) {
    struct norm_forward_args f = {.rows = 1, .cols = 0, .dtype = DTYPE_F32};
    EXPECT_CONTAINS(norm_forward_check(&f), "cols");
    f.cols = 1, f.dtype = DTYPE_I32;
    EXPECT_CONTAINS(norm_forward_check(&f), "dtype");
    f.dtype = DTYPE_F32, f.rms = true, f.bias = &f;
    EXPECT_CONTAINS(norm_forward_check(&f), "bias");
    f.bias = NULL;
    EXPECT(!norm_forward_check(&f), "well formed");
    /* x read and y written: 2 * 6 * 2 bytes, weight 3 * 2 */
    EXPECT_EQ(
        norm_forward_cost(&(struct norm_forward_args){.rows = 2, .cols = 3, .rms = 1, .dtype = DTYPE_BF16})
            .bytes,
        30);
}

RUN_TESTS(CASE(forward_agrees_with_reference), CASE(backward_agrees_with_reference),
          CASE(backward_is_the_derivative_of_forward), CASE(bits_do_not_depend_on_threads),
          CASE(nan_and_infinity_stay_visible_and_stay_in_their_row), CASE(check_names_what_is_wrong))
