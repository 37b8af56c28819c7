#include "core/train/metrics.h"
#include "core/base/log.h"
#include "core/base/mem.h"
#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { LINE_BYTES = 4096, BYTES_PER_RANK = 24, TAG_BYTES = 192 };

static const char line_head[] = "{\"iteration\":"; /* how a line of the metrics file begins */

/* Sums since the last line that reset them. */
struct interval {
    int64_t iterations, advanced, skipped, nan;
    double seconds, model_flops, hardware_flops, tokens;
    bool hardware_known;
    double lm_loss;
    int num_extra;
    struct metrics_value extra[METRICS_MAX_EXTRA];
};

struct metrics {
    struct metrics_options options;
    int fd; /* metrics file, -1 when none */
    bool first_line_printed;
    char path[1024];
    struct interval interval;
    char *line; /* of `capacity` bytes: a fixed part and room for each rank */
    size_t used, capacity;
};

static void append(struct metrics *m, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static void append(struct metrics *m, const char *fmt, ...) {
    va_list args;
    va_start(args, fmt);
    int n = vsnprintf(m->line + m->used, m->capacity - m->used, fmt, args);
    va_end(args);
    CHECK(n >= 0 && (size_t)n < m->capacity - m->used, "a report line is longer than %zu bytes", m->capacity);
    m->used += (size_t)n;
}

/* C may print the sign of a NaN, Python never does. */
static double unsigned_nan(double value) {
    return isnan(value) ? (double)NAN : value;
}

/* ---- the metrics file ---- */

/* Length of the leading part of `text` that is whole lines of iterations up to `start`. *more_p: all whole
 * lines were. */
static size_t lines_to_keep(const char *text, size_t length, int64_t start, bool *more_p) {
    size_t kept = 0;
    for (;;) {
        const char *line = text + kept, *newline = memchr(line, '\n', length - kept);
        *more_p = newline == NULL;
        if (!newline || (size_t)(newline - line) < sizeof(line_head) - 1) break;
        if (memcmp(line, line_head, sizeof(line_head) - 1)) break;
        if (strtoll(line + sizeof(line_head) - 1, NULL, 10) > start) break;
        kept = (size_t)(newline - text) + 1;
    }
    return kept;
}

/* Keeps the lines of iterations up to `start`; a torn or later line and all after it go. */
static int cut_metrics_file(int fd, const char *path, int64_t start, struct err *err) {
    char text[1 << 14];
    off_t kept = 0;
    for (bool more = true; more;) {
        ssize_t n = pread(fd, text, sizeof(text) - 1, kept);
        if (n < 0) return err_set(err, "--metrics-file %s: cannot be read: %s", path, strerror(errno));
        text[n] = '\0';
        size_t compare = (size_t)n < sizeof(line_head) - 1 ? (size_t)n : sizeof(line_head) - 1;
        if (kept == 0 && memcmp(text, line_head, compare))
            return err_set(err,
                           "--metrics-file %s: the file exists and is no metrics file: remove it or choose "
                           "another name",
                           path);
        size_t length = lines_to_keep(text, (size_t)n, start, &more);
        if (length == 0) break;
        kept += (off_t)length;
    }
    if (ftruncate(fd, kept) || lseek(fd, kept, SEEK_SET) < 0)
        return err_set(err, "--metrics-file %s: cannot be cut: %s", path, strerror(errno));
    return 0;
}

static int open_metrics_file(struct metrics *m, struct err *err) {
    const char *path = m->options.metrics_file;
    struct stat info;
    m->fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (m->fd < 0 && errno != EISDIR) m->fd = open(path, O_WRONLY | O_CLOEXEC); /* a pipe or a terminal */
    if (m->fd < 0 || fstat(m->fd, &info))
        return err_set(err, "--metrics-file %s: cannot be written: %s", path, strerror(errno));
    snprintf(m->path, sizeof(m->path), "%s", path);
    return S_ISREG(info.st_mode) ? cut_metrics_file(m->fd, path, m->options.start_iteration, err) : 0;
}

static void write_metrics_line(struct metrics *m) {
    for (size_t done = 0; done < m->used;) {
        ssize_t n = write(m->fd, m->line + done, m->used - done);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) {
            log_error("metrics file %s: %s: no more lines are written; the training goes on", m->path,
                      n ? strerror(errno) : "nothing could be written");
            close(m->fd);
            m->fd = -1;
            return;
        }
        done += (size_t)n;
    }
}

static void append_json(struct metrics *m, const char *key, double value, bool known) {
    if (known && isfinite(value))
        append(m, ",\"%s\":%.9g", key, value);
    else
        append(m, ",\"%s\":null", key);
}

static void write_json(struct metrics *m, const struct metrics_record *r) {
    double rate = r->seconds > 0 ? 1 / r->seconds : 0, per_rank = rate * 1e-12 / m->options.world_size;
    double peak = m->options.peak_flops_per_rank * 1e-12;
    m->used = 0;
    append(m, "{\"iteration\":%lld,\"consumed_samples\":%lld", (long long)r->iteration,
           (long long)r->consumed_samples);
    append_json(m, "lm_loss", r->lm_loss, true);
    append_json(m, "grad_norm", r->grad_norm, !(r->grad_norm < 0));
    append_json(m, "learning_rate", r->learning_rate, true);
    append_json(m, "elapsed_ms", r->seconds * 1e3, true);
    append_json(m, "tokens_per_second", (double)r->tokens * rate, rate > 0);
    append_json(m, "model_tflops", r->model_flops * per_rank, rate > 0);
    append_json(m, "hardware_tflops", r->hardware_flops * per_rank, rate > 0 && r->hardware_flops >= 0);
    append_json(m, "mfu", r->model_flops * per_rank / peak, rate > 0 && peak > 0);
    append_json(m, "recompute_ms", r->recompute_seconds * 1e3, r->recompute_seconds >= 0);
    append(m, ",\"peak_allocated_bytes\":%llu,\"peak_reserved_bytes\":%llu,\"peak_activation_bytes\":%llu",
           (unsigned long long)r->memory.peak_allocated, (unsigned long long)r->memory.peak_reserved,
           (unsigned long long)r->memory.peak_activation);
    for (int i = 0; r->rank_peaks && i < m->options.world_size; i++)
        append(m, "%s%.0f", i ? "," : ",\"peak_allocated_bytes_by_rank\":[",
               r->rank_peaks[(ptrdiff_t)i * r->rank_peaks_stride]);
    if (r->rank_peaks) append(m, "]");
    if (r->rank_peaks)
        append_json(m, "exposed_communication_ms", r->exposed_communication_seconds * 1e3, true);
    for (int k = 0; k < r->num_extra; k++) { /* "mtp_1 loss" is mtp_1_loss */
        char key[TAG_BYTES];
        snprintf(key, sizeof(key), "%s", r->extra[k].name);
        for (char *c = key; *c; c++)
            if (*c == ' ') *c = '_';
        append_json(m, key, r->extra[k].value, true);
    }
    if (r->has_params_hash) append(m, ",\"params_hash\":\"%016llx\"", (unsigned long long)r->params_hash);
    append(m, "}\n");
    write_metrics_line(m);
}

/* ---- TensorBoard ---- */

static void scalar(struct metrics *m, const char *tag, int64_t step, double value) {
    tensorboard_scalar(m->options.tensorboard, tag, step, value);
}

/* The scalar over iterations, and its twin over consumed samples. */
static void scalar_pair(struct metrics *m, const char *tag, int64_t iteration, int64_t samples,
                        double value) {
    char name[TAG_BYTES + 16];
    scalar(m, tag, iteration, value);
    snprintf(name, sizeof(name), "%s vs samples", tag);
    scalar(m, name, samples, value);
}

static void write_scalars(struct metrics *m, const struct metrics_record *r) {
    const struct metrics_options *o = &m->options;
    int64_t i = r->iteration, n = r->consumed_samples;
    scalar_pair(m, "learning-rate", i, n, r->learning_rate);
    scalar_pair(m, "batch-size", i, n, (double)r->global_batch_size);
    if (r->skipped_samples > 0) scalar(m, "skipped-train-samples", i, (double)r->skipped_samples);
    scalar_pair(m, "lm loss", i, n, r->lm_loss);
    for (int k = 0; k < r->num_extra; k++) scalar_pair(m, r->extra[k].name, i, n, r->extra[k].value);
    if (o->log_loss_scale_to_tensorboard) scalar_pair(m, "loss-scale", i, n, r->loss_scale);
    if (o->log_world_size_to_tensorboard) scalar_pair(m, "world-size", i, n, o->world_size);
    if (!(r->grad_norm < 0)) scalar_pair(m, "grad-norm", i, n, r->grad_norm);
    if (!(r->num_zeros < 0)) scalar_pair(m, "num-zeros", i, n, r->num_zeros);
    if (!(r->params_norm < 0)) scalar_pair(m, "params-norm", i, n, r->params_norm);
    if (o->log_memory_to_tensorboard) {
        scalar(m, "mem-reserved-bytes", i, (double)r->memory.reserved);
        scalar(m, "mem-allocated-bytes", i, (double)r->memory.allocated);
        scalar(m, "mem-max-allocated-bytes", i, (double)r->memory.peak_allocated);
        scalar(m, "mem-allocated-count", i, (double)r->memory.blocks);
    }
    if (!(r->max_attention_logit < 0)) scalar(m, "max_attention_logit", i, r->max_attention_logit);
}

void metrics_timers(struct metrics *m, int64_t iteration, const struct timers *timers, const double *ms) {
    if (!m->options.tensorboard || !m->options.log_timers_to_tensorboard) return;
    for (int i = 0; i < timers_count(timers); i++) {
        char name[TAG_BYTES];
        snprintf(name, sizeof(name), "%s-time", timers_name(timers, i));
        if (ms[i] > 0) scalar(m, name, iteration, ms[i] * 1e-3);
    }
}

/* ---- the iteration line ---- */

static void add_to_interval(struct metrics *m, const struct metrics_record *r) {
    struct interval *t = &m->interval;
    bool nan = !isfinite(r->lm_loss);
    if (t->iterations == 0) t->hardware_known = true;
    t->iterations++;
    t->advanced += !r->skipped;
    t->skipped += r->skipped;
    t->seconds += r->seconds;
    t->model_flops += r->model_flops;
    t->hardware_flops += r->hardware_flops;
    t->hardware_known = t->hardware_known && r->hardware_flops >= 0;
    t->tokens += (double)r->tokens;
    if (!r->skipped) t->lm_loss += r->lm_loss;
    for (int k = 0; k < r->num_extra; k++) {
        int slot = 0;
        while (slot < t->num_extra && strcmp(t->extra[slot].name, r->extra[k].name)) slot++;
        CHECK(slot < METRICS_MAX_EXTRA, "more than %d further losses", METRICS_MAX_EXTRA);
        if (slot == t->num_extra) t->extra[t->num_extra++] = (struct metrics_value){r->extra[k].name, 0};
        if (!r->skipped) t->extra[slot].value += r->extra[k].value;
        nan = nan || !isfinite(r->extra[k].value);
    }
    t->nan += nan;
}

/* "[2026-01-31 12:00:00.123456]", local time */
static void append_time_stamp(struct metrics *m) {
    struct timespec now;
    struct tm local;
    char text[40];
    clock_gettime(CLOCK_REALTIME, &now);
    localtime_r(&now.tv_sec, &local);
    strftime(text, sizeof(text), "%Y-%m-%d %H:%M:%S", &local);
    append(m, "[%s.%06ld]", text, now.tv_nsec / 1000);
}

static void append_losses(struct metrics *m) {
    const struct interval *t = &m->interval;
    double count = t->advanced > 0 ? (double)t->advanced : 1;
    if (t->advanced > 0) append(m, " lm loss: %.6E |", unsigned_nan(t->lm_loss / count));
    for (int k = 0; k < t->num_extra; k++) {
        const char *name = t->extra[k].name;
        size_t length = strlen(name);
        double value = unsigned_nan(t->extra[k].value / count);
        bool loss = length >= 4 && !strcmp(name + length - 4, "loss");
        if (value < 0) continue;
        append(m, loss ? " %s: %.6E |" : " %s: %.2f |", name, value);
    }
}

static void append_own_pieces(struct metrics *m, const struct metrics_record *r) {
    const struct metrics_options *o = &m->options;
    const struct interval *t = &m->interval;
    double per_rank = t->seconds > 0 ? 1 / (t->seconds * o->world_size) : 0;
    append(m, " mem %.2f GiB", (double)r->memory.peak_allocated / 0x1p30);
    if (o->world_size > 1) append(m, " (rank %d)", r->memory.peak_rank);
    append(m, " |");
    if (!o->log_throughput) return;
    append(m, " tokens per second: %.1f |", t->seconds > 0 ? t->tokens / t->seconds : 0);
    if (t->hardware_known) append(m, " hardware TFLOP/s/GPU: %.1f |", t->hardware_flops * per_rank * 1e-12);
    if (o->peak_flops_per_rank > 0)
        append(m, " MFU: %.1f%% |", 100 * t->model_flops * per_rank / o->peak_flops_per_rank);
}

static void print_line(struct metrics *m, const struct metrics_record *r) {
    const struct metrics_options *o = &m->options;
    const struct interval *t = &m->interval;
    m->used = 0;
    append(m, " ");
    append_time_stamp(m);
    append(m, " iteration %8lld/%8lld |", (long long)r->iteration, (long long)o->train_iters);
    append(m, " consumed samples: %12lld |", (long long)r->consumed_samples);
    if (r->skipped_samples > 0) append(m, " skipped samples: %12lld |", (long long)r->skipped_samples);
    append(m, " elapsed time per iteration (ms): %.1f |", 1e3 * t->seconds / (double)t->iterations);
    if (o->log_throughput)
        append(m, " throughput per GPU (TFLOP/s/GPU): %.1f |",
               t->seconds > 0 ? t->model_flops / (t->seconds * 1e12 * o->world_size) : 0);
    append(m, " learning rate: %.6E |", r->learning_rate);
    append(m, " global batch size: %5lld |", (long long)r->global_batch_size);
    append_losses(m);
    append(m, " loss scale: %.1f |", r->loss_scale);
    if (!(r->grad_norm < 0)) append(m, " grad norm: %.3f |", unsigned_nan(r->grad_norm));
    if (!(r->num_zeros < 0)) append(m, " num zeros: %.0f |", r->num_zeros);
    if (!(r->params_norm < 0)) append(m, " params norm: %.3f |", unsigned_nan(r->params_norm));
    append(m, " number of skipped iterations: %3lld |", (long long)t->skipped);
    append(m, " number of nan iterations: %3lld |", (long long)t->nan);
    append_own_pieces(m, r);
    fprintf(o->out, "%s\n", m->line);
    fflush(o->out);
}

bool metrics_iteration(struct metrics *m, const struct metrics_record *r) {
    const struct metrics_options *o = &m->options;
    bool regular = r->iteration % o->log_interval == 0, print = regular || !m->first_line_printed;
    add_to_interval(m, r);
    if (m->fd >= 0) write_json(m, r);
    if (o->tensorboard && r->iteration % o->tensorboard_log_interval == 0) write_scalars(m, r);
    if (print) {
        if (o->out) print_line(m, r);
        if (o->tensorboard && regular && o->log_timers_to_tensorboard) {
            const struct interval *t = &m->interval;
            scalar(m, "iteration-time", r->iteration, t->seconds / (double)t->iterations);
            if (o->log_throughput && t->seconds > 0)
                scalar(m, "throughput", r->iteration, t->model_flops / (t->seconds * 1e12 * o->world_size));
        }
        if (o->tensorboard) tensorboard_flush(o->tensorboard);
        m->first_line_printed = true;
    }
    if (regular) m->interval = (struct interval){0};
    return print;
}

/* ---- validation ---- */

static void append_evaluated(struct metrics *m, const struct metrics_evaluation *e, const char *name,
                             double value) {
    char tag[TAG_BYTES];
    double ppl = exp(fmin(20, value));
    if (isnan(value)) ppl = (double)NAN;
    append(m, " %s value: %.6E | %s PPL: %.6E |", name, unsigned_nan(value), name, ppl);
    bool test = e->where && strcmp(e->where, "validation set"); /* has no scalars of its own */
    if (!m->options.tensorboard || test) return;
    snprintf(tag, sizeof(tag), "%s validation%s%s", name, e->set ? "-" : "", e->set ? e->set : "");
    scalar_pair(m, tag, e->iteration, e->consumed_samples, value);
    if (!m->options.log_validation_ppl_to_tensorboard) return;
    snprintf(tag, sizeof(tag), "%s validation%s%s ppl", name, e->set ? "-" : "", e->set ? e->set : "");
    scalar_pair(m, tag, e->iteration, e->consumed_samples, ppl);
}

void metrics_evaluation(struct metrics *m, const struct metrics_evaluation *e) {
    m->used = 0;
    append(m, " validation%s%s loss at iteration %lld", e->set ? "-" : "", e->set ? e->set : "",
           (long long)e->iteration);
    if (e->where) append(m, " on %s", e->where);
    append(m, " |");
    append_evaluated(m, e, "lm loss", e->lm_loss);
    for (int k = 0; k < e->num_extra; k++) append_evaluated(m, e, e->extra[k].name, e->extra[k].value);
    append(m, " ");
    if (m->options.tensorboard) tensorboard_flush(m->options.tensorboard);
    if (!m->options.out) return;
    char row[LINE_BYTES + 1];
    CHECK(m->used < LINE_BYTES, "an evaluation line of %zu bytes", m->used);
    memset(row, '-', m->used + 1);
    row[m->used + 1] = '\0';
    fprintf(m->options.out, "%s\n%s\n%s\n", row, m->line, row);
    fflush(m->options.out);
}

void metrics_evaluation_progress(struct metrics *m, int64_t k, int64_t n, int64_t samples) {
    if (!m->options.out) return;
    if (k == 0)
        fprintf(m->options.out, "Evaluating on %lld samples\n", (long long)samples);
    else
        fprintf(m->options.out, "Evaluating iter %lld/%lld\n", (long long)k, (long long)n);
    fflush(m->options.out);
}

void metrics_memory_report(FILE *out, int rank, int64_t iteration, const struct metrics_memory *memory) {
    const double mib = 0x1p20;
    fprintf(out, "[Rank %d] (after %lld iterations) memory (MB) | allocated: %.2f | max allocated: %.2f",
            rank, (long long)iteration, (double)memory->allocated / mib,
            (double)memory->peak_allocated / mib);
    fprintf(out, " | reserved: %.2f | max reserved: %.2f", (double)memory->reserved / mib,
            (double)memory->peak_reserved / mib);
    if (memory->device_used)
        fprintf(out, " | total device memory used: %.2f", (double)memory->device_used / mib);
    fputc('\n', out);
    fflush(out);
}

/* ---- life ---- */

struct metrics *metrics_open(const struct metrics_options *options, struct err *err) {
    CHECK(options->log_interval >= 1 && options->tensorboard_log_interval >= 1 && options->world_size >= 1,
          "intervals and world size must be at least 1");
    struct metrics *m = mem_new_array(struct metrics, 1, "metrics");
    m->options = *options;
    m->fd = -1;
    m->capacity = LINE_BYTES + BYTES_PER_RANK * (size_t)options->world_size;
    m->line = mem_new_array(char, m->capacity, "metrics line");
    if (options->metrics_file && open_metrics_file(m, err)) {
        metrics_close(m);
        return NULL;
    }
    return m;
}

void metrics_close(struct metrics *m) {
    if (!m) return;
    if (m->fd >= 0) close(m->fd);
    mem_free(m->line);
    mem_free(m);
}
