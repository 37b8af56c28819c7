#include "core/train/find_micro_batch.h"
#include "core/base/json.h"
#include "core/base/mem.h"
#include "core/plan_auto.h"
#include "core/train/settings.h"
#include "core/train/trainer.h"

/* The pipeline stages of the configuration with another micro-batch size. */
struct search {
    const struct config *cfg;
    struct setup setup;
    struct plan_request *stages; /* as configured */
    struct plan_request *scaled;
    int num_stages, *counts;
    size_t limit;
    int64_t largest; /* of the sizes that may be given */
};

/* What one size gives. */
struct fit {
    int64_t micro_batch; /* 0: none */
    size_t peak;         /* of the largest rank */
    double step_seconds; /* 0 without --hardware */
};

/* Numbers of micro-batches with size b instead of the configured one; false when b cannot be given. */
static bool scale_count(const struct search *s, int64_t b, int count, int *scaled_p) {
    int64_t samples = count * s->cfg->micro_batch_size;
    *scaled_p = count;
    if (!config_is_given(s->cfg, global_batch_size)) return true; /* larger steps */
    *scaled_p = (int)(samples / b);
    return samples % b == 0;
}

static bool scale(struct search *s, int64_t b) {
    for (int r = 0; r < s->num_stages; r++) {
        const struct plan_request *from = &s->stages[r];
        struct plan_request *to = &s->scaled[r];
        *to = *from;
        to->model.micro_batch = b;
        to->other_counts = s->counts;
        if (!scale_count(s, b, from->micro_batches, &to->micro_batches)) return false;
        if (!scale_count(s, b, from->eval_micro_batches, &to->eval_micro_batches)) return false;
        for (int i = 0; i < from->num_other_counts; i++)
            if (!scale_count(s, b, from->other_counts[i], &s->counts[i])) return false;
        struct schedule_shape shape = {.stages = from->layout.stages,
                                       .stage = r,
                                       .chunks = from->layout.chunks,
                                       .micro_batches = to->micro_batches,
                                       .group = from->layout.group};
        if (from->layout.schedule->refuses(&shape)) return false;
    }
    return true;
}

/* All stages with a policy: whether they fit. */
static bool fits(struct search *s, struct recompute_policy policy, struct fit *out) {
    struct stage_time *times = mem_new_array(struct stage_time, (size_t)s->num_stages, "stage times");
    struct plan plan = {0};
    bool all_fit = true;
    out->peak = 0;
    for (int r = 0; r < s->num_stages && all_fit; r++) {
        struct plan_request request = s->scaled[r];
        request.recompute = policy;
        plan_free(&plan);
        plan_build(&request, &plan);
        if (plan.arena_bytes > out->peak) out->peak = plan.arena_bytes;
        all_fit = plan.arena_bytes <= s->limit;
        plan_time_stage(&plan, &times[r]);
    }
    if (all_fit && plan.request.hardware) out->step_seconds = plan_time_step(&plan, times).seconds;
    plan_free(&plan);
    for (int r = 0; r < s->num_stages; r++) stage_time_free(&times[r]);
    mem_free(times);
    return all_fit;
}

static bool fits_with(struct search *s, int64_t b, const struct recompute_setting *setting, struct fit *out) {
    struct plan_auto chosen;
    struct err err;
    out->micro_batch = b;
    if (setting) return fits(s, setting->policy, out);
    if (plan_auto_choose(s->scaled, s->num_stages, s->limit, &chosen, &err)) return false;
    bool ok = fits(s,
                   (struct recompute_policy){.granularity = RECOMPUTE_PLANNED,
                                             .planned = chosen.groups,
                                             .num_planned = chosen.num_groups},
                   out);
    plan_auto_free(&chosen);
    return ok;
}

/* The next size above b that may be given; 0 after the last. */
static int64_t next_size(struct search *s, int64_t b) {
    while (++b <= s->largest)
        if (scale(s, b)) return b;
    return 0;
}

/* With a global batch the sizes that may be given are few, and a larger one may take less (fewer
 * micro-batches are in flight): try all. Without one they are all numbers and a larger one never takes less:
 * double, then halve the gap. */
static struct fit find_largest(struct search *s, const struct recompute_setting *setting) {
    struct fit best = {0}, now = {0};
    if (config_is_given(s->cfg, global_batch_size)) {
        for (int64_t b = next_size(s, 0); b; b = next_size(s, b))
            if (fits_with(s, b, setting, &now)) best = now;
        return best;
    }
    int64_t low = 0, high = 1;
    for (; high <= s->largest && scale(s, high) && fits_with(s, high, setting, &now); high *= 2)
        best = now, low = high;
    while (high - low > 1) {
        int64_t middle = low + (high - low) / 2;
        if (middle <= s->largest && scale(s, middle) && fits_with(s, middle, setting, &now))
            best = now, low = middle;
        else
            high = middle;
    }
    return best;
}

static void print_row(const struct search *s, const char *flags, const struct fit *f, FILE *out,
                      struct str *json) {
    char peak[32];
    const struct model *m = &s->stages[0].model;
    double samples =
        (double)s->stages[0].micro_batches * (double)s->cfg->data_parallel_size *
        (double)(config_is_given(s->cfg, global_batch_size) ? s->cfg->micro_batch_size : f->micro_batch);
    double tokens = f->step_seconds > 0 ? samples * (double)m->seq / f->step_seconds : 0;
    if (!f->micro_batch) {
        fprintf(out, "  %-36s %11s\n", flags, "none fits");
    } else {
        fprintf(out, "  %-36s %11lld %12s", flags, (long long)f->micro_batch,
                str_format_bytes(peak, sizeof(peak), (double)f->peak));
        if (tokens > 0) fprintf(out, " %14.4g ms %12.4g", 1e3 * f->step_seconds, tokens);
        fputc('\n', out);
    }
    json_begin_object(json);
    json_key(json, "recompute");
    json_string(json, flags);
    json_key(json, "micro_batch_size");
    json_integer(json, f->micro_batch);
    if (f->micro_batch) {
        json_key(json, "peak_allocated_bytes");
        json_unsigned(json, f->peak);
    }
    if (tokens > 0) {
        json_key(json, "step_seconds");
        json_double(json, f->step_seconds);
        json_key(json, "tokens_per_second");
        json_double(json, tokens);
    }
    json_end_object(json);
}

static void print_table(struct search *s, FILE *out, struct str *json) {
    struct recompute_setting settings[SETTINGS_MAX];
    const struct plan_request *r = &s->stages[0];
    char limit[32];
    int layers = 0;
    for (int i = 0; i < r->layout.stages * r->layout.chunks; i++)
        if (r->layout.split[i].num_layers > layers) layers = r->layout.split[i].num_layers;
    int count = settings_list(&r->model, layers, settings);
    fprintf(out, "largest --micro-batch-size in %s per rank (%zu bytes)",
            str_format_bytes(limit, sizeof(limit), (double)s->limit), s->limit);
    if (config_is_given(s->cfg, global_batch_size))
        fprintf(out, ", of the sizes that divide --global-batch-size %lld over %lld data-parallel ranks",
                (long long)s->cfg->global_batch_size, (long long)s->cfg->data_parallel_size);
    fprintf(out, ":\n  %-36s %11s %12s", "--recompute-granularity", "micro-batch", "peak");
    if (s->setup.request.hardware) fprintf(out, " %17s %12s", "predicted step", "tokens/s");
    fputc('\n', out);
    json_begin_array(json);
    for (int i = 0; i <= count; i++) {
        const struct recompute_setting *setting = i < count ? &settings[i] : NULL; /* the last: auto */
        if (!setting && !s->setup.request.hardware) break;
        struct fit f = find_largest(s, setting);
        print_row(s, setting ? setting->flags : "auto", &f, out, json);
    }
    json_end_array(json);
    if (!s->setup.request.hardware) fprintf(out, "  (with --hardware also auto, and predicted steps)\n");
}

static int find_limit(struct search *s, struct err *err) {
    const struct hardware *hw = s->setup.request.hardware;
    if (config_is_set(s->cfg, device_memory_limit))
        s->limit = (size_t)s->cfg->device_memory_limit;
    else if (hw && hw->memory_bytes > 0)
        s->limit = (size_t)hw->memory_bytes;
    else
        return err_set(err, "--find-max-micro-batch-size needs to know how much one rank may take: add "
                            "--device-memory-limit, as 70GiB");
    return 0;
}

int find_max_micro_batch(const struct config *cfg, FILE *out, struct str *json, struct err *err) {
    struct search s = {.cfg = cfg, .num_stages = (int)cfg->pipeline_model_parallel_size, .largest = 1 << 20};
    int status = setup_open(&s.setup, cfg, 0, 0, err);
    if (!status) status = find_limit(&s, err);
    if (!status) {
        s.stages = mem_new_array(struct plan_request, (size_t)s.num_stages, "requests of the stages");
        s.scaled = mem_new_array(struct plan_request, (size_t)s.num_stages, "requests of the stages");
        status = setup_requests(&s.setup, cfg, s.stages, err);
    }
    if (!status) {
        s.counts = mem_new_array(int, (size_t)s.stages[0].num_other_counts + 1, "micro-batch counts");
        if (config_is_given(cfg, global_batch_size))
            s.largest = s.stages[0].micro_batches * cfg->micro_batch_size;
        print_table(&s, out, json);
    }
    mem_free(s.stages);
    mem_free(s.scaled);
    mem_free(s.counts);
    setup_close(&s.setup);
    return status;
}
