/* Every call of parallel/comm against plain loops, on whatever number of ranks it is started with. Each
 * rank's input is a function of (rank, index), so every rank knows what all others have. */
#include "tests/parallel/parallel.h"
#include "core/base/mem.h"
#include <math.h>
#include <time.h>

static const int64_t counts[] = {0, 1, 3, 7, 64, 1000, 4099, 70001, 300007};
static const char *const dtype_names[COMM_DTYPE_COUNT] = {"f32", "bf16", "f16", "f64", "i32", "i64", "u8"};

/* ---- numbers, written without core/tensor/dtype.h ---- */

static double input(int rank, int64_t i, int salt) {
    uint64_t h =
        (uint64_t)(rank * 1000003 + salt * 7919) * 0x9E3779B97F4A7C15u + (uint64_t)i * 0xD1B54A32D192ED03u;
    h ^= h >> 29, h *= 0xBF58476D1CE4E5B9u, h ^= h >> 32;
    return ((double)(h & 0xFFFFF) / 65536.0 - 8) * ldexp(1, (int)(h >> 20 & 7) - 4);
}

/* The nearest number with `bits` of mantissa (with the leading one), ties to even. */
static double round_to(double v, int bits) {
    int e;
    double m = frexp(v, &e);
    return ldexp(nearbyint(ldexp(m, bits)), e - bits);
}

static void put(void *buf, enum comm_dtype dtype, int64_t i, double v) {
    union {
        float f;
        uint32_t u;
    } x = {.f = (float)v};
    switch (dtype) {
    case COMM_F32:
        ((float *)buf)[i] = (float)v;
        break;
    case COMM_BF16:
        x.f = (float)round_to(v, 8);
        ((uint16_t *)buf)[i] = (uint16_t)(x.u >> 16);
        break;
    case COMM_F16: { /* inputs are normal numbers of fp16 or zero */
        double r = fabs(v) < 0x1p-14 ? 0 : round_to(v, 11);
        int e;
        double m = frexp(fabs(r), &e);
        ((uint16_t *)buf)[i] =
            (uint16_t)((r < 0) << 15 | (r != 0 ? (e + 14) << 10 | ((int)ldexp(m, 11) & 1023) : 0));
        break;
    }
    case COMM_F64:
        ((double *)buf)[i] = v * 1.0000000001;
        break;
    case COMM_I32:
        ((int32_t *)buf)[i] = (int32_t)(v * 65536 * 128);
        break;
    case COMM_I64:
        ((int64_t *)buf)[i] = (int64_t)(v * 65536) * (1 << 24);
        break;
    default:
        ((uint8_t *)buf)[i] = (uint8_t)(int)(v * 16);
        break;
    }
}

static double get(const void *buf, enum comm_dtype dtype, int64_t i) {
    union {
        uint32_t u;
        float f;
    } x;
    uint16_t h;
    switch (dtype) {
    case COMM_F32:
        return ((const float *)buf)[i];
    case COMM_BF16:
        x.u = (uint32_t)((const uint16_t *)buf)[i] << 16;
        return x.f;
    case COMM_F16:
        h = ((const uint16_t *)buf)[i];
        return (h >> 15 ? -1 : 1) *
               ((h >> 10 & 31) ? ldexp(1024 + (h & 1023), (h >> 10 & 31) - 25) : ldexp(h & 1023, -24));
    case COMM_F64:
        return ((const double *)buf)[i];
    case COMM_I32:
        return ((const int32_t *)buf)[i];
    case COMM_I64:
        return (double)((const int64_t *)buf)[i];
    default:
        return ((const uint8_t *)buf)[i];
    }
}

/* What the reduction over `members` ranks must give for an element, from the rounded inputs. */
static double expected(const int *ranks, int members, int64_t i, int salt, enum comm_dtype dtype,
                       enum comm_reduce op) {
    unsigned char cell[8];
    double out = 0;
    float f = 0;
    int64_t wide = 0;
    for (int m = 0; m < members; m++) {
        put(cell, dtype, 0, input(ranks[m], i, salt));
        double x = get(cell, dtype, 0);
        if (op != COMM_SUM) {
            out = !m || (op == COMM_MAX ? x > out : x < out) ? x : out;
        } else if (dtype == COMM_F32 || dtype == COMM_BF16 || dtype == COMM_F16) {
            f = m ? f + (float)x : (float)x;
            out = f;
        } else if (dtype == COMM_F64) {
            out = m ? out + x : x;
        } else {
            wide += (int64_t)x;
            out = dtype == COMM_I32  ? (double)(int32_t)wide
                  : dtype == COMM_U8 ? (double)(uint8_t)wide
                                     : (double)wide;
        }
    }
    if (op == COMM_SUM && dtype == COMM_BF16) out = round_to(out, 8);
    if (op == COMM_SUM && dtype == COMM_F16)
        out = fabs(out) < 0x1p-14 ? nearbyint(out * 0x1p24) * 0x1p-24 : round_to(out, 11);
    return out;
}

static void fill(void *buf, enum comm_dtype dtype, int64_t begin, int64_t count, int rank, int salt) {
    for (int64_t i = 0; i < count; i++) put(buf, dtype, i, input(rank, begin + i, salt));
}

/* ---- groups ---- */

enum { MANY = 16 };
static int everyone[64];

static struct comm *open_all(void) {
    for (int i = 0; i < comm_world_size(world); i++) everyone[i] = i;
    return comm_open(world, "everyone", everyone, comm_world_size(world));
}

static void expect_reduced(const void *buf, const int *ranks, int members, int64_t begin, int64_t count,
                           int salt, enum comm_dtype dtype, enum comm_reduce op, const char *what) {
    for (int64_t i = 0; i < count; i++) {
        double a = get(buf, dtype, i), b = expected(ranks, members, begin + i, salt, dtype, op);
        EXPECT(a == b, "%s %s of %lld, element %lld: %.17g is not %.17g", what, dtype_names[dtype],
               (long long)count, (long long)(begin + i), a, b);
        if (a != b) return;
    }
}

TEST(all_reduce_is_the_sum_in_rank_order_rounded_once) {
    struct comm *comm = open_all();
    int size = comm_size(comm), rank = comm_rank(comm);
    for (int dtype = 0; dtype < COMM_DTYPE_COUNT; dtype++)
        for (size_t c = 0; c < ARRAY_COUNT(counts); c++) {
            char *buf = malloc((size_t)(counts[c] + 1) * 8);
            fill(buf, dtype, 0, counts[c], rank, dtype);
            comm_all_reduce(comm, buf, counts[c], dtype, COMM_SUM);
            expect_reduced(buf, everyone, size, 0, counts[c], dtype, dtype, COMM_SUM, "sum");
            free(buf);
        }
    comm_close(comm);
}

TEST(all_reduce_gives_the_largest_and_the_smallest) {
    struct comm *comm = open_all();
    for (int dtype = 0; dtype < COMM_DTYPE_COUNT; dtype++)
        for (int op = COMM_MAX; op <= COMM_MIN; op++)
            for (size_t c = 0; c < ARRAY_COUNT(counts) - 1; c++) {
                char *buf = malloc((size_t)(counts[c] + 1) * 8);
                fill(buf, dtype, 0, counts[c], comm_rank(comm), 3);
                comm_all_reduce(comm, buf, counts[c], dtype, op);
                expect_reduced(buf, everyone, comm_size(comm), 0, counts[c], 3, dtype, op, "extreme");
                free(buf);
            }
    float nan[2] = {comm_rank(comm) == comm_size(comm) - 1 ? NAN : 1, 2};
    comm_all_reduce(comm, nan, 2, COMM_F32, COMM_MAX);
    EXPECT(isnan(nan[0]) && nan[1] == 2, "a NaN on one rank must win: %g %g", (double)nan[0], (double)nan[1]);
    comm_close(comm);
}

TEST(reduce_scatter_gives_each_member_its_slice) {
    struct comm *comm = open_all();
    int size = comm_size(comm), rank = comm_rank(comm);
    for (int dtype = 0; dtype < COMM_DTYPE_COUNT; dtype++)
        for (size_t c = 0; c < ARRAY_COUNT(counts); c++) {
            int64_t n = counts[c] / (c > 5 ? size : 1);
            char *buf = malloc((size_t)(n * size + 1) * 8);
            fill(buf, dtype, 0, n * size, rank, 11);
            comm_reduce_scatter(comm, buf, n, dtype);
            char *slice = buf + (size_t)(n * rank) * comm_dtype_bytes((enum comm_dtype)dtype);
            expect_reduced(slice, everyone, size, n * rank, n, 11, dtype, COMM_SUM, "slice");
            free(buf);
        }
    comm_close(comm);
}

TEST(all_gather_and_broadcast_copy_bytes) {
    struct comm *comm = open_all();
    int size = comm_size(comm), rank = comm_rank(comm);
    for (size_t c = 0; c < ARRAY_COUNT(counts); c++) {
        int64_t n = counts[c] * (c == ARRAY_COUNT(counts) - 1 ? 5 : 1); /* several pieces */
        int *buf = malloc((size_t)(n * size + 1) * sizeof(int)), wrong = 0;
        for (int64_t i = 0; i < n * size; i++) buf[i] = i / (n ? n : 1) == rank ? (int)(i * 3 + rank) : -1;
        comm_all_gather(comm, buf, n, COMM_I32);
        for (int64_t i = 0; i < n * size; i++) wrong += buf[i] != (int)(i * 3 + i / n);
        EXPECT_EQ(wrong, 0);
        for (int root = 0; root < size; root++) {
            for (int64_t i = 0; i < n; i++) buf[i] = rank == root ? (int)(i * 5 + root) : -1;
            comm_broadcast(comm, buf, n, COMM_I32, root);
            for (int64_t i = 0; i < n; i++) wrong += buf[i] != (int)(i * 5 + root);
            EXPECT_EQ(wrong, 0);
        }
        free(buf);
    }
    comm_close(comm);
}

TEST(all_to_all_moves_every_block_to_its_place) {
    struct comm *comm = open_all();
    int size = comm_size(comm), rank = comm_rank(comm);
    for (size_t c = 0; c < ARRAY_COUNT(counts); c++) {
        int64_t n = counts[c];
        int64_t *a = malloc((size_t)(n * size + 1) * 8), *b = malloc((size_t)(n * size + 1) * 8), wrong = 0;
        for (int64_t i = 0; i < n * size; i++) a[i] = rank * 1000000000LL + i, b[i] = -1;
        comm_all_to_all(comm, b, a, n, COMM_I64);
        for (int64_t i = 0; i < n * size; i++) wrong += b[i] != i / n * 1000000000LL + rank * n + i % n;
        EXPECT_EQ(wrong, 0);
        free(a);
        free(b);
    }
    comm_close(comm);
}

/* How many elements rank a sends to rank b. */
static int64_t pair_count(int a, int b, int64_t scale) {
    return (a * 5 + b * 3) % 4 * scale;
}

TEST(all_to_all_v_takes_any_counts_and_offsets) {
    struct comm *comm = open_all();
    int size = comm_size(comm), rank = comm_rank(comm);
    static const int64_t scales[] = {1, 17, 100003};
    for (size_t s = 0; s < ARRAY_COUNT(scales); s++) {
        int64_t out[64], out_at[64], in[64], in_at[64], room = scales[s] * 4 + 2, wrong = 0;
        int16_t *a = malloc((size_t)(room * size) * 2), *b = malloc((size_t)(room * size) * 2);
        for (int i = 0; i < size; i++) {
            out[i] = pair_count(rank, i, scales[s]), out_at[i] = room * (size - 1 - i) + 1;
            in[i] = pair_count(i, rank, scales[s]), in_at[i] = room * i + 1;
            for (int64_t k = 0; k < out[i]; k++) a[out_at[i] + k] = (int16_t)(rank * 100 + i * 7 + k);
        }
        for (int64_t i = 0; i < room * size; i++) b[i] = -1;
        comm_all_to_all_v(comm, b, in, in_at, a, out, out_at, COMM_BF16);
        for (int i = 0; i < size; i++)
            for (int64_t k = 0; k < room; k++) { /* the room around a block stays as it was */
                bool inside = k >= 1 && k <= in[i];
                wrong += b[room * i + k] != (inside ? (int16_t)(i * 100 + rank * 7 + k - 1) : -1);
            }
        EXPECT_EQ(wrong, 0);
        free(a);
        free(b);
    }
    comm_close(comm);
}

/* Units in piece i from rank a to rank b; some are empty, one is larger than a message. */
static int64_t piece_count(int a, int b, int64_t i) {
    int64_t n = (a * 7 + b * 3 + i * 5) % 6;
    return n == 5 ? 60000 : n * n;
}

TEST(exchange_takes_lists_of_pieces) {
    enum { EACH = 5, WIDTH = 11 };
    struct comm *comm = open_all();
    int size = comm_size(comm), rank = comm_rank(comm);
    struct comm_piece out[64 * EACH], in[64 * EACH];
    int64_t room = 60001, wrong = 0, units = room * size * EACH, sent = 0;
    int16_t *a = malloc((size_t)(units * WIDTH) * 2), *b = malloc((size_t)(units * WIDTH) * 2);
    for (int m = 0; m < size; m++)
        for (int64_t i = 0; i < EACH; i++) { /* pieces lie in another order than they are listed in */
            out[m * EACH + i] =
                (struct comm_piece){room * ((EACH - 1 - i) * size + m), piece_count(rank, m, i)};
            in[m * EACH + i] = (struct comm_piece){room * (m * EACH + i), piece_count(m, rank, i)};
            if (m != rank) sent += out[m * EACH + i].count;
            for (int64_t k = 0; k < out[m * EACH + i].count * WIDTH; k++)
                a[out[m * EACH + i].offset * WIDTH + k] = (int16_t)(rank * 1000 + m * 100 + i * 10 + k % 7);
        }
    for (int64_t i = 0; i < units * WIDTH; i++) b[i] = -1;
    double before = comm_stats(comm, COMM_KIND_ALL_TO_ALL)->bytes;
    comm_exchange(comm, b, in, a, out, EACH, WIDTH, COMM_BF16);
    EXPECT(comm_stats(comm, COMM_KIND_ALL_TO_ALL)->bytes - before == (double)(sent * WIDTH * 2), "bytes");
    for (int m = 0; m < size; m++)
        for (int64_t i = 0; i < EACH; i++)
            for (int64_t k = 0; k < room * WIDTH; k++) {
                bool inside = k < in[m * EACH + i].count * WIDTH;
                int16_t due = inside ? (int16_t)(m * 1000 + rank * 100 + i * 10 + k % 7) : -1;
                wrong += b[in[m * EACH + i].offset * WIDTH + k] != due;
            }
    EXPECT_EQ(wrong, 0);
    free(a);
    free(b);
    comm_close(comm);
}

TEST(messages_match_by_peer_and_tag_in_order) {
    struct comm *comm = open_all();
    int size = comm_size(comm), rank = comm_rank(comm), next = (rank + 1) % size,
        last = (rank + size - 1) % size;
    static const int64_t sizes[] = {0, 8, 5000, 3000000, 40000000};
    for (size_t s = 0; s < ARRAY_COUNT(sizes); s++) {
        struct comm_request *r[8];
        int64_t n = sizes[s], wrong = 0;
        unsigned char *out = malloc((size_t)n * 4 + 1), *in = malloc((size_t)n * 4 + 1);
        for (int64_t i = 0; i < n * 4; i++) out[i] = (unsigned char)(i * 31 + rank * 7 + i / (n ? n : 1) * 3);
        memset(in, 0, (size_t)n * 4);
        /* two with tag 5 in order, one with each of two other tags; receives posted in another order */
        static const int tags[4] = {5, COMM_MAX_TAG, 5, 0}, order[4] = {3, 0, 1, 2};
        for (int k = 0; k < 4; k++) r[k] = comm_start_send(comm, out + k * n, n, next, tags[k]);
        for (int k = 0; k < 4; k++)
            r[4 + k] = comm_start_receive(comm, in + order[k] * n, n, last, tags[order[k]]);
        for (int k = 7; k >= 0; k--) comm_wait(r[k]);
        for (int64_t i = 0; i < n * 4; i++) wrong += in[i] != (unsigned char)(i * 31 + last * 7 + i / n * 3);
        EXPECT_EQ(wrong, 0);
        free(out);
        free(in);
    }
    comm_close(comm);
}

/* Requests on all pairs of groups, waited for in different orders on different ranks. */
TEST(many_requests_on_several_groups_end_in_any_order) {
    int size = comm_world_size(world), rank = comm_world_rank(world), half[64], n = 0;
    struct comm *all = open_all(), *same_parity;
    for (int i = rank % 2; i < size; i += 2) half[n++] = i;
    same_parity = comm_open(world, "parity", half, n);
    float *buf = malloc(sizeof(float) * MANY * 20000 * 2);
    struct comm_request *r[2 * MANY];
    for (int round = 0; round < 3; round++) {
        for (int k = 0; k < MANY; k++) {
            float *x = buf + (size_t)k * 40000, *y = x + 20000;
            fill(x, COMM_F32, 0, 20000, rank, k);
            fill(y, COMM_F32, 0, 20000, rank, 100 + k);
            /* odd ranks start on the groups in the other order */
            struct comm_request **a = &r[2 * k], **b = &r[2 * k + 1];
            if (rank % 2) *b = comm_start_all_reduce(same_parity, y, 10 + k * 1000, COMM_F32, COMM_SUM);
            *a = comm_start_all_reduce(all, x, 10 + k * 1000, COMM_F32, COMM_SUM);
            if (rank % 2 == 0) *b = comm_start_all_reduce(same_parity, y, 10 + k * 1000, COMM_F32, COMM_SUM);
        }
        for (int k = 0; k < 2 * MANY; k++) comm_wait(r[(k * 7 + rank * 5) % (2 * MANY)]);
        for (int k = 0; k < MANY; k++) {
            float *x = buf + (size_t)k * 40000;
            expect_reduced(x, everyone, size, 0, 10 + k * 1000, k, COMM_F32, COMM_SUM, "all");
            expect_reduced(x + 20000, half, n, 0, 10 + k * 1000, 100 + k, COMM_F32, COMM_SUM, "parity");
        }
    }
    free(buf);
    comm_close(same_parity);
    comm_close(all);
}

TEST(requests_make_progress_while_the_caller_computes) {
    struct comm *comm = open_all();
    int64_t n = 200000;
    float *x = malloc(sizeof(float) * (size_t)n * (size_t)comm_size(comm));
    fill(x, COMM_F32, 0, n * comm_size(comm), comm_rank(comm), 1);
    comm_barrier(comm);
    struct comm_request *r = comm_start_reduce_scatter(comm, x, n, COMM_F32);
    usleep(2000000); /* makes no call */
    comm_reset_stats(comm);
    comm_wait(r);
    double waited = comm_stats(comm, COMM_KIND_REDUCE_SCATTER)->wait_seconds;
    EXPECT(waited < 0.2, "waited %.3f s for a request that had two seconds", waited);
    expect_reduced(x + n * comm_rank(comm), everyone, comm_size(comm), n * comm_rank(comm), n, 1, COMM_F32,
                   COMM_SUM, "slice");
    free(x);
    comm_close(comm);
}

TEST(nothing_is_allocated_after_open) {
    struct comm *comm = open_all();
    enum { N = 100000 };
    int64_t *x = calloc((size_t)(N * comm_size(comm)), sizeof(*x));
    uint64_t before = mem_stats().allocations;
    for (int i = 0; i < 20; i++) {
        struct comm_request *a = comm_start_all_reduce(comm, x, 1000, COMM_I64, COMM_SUM);
        struct comm_request *b = comm_start_reduce_scatter(comm, x + 1000, N / 2, COMM_F32);
        comm_wait(b);
        comm_wait(a);
        comm_all_gather(comm, x, N, COMM_I64);
        comm_world_note(world, "round %d", i);
        comm_barrier(comm);
    }
    EXPECT_EQ(mem_stats().allocations, before);
    free(x);
    comm_close(comm);
}

TEST(repeats_give_the_same_bits_on_all_members) {
    struct comm *comm = open_all();
    enum { N = 150001 };
    float *x = malloc(sizeof(float) * N), *first = malloc(sizeof(float) * N);
    for (int round = 0; round < 5; round++) {
        fill(x, COMM_F32, 0, N, comm_rank(comm), 9);
        if (comm_rank(comm) == round % comm_size(comm)) usleep(3000);
        comm_all_reduce(comm, x, N, COMM_F32, COMM_SUM);
        if (!round) {
            memcpy(first, x, sizeof(float) * N);
            comm_broadcast(comm, first, N, COMM_F32, 0);
        }
        EXPECT(!memcmp(x, first, sizeof(float) * N), "round %d differs", round);
    }
    free(x);
    free(first);
    comm_close(comm);
}

TEST(groups_of_some_ranks_do_not_disturb_each_other) {
    int size = comm_world_size(world), rank = comm_world_rank(world);
    /* all pairs (a, b) that contain this rank, opened in the same order everywhere */
    for (int a = 0; a < size; a++)
        for (int b = a + 1; b < size; b++) {
            if (rank != a && rank != b) continue;
            int pair[2] = {a, b};
            struct comm *comm = comm_open(world, "pair", pair, 2);
            EXPECT_EQ(comm_size(comm), 2);
            EXPECT_EQ(comm_rank(comm), rank == b);
            EXPECT_EQ(comm_world_rank_of(comm, 1), b);
            float x[500];
            fill(x, COMM_F32, 0, 500, rank, a * 64 + b);
            comm_all_reduce(comm, x, 500, COMM_F32, COMM_SUM);
            expect_reduced(x, pair, 2, 0, 500, a * 64 + b, COMM_F32, COMM_SUM, "pair");
            comm_close(comm);
        }
}

TEST(barrier_holds_everyone_until_the_last_comes) {
    struct comm *comm = open_all();
    for (int late = 0; late < comm_size(comm); late++) {
        comm_barrier(comm);
        uint64_t start = 0, now;
        struct timespec t;
        clock_gettime(CLOCK_MONOTONIC, &t);
        start = (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
        if (comm_rank(comm) == late) usleep(60000);
        comm_barrier(comm);
        clock_gettime(CLOCK_MONOTONIC, &t);
        now = (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
        EXPECT(now - start >= 40, "left after %d ms although rank %d came after 60", (int)(now - start),
               late);
    }
    comm_close(comm);
}

/* clang-format off */
RUN_PARALLEL_TESTS("1 2 3 4 8",
    CASE(all_reduce_is_the_sum_in_rank_order_rounded_once),
    CASE(all_reduce_gives_the_largest_and_the_smallest),
    CASE(reduce_scatter_gives_each_member_its_slice),
    CASE(all_gather_and_broadcast_copy_bytes),
    CASE(all_to_all_moves_every_block_to_its_place),
    CASE(all_to_all_v_takes_any_counts_and_offsets), CASE(exchange_takes_lists_of_pieces),
    CASE(messages_match_by_peer_and_tag_in_order),
    CASE(many_requests_on_several_groups_end_in_any_order),
    CASE(requests_make_progress_while_the_caller_computes),
    CASE(nothing_is_allocated_after_open),
    CASE(repeats_give_the_same_bits_on_all_members),
    CASE(groups_of_some_ranks_do_not_disturb_each_other),
    CASE(barrier_holds_everyone_until_the_last_comes))
