#pragma once
/* Tests that run on several ranks. A program is a list of TEST functions as in tests/test.h, ended by
 *
 *     RUN_PARALLEL_TESTS("1 2 3 4 8", CASE(a), CASE(b))
 *
 * where the text says with how many ranks scripts/run_tests.sh shall start it (`program --ranks` prints it; 1
 * when built without MPI). All ranks run each test; `world` is open. Rank 0 prints "ok" when no rank failed;
 * a rank that fails prints its own "not ok" line, so that a broken communicator cannot hide a failure. */
#include "core/base/check.h"
#include "core/base/mem.h"
#include "parallel/comm/comm.h"
#include "parallel/comm/launch.h"
#include "tests/test.h"
#include <stdio.h>
#include <unistd.h>

static struct comm_world *world;

static inline int parallel_run(const struct test_case *cases, int count, int argc, char **argv) {
    struct err err = {""};
    uint64_t blocks = mem_stats().live_blocks;
    int failed = 0, everyone[64];
    if (comm_world_open(&world, &err)) {
        printf("not ok 1 - world: %s\n", err.text);
        return 1;
    }
    int rank = comm_world_rank(world), size = comm_world_size(world);
    for (int i = 0; i < size; i++) everyone[i] = i;
    setvbuf(stdout, NULL, _IOLBF, 0);
    comm_world_set_timeout(world, 60);
    struct comm *all = comm_open(world, "all", everyone, size);
    for (int i = 0; i < count; i++) {
        if (argc > 1 && strcmp(argv[1], cases[i].name)) continue;
        test_failures = 0, test_skip_reason = NULL;
        cases[i].run();
        if (test_failures) printf("not ok %d - %s (rank %d of %d)\n", i + 1, cases[i].name, rank, size);
        int64_t failures = test_failures;
        comm_all_reduce(all, &failures, 1, COMM_I64, COMM_SUM);
        if (!rank && !failures)
            printf("ok %d - %s (%d ranks)%s%s\n", i + 1, cases[i].name, size,
                   test_skip_reason ? " # SKIP " : "", test_skip_reason ? test_skip_reason : "");
        failed += test_failures != 0;
    }
    comm_close(all);
    comm_world_close(world);
    if (mem_stats().live_blocks != blocks) {
        printf("not ok %d - everything is freed (rank %d of %d)\n", count + 1, rank, size);
        failed++;
    }
    return failed != 0;
}

#define RUN_PARALLEL_TESTS(ranks, ...)                                                                       \
    int main(int argc, char **argv) {                                                                        \
        static const struct test_case cases[] = {__VA_ARGS__};                                               \
        if (argc > 1 && !strcmp(argv[1], "--ranks")) return puts(launch_has_mpi() ? ranks : "1") < 0;        \
        return parallel_run(cases, (int)(sizeof(cases) / sizeof(cases[0])), argc, argv);                     \
    }
