/* Dispatch, gate, scaled activation, the router's gradients and grouped products: every instruction set
 * against `reference`; grouped products also against one dense product per expert, gathering and combining
 * against each other. */
#include "core/base/check.h"
#include "tests/kernels/compare.h"

/* ---- rows ---- */

TEST(gathered_and_combined_rows_agree_with_reference) {
    FOR_EACH_ISA(k)
    FOR_EACH_DTYPE(t)
    for (int64_t cols = 1; cols <= 600; cols += 13 + cols) {
        enum { TOKENS = 37, FAN = 3, ROWS = TOKENS * FAN };
        int32_t index[ROWS], inverse[ROWS];
        for (int i = 0; i < ROWS; i++) index[i] = (int32_t)((i * 7 + 3) % ROWS), inverse[index[i]] = i;
        index[5] = inverse[9] = -1;
        bool unaligned = cols % 2;
        struct tensor x = tensor_random(t, TOKENS * cols, unaligned, 1, -2, 2),
                      y = tensor_new(t, ROWS * cols, unaligned);
        struct tensor want = tensor_new(t, ROWS * cols, false),
                      z = tensor_random(t, TOKENS * cols, unaligned, 2, -2, 2);
        RUN(k, gather_rows, .y = y.data, .x = x.data, .index = index, .rows = ROWS, .cols = cols,
            .divisor = FAN, .dtype = t);
        RUN(kernels_reference(), gather_rows, .y = want.data, .x = x.data, .index = index, .rows = ROWS,
            .cols = cols, .divisor = FAN, .dtype = t);
        expect_same_bits("gathered rows", k, &y, &want);
        for (int accumulate = 0; accumulate < 2; accumulate++) {
            struct tensor e = tensor_copy(&z);
            RUN(kernels_reference(), combine_rows, .y = e.data, .x = want.data, .index = inverse,
                .rows = TOKENS, .cols = cols, .fan = FAN, .accumulate = accumulate, .dtype = t);
            RUN(k, combine_rows, .y = z.data, .x = y.data, .index = inverse, .rows = TOKENS, .cols = cols,
                .fan = FAN, .accumulate = accumulate, .dtype = t);
            expect_close("combined rows", k, &z, &e, 8 * 4 * 0x1p-24);
            tensor_free(&e);
        }
        tensor_free(&x), tensor_free(&y), tensor_free(&want), tensor_free(&z);
    }
}

/* ---- activation with a factor, gate ---- */

TEST(scaled_activations_agree_with_reference) {
    static const int64_t shapes[][2] = {{0, 3}, {1, 1}, {7, 33}, {5, 64}, {3, 300}};
    FOR_EACH_ISA(k)
    FOR_EACH_DTYPE(t)
    for (int kind = 0; kind < ACTIVATION_COUNT; kind++)
        for (size_t i = 0; i < ARRAY_COUNT(shapes); i++) {
            int64_t rows = shapes[i][0], cols = shapes[i][1], n = rows * cols;
            int64_t in = activation_is_gated((enum activation)kind) ? 2 * n : n;
            int32_t index[8];
            for (int64_t r = 0; r < rows; r++) index[r] = (int32_t)((r + 2) % rows);
            if (rows > 3) index[3] = -1;
            struct tensor x = tensor_random(t, in, rows % 2, 1, -4, 4),
                          dy = tensor_random(t, n, rows % 2, 2, -1, 1);
            struct tensor scales = tensor_random(DTYPE_F32, rows, false, 3, 0, 1), got[3], want[3];
            for (int b = 0; b < 2; b++) {
                struct tensor *out = b ? want : got;
                const struct kernels *on = b ? kernels_reference() : k;
                out[0] = tensor_new(t, n, !b), out[1] = tensor_new(t, in, !b);
                out[2] = tensor_random(DTYPE_F32, rows, false, 9, 0, 1); /* one element may be left alone */
                RUN(on, scaled_activation_forward, .y = out[0].data, .x = x.data, .scales = scales.data,
                    .index = index, .rows = rows, .cols = cols, .kind = (enum activation)kind, .dtype = t);
                RUN(on, scaled_activation_backward, .dx = out[1].data, .dscales = out[2].data, .dy = dy.data,
                    .x = x.data, .scales = scales.data, .index = index, .rows = rows, .cols = cols,
                    .kind = (enum activation)kind, .dtype = t);
            }
            /* as the plain activation (pointwise_test.c), a factor below 1 and one rounding more; the sum has
             * cols terms of at most 16 * 4 */
            expect_close("y", k, &got[0], &want[0], 0x1p-24 * 120);
            expect_close("dx", k, &got[1], &want[1], 0x1p-24 * 240);
            expect_close("dscales", k, &got[2], &want[2], 0x1p-24 * 64 * (double)(cols + 24));
            for (int b = 0; b < 3; b++) tensor_free(&got[b]), tensor_free(&want[b]);
            tensor_free(&x), tensor_free(&dy), tensor_free(&scales);
        }
}

TEST(gates_agree_with_reference) {
    FOR_EACH_ISA(k)
    FOR_EACH_DTYPE(t)
    for (int64_t cols = 1; cols < 200; cols += 1 + 2 * cols) {
        enum { ROWS = 19 };
        struct tensor x = tensor_random(t, ROWS * cols, true, 1, -2, 2),
                      dy = tensor_random(t, ROWS * cols, false, 2, -1, 1);
        struct tensor g = tensor_random(t, ROWS, true, 3, -6, 6), got[3], want[3];
        for (int b = 0; b < 2; b++) {
            struct tensor *out = b ? want : got;
            const struct kernels *on = b ? kernels_reference() : k;
            for (int i = 0; i < 3; i++) out[i] = tensor_new(t, i == 2 ? ROWS : ROWS * cols, !b);
            RUN(on, gate_forward, .y = out[0].data, .x = x.data, .g = g.data, .rows = ROWS, .cols = cols,
                .dtype = t);
            RUN(on, gate_backward, .dx = out[1].data, .dg = out[2].data, .dy = dy.data, .x = x.data,
                .g = g.data, .rows = ROWS, .cols = cols, .dtype = t);
        }
        expect_close("y", k, &got[0], &want[0], 0x1p-24 * 32);
        expect_close("dx", k, &got[1], &want[1], 0x1p-24 * 16);
        expect_close("dg", k, &got[2], &want[2], 0x1p-24 * 2 * (double)(cols + 24));
        for (int b = 0; b < 3; b++) tensor_free(&got[b]), tensor_free(&want[b]);
        tensor_free(&x), tensor_free(&dy), tensor_free(&g);
    }
}

TEST(the_routers_gradients_agree_with_reference) {
    static const int64_t shapes[][3] = {{1, 1, 1}, {70, 8, 300}, {130, 33, 65}, {5, 64, 100}};
    FOR_EACH_ISA(k)
    FOR_EACH_DTYPE(t)
    for (size_t i = 0; i < ARRAY_COUNT(shapes); i++)
        for (int accumulate = 0; accumulate < 2; accumulate++) {
            int64_t n = shapes[i][0], e = shapes[i][1], h = shapes[i][2];
            struct tensor x = tensor_random(t, n * h, true, 1, -1, 1),
                          w = tensor_random(t, e * h, true, 2, -1, 1);
            struct tensor d = tensor_random(DTYPE_F32, n * e, false, 3, -1, 1), dx[2], dw[2];
            for (int b = 0; b < 2; b++) {
                dx[b] = tensor_random(t, n * h, b, 4, -1, 1),
                dw[b] = tensor_random(DTYPE_F32, e * h, b, 5, -1, 1);
                RUN(b ? kernels_reference() : k, router_backward, .dx = dx[b].data, .dweight = dw[b].data,
                    .dlogits = d.data, .x = x.data, .weight = w.data, .tokens = n, .experts = e, .hidden = h,
                    .accumulate_dx = accumulate, .accumulate_dweight = accumulate, .dtype = t);
            }
            /* m terms below 1, each product and sum rounded: m partial sums of at most m */
            expect_close("dx", k, &dx[0], &dx[1], 0x1p-24 * (double)((e + 2) * (e + 2)));
            expect_close("dweight", k, &dw[0], &dw[1], 0x1p-24 * (double)((n + 2) * (n + 2)));
            for (int b = 0; b < 2; b++) tensor_free(&dx[b]), tensor_free(&dw[b]);
            tensor_free(&x), tensor_free(&w), tensor_free(&d);
        }
}

/* ---- grouped products ---- */

enum { MAX_GROUPS = 64 };

/* How `rows` rows are shared out: evenly, all to one, with empty groups, at random. */
static void share_out(int32_t *offsets, int64_t groups, int64_t rows, int way) {
    uint32_t state = 12345;
    int64_t counts[MAX_GROUPS] = {0};
    for (int64_t r = 0; r < rows; r++) {
        state = state * 1664525u + 1013904223u;
        int64_t g = way == 0   ? r % groups
                    : way == 1 ? groups / 2
                    : way == 2 ? (r % groups) / 3 * 3
                               : (state >> 8) % (uint32_t)groups;
        counts[g]++;
    }
    offsets[0] = 0;
    for (int64_t g = 0; g < groups; g++) offsets[g + 1] = offsets[g] + (int32_t)counts[g];
}

struct product {
    int64_t groups, rows, n, k;
    enum dtype t;
    const int32_t *offsets;
    struct tensor a, dy, w;
    void *packed[2]; /* of W^T for the forward product, of W for the gradient */
};

static void pack_all(const struct kernels *k, struct product *p) {
    for (int back = 0; back < 2; back++) {
        int64_t rows = back ? p->n : p->k, cols = back ? p->k : p->n;
        size_t bytes = k->gemm_packed_bytes(p->t, rows, cols);
        p->packed[back] = bytes ? mem_zalloc(bytes * (size_t)p->groups, "test") : NULL;
        for (int64_t g = 0; bytes && g < p->groups; g++)
            RUN(k, gemm_pack, .dst = (char *)p->packed[back] + (size_t)g * bytes,
                .src = dtype_at(p->w.data, p->t, g * p->n * p->k), .k = rows, .n = cols, .trans = !back,
                .dtype = p->t, .src_dtype = p->t);
    }
}

/* Forward, gradient of the input and of the weight; accumulate adds to what is there. */
static void run_products(const struct kernels *k, struct threads *team, const struct product *p,
                         struct tensor out[3], bool accumulate) {
    bool packed = p->packed[0] && k != kernels_reference();
    RUN_ON(team, k, grouped_gemm, .c = out[0].data, .a = p->a.data, .b = packed ? p->packed[0] : p->w.data,
           .offsets = p->offsets, .groups = p->groups, .rows = p->rows, .n = p->n, .k = p->k,
           .trans_b = !packed, .b_packed = packed, .accumulate = accumulate, .dtype = p->t, .c_dtype = p->t);
    RUN_ON(team, k, grouped_gemm, .c = out[1].data, .a = p->dy.data, .b = packed ? p->packed[1] : p->w.data,
           .offsets = p->offsets, .groups = p->groups, .rows = p->rows, .n = p->k, .k = p->n,
           .b_packed = packed, .accumulate = accumulate, .dtype = p->t, .c_dtype = p->t);
    RUN_ON(team, k, grouped_gemm, .c = out[2].data, .a = p->dy.data, .b = p->a.data, .offsets = p->offsets,
           .groups = p->groups, .rows = p->rows, .n = p->n, .k = p->k, .sums_rows = true,
           .accumulate = accumulate, .dtype = p->t, .c_dtype = DTYPE_F32);
}

static void check_products(const struct kernels *k, int64_t groups, int64_t rows, int64_t n, int64_t depth,
                           enum dtype t, int way) {
    int32_t offsets[MAX_GROUPS + 1];
    struct threads *team = threads_open(2);
    struct product p = {.groups = groups, .rows = rows, .n = n, .k = depth, .t = t, .offsets = offsets};
    share_out(offsets, groups, rows, way);
    p.a = tensor_random(t, rows * depth, false, 1, -1, 1);
    p.dy = tensor_random(t, rows * n, false, 2, -1, 1);
    p.w = tensor_random(t, groups * n * depth, false, 3, -1, 1);
    pack_all(k, &p);
    for (int accumulate = 0; accumulate < 2; accumulate++) {
        struct tensor got[3], want[3], alone[3];
        for (int b = 0; b < 3; b++) {
            struct tensor *out = b == 0 ? got : b == 1 ? want : alone;
            const int64_t sizes[3] = {rows * n, rows * depth, groups * n * depth};
            for (int i = 0; i < 3; i++) {
                out[i] = tensor_random(i == 2 ? DTYPE_F32 : t, sizes[i], false, 7, -1, 1);
                if (!accumulate) tensor_poison(&out[i]);
            }
            run_products(b == 1 ? kernels_reference() : k, b ? NULL : team, &p, out, accumulate);
        }
        const double terms[3] = {(double)depth, (double)n, (double)rows};
        for (int i = 0; i < 3; i++) {
            expect_close("grouped product", k, &got[i], &want[i], 0x1p-24 * (terms[i] + 2) * (terms[i] + 2));
            expect_same_bits("one thread or two", k, &got[i], &alone[i]);
            tensor_free(&got[i]), tensor_free(&want[i]), tensor_free(&alone[i]);
        }
    }
    mem_free(p.packed[0]), mem_free(p.packed[1]);
    tensor_free(&p.a), tensor_free(&p.dy), tensor_free(&p.w);
    threads_close(team);
}

TEST(grouped_products_agree_with_reference) {
    static const int64_t shapes[][4] = {{1, 5, 7, 9},      {4, 50, 33, 40},   {8, 64, 48, 96},
                                        {64, 100, 20, 17}, {3, 200, 100, 70}, {6, 0, 8, 8}};
    FOR_EACH_ISA(k)
    FOR_EACH_DTYPE(t)
    for (size_t i = 0; i < ARRAY_COUNT(shapes); i++)
        for (int way = 0; way<4; way += MOST_TEAM> 1 ? 1 : 3)
            check_products(k, shapes[i][0], shapes[i][1], shapes[i][2], shapes[i][3], t, way);
}

/* Sums longer than the chunks in which the engines take k, and areas of several panels. */
TEST(large_grouped_products_agree_with_reference) {
    FOR_EACH_ISA(k) {
        check_products(k, 3, 300, 150, 1100, DTYPE_BF16, 3);
        check_products(k, 2, 1300, 70, 60, DTYPE_BF16, 1);
        check_products(k, 3, 300, 150, 500, DTYPE_F32, 1);
    }
}

/* The bits of a group are those of a product of its own, whatever the other groups hold. */
TEST(a_group_is_a_dense_product) {
    FOR_EACH_ISA(k)
    FOR_EACH_DTYPE(t) {
        int32_t offsets[5];
        struct product p = {.groups = 4, .rows = 120, .n = 64, .k = 80, .t = t, .offsets = offsets};
        share_out(offsets, 4, 120, 3);
        p.a = tensor_random(t, 120 * 80, false, 1, -1, 1), p.dy = tensor_random(t, 120 * 64, false, 2, -1, 1);
        p.w = tensor_random(t, 4 * 64 * 80, false, 3, -1, 1);
        pack_all(k, &p);
        struct tensor out[3] = {tensor_new(t, 120 * 64, false), tensor_new(t, 120 * 80, false),
                                tensor_new(DTYPE_F32, 4 * 64 * 80, false)};
        struct tensor own = tensor_new(t, 120 * 64, false);
        run_products(k, NULL, &p, out, false);
        size_t bytes = k->gemm_packed_bytes(t, 80, 64);
        for (int g = 0; g < 4; g++)
            RUN(k, gemm, .c = dtype_at(own.data, t, offsets[g] * 64),
                .a = dtype_at(p.a.data, t, offsets[g] * 80),
                .b = bytes ? (char *)p.packed[0] + (size_t)g * bytes : dtype_at(p.w.data, t, g * 64 * 80),
                .b_packed = bytes != 0, .trans_b = true, .m = offsets[g + 1] - offsets[g], .n = 64, .k = 80,
                .dtype = t, .c_dtype = t);
        if (MOST_TEAM > 1)
            expect_same_bits("forward", k, &out[0], &own);
        else
            expect_close("forward", k, &out[0], &own,
                         0x1p-24 * 82 * 82); /* cuBLASLt has an order of its own */
        for (int i = 0; i < 3; i++) tensor_free(&out[i]);
        mem_free(p.packed[0]), mem_free(p.packed[1]);
        tensor_free(&own), tensor_free(&p.a), tensor_free(&p.dy), tensor_free(&p.w);
    }
}

RUN_TESTS(CASE(gathered_and_combined_rows_agree_with_reference),
          CASE(scaled_activations_agree_with_reference), CASE(gates_agree_with_reference),
          CASE(the_routers_gradients_agree_with_reference), CASE(grouped_products_agree_with_reference),
          CASE(large_grouped_products_agree_with_reference), CASE(a_group_is_a_dense_product))
