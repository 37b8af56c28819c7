#include "core/optim/batch_schedule.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* "250B", "1.5k" -> a whole number up to 2^53. Returns 0, or -1 when the text is none. */
static int parse_number(const char *text, size_t length, int64_t *value_p) {
    char copy[64], *end;
    double scale = 1, value;
    if (length == 0 || length >= sizeof(copy)) return -1;
    memcpy(copy, text, length);
    copy[length] = '\0';
    switch (copy[length - 1]) {
    case 'k':
    case 'K':
        scale = 1e3;
        break;
    case 'm':
    case 'M':
        scale = 1e6;
        break;
    case 'b':
    case 'B':
        scale = 1e9;
        break;
    case 't':
    case 'T':
        scale = 1e12;
        break;
    }
    if (scale > 1) copy[length - 1] = '\0';
    if (copy[strspn(copy, "0123456789.")] || !copy[0]) return -1;
    value = strtod(copy, &end) * scale;
    if (*end || !(value <= 0x1p53)) return -1;
    *value_p = (int64_t)value;
    return 0;
}

static int compare_steps(const void *a, const void *b) {
    const struct batch_step *x = a, *y = b;
    return (x->threshold_samples > y->threshold_samples) - (x->threshold_samples < y->threshold_samples);
}

int batch_schedule_parse_steps(struct batch_schedule *s, const char *text, int64_t seq_length,
                               struct err *err) {
    static const char flag[] = "--step-batch-size-schedule", blanks[] = " \t\r\n,";
    if (seq_length < 1)
        return err_set(err, "%s: --seq-length %lld must be at least 1", flag, (long long)seq_length);
    s->kind = BATCH_STEPS;
    s->num_steps = 0;
    for (const char *p = text + strspn(text, blanks); *p; p += strspn(p, blanks)) {
        size_t length = strcspn(p, blanks);
        const char *colon = memchr(p, ':', length);
        struct batch_step step;
        if (s->num_steps == BATCH_MAX_STEPS)
            return err_set(err, "%s: more than %d steps", flag, BATCH_MAX_STEPS);
        if (!colon || parse_number(p, (size_t)(colon - p), &step.threshold_samples) ||
            parse_number(colon + 1, length - (size_t)(colon - p) - 1, &step.batch_size))
            return err_set(err, "%s: '%.*s' is not TOKENS:BATCH_SIZE; write for example \"0:768 250B:1536\"",
                           flag, (int)length, p);
        step.threshold_samples /= seq_length;
        s->steps[s->num_steps++] = step;
        p += length;
    }
    if (!s->num_steps) return err_set(err, "%s: is empty; write for example \"0:768 250B:1536\"", flag);
    qsort(s->steps, (size_t)s->num_steps, sizeof(s->steps[0]), compare_steps);
    s->global_batch_size = s->steps[s->num_steps - 1].batch_size;
    return 0;
}

static int check_size(const struct batch_schedule *s, int64_t size, const char *flag, struct err *err) {
    if (size < 1) return err_set(err, "%s: batch size %lld must be at least 1", flag, (long long)size);
    if (s->decrease_if_needed && size < s->row_samples)
        return err_set(
            err,
            "%s: batch size %lld is smaller than micro-batch size times data-parallel size (%lld), "
            "so that nothing remains after --decrease-batch-size-if-needed",
            flag, (long long)size, (long long)s->row_samples);
    if (!s->decrease_if_needed && size % s->row_samples)
        return err_set(err,
                       "%s: batch size %lld is not divisible by micro-batch size times data-parallel size "
                       "(%lld): change one of them%s",
                       flag, (long long)size, (long long)s->row_samples,
                       s->kind == BATCH_STEPS ? "" : ", or add --decrease-batch-size-if-needed");
    return 0;
}

static int check_rampup(const struct batch_schedule *s, struct err *err) {
    static const char flag[] = "--rampup-batch-size";
    int64_t difference = s->global_batch_size - s->rampup_start;
    if (s->rampup_start < 1 || s->rampup_increment < 1 || s->rampup_samples < 0 ||
        s->rampup_samples > (int64_t)1 << 53)
        return err_set(
            err, "%s %lld %lld %lld: START and INCREMENT must be at least 1, SAMPLES from 0 to 2^53", flag,
            (long long)s->rampup_start, (long long)s->rampup_increment, (long long)s->rampup_samples);
    if (difference < 0)
        return err_set(err, "%s: START %lld is larger than --global-batch-size %lld", flag,
                       (long long)s->rampup_start, (long long)s->global_batch_size);
    if (difference % s->rampup_increment)
        return err_set(
            err, "%s: --global-batch-size %lld minus START %lld must be a multiple of INCREMENT %lld", flag,
            (long long)s->global_batch_size, (long long)s->rampup_start, (long long)s->rampup_increment);
    /* the second size divides as all later ones do */
    if (check_size(s, s->rampup_start, flag, err)) return -1;
    return difference ? check_size(s, s->rampup_start + s->rampup_increment, flag, err) : 0;
}

static int check_steps(const struct batch_schedule *s, struct err *err) {
    static const char flag[] = "--step-batch-size-schedule";
    if (s->decrease_if_needed)
        return err_set(err, "%s cannot be combined with --decrease-batch-size-if-needed: drop one of them",
                       flag);
    if (s->num_steps < 1 || s->steps[0].threshold_samples != 0)
        return err_set(err, "%s: the first threshold must be 0", flag);
    for (int i = 0; i < s->num_steps; i++) {
        if (i && s->steps[i].threshold_samples <= s->steps[i - 1].threshold_samples)
            return err_set(err, "%s: thresholds must grow, in samples too: %lld comes after %lld", flag,
                           (long long)s->steps[i].threshold_samples,
                           (long long)s->steps[i - 1].threshold_samples);
        if (check_size(s, s->steps[i].batch_size, flag, err)) return -1;
    }
    return 0;
}

int batch_schedule_check(const struct batch_schedule *s, struct err *err) {
    if (s->row_samples < 1)
        return err_set(err, "micro-batch size times data-parallel size is %lld: must be at least 1",
                       (long long)s->row_samples);
    if (s->kind == BATCH_STEPS) return check_steps(s, err);
    if (check_size(s, s->global_batch_size, "--global-batch-size", err)) return -1;
    return s->kind == BATCH_RAMPUP ? check_rampup(s, err) : 0;
}

static int64_t rampup_size(const struct batch_schedule *s, int64_t consumed) {
    int64_t increments = (s->global_batch_size - s->rampup_start) / s->rampup_increment;
    if (consumed > s->rampup_samples || increments == 0 || s->rampup_samples == 0)
        return s->global_batch_size;
    double samples_per_increment = (double)s->rampup_samples / (double)increments;
    return s->rampup_start + (int64_t)((double)consumed / samples_per_increment) * s->rampup_increment;
}

struct batch_size batch_schedule_at(const struct batch_schedule *s, int64_t consumed) {
    struct batch_size size = {.global = s->global_batch_size};
    if (s->kind == BATCH_RAMPUP) size.global = rampup_size(s, consumed);
    if (s->kind == BATCH_STEPS)
        for (int i = 0; i < s->num_steps && s->steps[i].threshold_samples <= consumed; i++)
            size.global = s->steps[i].batch_size;
    size.micro_batches = size.global / s->row_samples;
    size.running = size.micro_batches * s->row_samples;
    return size;
}

/* From this many consumed samples on, the batch size does not change any more. */
static int64_t constant_from(const struct batch_schedule *s) {
    if (s->kind == BATCH_RAMPUP) return s->rampup_samples + 1;
    return s->kind == BATCH_STEPS ? s->steps[s->num_steps - 1].threshold_samples : 0;
}

/* Walks the changing part iteration by iteration and the constant part at once; stops at whichever limit is
 * met first. */
static void walk(const struct batch_schedule *s, int64_t iterations_limit, int64_t samples_limit,
                 int64_t *iterations_p, int64_t *samples_p) {
    int64_t iterations = 0, samples = 0, constant = constant_from(s);
    while (samples < constant && iterations < iterations_limit) {
        int64_t size = batch_schedule_at(s, samples).running;
        if (size > samples_limit - samples) break;
        samples += size;
        iterations++;
    }
    if (samples >= constant) {
        int64_t size = batch_schedule_at(s, samples).running, rest = (samples_limit - samples) / size;
        if (rest > iterations_limit - iterations) rest = iterations_limit - iterations;
        iterations += rest;
        samples += rest * size;
    }
    *iterations_p = iterations;
    *samples_p = samples;
}

int64_t batch_schedule_samples(const struct batch_schedule *s, int64_t iterations) {
    int64_t samples, done;
    walk(s, iterations, INT64_MAX, &done, &samples);
    return samples;
}

int64_t batch_schedule_iterations(const struct batch_schedule *s, int64_t samples) {
    int64_t iterations, used;
    walk(s, INT64_MAX, samples, &iterations, &used);
    return iterations;
}
