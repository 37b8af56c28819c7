/* What happens when a rank fails, stops, or calls something else than the others. This program is started
 * alone (--ranks prints 0) and starts itself under mpirun, once for each case. */
#include "core/base/check.h"
#include "parallel/comm/comm.h"
#include "parallel/comm/launch.h"
#include "tests/test.h"
#include <signal.h>
#include <stdio.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static const char *program;

/* ---- the ranks ---- */

static bool always(void) {
    return true;
}

static int be_rank(const char *what) {
    struct comm_world *world;
    struct err err;
    int ranks[16];
    float x[5000] = {0};
    if (comm_world_open(&world, &err)) die(STATUS_USAGE, "%s", err.text);
    int rank = comm_world_rank(world), size = comm_world_size(world);
    for (int i = 0; i < size; i++) ranks[i] = i;
    struct comm *all = comm_open(world, "data-parallel", ranks, size);
    bool alarmed = !strncmp(what, "alarmed", 7);
    comm_world_set_timeout(world, alarmed ? 600 : 2);
    if (alarmed) comm_world_set_alarm(world, always);
    comm_world_note(world, "iteration 7 of rank %d", rank);
    for (int i = 0; i < 3; i++) comm_all_reduce(all, x, 5000, COMM_F32, COMM_SUM);
    if (!strcmp(what, "die") && rank == 1) die(STATUS_USAGE, "the disk is full");
    if (!strcmp(what, "check") && rank == 2) CHECK(rank < 0, "a check on rank %d", rank);
    if (!strcmp(what, "kill") && rank == 1) raise(SIGKILL);
    if (!strcmp(what, "stop") && rank == 1) raise(SIGSTOP);
    if (!strcmp(what, "alarmed_stop") && rank == 1) raise(SIGSTOP);
    if (!strcmp(what, "alarmed_sleep") && rank == 1) sleep(9);
    if (!strcmp(what, "sleep") && rank == 1) sleep(60);
    if (!strcmp(what, "user_error")) {
        comm_close(all);
        comm_world_close(world);
        return STATUS_USAGE;
    }
    if (!strcmp(what, "circle") && rank < 2) comm_wait(comm_start_receive(all, x, 100, 1 - rank, 42));
    if (!(!strcmp(what, "skip") && rank == 2))
        comm_all_reduce(all, x, !strcmp(what, "count") && rank == 1 ? 4000 : 5000, COMM_F32, COMM_SUM);
    comm_barrier(all);
    comm_close(all);
    comm_world_close(world);
    return 0;
}

/* ---- the judge ---- */

struct run {
    char output[65536];
    int status; /* of mpirun; -1 when a signal ended it */
    double seconds;
};

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void launch(struct run *run, const char *what, const char *ranks) {
    int ends[2], status;
    double start = now();
    size_t length = 0;
    ssize_t n;
    memset(run, 0, sizeof(*run));
    if (pipe(ends)) abort();
    pid_t pid = fork();
    if (!pid) {
        dup2(ends[1], 1);
        dup2(ends[1], 2);
        close(ends[0]);
        close(ends[1]);
        execlp("timeout", "timeout", "-k", "2", "50", "mpirun", "--oversubscribe", "-np", ranks, program,
               what, (char *)NULL);
        _exit(127);
    }
    close(ends[1]);
    while ((n = read(ends[0], run->output + length, sizeof(run->output) - 1 - length)) > 0)
        length += (size_t)n;
    close(ends[0]);
    waitpid(pid, &status, 0);
    run->status = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
    run->seconds = now() - start;
}

static int occurrences(const char *text, const char *part) {
    int n = 0;
    for (const char *at = text; (at = strstr(at, part)); at++) n++;
    return n;
}

#define NEED_MPIRUN()                                                                                        \
    if (!launch_has_mpi()) SKIP("built without MPI");                                                        \
    if (system("command -v mpirun >/dev/null 2>&1")) SKIP("no mpirun here")
#define LAUNCH(what, ranks)                                                                                  \
    static struct run run;                                                                                   \
    launch(&run, what, ranks)
/* One table, one verdict, in about patience + 3 s. */
#define EXPECT_ONE_TABLE()                                                                                   \
    EXPECT(run.status != 0, "the job must fail");                                                            \
    EXPECT(occurrences(run.output, "who waits for whom") == 1, "not one table:\n%s", run.output);            \
    EXPECT(run.seconds < 15, "it took %.1f s", run.seconds)

TEST(a_job_without_trouble_ends_with_status_0) {
    NEED_MPIRUN();
    LAUNCH("nothing", "3");
    EXPECT(run.status == 0, "status %d: %s", run.status, run.output);
    EXPECT_STR(run.output, "");
}

TEST(a_rank_that_dies_takes_the_job_down_with_its_message_and_status) {
    NEED_MPIRUN();
    LAUNCH("die", "3");
    EXPECT_EQ(run.status, STATUS_USAGE);
    EXPECT_CONTAINS(run.output, "[rank 1] error: the disk is full");
    EXPECT(run.seconds < 5, "it took %.1f s", run.seconds);
}

TEST(a_failed_check_takes_the_job_down_with_its_line) {
    NEED_MPIRUN();
    LAUNCH("check", "3");
    EXPECT_EQ(run.status, STATUS_FAILED);
    EXPECT_CONTAINS(run.output, "[rank 2] error: tests/parallel/comm_failure_test.c:");
    EXPECT_CONTAINS(run.output, "a check on rank 2");
    EXPECT(run.seconds < 5, "it took %.1f s", run.seconds);
}

TEST(a_killed_rank_takes_the_job_down) {
    NEED_MPIRUN();
    LAUNCH("kill", "3");
    EXPECT(run.status > 0 && run.status != 124, "status %d", run.status);
    EXPECT(run.seconds < 5, "it took %.1f s", run.seconds);
}

TEST(an_error_of_the_user_that_all_ranks_meet_ends_the_job_cleanly) {
    NEED_MPIRUN();
    LAUNCH("user_error", "3");
    EXPECT_EQ(run.status, STATUS_USAGE);
    EXPECT(!strstr(run.output, "error:"), "%s", run.output);
    EXPECT(run.seconds < 5, "it took %.1f s", run.seconds);
}

TEST(a_stopped_rank_is_named) {
    NEED_MPIRUN();
    LAUNCH("stop", "3");
    EXPECT_ONE_TABLE();
    EXPECT_CONTAINS(run.output, "rank 1 (");
    EXPECT_CONTAINS(run.output, "does not answer");
    EXPECT_CONTAINS(run.output, "in all-reduce #4 of group data-parallel [0 1 2]");
    EXPECT_CONTAINS(run.output, " for rank 1");
    EXPECT_CONTAINS(run.output, "2 of 3 ranks answered");
}

TEST(a_rank_that_does_something_else_is_named_with_its_note) {
    NEED_MPIRUN();
    LAUNCH("sleep", "3");
    EXPECT_ONE_TABLE();
    EXPECT_CONTAINS(run.output, "is not waiting");
    EXPECT_CONTAINS(run.output,
                    "(all-reduce #3 of group data-parallel [0 1 2], 5000 fp32 sum): iteration 7 of rank 1");
    EXPECT_CONTAINS(run.output, "2 ranks wait for others: 0 2");
}

TEST(a_rank_that_skips_a_collective_is_named) {
    NEED_MPIRUN();
    LAUNCH("skip", "4");
    EXPECT_ONE_TABLE();
    EXPECT_CONTAINS(run.output, "in barrier #4 of group data-parallel [0 1 2 3]");
    EXPECT_CONTAINS(run.output, "other members are in another call of this group: iteration 7 of rank 2");
    EXPECT_CONTAINS(run.output, "3 ranks wait for others: 0 1 3");
    EXPECT_CONTAINS(run.output,
                    "in all-reduce #4 of group data-parallel [0 1 2 3], 5000 fp32 sum for rank 2");
}

TEST(members_that_disagree_on_the_count_are_named) {
    NEED_MPIRUN();
    LAUNCH("count", "2");
    EXPECT(run.status != 0 && run.seconds < 15, "status %d after %.1f s", run.status, run.seconds);
    EXPECT_CONTAINS(run.output, "all-reduce #4 of group data-parallel");
    EXPECT_CONTAINS(run.output, "the members disagree on the count");
}

TEST(ranks_that_wait_in_a_circle_are_all_shown) {
    NEED_MPIRUN();
    LAUNCH("circle", "2");
    EXPECT_ONE_TABLE();
    EXPECT_CONTAINS(run.output, "receive of group data-parallel [0 1], 100 bytes from rank 1, tag 42");
    EXPECT_CONTAINS(run.output, "receive of group data-parallel [0 1], 100 bytes from rank 0, tag 42");
}

TEST(a_rank_that_was_told_to_end_does_not_wait_long_for_one_that_is_gone) {
    NEED_MPIRUN();
    LAUNCH("alarmed_stop", "3");
    EXPECT_ONE_TABLE();
    EXPECT_CONTAINS(run.output, "rank 1 (");
    EXPECT_CONTAINS(run.output, "does not answer");
}

TEST(but_waits_for_ranks_that_live) {
    NEED_MPIRUN();
    LAUNCH("alarmed_sleep", "3");
    EXPECT(run.status == 0, "status %d: %s", run.status, run.output);
    EXPECT_STR(run.output, "");
}

int main(int argc, char **argv) {
    static const struct test_case cases[] = {
        CASE(a_job_without_trouble_ends_with_status_0),
        CASE(a_rank_that_dies_takes_the_job_down_with_its_message_and_status),
        CASE(a_failed_check_takes_the_job_down_with_its_line),
        CASE(a_killed_rank_takes_the_job_down),
        CASE(an_error_of_the_user_that_all_ranks_meet_ends_the_job_cleanly),
        CASE(a_stopped_rank_is_named),
        CASE(a_rank_that_does_something_else_is_named_with_its_note),
        CASE(a_rank_that_skips_a_collective_is_named),
        CASE(members_that_disagree_on_the_count_are_named),
        CASE(ranks_that_wait_in_a_circle_are_all_shown),
        CASE(a_rank_that_was_told_to_end_does_not_wait_long_for_one_that_is_gone),
        CASE(but_waits_for_ranks_that_live),
    };
    if (argc > 1 && !strcmp(argv[1], "--ranks")) return puts("0") < 0;
    if (argc > 1 && getenv("OMPI_COMM_WORLD_SIZE")) return be_rank(argv[1]);
    program = argv[0];
    if (!geteuid()) { /* mpirun wants to be told twice that root is meant */
        setenv("OMPI_ALLOW_RUN_AS_ROOT", "1", 1);
        setenv("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1", 1);
    }
    return test_run(cases, (int)ARRAY_COUNT(cases), argc, argv);
}
