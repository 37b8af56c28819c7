#include "parallel/comm/mpi_engine.h"
#include "core/base/log.h"
#include "core/base/mem.h"
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static const struct comm_transport comm_transport_mpi;
static struct mpi_engine *engine_to_abort; /* for the die hook, which takes no context */

_Noreturn void mpi_failed(const char *file, int line, const char *call, int code) {
    char text[MPI_MAX_ERROR_STRING] = "";
    int length = 0;
    MPI_Error_string(code, text, &length);
    die(STATUS_FAILED, "%s:%d: %s failed: %s", file, line, call, text);
}

/* ---- waiting ---- */

static void sleep_ns(long ns) {
    struct timespec t = {0, ns};
    nanosleep(&t, NULL);
}

/* How to pass the time when nothing happened since `idle_since`: spin, then yield, then sleep, so that a rank
 * that waits leaves its core to one that computes when there are more ranks than cores. */
static void back_off(const struct mpi_engine *engine, uint64_t idle_ns) {
    if ((int64_t)idle_ns < engine->spin_ns) return;
    if (idle_ns < 200000)
        sched_yield();
    else
        sleep_ns(idle_ns < 20000000 ? 20000 : 200000);
}

/* For callers: the helper thread, which would take the lock again at once, steps back for them. */
static void enter(struct mpi_engine *engine) {
    atomic_fetch_add(&engine->callers, 1);
    pthread_mutex_lock(&engine->lock);
    atomic_fetch_sub(&engine->callers, 1);
}

static const double ALARMED_S = 4;

static void watch_patience(struct mpi_engine *engine, const struct mpi_waiter *waiter, uint64_t now) {
    const struct comm_world *world = engine->world;
    double waited = (double)(now - waiter->since_ns) * 1e-9;
    if (world->timeout_s > 0 && waited > world->timeout_s)
        mpi_watch_expired(engine, waiter, false);
    else if (waited > ALARMED_S && world->alarmed && world->alarmed())
        mpi_watch_expired(engine, waiter, true);
}

static void mpi_wait(struct comm_request *request) {
    struct mpi_engine *engine = request->comm->world->state;
    enter(engine);
    struct mpi_waiter waiter = {request, comm_now_ns(), engine->waiters};
    engine->waiters = &waiter;
    uint64_t last_event = waiter.since_ns;
    while (!request->done) {
        int events = mpi_engine_progress(engine);
        if (request->done) break;
        uint64_t now = comm_now_ns();
        if (events) last_event = now;
        mpi_watch_poll(engine, now);
        watch_patience(engine, &waiter, now);
        pthread_mutex_unlock(&engine->lock);
        back_off(engine, now - last_event);
        enter(engine);
    }
    struct mpi_waiter **at = &engine->waiters;
    while (*at != &waiter) at = &(*at)->next;
    *at = waiter.next;
    mpi_watch_call_ended(engine, request);
    if (engine->active && engine->helper_sleeps && !engine->waiters) pthread_cond_signal(&engine->wake);
    pthread_mutex_unlock(&engine->lock);
}

static bool mpi_test(struct comm_request *request) {
    struct mpi_engine *engine = request->comm->world->state;
    enter(engine);
    if (!request->done) mpi_engine_progress(engine);
    bool done = request->done;
    pthread_mutex_unlock(&engine->lock);
    return done;
}

static void mpi_start(struct comm_request *request) {
    struct mpi_engine *engine = request->comm->world->state;
    enter(engine);
    mpi_flight_start(engine, request);
    if (engine->helper_sleeps && !engine->waiters && !request->done) pthread_cond_signal(&engine->wake);
    pthread_mutex_unlock(&engine->lock);
}

/* ---- the helper thread: progress while the caller computes ---- */

static void helper_sleep(struct mpi_engine *engine) {
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_nsec += 100000000;
    if (until.tv_nsec >= 1000000000) until.tv_nsec -= 1000000000, until.tv_sec++;
    engine->helper_sleeps = true;
    pthread_cond_timedwait(&engine->wake, &engine->lock, &until);
    engine->helper_sleeps = false;
}

/* Asks Linux (6.12 and later) for short time slices, which lets this thread in at once beside one that
 * computes on the same processor. Others ignore it. The struct is sched_attr of sched_setattr(2). */
static void ask_for_short_slices(void) {
    struct {
        uint32_t size, policy;
        uint64_t flags;
        int32_t nice;
        uint32_t priority;
        uint64_t runtime_ns, deadline_ns, period_ns;
    } attributes = {.size = 48, .policy = SCHED_OTHER, .runtime_ns = 100000};
    attributes.nice = getpriority(PRIO_PROCESS, 0); /* stays as it is */
    syscall(SYS_sched_setattr, 0, &attributes, 0);
}

static void *helper_run(void *argument) {
    struct mpi_engine *engine = argument;
    uint64_t last_event = 0;
    prctl(PR_SET_TIMERSLACK, 1000, 0, 0, 0);
    ask_for_short_slices();
    pthread_mutex_lock(&engine->lock);
    while (!engine->stop) {
        mpi_watch_poll(engine, comm_now_ns());
        if (!engine->active || engine->waiters) { /* a waiter drives progress itself */
            helper_sleep(engine);
            continue;
        }
        uint64_t now = comm_now_ns();
        int events = mpi_engine_progress(engine);
        if (events) last_event = now;
        pthread_mutex_unlock(&engine->lock);
        if (!events || atomic_load(&engine->callers)) sleep_ns(now - last_event < 1000000 ? 20000 : 50000);
        pthread_mutex_lock(&engine->lock);
    }
    pthread_mutex_unlock(&engine->lock);
    return NULL;
}

static void helper_start(struct mpi_engine *engine) {
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before); /* signals are for the main thread */
    int code = pthread_create(&engine->helper, NULL, helper_run, engine);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    CHECK(!code, "the communication thread does not start: %s", strerror(code));
}

/* ---- groups ---- */

/* The members agree on an id that no two groups share that have two ranks in common: each takes the largest
 * of the members' next free ids. The exchange runs with id 0, which is not used otherwise. */
static void mpi_open(struct comm *comm) {
    struct mpi_engine *engine = comm->world->state;
    struct mpi_group *group = mem_zalloc(sizeof(*group), "communicator");
    group->staging = mem_alloc(comm_staging_bytes(comm->size), "staging of a communicator");
    comm->state = group;
    int64_t id = engine->next_id;
    comm_all_reduce(comm, &id, 1, COMM_I64, COMM_MAX);
    CHECK(id <= engine->max_id, "more than %d groups: this MPI has too few tags", engine->max_id);
    group->id = (int)id;
    engine->next_id = group->id + 1;
    comm->sequence = 0;
    comm_reset_stats(comm);
}

static void mpi_close(struct comm *comm) {
    struct mpi_group *group = comm->state;
    mem_free(group->staging);
    mem_free(group);
}

/* ---- the world ---- */

static void abort_all(int status) {
    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_sec++; /* a thread that hangs may hold the lock; then go on without */
    if (engine_to_abort) pthread_mutex_timedlock(&engine_to_abort->lock, &until);
    MPI_Abort(MPI_COMM_WORLD, status);
}

static void find_locals(struct comm_world *world) {
    MPI_Comm local;
    MPI_CHECK(MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, world->rank, MPI_INFO_NULL, &local));
    MPI_CHECK(MPI_Comm_rank(local, &world->local_rank));
    MPI_CHECK(MPI_Comm_size(local, &world->local_size));
    MPI_CHECK(MPI_Comm_free(&local));
}

static void open_group_of_all(struct mpi_engine *engine) {
    struct comm_world *world = engine->world;
    engine->all_group.id = 1;
    engine->next_id = 2;
    engine->all =
        (struct comm){.world = world, .transport = &comm_transport_mpi, .name = "all", .size = world->size};
    engine->all.rank = world->rank;
    engine->all.ranks = mem_new_array(int, (size_t)world->size, "ranks of a communicator");
    for (int i = 0; i < world->size; i++) engine->all.ranks[i] = i;
    engine->all.state = &engine->all_group;
}

/* With more ranks on this machine than processors a rank that waits must not spin. */
static int64_t choose_spin_ns(const struct comm_world *world) {
    return world->local_size > sysconf(_SC_NPROCESSORS_ONLN) ? 1000 : 50000;
}

static void engine_open(struct comm_world *world) {
    struct mpi_engine *engine = mem_zalloc(sizeof(*engine), "communication engine");
    pthread_condattr_t clock;
    world->state = engine;
    engine->world = world;
    engine->spin_ns = choose_spin_ns(world);
    pthread_mutexattr_t checked; /* whoever dies with the lock held is told so at once, see abort_all */
    pthread_mutexattr_init(&checked);
    pthread_mutexattr_settype(&checked, PTHREAD_MUTEX_ERRORCHECK);
    pthread_mutex_init(&engine->lock, &checked);
    pthread_mutexattr_destroy(&checked);
    pthread_condattr_init(&clock);
    pthread_condattr_setclock(&clock, CLOCK_MONOTONIC);
    pthread_cond_init(&engine->wake, &clock);
    pthread_condattr_destroy(&clock);
    MPI_CHECK(MPI_Comm_dup(MPI_COMM_WORLD, &engine->data));
    MPI_CHECK(MPI_Comm_dup(MPI_COMM_WORLD, &engine->watch));
    MPI_CHECK(MPI_Comm_set_errhandler(engine->data, MPI_ERRORS_RETURN));
    MPI_CHECK(MPI_Comm_set_errhandler(engine->watch, MPI_ERRORS_RETURN));
    int *tag_limit, found;
    MPI_CHECK(MPI_Comm_get_attr(MPI_COMM_WORLD, MPI_TAG_UB, &tag_limit, &found));
    engine->max_id = found ? (*tag_limit >> MPI_ID_SHIFT) - 1 : 0;
    open_group_of_all(engine);
    mpi_watch_open(engine);
    engine_to_abort = engine;
}

int comm_mpi_world_open(struct comm_world *world, struct err *err) {
    int level;
    setenv("OMPI_MCA_mpi_yield_when_idle", "1", 0);
    MPI_CHECK(MPI_Init_thread(NULL, NULL, MPI_THREAD_SERIALIZED, &level));
    MPI_CHECK(MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN));
    MPI_CHECK(MPI_Comm_rank(MPI_COMM_WORLD, &world->rank));
    MPI_CHECK(MPI_Comm_size(MPI_COMM_WORLD, &world->size));
    if (level < MPI_THREAD_SERIALIZED) {
        MPI_Finalize();
        return err_set(err,
                       "this MPI does not allow calls from two threads (MPI_THREAD_SERIALIZED): use one that "
                       "was built with thread support, for example Open MPI");
    }
    log_set_rank(world->rank, world->size);
    die_set_hook(abort_all);
    world->transport = &comm_transport_mpi;
    find_locals(world);
    engine_open(world);
    helper_start(world->state);
    return 0;
}

static void mpi_world_close(struct comm_world *world) {
    struct mpi_engine *engine = world->state;
    comm_barrier(&engine->all);
    pthread_mutex_lock(&engine->lock);
    CHECK(!engine->active, "%d requests are still in flight", engine->active);
    engine->stop = true;
    pthread_cond_signal(&engine->wake);
    pthread_mutex_unlock(&engine->lock);
    pthread_join(engine->helper, NULL);
    mpi_watch_close(engine);
    MPI_CHECK(MPI_Comm_free(&engine->data));
    MPI_CHECK(MPI_Comm_free(&engine->watch));
    die_set_hook(NULL);
    engine_to_abort = NULL;
    MPI_Finalize();
    pthread_cond_destroy(&engine->wake);
    pthread_mutex_destroy(&engine->lock);
    mem_free(engine->all.ranks);
    mem_free(engine);
}

static const struct comm_transport comm_transport_mpi = {.name = "mpi",
                                                         .open = mpi_open,
                                                         .close = mpi_close,
                                                         .start = mpi_start,
                                                         .test = mpi_test,
                                                         .wait = mpi_wait,
                                                         .world_close = mpi_world_close};
