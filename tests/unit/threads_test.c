#include "core/base/mem.h"
#include "core/base/threads.h"
#include "tests/test.h"
#include <stdatomic.h>
#include <unistd.h>

struct touched {
    _Atomic int times[5000];
    _Atomic int by_thread[64];
    _Atomic int bad_chunks;
    int64_t size, grain;
};

static void touch(void *context, int64_t begin, int64_t end, int thread) {
    struct touched *t = context;
    if (begin % t->grain || end > t->size || (end - begin != t->grain && end != t->size)) t->bad_chunks++;
    for (int64_t i = begin; i < end; i++) t->times[i]++;
    t->by_thread[thread]++;
}

TEST(every_element_is_visited_once_in_chunks_that_depend_on_size_and_grain_only) {
    static const int64_t sizes[] = {1, 2, 63, 64, 65, 1000, 5000}, grains[] = {1, 7, 64, 5000, 9000};
    for (int count = 1; count <= 8; count++) {
        struct threads *team = threads_open(count);
        EXPECT_EQ(threads_count(team), count);
        for (size_t s = 0; s < 7; s++)
            for (size_t g = 0; g < 5; g++) {
                static struct touched t;
                memset(&t, 0, sizeof(t));
                t.size = sizes[s], t.grain = grains[g];
                threads_for(team, t.size, t.grain, touch, &t);
                for (int64_t i = 0; i < 5000; i++) EXPECT_EQ(t.times[i], i < t.size);
                EXPECT_EQ(t.bad_chunks, 0);
                for (int i = count; i < 64; i++) EXPECT_EQ(t.by_thread[i], 0);
            }
        threads_close(team);
    }
}

static void sum_chunk(void *context, int64_t begin, int64_t end, int thread) {
    double *partial = context, sum = 0;
    (void)thread;
    for (int64_t i = begin; i < end; i++) sum += 1.0 / (double)(i + 1);
    partial[begin / 100] = sum;
}

TEST(sums_per_chunk_give_the_same_bits_with_any_number_of_threads) {
    double expected = 0;
    for (int count = 1; count <= 6; count++) {
        struct threads *team = threads_open(count);
        for (int repeat = 0; repeat < 50; repeat++) {
            double partial[100], sum = 0;
            threads_for(team, 10000, 100, sum_chunk, partial);
            for (int i = 0; i < 100; i++) sum += partial[i];
            if (count == 1 && repeat == 0) expected = sum;
            EXPECT(sum == expected, "%d threads: %.17g is not %.17g", count, sum, expected);
        }
        threads_close(team);
    }
}

static void add_one(void *context, int64_t begin, int64_t end, int thread) {
    int *values = context; /* plain memory: what one loop wrote the next must see */
    (void)thread;
    for (int64_t i = begin; i < end; i++) values[(i + 1) % 512] = values[(i + 1) % 512] + 1;
}

TEST(loops_follow_each_other_in_order_also_after_a_pause) {
    static int values[512];
    struct threads *team = threads_open(4);
    for (int i = 0; i < 3000; i++) {
        threads_for(team, 512, 8, add_one, values);
        if (i % 500 == 499) usleep(20000); /* the workers fall asleep */
    }
    for (int i = 0; i < 512; i++) EXPECT_EQ(values[i], 3000);
    threads_close(team);
}

TEST(no_team_means_the_caller_alone) {
    static struct touched t;
    t.size = 100, t.grain = 30;
    threads_for(NULL, 100, 30, touch, &t);
    EXPECT_EQ(t.by_thread[0], 4);
    EXPECT_EQ(threads_count(NULL), 1);
    threads_for(NULL, 0, 30, touch, &t);
    EXPECT_EQ(t.by_thread[0], 4);
    threads_close(NULL);
}

TEST(opening_and_closing_leaves_nothing_behind) {
    struct mem_stats before = mem_stats();
    for (int i = 0; i < 50; i++) {
        struct threads *team = threads_open(i % 5 + 1);
        static struct touched t;
        t.size = 10, t.grain = 1;
        if (i % 2) threads_for(team, 10, 1, touch, &t);
        threads_close(team);
    }
    EXPECT_EQ(mem_stats().live_bytes, before.live_bytes);
    struct threads *team = threads_open(0); /* one for each processor */
    EXPECT(threads_count(team) >= 1, "%d", threads_count(team));
    threads_close(team);
}

RUN_TESTS(CASE(every_element_is_visited_once_in_chunks_that_depend_on_size_and_grain_only),
          CASE(sums_per_chunk_give_the_same_bits_with_any_number_of_threads),
          CASE(loops_follow_each_other_in_order_also_after_a_pause), CASE(no_team_means_the_caller_alone),
          CASE(opening_and_closing_leaves_nothing_behind))
