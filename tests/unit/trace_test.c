/* Files are read back by a small JSON reader of this test's own. */
#include "core/base/mem.h"
#include "core/train/timers.h"
#include "core/train/trace.h"
#include "tests/temp_dir.h"
#include "tests/test.h"
#include <ctype.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>

/* ---- a JSON checker: returns the end of the value, or NULL ---- */

static const char *skip(const char *p) {
    while (*p && strchr(" \t\r\n", *p)) p++;
    return p;
}

static const char *check_string(const char *p) {
    if (*p++ != '"') return NULL;
    for (; *p != '"'; p++) {
        if ((unsigned char)*p < 0x20) return NULL;
        if (*p == '\\' && !strchr("\"\\/bfnrt", *++p)) return NULL;
    }
    return p + 1;
}

static const char *check_value(const char *p);

static const char *check_list(const char *p, char close, bool members) {
    p = skip(p + 1);
    if (*p == close) return p + 1;
    for (;;) {
        if (members) {
            if (!(p = check_string(skip(p)))) return NULL;
            if (*(p = skip(p)) != ':') return NULL;
            p++;
        }
        if (!(p = check_value(p))) return NULL;
        p = skip(p);
        if (*p == close) return p + 1;
        if (*p++ != ',') return NULL;
    }
}

static const char *check_value(const char *p) {
    p = skip(p);
    if (*p == '{') return check_list(p, '}', true);
    if (*p == '[') return check_list(p, ']', false);
    if (*p == '"') return check_string(p);
    if (!strncmp(p, "null", 4)) return p + 4;
    if (*p == '-' || isdigit((unsigned char)*p)) {
        char *end;
        strtod(p, &end);
        return end;
    }
    return NULL;
}

static char text[1 << 24];

/* Reads the file into `text`; true when it is one JSON value. */
static bool read_json(const char *path) {
    FILE *file = fopen(path, "rb");
    text[0] = '\0';
    if (!file) return false;
    text[fread(text, 1, sizeof(text) - 1, file)] = '\0';
    fclose(file);
    const char *end = check_value(text);
    return end && !*skip(end);
}

static int count_of(const char *part) {
    int n = 0;
    for (const char *p = text; (p = strstr(p, part)); p += strlen(part)) n++;
    return n;
}

static void span(struct trace *t, const char *name, uint64_t begin, uint64_t end) {
    trace_span(t,
               &(struct trace_event){.name = name, .category = "forward", .begin_ns = begin, .end_ns = end});
}

/* ---- tests ---- */

TEST(spans_counters_and_names_are_written_as_chrome_expects) {
    struct temp_dir dir;
    struct err err = {""};
    char path[600];
    temp_dir_make(&dir);
    snprintf(path, sizeof(path), "%s", temp_dir_file(&dir, "t.json"));
    struct trace *t = trace_open(path, 3, 100, &err);
    EXPECT(t != NULL, "%s", err.text);
    uint64_t now = clock_now_ns() + 1000000;
    trace_name_track(t, 1, "data");
    trace_span(t,
               &(struct trace_event){.name = "qkv \"linear\"\\",
                                     .category = "recompute",
                                     .track = 1,
                                     .begin_ns = now,
                                     .end_ns = now + 1234567,
                                     .num_args = 3,
                                     .args = {{"layer", 7}, {"gflop", 0.125}, {"bytes", 12345678901234.0}}});
    trace_counter(t, "memory", now, 2, (struct trace_arg[]){{"allocated", 10}, {"activation", (double)NAN}});
    trace_close(t);
    EXPECT(read_json(path), "not JSON: %s", text);
    EXPECT_CONTAINS(text, "\"traceEvents\":[");
    EXPECT_CONTAINS(
        text, "{\"name\":\"process_name\",\"ph\":\"M\",\"pid\":3,\"tid\":0,\"args\":{\"name\":\"rank 3\"}}");
    EXPECT_CONTAINS(
        text, "{\"name\":\"thread_name\",\"ph\":\"M\",\"pid\":3,\"tid\":1,\"args\":{\"name\":\"data\"}}");
    EXPECT_CONTAINS(text,
                    "{\"name\":\"qkv "
                    "\\\"linear\\\"\\\\\",\"ph\":\"X\",\"pid\":3,\"tid\":1,\"cat\":\"recompute\",\"ts\":");
    EXPECT_CONTAINS(text,
                    ",\"dur\":1234.567,\"args\":{\"layer\":7,\"gflop\":0.125,\"bytes\":12345678901234}}");
    EXPECT_CONTAINS(text, "\"ph\":\"C\"");
    EXPECT_CONTAINS(text, "\"args\":{\"allocated\":10,\"activation\":null}}");
    temp_dir_remove(&dir);
}

TEST(the_file_is_valid_json_whenever_the_program_is_killed) {
    struct temp_dir dir;
    temp_dir_make(&dir);
    for (int events = 0; events < 6000; events = events * 3 + 1) {
        const char *path = temp_dir_file(&dir, "t.json");
        pid_t child = fork();
        if (child == 0) {
            struct err err;
            struct trace *t = trace_open(path, 0, 1000000, &err);
            for (int i = 0; i < events; i++) span(t, "op", clock_now_ns(), clock_now_ns() + 5);
            if (events % 2) trace_flush(t);
            _exit(0); /* no close, no flush */
        }
        int status;
        waitpid(child, &status, 0);
        EXPECT(read_json(path), "not JSON after %d events", events);
        if (events % 2) EXPECT_EQ(count_of("\"ph\":\"X\""), events);
    }
    temp_dir_remove(&dir);
}

TEST(nothing_is_allocated_after_open_and_the_file_is_bounded) {
    struct temp_dir dir;
    struct err err;
    char path[600];
    temp_dir_make(&dir);
    snprintf(path, sizeof(path), "%s", temp_dir_file(&dir, "t.json"));
    struct trace *t = trace_open(path, 0, 20000, &err);
    uint64_t before = mem_stats().allocations;
    for (int i = 0; i < 30000; i++) span(t, "an_operation_of_some_length", clock_now_ns(), clock_now_ns());
    EXPECT_EQ(mem_stats().allocations, before);
    if (freopen("/dev/null", "w", stderr)) trace_close(t); /* it warns of what was dropped */
    EXPECT(read_json(path), "not JSON");
    EXPECT_EQ(count_of("\"ph\":\"X\""), 20000);
    temp_dir_remove(&dir);
}

TEST(odd_names_and_times_cannot_break_the_file) {
    struct temp_dir dir;
    struct err err;
    char path[600], name[1000];
    temp_dir_make(&dir);
    snprintf(path, sizeof(path), "%s", temp_dir_file(&dir, "t.json"));
    struct trace *t = trace_open(path, 0, 100000, &err);
    for (int i = 0; i < 999; i++) name[i] = i % 3 ? '"' : '\n';
    name[999] = '\0';
    for (int i = 0; i < 2000; i++) {
        struct trace_event e = {.name = name + i % 999, .category = name, .num_args = TRACE_MAX_ARGS};
        e.begin_ns = i % 2 ? 0 : UINT64_MAX;
        e.end_ns = i % 3 ? UINT64_MAX : 0;
        for (int k = 0; k < TRACE_MAX_ARGS; k++)
            e.args[k] = (struct trace_arg){name, i % 2 ? 1e300 : (double)INFINITY};
        trace_span(t, &e);
    }
    for (int i = 0; i < 300; i++)
        name[i] = i % 2 ? '\xa9' : '\xc3'; /* two-byte characters: never cut in half */
    name[300] = '\0';
    span(t, name + 1, 0, 1);
    span(t, name, 0, 1);
    trace_close(t);
    EXPECT(read_json(path), "not JSON");
    EXPECT(!strstr(text, "\xc3\""), "a character was cut in half");
    temp_dir_remove(&dir);
}

TEST(a_path_that_cannot_be_written_is_a_user_error) {
    struct err err = {""};
    EXPECT(trace_open("/nonexistent/x.json", 0, 10, &err) == NULL, "opened");
    EXPECT_CONTAINS(err.text, "/nonexistent/x.json");
    trace_close(NULL);
}

TEST(a_full_disk_leaves_valid_json_and_a_running_program) {
    struct temp_dir dir;
    struct err err = {""};
    int status = -1;
    temp_dir_make(&dir);
    const char *path = temp_dir_file(&dir, "t.json");
    EXPECT(trace_open("/dev/full", 0, 10, &err) == NULL, "a full disk was not noticed at the start");
    EXPECT_CONTAINS(err.text, "/dev/full");
    pid_t child = fork();
    if (child == 0) { /* files may not grow beyond 1,000,000 bytes */
        setrlimit(RLIMIT_FSIZE, &(struct rlimit){1000000, 1000000});
        signal(SIGXFSZ, SIG_IGN);
        if (!freopen("/dev/null", "w", stderr)) _exit(2);
        struct trace *t = trace_open(path, 0, 1000000, &err);
        for (int i = 0; i < 100000; i++) span(t, "op", clock_now_ns(), clock_now_ns() + 5);
        trace_close(t);
        _exit(0);
    }
    waitpid(child, &status, 0);
    EXPECT_EQ(status, 0);
    EXPECT(read_json(path), "not JSON");
    EXPECT(count_of("\"ph\":\"X\"") > 5000, "%d events", count_of("\"ph\":\"X\""));
    temp_dir_remove(&dir);
}

/* ---- timers ---- */

static struct timers *three_timers(enum timers_option option) {
    struct timers *t = timers_open(1, option);
    EXPECT_EQ(timers_add(t, "forward-backward", 1), 0);
    EXPECT_EQ(timers_add(t, "batch-generator", 2), -1); /* above the level */
    EXPECT_EQ(timers_add(t, "optimizer-copy-main-to-model-params", 1), 1);
    EXPECT_EQ(timers_add(t, "optimizer", 0), 2);
    timers_add_seconds(t, 0, 1.5);
    timers_add_seconds(t, -1, 99);
    timers_add_seconds(t, 2, 0.0256);
    return t;
}

static const char *report(struct timers *t, double normalizer, const double *rows, int ranks) {
    static char out[2000];
    FILE *file = fmemopen(out, sizeof(out), "w");
    if (rows)
        timers_report_ranks(t, rows, ranks, file);
    else
        timers_report(t, normalizer, file);
    fputc('\0', file);
    fclose(file);
    timers_close(t);
    return out;
}

TEST(timer_reports_have_the_known_format) {
    static const double rows[] = {10, 0, 2, 30.5, 0, 1};
    EXPECT_STR(report(three_timers(TIMERS_MINMAX), 10, NULL, 1),
               "(min, max) time across ranks (ms):\n"
               "    forward-backward ...............................: (150.00, 150.00)\n"
               "    optimizer ......................................: (2.56, 2.56)\n");
    EXPECT_STR(report(three_timers(TIMERS_MAX), 1, rows, 2),
               "max time across ranks (ms):\n"
               "    forward-backward ...............................: 30.50\n"
               "    optimizer ......................................: 2.00\n");
    EXPECT_STR(report(three_timers(TIMERS_ALL), 1, rows, 2), "times across ranks (ms):\n"
                                                             "  forward-backward:\n"
                                                             "     rank  0: 10.00\n"
                                                             "     rank  1: 30.50\n"
                                                             "  optimizer:\n"
                                                             "     rank  0: 2.00\n"
                                                             "     rank  1: 1.00\n");
    EXPECT_STR(report(timers_open(0, TIMERS_MINMAX), 1, NULL, 1), "");
    EXPECT_EQ(timers_option_parse("minmax"), TIMERS_MINMAX);
    EXPECT_EQ(timers_option_parse("min"), -1);
}

TEST(timers_measure_and_are_taken_once) {
    struct timers *t = timers_open(0, TIMERS_MINMAX);
    int id = timers_add(t, "interval-time", 0);
    double ms;
    timers_start(t, id);
    while (timers_elapsed(t, id) < 0.02) {}
    timers_take(t, 1, &ms); /* goes on running */
    EXPECT(ms >= 20 && ms < 2000, "%g ms", ms);
    timers_stop(t, id);
    EXPECT(timers_elapsed(t, id) < 0.02, "%g s counted twice", timers_elapsed(t, id));
    EXPECT(timers_elapsed(t, -1) == 0, "a disabled timer counts");
    timers_close(t);
    EXPECT(clock_minutes_passed(clock_now_ns() - 121000000000u, 2), "two minutes and a second");
    EXPECT(!clock_minutes_passed(clock_now_ns() - 119000000000u, 2), "not yet two minutes");
    EXPECT(!clock_minutes_passed(0, 0), "no limit set");
}

RUN_TESTS(CASE(spans_counters_and_names_are_written_as_chrome_expects),
          CASE(the_file_is_valid_json_whenever_the_program_is_killed),
          CASE(nothing_is_allocated_after_open_and_the_file_is_bounded),
          CASE(odd_names_and_times_cannot_break_the_file),
          CASE(a_path_that_cannot_be_written_is_a_user_error),
          CASE(a_full_disk_leaves_valid_json_and_a_running_program),
          CASE(timer_reports_have_the_known_format), CASE(timers_measure_and_are_taken_once))
