#include "core/optim/lr_schedule.h"
#include <math.h>
#include <string.h>

#define PI 3.14159265358979323846

static int find_name(const char *const *names, int count, const char *name) {
    for (int i = 0; i < count; i++)
        if (!strcmp(names[i], name)) return i;
    return -1;
}

int lr_decay_style_parse(const char *name) {
    static const char *const names[] = {"constant", "linear", "cosine", "inverse-square-root", "WSD"};
    return find_name(names, ARRAY_COUNT(names), name);
}

int lr_wsd_style_parse(const char *name) {
    static const char *const names[] = {"exponential", "linear", "cosine", "minus_sqrt"};
    return find_name(names, ARRAY_COUNT(names), name);
}

static int check_rates(const struct lr_schedule_options *o, struct err *err) {
    if (!(o->lr >= 0) || !isfinite(o->lr))
        return err_set(err, "--lr %g: must be a finite number that is at least 0", o->lr);
    if (!(o->min_lr >= 0 && o->min_lr <= o->lr))
        return err_set(err, "--min-lr %g: must be between 0 and --lr (%g)", o->min_lr, o->lr);
    if (!(o->warmup_init >= 0 && o->warmup_init <= o->lr))
        return err_set(err, "--lr-warmup-init %g: must be between 0 and --lr (%g)", o->warmup_init, o->lr);
    return 0;
}

/* One unit only: iterations with --train-iters, samples with --train-samples. */
static int check_units(const struct lr_schedule_options *o, struct err *err) {
    bool iters = o->train_iters > 0;
    if (iters == (o->train_samples > 0))
        return err_set(err, "set one of --train-iters and --train-samples: they are %lld and %lld",
                       (long long)o->train_iters, (long long)o->train_samples);
    if (iters && o->global_batch_size < 1)
        return err_set(err, "--global-batch-size %lld: must be at least 1", (long long)o->global_batch_size);
    if (iters && (o->decay_samples || o->warmup_samples || o->wsd_decay_samples))
        return err_set(err, "--lr-decay-samples, --lr-warmup-samples and --lr-wsd-decay-samples go with "
                            "--train-samples: with --train-iters use the flags that end in -iters");
    if (!iters && (o->decay_iters || o->warmup_iters || o->wsd_decay_iters))
        return err_set(err, "--lr-decay-iters, --lr-warmup-iters and --lr-wsd-decay-iters go with "
                            "--train-iters: with --train-samples use the flags that end in -samples");
    if (o->warmup_fraction >= 0 && (o->warmup_iters || o->warmup_samples))
        return err_set(err, "--lr-warmup-fraction cannot be combined with --lr-warmup-%s: drop one of them",
                       iters ? "iters" : "samples");
    if (o->decay_iters < 0 || o->decay_samples < 0 || o->warmup_iters < 0 || o->warmup_samples < 0 ||
        o->wsd_decay_iters < 0 || o->wsd_decay_samples < 0)
        return err_set(err, "--lr-decay-*, --lr-warmup-* and --lr-wsd-decay-* must not be negative");
    return 0;
}

int lr_schedule_init(struct lr_schedule *s, const struct lr_schedule_options *o, struct err *err) {
    if (check_rates(o, err) || check_units(o, err)) return -1;
    bool iters = o->train_iters > 0;
    double unit = iters ? (double)o->global_batch_size : 1;
    int64_t train = iters ? o->train_iters : o->train_samples;
    int64_t decay = iters ? o->decay_iters : o->decay_samples;
    int64_t warmup = iters ? o->warmup_iters : o->warmup_samples;
    int64_t wsd = iters ? o->wsd_decay_iters : o->wsd_decay_samples;
    const char *name = iters ? "iters" : "samples";

    *s = (struct lr_schedule){.max_lr = o->lr, .min_lr = o->min_lr, .init_lr = o->warmup_init};
    s->decay_style = o->decay_style;
    s->wsd_style = o->wsd_style;
    s->decay_samples = (double)(decay ? decay : train) * unit;
    s->warmup_samples =
        o->warmup_fraction >= 0 ? o->warmup_fraction * s->decay_samples : (double)warmup * unit;
    s->wsd_samples = (double)wsd * unit;
    if (!(s->warmup_samples < s->decay_samples))
        return err_set(err,
                       "the learning rate's warmup (%.0f samples) must be shorter than its decay (%.0f "
                       "samples): lower --lr-warmup-%s or raise --lr-decay-%s",
                       s->warmup_samples, s->decay_samples, o->warmup_fraction >= 0 ? "fraction" : name,
                       name);
    if (o->decay_style == LR_WSD && !wsd)
        return err_set(err, "--lr-decay-style WSD needs --lr-wsd-decay-%s", name);
    if (o->decay_style == LR_WSD && s->wsd_samples > s->decay_samples)
        return err_set(err, "--lr-wsd-decay-%s %lld: must not exceed the decay length, %lld %s", name,
                       (long long)wsd, (long long)(decay ? decay : train), iters ? "iterations" : name);
    return 0;
}

static double wsd_coefficient(const struct lr_schedule *s, double n) {
    double start = s->decay_samples - s->wsd_samples;
    if (n <= start) return 1;
    double q = (n - start) / s->wsd_samples;
    switch (s->wsd_style) {
    case LR_WSD_LINEAR:
        return 1 - q;
    case LR_WSD_COSINE:
        return 0.5 * (cos(PI * q) + 1);
    case LR_WSD_EXPONENTIAL:
        return 2 * pow(0.5, q) - 1;
    case LR_WSD_MINUS_SQRT:
        return 1 - sqrt(q);
    }
    CHECK(false, "WSD style %d", (int)s->wsd_style);
}

double lr_schedule_at(const struct lr_schedule *s, double n) {
    if (s->warmup_samples > 0 && n <= s->warmup_samples)
        return s->init_lr + (s->max_lr - s->init_lr) * n / s->warmup_samples;
    if (s->decay_style == LR_CONSTANT) return s->max_lr;
    if (n > s->decay_samples) return s->min_lr;
    if (s->decay_style == LR_INVERSE_SQUARE_ROOT)
        return fmax(s->min_lr, s->max_lr * sqrt(fmax(s->warmup_samples, 1)) / sqrt(fmax(n, 1)));
    double r = (n - s->warmup_samples) / (s->decay_samples - s->warmup_samples), c = 1;
    if (s->decay_style == LR_LINEAR)
        c = 1 - r;
    else if (s->decay_style == LR_COSINE)
        c = 0.5 * (cos(PI * r) + 1);
    else
        c = wsd_coefficient(s, n);
    return s->min_lr + c * (s->max_lr - s->min_lr);
}
