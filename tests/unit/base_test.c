/* core/base: memory, strings, hash, random numbers, errors and the log. */
#include "core/base/check.h"
#include "core/base/hash.h"
#include "core/base/log.h"
#include "core/base/mem.h"
#include "core/base/rng.h"
#include "core/base/str.h"
#include "tests/test.h"
#include <sys/wait.h>
#include <unistd.h>

/* ---- memory ---- */

TEST(memory_is_aligned_zeroed_and_counted_exactly) {
    struct mem_stats before = mem_stats();
    char *a = mem_alloc(100, "a"), *b = mem_zalloc(1, "b");
    double *c = mem_new_array(double, 1000, "c");
    EXPECT_EQ((uintptr_t)a % 64 + (uintptr_t)b % 64 + (uintptr_t)c % 64, 0);
    for (int i = 0; i < 1000; i++) EXPECT(c[i] == 0, "element %d", i);
    EXPECT_EQ(*b, 0);
    EXPECT_EQ(mem_stats().live_bytes - before.live_bytes, 8101);
    EXPECT_EQ(mem_stats().live_blocks - before.live_blocks, 3);
    EXPECT_EQ(mem_stats().allocations - before.allocations, 3);
    memset(a, 7, 100);
    a = mem_realloc(a, 200, "a");
    for (int i = 0; i < 100; i++) EXPECT_EQ(a[i], 7);
    EXPECT_EQ(mem_stats().live_bytes - before.live_bytes, 8201);
    EXPECT(mem_stats().peak_bytes >= before.live_bytes + 8201, "peak");
    mem_free(a), mem_free(b), mem_free(c), mem_free(NULL);
    EXPECT_EQ(mem_stats().live_bytes, before.live_bytes);
    EXPECT_EQ(mem_stats().live_blocks, before.live_blocks);
    EXPECT(mem_alloc(0, "none") == NULL && mem_realloc(NULL, 0, "none") == NULL, "zero bytes are no block");
    char *s = mem_strdup("text", "s");
    EXPECT_STR(s, "text");
    mem_free(s);
}

/* Runs fn in a child; returns its exit status and what it wrote to stderr. */
static int in_child(void (*fn)(void), char *text, size_t capacity) {
    int ends[2], status;
    if (pipe(ends)) return -1;
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        dup2(ends[1], 2);
        close(ends[0]), close(ends[1]);
        fn();
        _exit(99);
    }
    close(ends[1]);
    size_t used = 0;
    for (ssize_t n; used + 1 < capacity && (n = read(ends[0], text + used, capacity - 1 - used)) > 0;)
        used += (size_t)n;
    text[used] = '\0';
    close(ends[0]);
    waitpid(child, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -status;
}

static void third_allocation_fails(void) {
    mem_fail_nth(3);
    static void *kept[2]; /* reachable at exit: a leak would be reported, with another exit status */
    kept[0] = mem_alloc(1, "first"), kept[1] = mem_alloc(1, "second");
    EXPECT(kept[0] && kept[1], "the first two succeed");
    mem_alloc(12345, "the third block");
}
static void array_overflows(void) {
    mem_new_array(double, SIZE_MAX / 4, "huge");
}
static void absurd_size(void) {
    mem_alloc(SIZE_MAX - 8, "absurd");
}

TEST(running_out_of_memory_ends_the_job_with_status_3_and_names_the_block) {
    char text[4096];
    EXPECT_EQ(in_child(third_allocation_fails, text, sizeof(text)), STATUS_OUT_OF_MEMORY);
    EXPECT_CONTAINS(text, "12345 bytes for the third block");
    EXPECT_EQ(in_child(array_overflows, text, sizeof(text)), STATUS_OUT_OF_MEMORY);
    EXPECT_EQ(in_child(absurd_size, text, sizeof(text)), STATUS_OUT_OF_MEMORY);
}

/* ---- errors and log ---- */

static void hook(int status) {
    log_error("hook with %d", status);
}
static void fail_check(void) {
    die_set_hook(hook);
    log_set_rank(2, 4);
    CHECK(1 + 1 == 3, "sum of %d", 2);
}
static void die_with_usage(void) {
    die(STATUS_USAGE, "--lr %s: no number", "x");
}
static void log_levels(void) {
    log_warn("w"), log_info("i"), log_debug("d");
    log_set_level(LOG_DEBUG), log_debug("d2");
    log_set_rank(1, 2), log_warn("w2"), log_info("i2");
}

TEST(a_broken_invariant_ends_the_job_and_takes_the_others_down) {
    char text[4096];
    EXPECT_EQ(in_child(fail_check, text, sizeof(text)), STATUS_FAILED);
    EXPECT_CONTAINS(text, "[rank 2] error: tests/unit/base_test.c:");
    EXPECT_CONTAINS(text, "1 + 1 == 3: sum of 2");
    EXPECT_CONTAINS(text, "hook with 1");
    EXPECT_EQ(in_child(die_with_usage, text, sizeof(text)), STATUS_USAGE);
    EXPECT_STR(text, "error: --lr x: no number\n");
}

TEST(log_lines_have_level_and_rank) {
    char text[4096];
    EXPECT_EQ(in_child(log_levels, text, sizeof(text)), 99);
    EXPECT_STR(text, "warning: w\ni\ndebug: d2\n[rank 1] warning: w2\n");
}

TEST(user_errors_are_one_statement_and_never_overflow) {
    static char long_text[5000];
    struct err err;
    memset(long_text, 'x', sizeof(long_text) - 1);
    EXPECT_EQ(err_set(&err, "%s", long_text), -1);
    EXPECT_EQ(strlen(err.text), sizeof(err.text) - 1);
    EXPECT_EQ(err_set(NULL, "nobody asks"), -1);
}

/* ---- strings ---- */

TEST(strings_grow_and_stay_terminated) {
    struct str s = {0};
    for (int i = 0; i < 1000; i++) str_printf(&s, "%d,", i);
    EXPECT_EQ(s.length, 10 * 2 + 90 * 3 + 900 * 4);
    EXPECT_EQ(strlen(s.data), s.length);
    EXPECT_STR(s.data + s.length - 8, "998,999,");
    str_append(&s, "a\0b", 3);
    EXPECT_EQ(s.length, 3890 + 3);
    str_clear(&s);
    EXPECT_STR(s.data, "");
    str_puts(&s, "again");
    EXPECT_STR(s.data, "again");
    str_free(&s);
    EXPECT(s.data == NULL && s.length == 0, "not empty");
}

TEST(edit_distance_counts_single_character_edits) {
    EXPECT_EQ(str_edit_distance("", "", 3), 0);
    EXPECT_EQ(str_edit_distance("abc", "abc", 3), 0);
    EXPECT_EQ(str_edit_distance("abc", "abxc", 3), 1);
    EXPECT_EQ(str_edit_distance("abc", "ac", 3), 1);
    EXPECT_EQ(str_edit_distance("abc", "axc", 3), 1);
    EXPECT_EQ(str_edit_distance("abcd", "abdc", 3), 1); /* neighbours swapped */
    EXPECT_EQ(str_edit_distance("kitten", "sitting", 5), 3);
    EXPECT_EQ(str_edit_distance("kitten", "sitting", 2), 3); /* limit + 1 */
    EXPECT_EQ(str_edit_distance("a", "abcdefgh", 3), 4);
}

TEST(sizes_are_read_and_written) {
    static const struct {
        const char *text;
        uint64_t bytes;
    } good[] = {{"0", 0},
                {"100", 100},
                {"2KiB", 2048},
                {"1.5GiB", 1610612736u},
                {"512MiB", 512u << 20},
                {"0.5TiB", 1ull << 39},
                {"7B", 7}};
    static const char *const bad[] = {"",     "GiB", "-1",    "1.5GB",     "1 GiB",
                                      "1e30", "nan", "1MiBs", "9999999TiB"};
    char text[40];
    for (size_t i = 0; i < ARRAY_COUNT(good); i++) {
        uint64_t bytes = 77;
        EXPECT(str_parse_bytes(good[i].text, &bytes) == 0 && bytes == good[i].bytes, "%s", good[i].text);
    }
    for (size_t i = 0; i < ARRAY_COUNT(bad); i++) {
        uint64_t bytes;
        EXPECT(str_parse_bytes(bad[i], &bytes) == -1, "'%s' was taken", bad[i]);
    }
    EXPECT_STR(str_format_bytes(text, sizeof(text), 1610612736.0), "1.50 GiB");
    EXPECT_STR(str_format_bytes(text, sizeof(text), 1023), "1023 B");
    EXPECT_STR(str_format_bytes(text, sizeof(text), 1024), "1.00 KiB");
}

/* ---- hash ---- */

TEST(the_hash_does_not_depend_on_how_the_bytes_were_cut) {
    unsigned char data[300];
    for (int i = 0; i < 300; i++) data[i] = (unsigned char)(i * 37 + i / 7);
    for (size_t n = 0; n <= 300; n += 7) {
        uint64_t whole = hash_bytes(data, n);
        for (size_t cut = 1; cut < 70; cut += 3) {
            struct hash h;
            hash_init(&h);
            for (size_t at = 0; at < n; at += cut) hash_update(&h, data + at, at + cut < n ? cut : n - at);
            EXPECT(hash_final(&h) == whole, "%zu bytes in pieces of %zu", n, cut);
        }
    }
}

TEST(every_bit_and_the_length_change_the_hash) {
    unsigned char data[100] = {0};
    uint64_t seen[901];
    int count = 0;
    for (size_t n = 0; n <= 100; n++) seen[count++] = hash_bytes(data, n); /* zeros of every length */
    for (int bit = 0; bit < 800; bit++) {
        data[bit / 8] ^= (unsigned char)(1 << bit % 8);
        seen[count++] = hash_bytes(data, 100);
        data[bit / 8] ^= (unsigned char)(1 << bit % 8);
    }
    for (int i = 0; i < count; i++)
        for (int j = 0; j < i; j++) EXPECT(seen[i] != seen[j], "%d and %d collide", i, j);
}

/* ---- random numbers ---- */

TEST(philox_gives_the_published_vectors) {
    /* kat_vectors of Random123, philox4x32 with 10 rounds */
    struct rng_words r = rng_philox((struct rng_key){0}, 0);
    EXPECT(r.w[0] == 0x6627e8d5 && r.w[1] == 0xe169c58d && r.w[2] == 0xbc57ac4c && r.w[3] == 0x9b00dbd8,
           "zeros");
    r = rng_philox((struct rng_key){0xffffffff, 0xffffffff, 0xffffffff, 0xffff, 0xffff}, UINT64_MAX);
    EXPECT(r.w[0] == 0x408f276d && r.w[1] == 0x41c83b0e && r.w[2] == 0xa20bc7c6 && r.w[3] == 0x6d5451fd,
           "ones");
    r = rng_philox((struct rng_key){0xa4093822, 0x299f31d0, 0x13198a2e, 0x0370, 0x7344}, 0x85a308d3243f6a88);
    EXPECT(r.w[0] == 0xd16cfe09 && r.w[1] == 0x94fdcceb && r.w[2] == 0x5001e420 && r.w[3] == 0x24126ea1,
           "pi");
}

TEST(dropout_keeps_exactly_what_the_uniform_number_says) {
    static const float p[] = {0, 0.1f, 0.25f, 0.5f, 0.9f, 0.99999994f, 1};
    for (size_t i = 0; i < ARRAY_COUNT(p); i++) {
        uint32_t threshold = rng_drop_threshold(p[i]);
        int kept = 0;
        for (uint64_t n = 0; n < 20000; n++) {
            uint32_t word = rng_philox((struct rng_key){.seed = 5}, n).w[0];
            bool keep = word >= threshold;
            if (p[i] < 1) EXPECT_EQ(keep, rng_uniform(word) >= p[i]);
            kept += keep;
        }
        EXPECT(fabs(kept / 20000.0 - (1 - (double)p[i])) < 0.015, "p %g kept %d", (double)p[i], kept);
    }
    EXPECT(rng_uniform(0) == 0 && rng_uniform(UINT32_MAX) < 1, "not in [0, 1)");
}

TEST(normal_numbers_have_the_moments_of_a_normal) {
    double sum[5] = {0};
    int n = 40000, outside = 0;
    for (int i = 0; i < n; i += 4) {
        struct rng_words r = rng_philox((struct rng_key){.seed = 9, .op = 3}, (uint64_t)i / 4);
        float x[4];
        rng_normal_pair(r.w[0], r.w[1], &x[0], &x[1]);
        rng_normal_pair(r.w[2], r.w[3], &x[2], &x[3]);
        for (int k = 0; k < 4; k++) {
            double power = 1;
            for (int m = 0; m < 5; m++, power *= (double)x[k]) sum[m] += power;
            outside += fabsf(x[k]) > 1.959964f;
        }
    }
    EXPECT_NEAR(sum[1] / n, 0, 0.02);
    EXPECT_NEAR(sum[2] / n, 1, 0.03);
    EXPECT_NEAR(sum[3] / n, 0, 0.06);
    EXPECT_NEAR(sum[4] / n, 3, 0.15);
    EXPECT_NEAR((double)outside / n, 0.05, 0.005);
    float x, y;
    rng_normal_pair(0, 0, &x, &y); /* the rarest words stay finite */
    EXPECT(isfinite(x) && isfinite(y), "%g %g", (double)x, (double)y);
    rng_normal_pair(UINT32_MAX, UINT32_MAX, &x, &y);
    EXPECT(isfinite(x) && isfinite(y), "%g %g", (double)x, (double)y);
}

RUN_TESTS(CASE(memory_is_aligned_zeroed_and_counted_exactly),
          CASE(running_out_of_memory_ends_the_job_with_status_3_and_names_the_block),
          CASE(a_broken_invariant_ends_the_job_and_takes_the_others_down),
          CASE(log_lines_have_level_and_rank), CASE(user_errors_are_one_statement_and_never_overflow),
          CASE(strings_grow_and_stay_terminated), CASE(edit_distance_counts_single_character_edits),
          CASE(sizes_are_read_and_written), CASE(the_hash_does_not_depend_on_how_the_bytes_were_cut),
          CASE(every_bit_and_the_length_change_the_hash), CASE(philox_gives_the_published_vectors),
          CASE(dropout_keeps_exactly_what_the_uniform_number_says),
          CASE(normal_numbers_have_the_moments_of_a_normal))
