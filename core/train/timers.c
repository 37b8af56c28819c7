#include "core/train/timers.h"
#include "core/base/mem.h"
#include <string.h>
#include <time.h>

struct timer {
    const char *name;
    uint64_t started_ns; /* 0 = not running */
    uint64_t total_ns;
};

struct timers {
    int log_level, count;
    enum timers_option option;
    struct timer timer[TIMERS_CAPACITY];
};

uint64_t clock_now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

double clock_seconds_since(uint64_t start_ns) {
    return (double)(clock_now_ns() - start_ns) * 1e-9;
}

bool clock_minutes_passed(uint64_t start_ns, double minutes) {
    return minutes > 0 && clock_seconds_since(start_ns) > minutes * 60;
}

int timers_option_parse(const char *name) {
    static const char *const names[] = {"max", "minmax", "all"};
    for (int i = 0; i < (int)ARRAY_COUNT(names); i++)
        if (!strcmp(names[i], name)) return i;
    return -1;
}

struct timers *timers_open(int log_level, enum timers_option option) {
    struct timers *t = mem_new_array(struct timers, 1, "timers");
    t->log_level = log_level;
    t->option = option;
    return t;
}

void timers_close(struct timers *t) {
    mem_free(t);
}

int timers_add(struct timers *t, const char *name, int level) {
    if (level > t->log_level) return -1;
    CHECK(t->count < TIMERS_CAPACITY, "timer '%s' is one too many", name);
    t->timer[t->count].name = name;
    return t->count++;
}

int timers_count(const struct timers *t) {
    return t->count;
}

const char *timers_name(const struct timers *t, int id) {
    return t->timer[id].name;
}

void timers_start(struct timers *t, int id) {
    if (id < 0) return;
    CHECK(!t->timer[id].started_ns, "timer '%s' is running already", t->timer[id].name);
    t->timer[id].started_ns = clock_now_ns();
}

void timers_stop(struct timers *t, int id) {
    if (id < 0) return;
    CHECK(t->timer[id].started_ns, "timer '%s' is not running", t->timer[id].name);
    t->timer[id].total_ns += clock_now_ns() - t->timer[id].started_ns;
    t->timer[id].started_ns = 0;
}

void timers_add_seconds(struct timers *t, int id, double seconds) {
    if (id >= 0) t->timer[id].total_ns += (uint64_t)(seconds * 1e9);
}

double timers_elapsed(const struct timers *t, int id) {
    if (id < 0) return 0;
    uint64_t ns = t->timer[id].total_ns;
    if (t->timer[id].started_ns) ns += clock_now_ns() - t->timer[id].started_ns;
    return (double)ns * 1e-9;
}

void timers_take(struct timers *t, double normalizer, double *out) {
    for (int i = 0; i < t->count; i++) {
        struct timer *timer = &t->timer[i];
        uint64_t now = timer->started_ns ? clock_now_ns() : 0;
        if (now) timer->total_ns += now - timer->started_ns, timer->started_ns = now; /* goes on running */
        out[i] = (double)timer->total_ns * 1e-6 / normalizer;
        timer->total_ns = 0;
    }
}

/* "forward-backward ......": the name and a blank, filled with dots to 48 columns. */
static void print_name(FILE *out, const char *name) {
    static const char dots[] = "................................................"; /* 48 */
    int used = (int)strlen(name) + 1;
    fprintf(out, "    %s %s: ", name, used < 48 ? dots + used : "");
}

void timers_report_ranks(const struct timers *t, const double *ms, int ranks, FILE *out) {
    bool header = false;
    for (int i = 0; i < t->count; i++) {
        double low = ms[i], high = ms[i];
        for (int r = 1; r < ranks; r++) {
            double v = ms[r * t->count + i];
            if (v < low) low = v;
            if (v > high) high = v;
        }
        if (high <= 0) continue;
        if (!header) {
            static const char *const text[] = {"max time", "(min, max) time", "times"};
            fprintf(out, "%s across ranks (ms):\n", text[t->option]);
            header = true;
        }
        if (t->option == TIMERS_ALL) {
            fprintf(out, "  %s:\n", t->timer[i].name);
            for (int r = 0; r < ranks; r++) fprintf(out, "     rank %2d: %.2f\n", r, ms[r * t->count + i]);
        } else {
            print_name(out, t->timer[i].name);
            if (t->option == TIMERS_MAX)
                fprintf(out, "%.2f\n", high);
            else
                fprintf(out, "(%.2f, %.2f)\n", low, high);
        }
    }
    if (header) fflush(out);
}

void timers_report(struct timers *t, double normalizer, FILE *out) {
    double ms[TIMERS_CAPACITY];
    timers_take(t, normalizer, ms);
    timers_report_ranks(t, ms, 1, out);
}
