/* Checkpoints between real ranks: what tests/unit/checkpoint_layouts_test.c does with all pieces in one
 * process, and what only several ranks can show: errors that all of them learn, decisions that they take
 * together. Two more ways to start it, for tests/end_to_end/checkpoint_killed_rank_test.sh:
 *
 *     --save-and-die DIR RANK N    saves 10, then 20; RANK kills itself before its N-th call that changes the
 *                                  disk while 20 is saved; when it lives, it prints how many calls it made
 *     --check DIR                  one rank: loads, compares every bit, prints the iteration
 */
#include "tests/parallel/parallel.h"
#include "core/checkpoint/checkpoint.h"
#include "tests/unit/checkpoint_layouts.h"
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/syscall.h>

static struct err err;

/* ---- intercepted calls ---- */

static int bad_reads;      /* so many reads of this rank fail */
static bool full;          /* this rank finds no space */
static int calls, kill_at; /* this rank kills itself before that call; 0: never */

static bool before_call(void) {
    if (++calls == kill_at) kill(getpid(), SIGKILL);
    if (!full) return true;
    errno = ENOSPC;
    return false;
}
ssize_t pwrite(int fd, const void *data, size_t bytes, off_t offset) {
    return before_call() ? syscall(SYS_pwrite64, fd, data, bytes, offset) : -1;
}
ssize_t pread(int fd, void *data, size_t bytes, off_t offset) {
    if (bad_reads == 0) return syscall(SYS_pread64, fd, data, bytes, offset);
    bad_reads--;
    errno = EIO;
    return -1;
}
int fsync(int fd) { /* nobody cuts the power: no need to wait for the disk */
    (void)fd;
    return before_call() ? 0 : -1;
}
int rename(const char *from, const char *to) {
    return before_call() ? (int)syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, 0) : -1;
}

/* ---- groups ---- */

static const struct layout layouts[] = {
    {4, 1, 1, false, 16}, {2, 2, 1, false, 16}, {1, 4, 1, false, 12}, {1, 1, 4, true, 11},
    {2, 1, 2, true, 20},  {1, 2, 2, true, 13},  {2, 1, 2, false, 16}, {2, 1, 1, false, 12},
    {1, 2, 1, false, 24}, {1, 1, 2, true, 16},  {1, 1, 1, false, 16},
};

/* The communicator of a layout's ranks; NULL on the others. */
static struct comm *open_group(const struct layout *layout) {
    int ranks[64], size = layout_size(layout);
    for (int i = 0; i < size; i++) ranks[i] = i;
    return comm_world_rank(world) < size ? comm_open(world, "checkpoint", ranks, size) : NULL;
}

static struct comm *open_everyone(void) {
    return open_group(&(struct layout){comm_world_size(world), 1, 1, false, 0});
}

static void share_dir(struct comm *all) {
    if (comm_rank(all) == 0) fixture_make_dir();
    comm_broadcast(all, fixture_dir, sizeof(fixture_dir), COMM_U8, 0);
}

static void remove_dir(struct comm *all) {
    comm_barrier(all);
    if (comm_rank(all) == 0) fixture_remove(fixture_dir);
    comm_barrier(all);
}

struct run {
    struct layout_list list;
    struct layout_rank rank;
    struct checkpoint_model model;
    struct checkpoint_save_options save;
    struct checkpoint_load_options load;
    struct checkpoint_state state;
};

static struct run run_open(struct comm *group, const struct layout *layout,
                           const struct checkpoint_model *model) {
    struct run r = {.list = layout_list_open(model, layout), .model = *model};
    int rank = group ? comm_rank(group) : 0;
    r.model.padded_vocab_size = layout->vocab_rows;
    r.rank = layout_open(layout, model, rank);
    r.save.group = r.load.group = (struct checkpoint_group){group, r.list.all, r.list.count};
    return r;
}

static void run_close(struct run *r) {
    layout_close(&r->rank);
    layout_list_close(&r->list);
}

static int run_save(struct run *r, uint64_t seed) {
    layout_fill(&r->rank, seed);
    r->state = (struct checkpoint_state){.iteration = (int64_t)seed, .consumed_train_samples = 5};
    return checkpoint_save(fixture_dir, &r->save, &r->model, r->rank.tensors, r->rank.count, &r->state, "{}",
                           &err);
}

static int begin_in_background(struct run *r, struct checkpoint_async *a, uint64_t seed) {
    layout_fill(&r->rank, seed);
    r->state = (struct checkpoint_state){.iteration = (int64_t)seed};
    return checkpoint_async_begin(a, fixture_dir, &r->save, &r->model, r->rank.tensors, r->rank.count,
                                  &r->state, "{}", &err);
}

/* The iteration that loads, after looking at every bit; -1: none. */
static int64_t run_resume(struct run *r, int64_t saved_rows) {
    layout_fill(&r->rank, 1234);
    r->state = (struct checkpoint_state){.iteration = -1};
    if (checkpoint_load(fixture_dir, &r->load, &r->model, r->rank.tensors, r->rank.count, &r->state, &err))
        return -1;
    int64_t wrong = layout_pass(&r->rank, (uint64_t)r->state.iteration, true, saved_rows, 1234);
    EXPECT(!wrong, "%d elements are wrong", (int)wrong);
    return r->state.iteration;
}

/* ---- tests ---- */

TEST(any_layout_of_ranks_loads_what_any_other_saved_bit_for_bit) {
    struct comm *all = open_everyone(), *groups[ARRAY_COUNT(layouts)];
    const struct checkpoint_model models[] = {layout_llama(), layout_gpt2()};
    share_dir(all);
    for (size_t a = 0; a < ARRAY_COUNT(layouts); a++) groups[a] = open_group(&layouts[a]);
    for (size_t m = 0; m < ARRAY_COUNT(models); m++)
        for (size_t a = 0; a < ARRAY_COUNT(layouts); a++) {
            if (groups[a]) {
                struct run r = run_open(groups[a], &layouts[a], &models[m]);
                EXPECT(!run_save(&r, 7 + a), "%s", err.text);
                run_close(&r);
            }
            comm_barrier(all);
            for (size_t b = 0; b < ARRAY_COUNT(layouts); b++) {
                if (!groups[b]) continue;
                struct run r = run_open(groups[b], &layouts[b], &models[m]);
                int64_t got = run_resume(&r, layouts[a].vocab_rows);
                EXPECT(got == (int64_t)(7 + a) && r.state.consumed_train_samples == 5,
                       "model %d from layout %d to %d: %d: %s", (int)m, (int)a, (int)b, (int)got, err.text);
                run_close(&r);
            }
            comm_barrier(all);
        }
    for (size_t a = 0; a < ARRAY_COUNT(layouts); a++) comm_close(groups[a]);
    remove_dir(all);
    comm_close(all);
}

TEST(one_rank_without_space_stops_all_with_its_message) {
    struct comm *all = open_everyone();
    struct checkpoint_model model = layout_llama();
    share_dir(all);
    struct run r = run_open(all, &layouts[1], &model);
    EXPECT(!run_save(&r, 10), "%s", err.text);
    for (int victim = 0; victim < comm_size(all); victim++) {
        char want[64];
        full = comm_rank(all) == victim;
        err.text[0] = 0;
        EXPECT(run_save(&r, 20), "saved");
        full = false;
        snprintf(want, sizeof(want), "rank %d: ", victim);
        EXPECT(!strncmp(err.text, want, strlen(want)), "rank %d was told: %s", comm_rank(all), err.text);
        EXPECT_CONTAINS(err.text, "No space left on device");
        EXPECT_CONTAINS(err.text, "earlier ones are untouched");
        comm_barrier(all);
        EXPECT(!fixture_exists("iter_0000020") && !fixture_exists(".saving-iter_0000020"), "left over");
        EXPECT_EQ(run_resume(&r, 16), 10);
    }
    EXPECT(!run_save(&r, 20), "%s", err.text);
    EXPECT_EQ(run_resume(&r, 16), 20);
    run_close(&r);
    remove_dir(all);
    comm_close(all);
}

TEST(the_lowest_rank_speaks_when_several_fail) {
    struct comm *all = open_everyone();
    struct checkpoint_model model = layout_gpt2();
    share_dir(all);
    struct run r = run_open(all, &layouts[0], &model);
    full = comm_rank(all) == 1 || comm_rank(all) == 3;
    EXPECT(run_save(&r, 20), "saved");
    full = false;
    EXPECT_CONTAINS(err.text, "rank 1: ");
    EXPECT_EQ(run_resume(&r, 16), -1);
    EXPECT_CONTAINS(err.text, "there is no checkpoint");
    run_close(&r);
    remove_dir(all);
    comm_close(all);
}

/* One bit of a tensor that only the last stage reads. */
TEST(damage_that_one_rank_reads_sends_all_back_to_the_same_checkpoint) {
    struct comm *all = open_everyone();
    struct checkpoint_model model = layout_llama();
    struct checkpoint_info info = {0};
    const char *path = "iter_0000020/model-00001-of-00001.safetensors";
    share_dir(all);
    struct run r = run_open(all, &layouts[2], &model);
    EXPECT(!run_save(&r, 10) && !run_save(&r, 20), "%s", err.text);
    EXPECT(!checkpoint_find_together(all, fixture_dir, 0, &info, &err), "%s", err.text);
    EXPECT(info.found && info.iteration == 20 && !strcmp(info.config_json, "{}"), "rank %d: found %d",
           comm_rank(all), (int)info.iteration);
    checkpoint_info_free(&info);
    comm_barrier(all);
    if (comm_rank(all) == 0) fixture_flip(path, fixture_size(path) - 50);
    comm_barrier(all);
    EXPECT_EQ(run_resume(&r, 12), 10);
    r.load.step = 20;
    EXPECT_EQ(run_resume(&r, 12), -1);
    EXPECT_CONTAINS(err.text, "lm_head.weight");
    r.load.step = 0;
    comm_barrier(all);
    if (comm_rank(all) == 0) unlink(fixture_path("iter_0000020/manifest.json"));
    if (comm_rank(all) == 0) unlink(fixture_path("iter_0000010/manifest.json"));
    comm_barrier(all);
    EXPECT_EQ(run_resume(&r, 12), -1);
    EXPECT(checkpoint_find_together(all, fixture_dir, 0, &info, &err), "found");
    EXPECT_CONTAINS(err.text, "no valid checkpoint");
    run_close(&r);
    remove_dir(all);
    comm_close(all);
}

TEST(a_read_error_on_one_rank_sends_all_back_to_the_same_checkpoint) {
    struct comm *all = open_everyone();
    struct checkpoint_model model = layout_gpt2();
    share_dir(all);
    struct run r = run_open(all, &layouts[3], &model);
    EXPECT(!run_save(&r, 10) && !run_save(&r, 20), "%s", err.text);
    for (int victim = 0; victim < comm_size(all); victim++) {
        comm_barrier(all);
        bad_reads = comm_rank(all) == victim;
        EXPECT_EQ(run_resume(&r, 11), 10);
        bad_reads = comm_rank(all) == victim ? 2 : 0;
        EXPECT_EQ(run_resume(&r, 11), -1);
        EXPECT_CONTAINS(err.text, "Input/output error");
        EXPECT_EQ(run_resume(&r, 11), 20);
    }
    run_close(&r);
    remove_dir(all);
    comm_close(all);
}

static void wait_for_all(struct comm *all, const struct checkpoint_async *a) {
    int64_t writing = 1;
    for (int ms = 0; writing && ms < 20000; ms++) {
        writing = checkpoint_async_poll(a) == CHECKPOINT_WRITING;
        comm_all_reduce(all, &writing, 1, COMM_I64, COMM_MAX);
        usleep(1000);
    }
    EXPECT(!writing, "still writing");
}

TEST(a_background_save_of_all_ranks_counts_from_its_finish_and_fails_together) {
    struct comm *all = open_everyone();
    struct checkpoint_model model = layout_gpt2();
    share_dir(all);
    struct run r = run_open(all, &layouts[4], &model);
    struct checkpoint_async *a = checkpoint_async_open(checkpoint_async_bytes(r.rank.tensors, r.rank.count));
    EXPECT(!run_save(&r, 10), "%s", err.text);
    EXPECT(!begin_in_background(&r, a, 20), "%s", err.text);
    layout_fill(&r.rank, 99); /* training goes on */
    wait_for_all(all, a);
    EXPECT_EQ(run_resume(&r, 20), 10);
    comm_barrier(all);
    EXPECT(!checkpoint_async_finish(a, &err), "%s", err.text);
    EXPECT_EQ(run_resume(&r, 20), 20);
    for (int victim = 0; victim < comm_size(all); victim++) {
        comm_barrier(all);
        EXPECT(!begin_in_background(&r, a, 30), "%s", err.text);
        wait_for_all(all, a);
        comm_barrier(all);
        EXPECT(!checkpoint_async_finish(a, &err), "%s", err.text);
        EXPECT_EQ(run_resume(&r, 20), 30);
        comm_barrier(all);
        /* the files are made by the lowest rank before `full` counts for the others */
        full = victim > 0 && comm_rank(all) == victim;
        if (victim > 0) {
            EXPECT(!begin_in_background(&r, a, 40), "%s", err.text);
            wait_for_all(all, a);
            EXPECT(checkpoint_async_finish(a, &err), "a failed save is taken for a good one");
            full = false;
            EXPECT_CONTAINS(err.text, "No space left on device");
            EXPECT_CONTAINS(err.text, "rank ");
            EXPECT_EQ(run_resume(&r, 20), 30);
        }
    }
    checkpoint_async_close(a);
    run_close(&r);
    remove_dir(all);
    comm_close(all);
}

/* ---- started by the script ---- */

static int open_world(void) {
    if (!comm_world_open(&world, &err)) return 0;
    fprintf(stderr, "%s\n", err.text);
    return -1;
}

static int save_and_die(const char *dir, int victim, int call) {
    struct checkpoint_model model = layout_llama();
    if (open_world()) return 1;
    struct comm *all = open_everyone();
    snprintf(fixture_dir, sizeof(fixture_dir), "%s", dir);
    comm_world_set_timeout(world, 30);
    struct run r = run_open(all, &layouts[1], &model);
    if (run_save(&r, 10)) fprintf(stderr, "%s\n", err.text);
    comm_barrier(all);
    calls = 0, kill_at = comm_rank(all) == victim ? call : 0;
    int status = run_save(&r, 20);
    if (comm_rank(all) == victim) printf("%d\n", calls);
    run_close(&r);
    comm_barrier(all);
    comm_close(all);
    comm_world_close(world);
    return status != 0;
}

static int check(const char *dir) {
    struct checkpoint_model model = layout_llama();
    snprintf(fixture_dir, sizeof(fixture_dir), "%s", dir);
    struct run r = run_open(NULL, &layouts[10], &model);
    int64_t got = run_resume(&r, 16);
    run_close(&r);
    if (got < 0)
        fprintf(stderr, "%s\n", err.text);
    else
        printf("%lld\n", (long long)got);
    return got < 0 || test_failures;
}

int main(int argc, char **argv) {
    static const struct test_case cases[] = {
        CASE(any_layout_of_ranks_loads_what_any_other_saved_bit_for_bit),
        CASE(one_rank_without_space_stops_all_with_its_message),
        CASE(the_lowest_rank_speaks_when_several_fail),
        CASE(damage_that_one_rank_reads_sends_all_back_to_the_same_checkpoint),
        CASE(a_read_error_on_one_rank_sends_all_back_to_the_same_checkpoint),
        CASE(a_background_save_of_all_ranks_counts_from_its_finish_and_fails_together)};
    if (argc > 1 && !strcmp(argv[1], "--ranks")) return puts("4") < 0;
    if (argc == 5 && !strcmp(argv[1], "--save-and-die"))
        return save_and_die(argv[2], (int)strtol(argv[3], NULL, 10), (int)strtol(argv[4], NULL, 10));
    if (argc == 3 && !strcmp(argv[1], "--check")) return check(argv[2]);
    return parallel_run(cases, (int)ARRAY_COUNT(cases), argc, argv);
}
