#pragma once
/* A test program is a list of TEST functions run in order; each prints one TAP line. A failed expectation
 * prints file, line and values and fails its test; the program exits 1 when a test failed. Tests are named
 * after the promise that they hold. `program one_name` runs that test alone.
 *
 *     TEST(sum_does_not_depend_on_threads) { EXPECT_EQ(a, b); }
 *     RUN_TESTS(CASE(sum_does_not_depend_on_threads)) */
#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct test_case {
    const char *name;
    void (*run)(void);
};

static int test_failures; /* of the running test */
static const char *test_skip_reason;

#define TEST(name) static void name(void)
#define EXPECT(cond, ...)                                                                                    \
    do {                                                                                                     \
        if (!(cond)) {                                                                                       \
            if (test_failures++ < 20) {                                                                      \
                printf("# %s:%d: %s: ", __FILE__, __LINE__, #cond);                                          \
                printf(__VA_ARGS__);                                                                         \
                putchar('\n');                                                                               \
            }                                                                                                \
        }                                                                                                    \
    } while (0)
#define EXPECT_EQ(a, b)                                                                                      \
    do {                                                                                                     \
        long long test_a = (long long)(a), test_b = (long long)(b);                                          \
        EXPECT(test_a == test_b, "%lld is not %lld", test_a, test_b);                                        \
    } while (0)
#define EXPECT_STR(a, b)                                                                                     \
    do {                                                                                                     \
        const char *test_a = (a), *test_b = (b);                                                             \
        EXPECT(test_a &&test_b && !strcmp(test_a, test_b), "'%s' is not '%s'", test_a, test_b);              \
    } while (0)
#define EXPECT_NEAR(a, b, tolerance)                                                                         \
    do {                                                                                                     \
        double test_a = (double)(a), test_b = (double)(b);                                                   \
        EXPECT(isfinite(test_a) && fabs(test_a - test_b) <= (tolerance), "%.9g is not %.9g within %.3g",     \
               test_a, test_b, (double)(tolerance));                                                         \
    } while (0)
#define EXPECT_CONTAINS(text, part)                                                                          \
    EXPECT(strstr((text), (part)) != NULL, "'%s' does not contain '%s'", (text), (part))
#define SKIP(reason)                                                                                         \
    do {                                                                                                     \
        test_skip_reason = (reason);                                                                         \
        return;                                                                                              \
    } while (0)

static inline int test_run(const struct test_case *cases, int count, int argc, char **argv) {
    int failed = 0;
    setvbuf(stdout, NULL, _IOLBF, 0);
    for (int i = 0; i < count; i++) {
        if (argc > 1 && strcmp(argv[1], cases[i].name)) continue;
        test_failures = 0, test_skip_reason = NULL;
        cases[i].run();
        printf("%s %d - %s%s%s\n", test_failures ? "not ok" : "ok", i + 1, cases[i].name,
               test_skip_reason ? " # SKIP " : "", test_skip_reason ? test_skip_reason : "");
        failed += test_failures != 0;
    }
    return failed != 0;
}
#define CASE(name)                                                                                           \
    { #name, name }
#define RUN_TESTS(...)                                                                                       \
    int main(int argc, char **argv) {                                                                        \
        static const struct test_case cases[] = {__VA_ARGS__};                                               \
        return test_run(cases, (int)(sizeof(cases) / sizeof(cases[0])), argc, argv);                         \
    }
