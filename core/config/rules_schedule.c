/* Rules and derived values of batch sizes, iterations, learning rate, weight decay and evaluation. Schedules
 * count in samples (sequences), as Megatron-LM's do: an iteration-based run multiplies iterations by the
 * global batch size. */
#include "core/config/rules.h"
#include "core/base/mem.h"
#include <stdlib.h>
#include <string.h>

enum { MAX_STAGES = 100000 };

/* ---- batch sizes ---- */

struct stages {
    struct config_batch_stage *items;
    int64_t count;
};

/* A batch must be whole micro-batches on every data-parallel rank. */
static int add_stage(struct config *cfg, struct stages *stages, int64_t first_sample, int64_t batch,
                     const char *shown, struct err *err) {
    int64_t unit = cfg->micro_batch_size * cfg->data_parallel_size, rounded = batch / unit * unit;
    REQUIRE(rounded > 0,
            "%s: a batch of %lld is less than --micro-batch-size %lld * data-parallel size %lld: raise it",
            shown, (long long)batch, (long long)cfg->micro_batch_size, (long long)cfg->data_parallel_size);
    REQUIRE(rounded == batch || cfg->decrease_batch_size_if_needed,
            "%s: a batch of %lld is not a multiple of --micro-batch-size %lld * data-parallel size %lld: "
            "change one of "
            "them, or add --decrease-batch-size-if-needed",
            shown, (long long)batch, (long long)cfg->micro_batch_size, (long long)cfg->data_parallel_size);
    if (rounded != batch)
        config_note(cfg, "%s: a batch of %lld runs as %lld", shown, (long long)batch, (long long)rounded);
    stages->items[stages->count++] = (struct config_batch_stage){first_sample, rounded};
    return 0;
}

/* START INCREMENT SAMPLES: batch START + k * INCREMENT from sample k * SAMPLES / increments on, so that the
 * full batch is reached after SAMPLES samples. (Megatron-LM's former ramp-up calculator.) */
static int ramp_up(struct config *cfg, struct stages *stages, struct err *err) {
    int64_t start = cfg->rampup_batch_size.items[0], increment = cfg->rampup_batch_size.items[1];
    int64_t samples = cfg->rampup_batch_size.items[2], target = cfg->global_batch_size;
    REQUIRE(start <= target, "--rampup-batch-size starts at %lld, above --global-batch-size %lld: lower it",
            (long long)start, (long long)target);
    REQUIRE((target - start) % increment == 0,
            "--rampup-batch-size: from %lld in steps of %lld the batch does not meet --global-batch-size "
            "%lld: change one "
            "of them",
            (long long)start, (long long)increment, (long long)target);
    int64_t steps = (target - start) / increment;
    REQUIRE(steps < MAX_STAGES && samples <= 1000000000000000,
            "--rampup-batch-size: %lld steps over %lld samples are too many: use a larger increment",
            (long long)steps, (long long)samples);
    stages->items = config_keep(cfg, (size_t)(steps + 1) * sizeof(*stages->items));
    for (int64_t k = 0; k <= steps; k++) {
        /* the first whole sample at or after k * samples / steps, without overflow */
        int64_t first = steps ? samples / steps * k + (samples % steps * k + steps - 1) / steps : 0;
        if (add_stage(cfg, stages, first, start + k * increment, "--rampup-batch-size", err)) return -1;
    }
    return 0;
}

/* "250B", "1.5M", "768"; -1 when it is none of these. */
static int64_t parse_count(const char *text, size_t length) {
    char copy[40], *end;
    if (!length || length >= sizeof(copy)) return -1;
    memcpy(copy, text, length);
    copy[length] = 0;
    if (strspn(copy, "0123456789.") < length - 1) return -1;
    double value = strtod(copy, &end), factor = 1;
    if (end == copy) return -1;
    if (*end) {
        static const char suffixes[] = "KkMmBbTt";
        const char *suffix = strchr(suffixes, *end);
        if (!suffix || end[1]) return -1;
        for (long power = 0; power <= (suffix - suffixes) / 2; power++) factor *= 1000;
    }
    value *= factor;
    return value >= 0 && value <= 1e15 ? (int64_t)value : -1;
}

static int compare_stages(const void *a, const void *b) {
    const struct config_batch_stage *x = a, *y = b;
    return (x->first_sample > y->first_sample) - (x->first_sample < y->first_sample);
}

static int step_schedule(struct config *cfg, struct stages *stages, struct err *err) {
    const char *at = cfg->step_batch_size_schedule, *shown = "--step-batch-size-schedule";
    stages->items = config_keep(cfg, (strlen(at) / 2 + 1) * sizeof(*stages->items));
    while (at += strspn(at, " ,"), *at) {
        size_t length = strcspn(at, " ,"), colon = strcspn(at, ":");
        int64_t tokens = colon < length ? parse_count(at, colon) : -1;
        int64_t batch = colon < length ? parse_count(at + colon + 1, length - colon - 1) : -1;
        REQUIRE(tokens >= 0 && batch > 0 && batch <= 1073741824,
                "%s: '%.*s' is not TOKENS:BATCH; give pairs, as \"0:768 250B:1536\"", shown,
                (int)(length < 80 ? length : 80), at);
        if (add_stage(cfg, stages, tokens / cfg->seq_length, batch, shown, err)) return -1;
        at += length;
    }
    REQUIRE(stages->count, "%s is empty: give TOKENS:BATCH pairs, as \"0:768 250B:1536\"", shown);
    qsort(stages->items, (size_t)stages->count, sizeof(*stages->items), compare_stages);
    REQUIRE(stages->items[0].first_sample == 0,
            "%s: the first batch size must start at 0 tokens: add 0:BATCH", shown);
    for (int64_t i = 1; i < stages->count; i++) {
        REQUIRE(stages->items[i].first_sample > stages->items[i - 1].first_sample,
                "%s: two batch sizes start at the same sequence (%lld): thresholds must grow by at least "
                "--seq-length",
                shown, (long long)stages->items[i].first_sample);
    }
    return 0;
}

static int rules_batch(struct config *cfg, struct err *err) {
    struct stages stages = {0};
    bool steps = config_is_set(cfg, step_batch_size_schedule), ramp = config_is_set(cfg, rampup_batch_size);
    REQUIRE(!steps || !config_is_set(cfg, global_batch_size),
            "--step-batch-size-schedule and --global-batch-size exclude each other: drop one of them");
    REQUIRE(!steps || !ramp,
            "--step-batch-size-schedule and --rampup-batch-size exclude each other: drop one of them");
    REQUIRE(!steps || !cfg->decrease_batch_size_if_needed,
            "--step-batch-size-schedule and --decrease-batch-size-if-needed exclude each other: drop one of "
            "them");
    REQUIRE(!ramp || config_is_set(cfg, global_batch_size),
            "--rampup-batch-size needs --global-batch-size, the batch to reach: give it");
    if (steps) {
        if (step_schedule(cfg, &stages, err)) return -1;
        cfg->global_batch_size = stages.items[stages.count - 1].global_batch_size;
        config_derive(cfg, CONFIG_FLAG_global_batch_size, "--step-batch-size-schedule");
    } else if (ramp) {
        if (ramp_up(cfg, &stages, err)) return -1;
    } else {
        if (!config_is_set(cfg, global_batch_size)) {
            cfg->global_batch_size = cfg->micro_batch_size * cfg->data_parallel_size;
            config_derive(cfg, CONFIG_FLAG_global_batch_size,
                          cfg->data_parallel_size == 1 ? "--micro-batch-size"
                                                       : "--micro-batch-size * data-parallel size");
        }
        stages.items = config_keep(cfg, sizeof(*stages.items));
        if (add_stage(cfg, &stages, 0, cfg->global_batch_size, "--global-batch-size", err)) return -1;
    }
    cfg->batch_stages = stages.items;
    cfg->batch_stage_count = stages.count;
    return 0;
}

int64_t config_batch_size_at(const struct config *cfg, int64_t consumed_samples) {
    int64_t low = 0, high = cfg->batch_stage_count - 1;
    while (low < high) { /* the last stage that has begun */
        int64_t middle = (low + high + 1) / 2;
        if (cfg->batch_stages[middle].first_sample <= consumed_samples)
            low = middle;
        else
            high = middle - 1;
    }
    return cfg->batch_stages[low].global_batch_size;
}

/* ---- iterations ---- */

/* Whole steps that fit into `samples`. */
static int64_t count_iterations(const struct config *cfg, int64_t samples) {
    int64_t consumed = 0, iterations = 0;
    for (int64_t i = 0; i < cfg->batch_stage_count; i++) {
        int64_t batch = cfg->batch_stages[i].global_batch_size, steps = (samples - consumed) / batch;
        if (i + 1 < cfg->batch_stage_count) {
            int64_t end = cfg->batch_stages[i + 1].first_sample;
            int64_t needed = end > consumed ? (end - consumed + batch - 1) / batch : 0;
            if (needed < steps) steps = needed;
        }
        iterations += steps;
        consumed += steps * batch;
    }
    return iterations;
}

/* Iteration-based and sample-based flags do not mix. */
static int rules_iterations(struct config *cfg, struct err *err) {
    static const int by_samples[] = {CONFIG_FLAG_lr_decay_samples, CONFIG_FLAG_lr_warmup_samples,
                                     CONFIG_FLAG_lr_wsd_decay_samples};
    static const int by_iters[] = {CONFIG_FLAG_lr_decay_iters, CONFIG_FLAG_lr_warmup_iters,
                                   CONFIG_FLAG_lr_wsd_decay_iters};
    bool iters = config_is_set(cfg, train_iters), samples = config_is_set(cfg, train_samples);
    REQUIRE(!iters || !samples, "--train-iters and --train-samples exclude each other: drop one of them");
    REQUIRE(iters || samples || cfg->skip_train || rules_plans_only(cfg),
            "the length of the training is unknown: give --train-iters or --train-samples");
    for (size_t i = 0; i < ARRAY_COUNT(by_samples) && (iters || samples); i++) {
        int flag = iters ? by_samples[i] : by_iters[i];
        REQUIRE(!rules_gave(cfg, flag), "%s does not go with %s: drop it, or give both in %s",
                config_flag_name(flag), iters ? "--train-iters" : "--train-samples",
                iters ? "iterations" : "samples");
    }
    for (size_t i = 0; i < 2; i++) {
        int warmup = i ? CONFIG_FLAG_lr_warmup_samples : CONFIG_FLAG_lr_warmup_iters;
        REQUIRE(!config_is_set(cfg, lr_warmup_fraction) || !*(const int64_t *)flag_field(cfg, warmup),
                "--lr-warmup-fraction and %s exclude each other: drop one of them", config_flag_name(warmup));
    }
    if (samples) {
        cfg->train_iters = count_iterations(cfg, cfg->train_samples);
        config_derive(cfg, CONFIG_FLAG_train_iters, "--train-samples");
        REQUIRE(cfg->train_iters > 0 || cfg->train_samples == 0,
                "--train-samples %lld is less than one batch of %lld: raise it",
                (long long)cfg->train_samples, (long long)cfg->batch_stages[0].global_batch_size);
        if (!config_is_set(cfg, lr_decay_samples) && cfg->train_samples) {
            cfg->lr_decay_samples = cfg->train_samples;
            config_derive(cfg, CONFIG_FLAG_lr_decay_samples, "--train-samples");
        }
    } else if (iters && !config_is_set(cfg, lr_decay_iters) && cfg->train_iters) {
        cfg->lr_decay_iters = cfg->train_iters;
        config_derive(cfg, CONFIG_FLAG_lr_decay_iters, "--train-iters");
    }
    return 0;
}

/* ---- learning rate and weight decay ---- */

static int rules_rates(struct config *cfg, struct err *err) {
    static const int wsd[] = {CONFIG_FLAG_lr_wsd_decay_style, CONFIG_FLAG_lr_wsd_decay_iters,
                              CONFIG_FLAG_lr_wsd_decay_samples};
    REQUIRE(config_is_set(cfg, lr) || cfg->skip_train || rules_plans_only(cfg),
            "--lr is required: give the peak learning rate");
    if (config_is_set(cfg, lr)) {
        REQUIRE(cfg->min_lr <= cfg->lr, "--min-lr %g is above --lr %g: lower it", cfg->min_lr, cfg->lr);
        REQUIRE(cfg->lr_warmup_init <= cfg->lr, "--lr-warmup-init %g is above --lr %g: lower it",
                cfg->lr_warmup_init, cfg->lr);
    }
    if (config_is_set(cfg, decoupled_lr)) {
        if (!config_is_set(cfg, decoupled_min_lr)) {
            cfg->decoupled_min_lr = cfg->min_lr;
            config_derive(cfg, CONFIG_FLAG_decoupled_min_lr, "--min-lr");
        }
        REQUIRE(cfg->decoupled_min_lr <= cfg->decoupled_lr,
                "--decoupled-min-lr %g is above --decoupled-lr %g: lower it", cfg->decoupled_min_lr,
                cfg->decoupled_lr);
    }
    for (size_t i = 0; i < ARRAY_COUNT(wsd) && cfg->lr_decay_style != LR_DECAY_STYLE_WSD; i++) {
        REQUIRE(!rules_gave(cfg, wsd[i]), "%s has no effect without --lr-decay-style WSD: add it or drop %s",
                config_flag_name(wsd[i]), config_flag_name(wsd[i]));
    }
    return 0;
}

static int rules_weight_decay(struct config *cfg, struct err *err) {
    if (cfg->weight_decay_incr_style == WEIGHT_DECAY_INCR_STYLE_CONSTANT) {
        REQUIRE(!config_is_set(cfg, start_weight_decay) && !config_is_set(cfg, end_weight_decay),
                "--start-weight-decay and --end-weight-decay need --weight-decay-incr-style linear or "
                "cosine: add it, or "
                "give --weight-decay alone");
        cfg->start_weight_decay = cfg->end_weight_decay = cfg->weight_decay;
        config_derive(cfg, CONFIG_FLAG_start_weight_decay, "--weight-decay");
        config_derive(cfg, CONFIG_FLAG_end_weight_decay, "--weight-decay");
        return 0;
    }
    REQUIRE(config_is_set(cfg, start_weight_decay) && config_is_set(cfg, end_weight_decay),
            "--weight-decay-incr-style other than constant needs --start-weight-decay and "
            "--end-weight-decay: give both");
    REQUIRE(cfg->start_weight_decay <= cfg->end_weight_decay,
            "--start-weight-decay %g is above --end-weight-decay %g: lower it", cfg->start_weight_decay,
            cfg->end_weight_decay);
    REQUIRE(
        !GAVE(weight_decay),
        "--weight-decay has no effect with --weight-decay-incr-style other than constant: drop one of them");
    return 0;
}

static int in_samples(const struct config *cfg, int64_t iterations, const char *shown, int64_t *samples_p,
                      struct err *err) {
    REQUIRE(!__builtin_mul_overflow(iterations, cfg->global_batch_size, samples_p),
            "%s %lld times --global-batch-size %lld is too large: lower it", shown, (long long)iterations,
            (long long)cfg->global_batch_size);
    return 0;
}

/* The steps of the schedules, in samples. */
static int rules_steps(struct config *cfg, struct err *err) {
    bool samples = config_is_set(cfg, train_samples);
    double warmup = (double)cfg->lr_warmup_samples;
    if (!config_is_set(cfg, train_iters) || !cfg->train_iters) return 0;
    if (samples) {
        cfg->lr_decay_steps = cfg->lr_decay_samples;
        cfg->wd_incr_steps = cfg->train_samples;
        cfg->lr_wsd_decay_steps = config_is_set(cfg, lr_wsd_decay_samples) ? cfg->lr_wsd_decay_samples : 0;
    } else {
        int64_t warmup_steps, wsd = config_is_set(cfg, lr_wsd_decay_iters) ? cfg->lr_wsd_decay_iters : 0;
        if (in_samples(cfg, cfg->lr_decay_iters, "--lr-decay-iters", &cfg->lr_decay_steps, err) ||
            in_samples(cfg, cfg->train_iters, "--train-iters", &cfg->wd_incr_steps, err) ||
            in_samples(cfg, wsd, "--lr-wsd-decay-iters", &cfg->lr_wsd_decay_steps, err) ||
            in_samples(cfg, cfg->lr_warmup_iters, "--lr-warmup-iters", &warmup_steps, err)) {
            return -1;
        }
        warmup = (double)warmup_steps;
    }
    if (config_is_set(cfg, lr_warmup_fraction))
        warmup = cfg->lr_warmup_fraction * (double)cfg->lr_decay_steps;
    cfg->lr_warmup_steps = warmup;
    REQUIRE(warmup < (double)cfg->lr_decay_steps,
            "the warmup of %.0f samples is not shorter than the decay of %lld samples: lower --lr-warmup-%s "
            "or raise "
            "--lr-decay-%s",
            warmup, (long long)cfg->lr_decay_steps, samples ? "samples" : "iters",
            samples ? "samples" : "iters");
    if (cfg->lr_decay_style == LR_DECAY_STYLE_WSD) {
        REQUIRE(cfg->lr_wsd_decay_steps > 0,
                "--lr-decay-style WSD needs %s: give the length of its last part",
                samples ? "--lr-wsd-decay-samples" : "--lr-wsd-decay-iters");
        REQUIRE(cfg->lr_wsd_decay_steps <= cfg->lr_decay_steps,
                "%s is longer than the whole decay: lower it or raise --lr-decay-%s",
                samples ? "--lr-wsd-decay-samples" : "--lr-wsd-decay-iters", samples ? "samples" : "iters");
    }
    return 0;
}

/* ---- evaluation ---- */

static int rules_evaluation(struct config *cfg, struct err *err) {
    int64_t batch = cfg->batch_stages[cfg->batch_stage_count - 1].global_batch_size;
    if (!config_is_set(cfg, eval_micro_batch_size)) {
        cfg->eval_micro_batch_size = cfg->micro_batch_size;
        config_derive(cfg, CONFIG_FLAG_eval_micro_batch_size, "--micro-batch-size");
    }
    REQUIRE(
        cfg->eval_micro_batch_size == cfg->micro_batch_size,
        "--eval-micro-batch-size %lld differs from --micro-batch-size %lld, which is not built yet: drop it",
        (long long)cfg->eval_micro_batch_size, (long long)cfg->micro_batch_size);
    if (!config_is_set(cfg, eval_global_batch_size)) {
        cfg->eval_global_batch_size = batch;
        config_derive(cfg, CONFIG_FLAG_eval_global_batch_size, "--global-batch-size");
    }
    REQUIRE(cfg->eval_global_batch_size % (cfg->eval_micro_batch_size * cfg->data_parallel_size) == 0,
            "--eval-global-batch-size %lld is not a multiple of --eval-micro-batch-size %lld * data-parallel "
            "size %lld: "
            "change one of them",
            (long long)cfg->eval_global_batch_size, (long long)cfg->eval_micro_batch_size,
            (long long)cfg->data_parallel_size);
    REQUIRE(!cfg->skip_train || cfg->eval_iters > 0,
            "--skip-train with --eval-iters 0 does nothing: raise --eval-iters or drop --skip-train");
    return 0;
}

int rules_schedule(struct config *cfg, struct err *err) {
    if (rules_batch(cfg, err) || rules_iterations(cfg, err) || rules_rates(cfg, err)) return -1;
    if (rules_weight_decay(cfg, err) || rules_steps(cfg, err)) return -1;
    return rules_evaluation(cfg, err);
}
