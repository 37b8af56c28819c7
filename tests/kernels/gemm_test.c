/* gemm, gemm_pack and bias_backward on every table that this machine can run, against sums taken here in
 * double. Every tensor sits in a larger block filled with NaN: what is read out of place shows in the result,
 * what is written out of place shows in the block. The bound is that of a float32 sum in any order:
 * (k + few) 2^-24 sum |a||b|, plus one rounding to the output type. */
#include "core/base/mem.h"
#include "core/base/rng.h"
#include "tests/kernels/tables.h"
#include "tests/test.h"

enum { ISAS = 1 + ISA_COUNT, GUARD = 192 };

static const struct kernels *table_of(int index) {
    return index ? table_named(isa_names[index - 1]) : kernels_reference();
}

enum { MOST_THREADS = MOST_TEAM };

/* Teams are opened once and kept: starting threads for every case would take longer than the cases. */
static struct threads *team_of(int threads) {
    static struct threads *teams[MOST_THREADS + 1];
    if (threads && !teams[threads]) teams[threads] = threads_open(threads);
    return teams[threads];
}

/* ---- a matrix inside a block of NaN ---- */
struct matrix {
    enum dtype dtype;
    int64_t rows, cols, ld;
    unsigned char *block, *data;
    size_t bytes, block_bytes;
};

static float value_at(uint32_t seed, int64_t i) {
    struct rng_words w = rng_philox((struct rng_key){.seed = seed}, (uint64_t)i / 4);
    return rng_uniform(w.w[i % 4]) * 2.0f - 1.0f;
}

/* `shift` elements past a 64-byte boundary. */
static struct matrix matrix_new(enum dtype dtype, int64_t rows, int64_t cols, int64_t pad, int64_t shift) {
    struct matrix m = {.dtype = dtype, .rows = rows, .cols = cols, .ld = cols + pad};
    m.bytes = rows ? ((size_t)((rows - 1) * m.ld + cols)) * dtype_bytes(dtype) : 0;
    m.block_bytes = m.bytes + 2 * GUARD;
    m.block = mem_alloc(m.block_bytes, "matrix");
    memset(m.block, 0xFF, m.block_bytes);
    m.data = m.block + (size_t)shift * dtype_bytes(dtype) + 64;
    return m;
}

static void matrix_fill(struct matrix *m, uint32_t seed) {
    for (int64_t i = 0; i < m->rows; i++)
        for (int64_t j = 0; j < m->cols; j++)
            store_f32(m->data, m->dtype, i * m->ld + j, value_at(seed, i * m->cols + j));
}

static double matrix_at(const struct matrix *m, bool trans, int64_t i, int64_t j) {
    return (double)load_f32(m->data, m->dtype, trans ? j * m->ld + i : i * m->ld + j);
}

/* Every byte of the block outside the matrix is still 0xFF. */
static bool matrix_surroundings_intact(const struct matrix *m) {
    size_t row = (size_t)m->cols * dtype_bytes(m->dtype), step = (size_t)m->ld * dtype_bytes(m->dtype);
    size_t offset = (size_t)(m->data - m->block);
    for (size_t i = 0; i < m->block_bytes; i++) {
        bool inside = i >= offset && i - offset < m->bytes && (i - offset) % step < row;
        if (!inside && m->block[i] != 0xFF) return false;
    }
    return true;
}

/* ---- one product ---- */
enum b_form { B_PLAIN, B_TRANS, B_PACKED, B_PACKED_TRANS, B_FORMS };

struct product {
    int64_t m, n, k;
    enum dtype dtype, c_dtype;
    bool trans_a, accumulate, bias, padded, from_masters;
    enum b_form b_form;
    float alpha;
    int64_t shift;
};

struct tensors {
    struct matrix a, b, bias, c0, c;
    double *exact, *magnitude; /* [m, n]: the result before rounding, and the sum of |terms| */
};

static void describe(const struct product *p, const char *isa, char text[256]) {
    snprintf(text, 256,
             "%s %lldx%lldx%lld %s->%s ta=%d b=%d acc=%d bias=%d pad=%d masters=%d alpha=%g shift=%lld", isa,
             (long long)p->m, (long long)p->n, (long long)p->k, dtype_name(p->dtype), dtype_name(p->c_dtype),
             p->trans_a, (int)p->b_form, p->accumulate, p->bias, p->padded, p->from_masters, (double)p->alpha,
             (long long)p->shift);
}

static struct tensors tensors_new(const struct product *p) {
    bool trans_b = p->b_form == B_TRANS || p->b_form == B_PACKED_TRANS;
    int64_t pad = p->padded ? 5 : 0;
    struct tensors t;
    t.a = matrix_new(p->dtype, p->trans_a ? p->k : p->m, p->trans_a ? p->m : p->k, pad, p->shift);
    t.b = matrix_new(p->dtype, trans_b ? p->n : p->k, trans_b ? p->k : p->n, pad ? pad + 2 : 0, p->shift);
    t.bias = matrix_new(p->dtype, 1, p->n, 0, p->shift);
    t.c0 = matrix_new(p->c_dtype, p->m, p->n, pad ? pad + 4 : 0, p->shift);
    t.c = matrix_new(p->c_dtype, p->m, p->n, pad ? pad + 4 : 0, p->shift);
    matrix_fill(&t.a, 1);
    matrix_fill(&t.b, 2);
    matrix_fill(&t.bias, 3);
    if (p->accumulate) matrix_fill(&t.c0, 4);
    t.exact = mem_new_array(double, (size_t)(p->m * p->n), "exact");
    t.magnitude = mem_new_array(double, (size_t)(p->m * p->n), "magnitude");
    double *b = mem_new_array(double, (size_t)(p->k * p->n), "B in double");
    for (int64_t q = 0; q < p->k; q++)
        for (int64_t j = 0; j < p->n; j++) b[q * p->n + j] = matrix_at(&t.b, trans_b, q, j);
    double alpha = p->alpha != 0 ? (double)p->alpha : 1;
    for (int64_t i = 0; i < p->m; i++) {
        for (int64_t q = 0; q < p->k; q++) {
            double x = alpha * matrix_at(&t.a, p->trans_a, i, q);
            for (int64_t j = 0; j < p->n; j++) {
                double y = x * b[q * p->n + j];
                t.exact[i * p->n + j] += y;
                t.magnitude[i * p->n + j] += fabs(y);
            }
        }
        for (int64_t j = 0; j < p->n; j++) {
            double bias = p->bias ? matrix_at(&t.bias, false, 0, j) : 0;
            double old = p->accumulate ? matrix_at(&t.c0, false, i, j) : 0;
            t.exact[i * p->n + j] += bias + old;
            t.magnitude[i * p->n + j] += fabs(bias) + fabs(old);
        }
    }
    mem_free(b);
    return t;
}

static void tensors_free(struct tensors *t) {
    mem_free(t->a.block), mem_free(t->b.block), mem_free(t->bias.block), mem_free(t->c0.block),
        mem_free(t->c.block);
    mem_free(t->exact), mem_free(t->magnitude);
}

/* A block of `bytes` with a guard behind it, all 0xFF. */
static unsigned char *guarded(size_t bytes) {
    unsigned char *p = mem_alloc(bytes + GUARD, "guarded block");
    memset(p, 0xFF, bytes + GUARD);
    return p;
}

static bool guard_intact(const unsigned char *p, size_t bytes) {
    for (size_t i = 0; i < GUARD; i++)
        if (p[bytes + i] != 0xFF) return false;
    return true;
}

/* Packs B when the case wants that and the table packs; the packed block must then be freed. */
static unsigned char *packed_b(const struct kernels *kernels, struct threads *team, const struct product *p,
                               const struct tensors *t) {
    size_t bytes = p->b_form >= B_PACKED ? kernels->gemm_packed_bytes(p->dtype, p->k, p->n) : 0;
    if (!bytes) return NULL;
    struct stream stream = {.kernels = kernels, .threads = team};
    unsigned char *packed = guarded(bytes);
    struct matrix source = matrix_new(p->from_masters ? DTYPE_F32 : p->dtype, t->b.rows, t->b.cols,
                                      t->b.ld - t->b.cols, p->shift);
    for (int64_t i = 0; i < source.rows; i++)
        for (int64_t j = 0; j < source.cols; j++)
            store_f32(source.data, source.dtype, i * source.ld + j, (float)matrix_at(&t->b, false, i, j));
    KERNEL_CALL(gemm_pack, &stream, .dst = packed, .src = source.data, .k = p->k, .n = p->n, .ld = source.ld,
                .trans = p->b_form == B_PACKED_TRANS, .dtype = p->dtype, .src_dtype = source.dtype);
    EXPECT(guard_intact(packed, bytes), "gemm_pack wrote behind its output");
    mem_free(source.block);
    return packed;
}

/* c = a fresh copy of c0, then the product. */
static void multiply(const struct kernels *kernels, struct threads *team, const struct product *p,
                     struct tensors *t) {
    struct stream stream = {.kernels = kernels, .threads = team};
    unsigned char *packed = packed_b(kernels, team, p, t);
    struct gemm_args args = {.c = t->c.data,
                             .a = t->a.data,
                             .b = packed ? packed : t->b.data,
                             .bias = p->bias ? t->bias.data : NULL,
                             .m = p->m,
                             .n = p->n,
                             .k = p->k,
                             .lda = p->padded ? t->a.ld : 0,
                             .ldb = p->padded ? t->b.ld : 0,
                             .ldc = p->padded ? t->c.ld : 0,
                             .trans_a = p->trans_a,
                             .trans_b = p->b_form == B_TRANS || p->b_form == B_PACKED_TRANS,
                             .b_packed = packed != NULL,
                             .accumulate = p->accumulate,
                             .dtype = p->dtype,
                             .c_dtype = p->c_dtype,
                             .alpha = p->alpha};
    size_t bytes = kernels->gemm_workspace ? kernels->gemm_workspace(&stream, &args) : 0;
    stream.workspace = guarded(bytes);
    stream.workspace_bytes = bytes;
    memcpy(t->c.block, t->c0.block, t->c.block_bytes);
    gemm_call(&stream, &args);
    EXPECT(guard_intact(stream.workspace, bytes), "gemm wrote behind its workspace");
    mem_free(stream.workspace);
    mem_free(packed);
}

static double unit_roundoff(enum dtype dtype) {
    return dtype == DTYPE_BF16 ? 0x1p-8 : dtype == DTYPE_F16 ? 0x1p-11 : 0x1p-24;
}

static void expect_close(const struct product *p, const struct tensors *t, const char *isa) {
    double tiny = p->c_dtype == DTYPE_F16 ? 0x1p-25 : 0x1p-120;
    for (int64_t i = 0; i < p->m * p->n; i++) {
        double got = matrix_at(&t->c, false, i / p->n, i % p->n);
        double sum = ((double)p->k + 8) * 0x1p-24 * t->magnitude[i];
        double bound = sum + (fabs(t->exact[i]) + sum) * unit_roundoff(p->c_dtype) + tiny;
        if (isfinite(got) && fabs(got - t->exact[i]) <= bound) continue;
        char text[256];
        describe(p, isa, text);
        EXPECT(false, "%s: C[%lld,%lld] is %.9g, expected %.9g within %.3g", text, (long long)(i / p->n),
               (long long)(i % p->n), got, t->exact[i], bound);
        return;
    }
    EXPECT(matrix_surroundings_intact(&t->c), "%s wrote outside C", isa);
}

/* Every table against the exact result, then again with teams of 1 to `most_threads`: the same bits. */
static void check_product(const struct product *p, int most_threads) {
    struct tensors t = tensors_new(p);
    struct matrix first = t.c;
    for (int x = 0; x < ISAS; x++) {
        const struct kernels *kernels = table_of(x);
        if (!kernels || judged_elsewhere(kernels) || (x == 0 && p->m * p->n * p->k > 4000000)) continue;
        multiply(kernels, NULL, p, &t);
        expect_close(p, &t, table_of(x)->backend);
        first.block = mem_alloc(t.c.block_bytes, "first result");
        memcpy(first.block, t.c.block, t.c.block_bytes);
        for (int threads = 1; x && threads <= most_threads; threads++) {
            multiply(kernels, team_of(threads), p, &t);
            char text[256];
            describe(p, table_of(x)->backend, text);
            EXPECT(!memcmp(first.block, t.c.block, t.c.block_bytes), "%s: other bits with %d threads", text,
                   threads);
        }
        mem_free(first.block);
    }
    tensors_free(&t);
}

static const struct {
    enum dtype dtype, c_dtype;
} dtypes[] = {{DTYPE_F32, DTYPE_F32},
              {DTYPE_BF16, DTYPE_BF16},
              {DTYPE_BF16, DTYPE_F32},
              {DTYPE_F16, DTYPE_F16},
              {DTYPE_F16, DTYPE_F32}};
enum { DTYPES = sizeof(dtypes) / sizeof(dtypes[0]) };

/* The case of one shape: `mix` picks the flags. */
static struct product product_of(int64_t m, int64_t n, int64_t k, int dtype, unsigned mix) {
    return (struct product){.m = m,
                            .n = n,
                            .k = k,
                            .dtype = dtypes[dtype].dtype,
                            .c_dtype = dtypes[dtype].c_dtype,
                            .trans_a = mix & 1,
                            .b_form = (enum b_form)(mix >> 1 & 3),
                            .accumulate = mix >> 3 & 1,
                            .bias = mix >> 4 & 1,
                            .padded = mix >> 5 & 1,
                            .from_masters = mix >> 6 & 1,
                            .shift = mix >> 5 & 1 ? 3 : 0,
                            .alpha = mix % 3 == 2 ? 0.375f : 0.0f};
}

TEST(small_products_are_exact_to_rounding_for_every_setting) {
    static const int64_t shapes[][3] = {{1, 1, 1}, {2, 3, 5}, {17, 33, 31}, {16, 32, 64}, {33, 15, 70}};
    for (size_t s = 0; s < sizeof(shapes) / sizeof(shapes[0]); s++)
        for (int dtype = 0; dtype < DTYPES; dtype++)
            for (unsigned mix = 0; mix < 128; mix++) {
                struct product p = product_of(shapes[s][0], shapes[s][1], shapes[s][2], dtype, mix);
                check_product(&p, mix % 16 ? 0 : MOST_THREADS);
            }
}

TEST(products_beyond_every_block_size_are_exact_to_rounding) {
    static const int64_t shapes[][3] = {{1, 700, 300},  {300, 1, 520},  {70, 90, 1100}, {65, 129, 513},
                                        {520, 70, 33},  {1100, 40, 20}, {40, 2100, 24}, {260, 20, 1060},
                                        {5, 800, 1040}, {40, 100, 1060}};
    for (size_t s = 0; s < sizeof(shapes) / sizeof(shapes[0]); s++)
        for (int dtype = 0; dtype < DTYPES; dtype++)
            for (unsigned mix = 0; mix < 8; mix++) {
                struct product p = product_of(shapes[s][0], shapes[s][1], shapes[s][2], dtype,
                                              mix | (unsigned)(mix * 5 + s * 3 + (unsigned)dtype) << 3);
                check_product(&p, MOST_THREADS);
            }
}

TEST(an_empty_sum_writes_bias_or_zero) {
    static const unsigned mixes[] = {0, 8, 16, 24, 4 + 16};
    for (size_t x = 0; x < sizeof(mixes) / sizeof(mixes[0]); x++)
        for (int dtype = 0; dtype < DTYPES; dtype++) {
            struct product p = product_of(5, 40, 0, dtype, mixes[x]);
            check_product(&p, MOST_THREADS);
        }
}

TEST(empty_matrices_are_left_alone) {
    for (int x = 0; x < ISAS; x++) {
        const struct kernels *kernels = table_of(x);
        if (!kernels) continue;
        for (int dtype = 0; dtype < DTYPES; dtype++) {
            struct product p = product_of(0, 40, 8, dtype, 0), q = product_of(8, 0, 8, dtype, 0);
            check_product(&p, MOST_THREADS);
            check_product(&q, MOST_THREADS);
        }
    }
}

TEST(infinities_and_nan_reach_the_result) {
    for (int x = 0; x < ISAS; x++) {
        const struct kernels *kernels = table_of(x);
        if (!kernels) continue;
        for (int dtype = 0; dtype < DTYPES; dtype++) {
            struct product p = product_of(20, 20, 40, dtype, 0);
            struct tensors t = tensors_new(&p);
            store_f32(t.a.data, p.dtype, 3 * t.a.ld + 7, INFINITY);
            store_f32(t.a.data, p.dtype, 5 * t.a.ld + 9, NAN);
            multiply(kernels, NULL, &p, &t);
            for (int64_t j = 0; j < p.n; j++) {
                EXPECT(isinf(matrix_at(&t.c, false, 3, j)), "%s lost an infinity", table_of(x)->backend);
                EXPECT(isnan(matrix_at(&t.c, false, 5, j)), "%s lost a NaN", table_of(x)->backend);
                EXPECT(isfinite(matrix_at(&t.c, false, 4, j)), "%s spread a NaN", table_of(x)->backend);
            }
            tensors_free(&t);
        }
    }
}

static void check_bias(const struct kernels *kernels, const char *isa, enum dtype dtype, int64_t rows,
                       int64_t cols, bool accumulate) {
    struct matrix dy = matrix_new(dtype, rows, cols, 0, 1), out = matrix_new(DTYPE_F32, 1, cols, 0, 1);
    struct matrix one_thread = matrix_new(DTYPE_F32, 1, cols, 0, 1);
    matrix_fill(&dy, 7);
    for (int threads = 1; threads <= MOST_THREADS; threads++) {
        struct stream stream = {.kernels = kernels, .threads = team_of(threads)};
        if (accumulate) matrix_fill(&out, 8);
        struct bias_backward_args args = {.dbias = (float *)(void *)out.data,
                                          .dy = dy.data,
                                          .rows = rows,
                                          .cols = cols,
                                          .dtype = dtype,
                                          .accumulate = accumulate};
        size_t bytes =
            kernels->bias_backward_workspace ? kernels->bias_backward_workspace(&stream, &args) : 0;
        stream.workspace = guarded(bytes);
        stream.workspace_bytes = bytes;
        bias_backward_call(&stream, &args);
        EXPECT(guard_intact(stream.workspace, bytes), "%s wrote behind its workspace", isa);
        for (int64_t j = 0; j < cols; j++) {
            double sum = accumulate ? (double)value_at(8, j) : 0, magnitude = fabs(sum);
            for (int64_t i = 0; i < rows; i++) {
                sum += matrix_at(&dy, false, i, j);
                magnitude += fabs(matrix_at(&dy, false, i, j));
            }
            EXPECT_NEAR(matrix_at(&out, false, 0, j), sum, ((double)rows + 2) * 0x1p-24 * magnitude);
        }
        EXPECT(matrix_surroundings_intact(&out), "%s wrote outside dbias", isa);
        if (threads == 1) memcpy(one_thread.block, out.block, out.block_bytes);
        EXPECT(!memcmp(one_thread.block, out.block, out.block_bytes), "%s: other bits with %d threads", isa,
               threads);
        mem_free(stream.workspace);
    }
    mem_free(dy.block), mem_free(out.block), mem_free(one_thread.block);
}

TEST(bias_gradients_are_column_sums) {
    static const int64_t shapes[][2] = {{1, 1},      {0, 9},     {7, 300}, {64, 33},
                                        {1000, 257}, {2500, 70}, {5, 5000}};
    for (int x = 0; x < ISAS; x++)
        for (size_t s = 0; s < sizeof(shapes) / sizeof(shapes[0]); s++)
            for (int dtype = 0; dtype <= DTYPE_F16; dtype++)
                if (table_of(x))
                    check_bias(table_of(x), table_of(x)->backend, (enum dtype)dtype, shapes[s][0],
                               shapes[s][1], (s + (size_t)dtype) % 2);
}

TEST(malformed_args_are_named) {
    struct gemm_args good = {.m = 4, .n = 5, .k = 6};
    EXPECT(!gemm_check(&good), "refused good args");
    struct gemm_args bad = good;
    bad.lda = 5;
    EXPECT_STR(gemm_check(&bad), "lda is shorter than a row of A");
    bad = good, bad.ldb = 4;
    EXPECT_STR(gemm_check(&bad), "ldb is shorter than a row of B");
    bad.b_packed = true;
    EXPECT(!gemm_check(&bad), "ldb matters though B is packed");
    bad = good, bad.ldc = 4;
    EXPECT_STR(gemm_check(&bad), "ldc is shorter than a row of C");
    bad = good, bad.c_dtype = DTYPE_BF16, bad.dtype = DTYPE_F32;
    EXPECT_STR(gemm_check(&bad), "c_dtype must be dtype or fp32");
    bad = good, bad.k = -1;
    EXPECT(gemm_check(&bad) != NULL, "accepted a negative size");
}

TEST(cost_is_the_closed_form) {
    struct gemm_args args = {
        .m = 3, .n = 5, .k = 7, .dtype = DTYPE_BF16, .c_dtype = DTYPE_F32, .accumulate = true};
    struct kernel_cost cost = gemm_cost(&args);
    EXPECT_EQ(cost.gemm_flops, 2 * 3 * 5 * 7);
    EXPECT_EQ(cost.flops, 2 * 3 * 5 * 7 + 3 * 5);
    EXPECT_EQ(cost.bytes, (3 * 7 + 7 * 5) * 2 + 3 * 5 * 4 * 2);
}

RUN_TESTS(CASE(small_products_are_exact_to_rounding_for_every_setting),
          CASE(products_beyond_every_block_size_are_exact_to_rounding),
          CASE(an_empty_sum_writes_bias_or_zero), CASE(empty_matrices_are_left_alone),
          CASE(infinities_and_nan_reach_the_result), CASE(bias_gradients_are_column_sums),
          CASE(malformed_args_are_named), CASE(cost_is_the_closed_form))
