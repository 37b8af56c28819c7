/* Saving under fire: every system call that changes the disk is intercepted here, to kill the process before
 * the n-th one, to make it fail, or to write less than asked. */
#include "core/checkpoint/store.h"
#include "tests/unit/checkpoint_fixture.h"
#include <errno.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>

static struct err err;

/* ---- the intercepted calls ---- */

static struct {
    int calls;   /* made so far */
    int kill_at; /* 0: never */
    int fail_at; /* only calls that put data in place are counted for this */
    int fail_errno;
    int data_calls;
    size_t most_bytes; /* written by one call; 0: no limit */
    bool no_exchange;  /* a file system that cannot swap two names */
} fire;

static bool before_call(bool puts_data) {
    if (++fire.calls == fire.kill_at) kill(getpid(), SIGKILL);
    if (!puts_data || ++fire.data_calls != fire.fail_at) return true;
    errno = fire.fail_errno;
    return false;
}

static size_t cut(size_t bytes) {
    return fire.most_bytes && bytes > fire.most_bytes ? fire.most_bytes : bytes;
}

ssize_t pwrite(int fd, const void *data, size_t bytes, off_t offset) {
    return before_call(true) ? syscall(SYS_pwrite64, fd, data, cut(bytes), offset) : -1;
}
ssize_t write(int fd, const void *data, size_t bytes) {
    return fd <= 2 ? syscall(SYS_write, fd, data, bytes)
                   : (before_call(true) ? syscall(SYS_write, fd, data, cut(bytes)) : -1);
}
int ftruncate(int fd, off_t length) {
    return before_call(true) ? (int)syscall(SYS_ftruncate, fd, length) : -1;
}
int fsync(int fd) {
    (void)fd;
    return before_call(true)
               ? 0
               : -1; /* a kill does not lose what the kernel has: no need to wait for the disk */
}
int mkdir(const char *path, mode_t mode) {
    return before_call(true) ? (int)syscall(SYS_mkdirat, AT_FDCWD, path, mode) : -1;
}
int rename(const char *from, const char *to) {
    return before_call(true) ? (int)syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, 0) : -1;
}
int renameat2(int from_dir, const char *from, int to_dir, const char *to, unsigned flags) {
    if (fire.no_exchange) {
        errno = EINVAL;
        return -1;
    }
    return before_call(true) ? (int)syscall(SYS_renameat2, from_dir, from, to_dir, to, flags) : -1;
}
int unlinkat(int fd, const char *path, int flags) {
    return before_call(false) ? (int)syscall(SYS_unlinkat, fd, path, flags) : -1;
}
int rmdir(const char *path) {
    return before_call(false) ? (int)syscall(SYS_unlinkat, AT_FDCWD, path, AT_REMOVEDIR) : -1;
}

static void cease_fire(void) {
    memset(&fire, 0, sizeof(fire));
}

/* ---- helpers ---- */

static bool has_leftovers(void) {
    DIR *d = opendir(fixture_dir);
    bool found = false;
    for (struct dirent *e; d && (e = readdir(d));)
        found = found || (e->d_name[0] == '.' && strcmp(e->d_name, ".") && strcmp(e->d_name, ".."));
    if (d) closedir(d);
    return found;
}

/* Loads and returns the iteration, after comparing every bit with what that iteration must hold; -1 when
 * nothing can be loaded. */
static int64_t resume(struct fixture *f) {
    struct fixture want;
    fixture_fill(f, 12345);
    if (fixture_load(f, fixture_dir, &err)) return -1;
    fixture_open(&want, f->model);
    fixture_fill(&want, (uint64_t)f->state.iteration);
    EXPECT(fixture_equal(f, &want), "iteration %d is not what was saved", (int)f->state.iteration);
    fixture_close(&want);
    return f->state.iteration;
}

static int save_iteration(struct fixture *f, uint64_t iteration) {
    fixture_fill(f, iteration);
    return fixture_save(f, fixture_dir, &err);
}

/* The calls come from two threads then, one after the other: the caller waits in finish. */
static bool in_background;

static int save_in_child(struct fixture *f, int64_t retain) {
    struct checkpoint_save_options options = {.retain_interval = retain};
    if (!in_background)
        return checkpoint_save(fixture_dir, &options, &f->model, f->tensors, f->count, &f->state, "{}", &err);
    struct checkpoint_async *a = checkpoint_async_open(checkpoint_async_bytes(f->tensors, f->count));
    if (checkpoint_async_begin(a, fixture_dir, &options, &f->model, f->tensors, f->count, &f->state, "{}",
                               &err))
        return -1;
    fixture_fill(f, 77); /* training goes on */
    return checkpoint_async_finish(a, &err);
}

/* Runs a save in a child that dies before its n-th call; returns true when it lived to the end. */
static bool child_saves(struct fixture *f, uint64_t iteration, int kill_at, int64_t retain) {
    pid_t pid = fork();
    if (pid == 0) {
        fixture_fill(f, iteration);
        fire.calls = 0, fire.kill_at = kill_at;
        _exit(save_in_child(f, retain) != 0);
    }
    int status = 0;
    EXPECT(pid > 0 && waitpid(pid, &status, 0) == pid, "fork");
    EXPECT(WIFSIGNALED(status) || WEXITSTATUS(status) == 0, "the save failed");
    return !WIFSIGNALED(status);
}

/* ---- killed at a call ---- */

static void kill_at_every_call(bool no_exchange, uint64_t second, int64_t retain) {
    struct fixture f;
    int at = 1, old = 0, new = 0;
    fixture_open(&f, fixture_gpt2());
    cease_fire();
    for (bool finished = false; !finished; at++) {
        fixture_make_dir();
        EXPECT(!save_iteration(&f, 10), "%s", err.text);
        fire.most_bytes = 5000, fire.no_exchange = no_exchange;
        finished = child_saves(&f, second, at, retain);
        cease_fire();
        int64_t iteration = resume(&f);
        EXPECT(iteration == 10 || iteration == (int64_t)second, "killed at call %d: %d: %s", at,
               (int)iteration, err.text);
        EXPECT(!finished || iteration == (int64_t)second, "the new one is not in force");
        old += iteration == 10, new += iteration == (int64_t)second;
        EXPECT(!save_iteration(&f, 30), "%s", err.text);
        EXPECT(!has_leftovers(), "leftovers after a kill at call %d", at);
        EXPECT_EQ(resume(&f), 30);
        fixture_remove(fixture_dir);
    }
    EXPECT(at > 15 && new > 0 && (old > 5 || second == 10), "%d calls, %d old, %d new", at, old, new);
    fixture_close(&f);
}

TEST(killed_at_any_call_the_old_or_the_new_checkpoint_is_whole) {
    kill_at_every_call(false, 20, 0);
}

TEST(killed_at_any_call_while_the_old_one_is_retired) {
    kill_at_every_call(false, 20, 7);
}

TEST(killed_at_any_call_while_an_iteration_is_saved_again) {
    kill_at_every_call(false, 10, 0);
    kill_at_every_call(true, 10, 0);
}

TEST(killed_at_any_call_of_a_background_save) {
    in_background = true;
    kill_at_every_call(false, 20, 7);
    in_background = false;
}

/* ---- killed at any time ---- */

/* Microseconds that one save in a child takes, so that the kills below fall inside it on any machine. */
static uint64_t time_save(struct fixture *f, uint64_t iteration) {
    struct timespec a, b;
    clock_gettime(CLOCK_MONOTONIC, &a);
    EXPECT(child_saves(f, iteration, 0, 0), "killed");
    clock_gettime(CLOCK_MONOTONIC, &b);
    return (uint64_t)((b.tv_sec - a.tv_sec) * 1000000 + (b.tv_nsec - a.tv_nsec) / 1000);
}

TEST(killed_at_200_random_moments_it_always_resumes) {
    struct fixture f;
    struct checkpoint_model model = fixture_gpt2();
    uint64_t x = 1, iteration = 1;
    int killed = 0;
    model.hidden_size = 64, model.kv_channels = 16, model.ffn_hidden_size = 256,
    model.padded_vocab_size = 512;
    fixture_open(&f, model);
    fixture_make_dir();
    cease_fire();
    uint64_t span = time_save(&f, iteration), again = time_save(&f, iteration);
    span = 1 + (again < span ? again : span);
    for (int i = 0; i < 200; i++) {
        x ^= x << 13, x ^= x >> 7, x ^= x << 17;
        pid_t pid = fork();
        if (pid == 0) _exit(save_iteration(&f, iteration + 1) != 0);
        EXPECT(pid > 0, "fork");
        if (pid < 0) break;
        usleep((useconds_t)(x % span));
        kill(pid, SIGKILL);
        int status = 0;
        EXPECT(waitpid(pid, &status, 0) == pid, "waitpid");
        killed += WIFSIGNALED(status);
        int64_t got = resume(&f);
        EXPECT(got == (int64_t)iteration || got == (int64_t)iteration + 1, "kill %d: %d after %d: %s", i,
               (int)got, (int)iteration, err.text);
        EXPECT(WIFSIGNALED(status) || got == (int64_t)iteration + 1, "a finished save is not in force");
        if (got > 0) iteration = (uint64_t)got;
    }
    EXPECT(killed >= 40, "only %d saves were killed", killed);
    EXPECT(!save_iteration(&f, iteration + 1), "%s", err.text);
    EXPECT(!has_leftovers(), "leftovers");
    fixture_remove(fixture_dir);
    fixture_close(&f);
}

/* ---- failing calls ---- */

static void fail_every_call(int error, const char *text) {
    struct fixture f;
    fixture_open(&f, fixture_llama());
    int at = 1, failed = 0;
    for (bool finished = false; !finished; at++) {
        fixture_make_dir();
        cease_fire();
        EXPECT(!save_iteration(&f, 10), "%s", err.text);
        uint64_t blocks = mem_stats().live_blocks;
        fire.data_calls = 0, fire.fail_at = at, fire.fail_errno = error, fire.most_bytes = 5000;
        finished = save_iteration(&f, 20) == 0;
        cease_fire();
        EXPECT_EQ(mem_stats().live_blocks, blocks);
        if (!finished) {
            failed++;
            EXPECT_CONTAINS(err.text, text);
            EXPECT_CONTAINS(err.text, "earlier ones are untouched");
        }
        int64_t iteration = resume(&f);
        EXPECT(iteration == 20 || (iteration == 10 && !finished), "failing call %d: %s", at, err.text);
        EXPECT(!has_leftovers(), "leftovers after failing call %d", at);
        EXPECT(!checkpoint_verify(fixture_dir, 10, &err), "%s", err.text);
        EXPECT(!save_iteration(&f, 20), "%s", err.text);
        EXPECT_EQ(resume(&f), 20);
        fixture_remove(fixture_dir);
    }
    EXPECT(failed > 15, "only %d calls failed", failed);
    fixture_close(&f);
}

TEST(any_write_that_fails_is_an_error_and_keeps_the_old_checkpoint) {
    fail_every_call(ENOSPC, "No space left on device");
    fail_every_call(EIO, "Input/output error");
}

TEST(a_file_size_limit_is_an_error_and_keeps_the_old_checkpoint) {
    struct fixture f;
    struct rlimit before, small;
    fixture_open(&f, fixture_llama());
    fixture_make_dir();
    cease_fire();
    EXPECT(!save_iteration(&f, 10), "%s", err.text);
    getrlimit(RLIMIT_FSIZE, &before);
    small = (struct rlimit){4096, before.rlim_max};
    signal(SIGXFSZ, SIG_IGN);
    setrlimit(RLIMIT_FSIZE, &small);
    int status = save_iteration(&f, 20);
    setrlimit(RLIMIT_FSIZE, &before);
    EXPECT(status, "saved beyond the limit");
    EXPECT_CONTAINS(err.text, "File too large");
    EXPECT_EQ(resume(&f), 10);
    EXPECT(!has_leftovers(), "leftovers");
    fixture_remove(fixture_dir);
    fixture_close(&f);
}

TEST(a_full_disk_is_refused_before_anything_is_written) {
    struct fixture f;
    char name[] = "/tmp/checkpoint_full_XXXXXX";
    EXPECT(mkdtemp(name), "mkdtemp");
    if (mount("none", name, "tmpfs", 0, "size=1400k")) {
        rmdir(name);
        SKIP("needs the right to mount a tmpfs");
    }
    snprintf(fixture_dir, sizeof(fixture_dir), "%s", name);
    fixture_open(&f, fixture_llama());
    cease_fire();
    EXPECT(!save_iteration(&f, 10), "%s", err.text);
    char *filler = mem_zalloc(350 << 10, "filler");
    fixture_write("filler", filler, 350 << 10);
    fire.data_calls = 0;
    EXPECT(save_iteration(&f, 20), "saved on a full disk");
    EXPECT_EQ(fire.data_calls, 0);
    EXPECT_CONTAINS(err.text, "--save-retain-interval");
    EXPECT_EQ(resume(&f), 10);
    EXPECT(!unlink(fixture_path("filler")), "unlink");
    EXPECT(!save_iteration(&f, 20), "%s", err.text);
    EXPECT_EQ(resume(&f), 20);
    mem_free(filler);
    fixture_close(&f);
    EXPECT(!umount(name), "umount");
    rmdir(name);
}

RUN_TESTS(CASE(killed_at_any_call_the_old_or_the_new_checkpoint_is_whole),
          CASE(killed_at_any_call_while_the_old_one_is_retired),
          CASE(killed_at_any_call_while_an_iteration_is_saved_again),
          CASE(killed_at_any_call_of_a_background_save), CASE(killed_at_200_random_moments_it_always_resumes),
          CASE(any_write_that_fails_is_an_error_and_keeps_the_old_checkpoint),
          CASE(a_file_size_limit_is_an_error_and_keeps_the_old_checkpoint),
          CASE(a_full_disk_is_refused_before_anything_is_written))
