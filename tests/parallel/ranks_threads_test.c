#include "core/base/threads.h"
#include "core/train/ranks.h"
#include "tests/parallel/parallel.h"
#include <sched.h>

static cpu_set_t first_processors(const cpu_set_t *from, int count) {
    cpu_set_t set;
    CPU_ZERO(&set);
    for (int i = 0; i < CPU_SETSIZE && count; i++)
        if (CPU_ISSET(i, from)) CPU_SET(i, &set), count--;
    return set;
}

TEST(ranks_that_may_use_the_same_processors_divide_them) {
    cpu_set_t before;
    struct ranks r = {.world = world, .rank = comm_world_rank(world), .size = comm_world_size(world)};
    int everyone[64];
    EXPECT_EQ(sched_getaffinity(0, sizeof(before), &before), 0);
    for (int i = 0; i < r.size; i++) everyone[i] = i;
    r.comms.world = comm_open(world, "world", everyone, r.size);
    int processors = CPU_COUNT(&before);
    int64_t fewest = processors;
    comm_all_reduce(r.comms.world, &fewest, 1, COMM_I64, COMM_MIN);
    if (fewest < 2) {
        test_skip_reason = "needs two processors that every rank may use";
    } else {
        cpu_set_t one = first_processors(&before, 1), two = first_processors(&before, 2);
        CHECK(!sched_setaffinity(0, sizeof(two), &two), "two processors");
        EXPECT_EQ(ranks_threads(&r), r.size == 1 ? 0 : 1); /* two for r.size >= 2 ranks */
        /* rank 0 goes to one processor: of two ranks the other has both for itself */
        if (!r.rank) CHECK(!sched_setaffinity(0, sizeof(one), &one), "one processor");
        EXPECT_EQ(ranks_threads(&r), r.size == 1 ? 0 : r.size == 2 && r.rank == 1 ? 2 : 1);
        CHECK(!sched_setaffinity(0, sizeof(before), &before), "all processors again");
    }
    comm_close(r.comms.world);
}

TEST(one_rank_has_one_thread_for_each_processor) {
    struct ranks alone = {.size = 1};
    EXPECT_EQ(ranks_threads(NULL), 0);
    EXPECT_EQ(ranks_threads(&alone), 0);
}

RUN_PARALLEL_TESTS("1 2 4", CASE(ranks_that_may_use_the_same_processors_divide_them),
                   CASE(one_rank_has_one_thread_for_each_processor))
