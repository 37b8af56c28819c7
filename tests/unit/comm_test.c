#include "core/base/mem.h"
#include "parallel/comm/comm.h"
#include "parallel/comm/launch.h"
#include "parallel/comm/sum.h"
#include "parallel/comm/watch.h"
#include "tests/test.h"

/* ---- who started us ---- */

struct launch_case {
    const char *name;
    const char *variables[8]; /* "NAME=value" */
    bool has_mpi;
    bool opens_mpi;
    const char *refusal; /* a part of the message; NULL: accepted */
};

static const char *lookup(void *context, const char *name) {
    const struct launch_case *c = context;
    size_t length = strlen(name);
    for (int i = 0; i < 8 && c->variables[i]; i++)
        if (!strncmp(c->variables[i], name, length) && c->variables[i][length] == '=')
            return c->variables[i] + length + 1;
    return NULL;
}

static const struct launch_case launch_cases[] = {
    {"alone", {NULL}, true, false, NULL},
    {"alone, no MPI", {NULL}, false, false, NULL},
    {"mpirun -np 4", {"OMPI_COMM_WORLD_SIZE=4", "PMIX_RANK=2"}, true, true, NULL},
    {"mpirun -np 1", {"OMPI_COMM_WORLD_SIZE=1", "PMIX_RANK=0"}, true, true, NULL},
    {"mpirun -np 4, no MPI", {"OMPI_COMM_WORLD_SIZE=4", "PMIX_RANK=2"}, false, false, "make MPI=1"},
    {"mpirun -np 1, no MPI", {"OMPI_COMM_WORLD_SIZE=1", "PMIX_RANK=0"}, false, false, NULL},
    {"MPICH", {"PMI_SIZE=8", "PMI_RANK=3", "PMI_FD=7"}, true, true, NULL},
    {"MPICH, no MPI", {"PMI_SIZE=8", "PMI_RANK=0"}, false, false, "PMI_SIZE says 8"},
    {"srun --mpi=pmix",
     {"SLURM_STEP_ID=0", "SLURM_PROCID=1", "SLURM_STEP_NUM_TASKS=4", "PMIX_RANK=1",
      "PMIX_NAMESPACE=slurm.pmix.7.0"},
     true,
     true,
     NULL},
    {"srun --mpi=pmix, no MPI",
     {"SLURM_STEP_ID=0", "SLURM_PROCID=0", "SLURM_STEP_NUM_TASKS=4", "PMIX_RANK=0"},
     false,
     false,
     "make MPI=1"},
    {"srun without PMI",
     {"SLURM_STEP_ID=0", "SLURM_PROCID=1", "SLURM_STEP_NUM_TASKS=4", "SLURM_NTASKS=4"},
     true,
     false,
     "srun --mpi=pmix"},
    {"srun without PMI, no MPI",
     {"SLURM_STEP_ID=3", "SLURM_PROCID=1", "SLURM_NTASKS=4"},
     false,
     false,
     "make MPI=1"},
    {"srun -n 1 in a job of 4",
     {"SLURM_STEP_ID=0", "SLURM_PROCID=0", "SLURM_STEP_NUM_TASKS=1", "SLURM_NTASKS=4"},
     true,
     false,
     NULL},
    {"batch script of a job of 4", {"SLURM_JOB_ID=9", "SLURM_NTASKS=4", "SLURM_PROCID=0"}, true, false, NULL},
    {"batch script, as newer Slurms call it",
     {"SLURM_JOB_ID=9", "SLURM_STEP_ID=4294967291", "SLURM_NTASKS=4", "SLURM_PROCID=0"},
     true,
     false,
     NULL},
    {"interactive shell of a job of 4",
     {"SLURM_STEP_ID=4294967290", "SLURM_NTASKS=4", "SLURM_PROCID=0"},
     true,
     false,
     NULL},
    {"mpirun inside a Slurm job",
     {"SLURM_STEP_ID=0", "SLURM_PROCID=0", "SLURM_STEP_NUM_TASKS=2", "OMPI_COMM_WORLD_SIZE=16",
      "PMIX_RANK=5"},
     true,
     true,
     NULL},
    {"torchrun", {"RANK=0", "LOCAL_RANK=0", "WORLD_SIZE=2", "MASTER_ADDR=n1"}, true, false, "mpirun"},
    {"a stray WORLD_SIZE", {"WORLD_SIZE=8", "MASTER_ADDR=n1"}, true, false, NULL},
    {"nonsense", {"SLURM_STEP_ID=x", "SLURM_PROCID=-1", "SLURM_STEP_NUM_TASKS=4x"}, true, false, NULL},
};

TEST(every_launch_is_recognised_or_refused_with_the_working_command) {
    for (size_t i = 0; i < ARRAY_COUNT(launch_cases); i++) {
        const struct launch_case *c = &launch_cases[i];
        struct launch launch = {0};
        struct err err = {""};
        int status = launch_detect(lookup, (void *)(uintptr_t)c, c->has_mpi, &launch, &err);
        EXPECT(status == (c->refusal ? -1 : 0), "%s: status %d %s", c->name, status, err.text);
        EXPECT(!c->refusal || strstr(err.text, c->refusal), "%s: '%s' does not say '%s'", c->name, err.text,
               c->refusal);
        EXPECT(!strchr(err.text, '\n'), "%s: more than one line", c->name);
        if (!status) EXPECT(launch.with_mpi == c->opens_mpi, "%s: MPI %d", c->name, launch.with_mpi);
    }
}

TEST(an_mpi_that_sees_one_of_several_tasks_is_refused) {
    struct launch four = {true, 4, "PMI_SIZE"}, one = {true, 1, "PMI_SIZE"}, unknown = {true, 0, NULL};
    struct err err = {""};
    EXPECT_EQ(launch_check_size(&four, 4, &err), 0);
    EXPECT_EQ(launch_check_size(&one, 1, &err), 0);
    EXPECT_EQ(launch_check_size(&unknown, 1, &err), 0);
    EXPECT_EQ(launch_check_size(&four, 1, &err), -1);
    EXPECT_CONTAINS(err.text, "PMI_SIZE");
    EXPECT_CONTAINS(err.text, "mpirun");
}

/* ---- one rank ---- */

static const int zero[1] = {0};

TEST(one_rank_needs_no_mpi_and_every_call_gives_its_own_data_back) {
    struct comm_world *world;
    struct err err = {""};
    EXPECT_EQ(comm_world_open(&world, &err), 0);
    EXPECT_EQ(comm_world_size(world), 1);
    EXPECT_EQ(comm_world_rank(world), 0);
    EXPECT_EQ(comm_world_local_size(world), 1);
    EXPECT_EQ(comm_world_local_rank(world), 0);
    EXPECT_STR(comm_world_transport(world), "self");
    EXPECT(strlen(comm_world_host(world)) > 0, "no host name");
    struct comm *comm = comm_open(world, "data-parallel", zero, 1);
    EXPECT_STR(comm_name(comm), "data-parallel");
    float x[5] = {1, -2, 3, 4, 5}, y[5] = {0};
    comm_all_reduce(comm, x, 5, COMM_F32, COMM_SUM);
    comm_reduce_scatter(comm, x, 5, COMM_F32);
    comm_all_gather(comm, x, 5, COMM_F32);
    comm_broadcast(comm, x, 5, COMM_F32, 0);
    comm_barrier(comm);
    EXPECT(x[0] == 1 && x[1] == -2 && x[4] == 5, "%g %g %g", (double)x[0], (double)x[1], (double)x[4]);
    comm_all_to_all(comm, y, x, 5, COMM_F32);
    EXPECT(!memcmp(x, y, sizeof(x)), "all-to-all");
    int64_t count = 2, from = 1, to = 3;
    comm_all_to_all_v(comm, y, &count, &to, x, &count, &from, COMM_F32);
    EXPECT(y[2] == 3 && y[3] == -2 && y[4] == 3, "%g %g %g", (double)y[2], (double)y[3], (double)y[4]);
    comm_close(comm);
    comm_world_close(world);
}

TEST(a_rank_that_sends_itself_gets_messages_by_tag_in_order) {
    struct comm_world *world;
    struct err err;
    EXPECT_EQ(comm_world_open(&world, &err), 0);
    struct comm *comm = comm_open(world, "pipeline", zero, 1);
    int a = 1, b = 2, c = 3, x = 0, y = 0, z = 0;
    struct comm_request *r[6];
    r[0] = comm_start_send(comm, &a, sizeof(a), 0, 7);
    r[1] = comm_start_send(comm, &b, sizeof(b), 0, 9);
    EXPECT(!comm_is_done(r[0]), "done without a receive");
    r[2] = comm_start_receive(comm, &y, sizeof(y), 0, 9);
    r[3] = comm_start_receive(comm, &x, sizeof(x), 0, 7);
    r[4] = comm_start_receive(comm, &z, sizeof(z), 0, 7);
    r[5] = comm_start_send(comm, &c, sizeof(c), 0, 7);
    for (int i = 0; i < 6; i++) {
        EXPECT(comm_is_done(r[i]), "request %d", i);
        comm_wait(r[i]);
    }
    comm_wait(NULL);
    EXPECT(comm_is_done(NULL), "NULL is done");
    EXPECT(x == 1 && y == 2 && z == 3, "%d %d %d", x, y, z);
    comm_close(comm);
    comm_world_close(world);
}

TEST(nothing_is_allocated_after_open_and_everything_is_freed) {
    struct mem_stats before = mem_stats();
    struct comm_world *world;
    struct err err;
    EXPECT_EQ(comm_world_open(&world, &err), 0);
    struct comm *comm = comm_open(world, "x", zero, 1);
    struct mem_stats open = mem_stats();
    double x[3] = {1, 2, 3};
    for (int i = 0; i < 2000; i++) comm_wait(comm_start_all_reduce(comm, x, 3, COMM_F64, COMM_SUM));
    comm_world_note(world, "iteration %d", 3);
    EXPECT_EQ(mem_stats().allocations, open.allocations);
    comm_close(comm);
    comm_close(NULL);
    comm_world_close(world);
    comm_world_close(NULL);
    EXPECT_EQ(mem_stats().live_blocks, before.live_blocks);
}

/* ---- the fake transport ---- */

static int events_seen;
static double event_bytes;
static void see(void *context, const struct comm_event *event) {
    events_seen++;
    event_bytes += event->bytes;
    EXPECT(context == &events_seen && event->end_ns >= event->begin_ns, "event of %s", event->group);
}

TEST(a_fake_world_counts_what_a_ring_would_send_and_touches_nothing) {
    struct comm_world *world;
    int ranks[4] = {1, 5, 9, 13};
    comm_world_open_fake(&world, 9, 1024);
    EXPECT_EQ(comm_world_size(world), 1024);
    EXPECT_STR(comm_world_transport(world), "fake");
    struct comm *comm = comm_open(world, "tensor", ranks, 4);
    EXPECT_EQ(comm_rank(comm), 2);
    EXPECT_EQ(comm_world_rank_of(comm, 3), 13);
    events_seen = 0, event_bytes = 0;
    comm_world_set_observer(world, see, &events_seen);
    comm_all_reduce(comm, NULL, 1000, COMM_BF16, COMM_SUM);
    comm_reduce_scatter(comm, NULL, 1000, COMM_F32);
    comm_all_gather(comm, NULL, 1000, COMM_F64);
    comm_all_to_all(comm, NULL, NULL, 10, COMM_U8);
    int64_t counts[4] = {5, 6, 7, 8}, offsets[4] = {0, 5, 11, 18};
    comm_all_to_all_v(comm, NULL, counts, offsets, NULL, counts, offsets, COMM_I32);
    comm_wait(comm_start_send(comm, NULL, 123, 0, 1));
    struct comm_request *r = comm_start_receive(comm, NULL, 123, 0, 1);
    EXPECT(comm_is_done(r), "done at once");
    comm_wait(r);
    comm_barrier(comm);
    EXPECT_NEAR(comm_stats(comm, COMM_KIND_ALL_REDUCE)->bytes, 2 * 0.75 * 2000, 0);
    EXPECT_NEAR(comm_stats(comm, COMM_KIND_REDUCE_SCATTER)->bytes, 0.75 * 4 * 4000, 0);
    EXPECT_NEAR(comm_stats(comm, COMM_KIND_ALL_GATHER)->bytes, 0.75 * 4 * 8000, 0);
    EXPECT_NEAR(comm_stats(comm, COMM_KIND_ALL_TO_ALL)->bytes, 30 + (5 + 6 + 8) * 4, 0);
    EXPECT_EQ(comm_stats(comm, COMM_KIND_ALL_TO_ALL)->calls, 2);
    EXPECT_NEAR(comm_stats(comm, COMM_KIND_SEND)->bytes, 123, 0);
    EXPECT_NEAR(comm_stats(comm, COMM_KIND_RECEIVE)->bytes, 0, 0);
    EXPECT_EQ(comm_stats(comm, COMM_KIND_BARRIER)->calls, 1);
    EXPECT_EQ(events_seen, 8);
    EXPECT_NEAR(event_bytes, 3000 + 12000 + 24000 + 30 + 76 + 123, 0);
    comm_reset_stats(comm);
    EXPECT_EQ(comm_stats(comm, COMM_KIND_BARRIER)->calls, 0);
    comm_close(comm);
    comm_world_close(world);
}

TEST(types_have_their_sizes_and_kinds_their_names) {
    EXPECT_EQ(comm_dtype_bytes(COMM_BF16), 2);
    EXPECT_EQ(comm_dtype_bytes(COMM_F64), 8);
    EXPECT_EQ(comm_dtype_bytes(COMM_U8), 1);
    for (int i = 0; i < DTYPE_COUNT; i++)
        EXPECT_EQ(comm_dtype_bytes(comm_dtype_of((enum dtype)i)), dtype_bytes((enum dtype)i));
    EXPECT_STR(comm_kind_name(COMM_KIND_ALL_REDUCE), "all-reduce");
    EXPECT_STR(comm_kind_name(COMM_KIND_BARRIER), "barrier");
    EXPECT_EQ(comm_staging_bytes(1), 0);
    EXPECT(comm_staging_bytes(8) == 4 * comm_staging_bytes(2), "staging grows with the members");
    for (int size = 2; size <= 65536; size++) {
        size_t bytes = comm_staging_bytes(size), least = (size_t)size * 16384; /* two small exchanges */
        EXPECT(bytes >= least && (bytes <= 32u << 20 || bytes == least), "%d ranks stage %zu bytes", size,
               bytes);
    }
}

/* ---- sums ---- */

TEST(a_sum_is_taken_in_rank_order_and_rounded_once) {
    /* 2^24 + 1 + 1: from the left the ones are lost one by one, together they are not */
    float pieces[3][2] = {{0x1p24f, 1}, {1, 1}, {1, 0x1p24f}}, out[2];
    struct comm_sum sum = {COMM_F32, COMM_SUM, 3, 1, pieces[1], (const char *)pieces, sizeof(pieces[0])};
    comm_sum_run(&sum, out, 2);
    EXPECT(out[0] == 0x1p24f && out[1] == 0x1p24f + 2, "%.9g %.9g", (double)out[0], (double)out[1]);
    /* bf16 has eight bits: 256 + 1 + 1 is 256 when each sum is rounded, 258 when one is */
    uint16_t small[3][1] = {{0x4380}, {0x3F80}, {0x3F80}}, one[1];
    struct comm_sum rounded = {COMM_BF16, COMM_SUM, 3, 0, small[0], (const char *)small, sizeof(small[0])};
    comm_sum_run(&rounded, one, 1);
    EXPECT_EQ(one[0], 0x4381);
}

TEST(minus_zero_and_nan_survive_a_reduction) {
    float pieces[2][3] = {{-0.0f, NAN, 1}, {-0.0f, 1, NAN}}, out[3];
    struct comm_sum sum = {COMM_F32, COMM_SUM, 2, 0, pieces[0], (const char *)pieces, sizeof(pieces[0])};
    comm_sum_run(&sum, out, 3);
    EXPECT(out[0] == 0 && signbit(out[0]) && isnan(out[1]) && isnan(out[2]), "sum");
    for (int op = COMM_MAX; op <= COMM_MIN; op++) {
        sum.op = op;
        comm_sum_run(&sum, out, 3);
        EXPECT(isnan(out[1]) && isnan(out[2]), "%s", op == COMM_MAX ? "max" : "min");
    }
}

/* ---- the watchdog's table ---- */

static void say(struct watch_report *r, int rank, bool waiting, enum comm_kind kind, int sequence,
                int missing) {
    *r = (struct watch_report){
        .rank = rank, .pid = 100 + rank, .host = "n1", .answered = true, .waiting = waiting};
    r->seconds = 10;
    r->call =
        (struct watch_call){.group = "data", .group_id = 3, .size = 4, .members = {0, 1, 2, 3}, .count = 64};
    r->call.kind = kind;
    r->call.sequence = (uint64_t)sequence;
    if (missing >= 0) r->call.num_missing = 1, r->call.missing[0] = missing;
}

TEST(the_table_has_a_line_for_each_rank_that_holds_up_others) {
    struct watch_report r[4];
    struct str out = {0};
    for (int i = 0; i < 4; i++) say(&r[i], i, true, COMM_KIND_ALL_GATHER, 5, 2);
    r[2].answered = false;
    watch_print_table(&out, r, 4, 0);
    EXPECT_STR(out.data, "who waits for whom, asked by rank 0; 3 of 4 ranks answered\n"
                         "  rank 2 (n1, pid 102) does not answer: it is stopped, dead or out of reach\n"
                         "  3 ranks wait for others: 0 1 3\n");
    str_clear(&out);
    say(&r[2], 2, false, COMM_KIND_ALL_GATHER, 4, -1);
    snprintf(r[2].note, sizeof(r[2].note), "reads data");
    watch_print_table(&out, r, 4, 0);
    EXPECT_STR(out.data,
               "who waits for whom, asked by rank 0; 4 of 4 ranks answered\n"
               "  rank 2 (n1, pid 102) is not waiting, its last call ended 10 s ago (all-gather #4 of group "
               "data [0 1 2 3], 64 fp32): reads data\n"
               "  3 ranks wait for others: 0 1 3\n");
    str_clear(&out);
    say(&r[2], 2, true, COMM_KIND_REDUCE_SCATTER, 5, 0);
    watch_print_table(&out, r, 4, 0);
    EXPECT_STR(out.data,
               "who waits for whom, asked by rank 0; 4 of 4 ranks answered\n"
               "  rank 2 (n1, pid 102) waited 10 s in reduce-scatter #5 of group data [0 1 2 3], 64 fp32 for "
               "rank 0, but other members are in another call of this group\n"
               "  3 ranks wait for others: 0 1 3\n");
    str_free(&out);
}

RUN_TESTS(CASE(every_launch_is_recognised_or_refused_with_the_working_command),
          CASE(an_mpi_that_sees_one_of_several_tasks_is_refused),
          CASE(one_rank_needs_no_mpi_and_every_call_gives_its_own_data_back),
          CASE(a_rank_that_sends_itself_gets_messages_by_tag_in_order),
          CASE(nothing_is_allocated_after_open_and_everything_is_freed),
          CASE(a_fake_world_counts_what_a_ring_would_send_and_touches_nothing),
          CASE(types_have_their_sizes_and_kinds_their_names),
          CASE(a_sum_is_taken_in_rank_order_and_rounded_once), CASE(minus_zero_and_nan_survive_a_reduction),
          CASE(the_table_has_a_line_for_each_rank_that_holds_up_others))
