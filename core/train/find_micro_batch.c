#include "core/train/find_micro_batch.h"
#include "core/base/json.h"
#include "core/base/mem.h"
#include "core/plan_auto.h"
#include "core/train/settings.h"
#include "core/train/trainer.h"

/* The pipeline stages of the configuration with another micro-batch size. */
struct micro_batch_search {
    const struct config *cfg;
    struct setup setup;
    struct plan_request *stages; /* as configured */
    struct plan_request *scaled;
    int num_stages, *counts;
    size_t limit, budget; /* budget: of auto, for the question that is asked */
    struct hardware cpu;  /* what auto chooses by without --hardware */
    int64_t largest;      /* of the sizes that may be given */
};

/* Numbers of micro-batches with size b instead of the configured one; false when b cannot be given. */
static bool scale_count(const struct micro_batch_search *s, int64_t b, int count, int *scaled_p) {
    int64_t samples = count * s->cfg->micro_batch_size;
    *scaled_p = count;
    if (!config_is_given(s->cfg, global_batch_size)) return true; /* larger steps */
    *scaled_p = (int)(samples / b);
    return samples % b == 0;
}

static bool scale(struct micro_batch_search *s, int64_t b) {
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
static bool fits(struct micro_batch_search *s, struct recompute_policy policy, struct micro_batch_fit *out) {
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

/* What auto would choose with the scaled requests: by the same rates as a run. */
static int choose(struct micro_batch_search *s, struct plan_auto *chosen, struct err *err) {
    for (int r = 0; r < s->num_stages; r++)
        if (!s->scaled[r].hardware) s->scaled[r].hardware = &s->cpu;
    return plan_auto_choose(s->scaled, s->num_stages, s->budget, chosen, err);
}

static bool fits_with(struct micro_batch_search *s, int64_t b, const struct recompute_policy *policy,
                      struct micro_batch_fit *out) {
    struct plan_auto chosen;
    struct err err;
    out->micro_batch = b;
    if (policy) return fits(s, *policy, out);
    if (choose(s, &chosen, &err)) return false;
    bool ok = fits(s,
                   (struct recompute_policy){.granularity = RECOMPUTE_PLANNED,
                                             .planned = chosen.groups,
                                             .num_planned = chosen.num_groups},
                   out);
    plan_auto_free(&chosen);
    return ok;
}

/* The next size above b that may be given; 0 after the last. */
static int64_t next_size(struct micro_batch_search *s, int64_t b) {
    while (++b <= s->largest)
        if (scale(s, b)) return b;
    return 0;
}

/* With a global batch the sizes that may be given are few, and a larger one may take less (fewer
 * micro-batches are in flight): try all. Without one they are all numbers and a larger one never takes less:
 * double, then halve the gap. */
static struct micro_batch_fit find_largest(struct micro_batch_search *s,
                                           const struct recompute_policy *policy) {
    struct micro_batch_fit best = {0}, now = {0};
    if (config_is_given(s->cfg, global_batch_size)) {
        for (int64_t b = next_size(s, 0); b; b = next_size(s, b))
            if (fits_with(s, b, policy, &now)) best = now;
        return best;
    }
    int64_t low = 0, high = 1;
    for (; high <= s->largest && scale(s, high) && fits_with(s, high, policy, &now); high *= 2)
        best = now, low = high;
    while (high - low > 1) {
        int64_t middle = low + (high - low) / 2;
        if (middle <= s->largest && scale(s, middle) && fits_with(s, middle, policy, &now))
            best = now, low = middle;
        else
            high = middle;
    }
    return best;
}

struct micro_batch_fit micro_batch_search_largest(struct micro_batch_search *s,
                                                  const struct recompute_policy *policy, size_t budget) {
    s->budget = budget < s->limit ? budget : s->limit;
    struct micro_batch_fit f = find_largest(s, policy);
    int64_t size = config_is_given(s->cfg, global_batch_size) ? s->cfg->micro_batch_size : f.micro_batch;
    if (!s->setup.request.hardware) f.step_seconds = 0; /* a guess, as all of them */
    double samples = (double)(s->stages[0].micro_batches * s->cfg->data_parallel_size * size);
    if (f.step_seconds > 0) f.tokens_per_second = samples * (double)s->cfg->seq_length / f.step_seconds;
    return f;
}

int micro_batch_search_rows(struct micro_batch_search *s, struct micro_batch_row rows[MICRO_BATCH_ROWS]) {
    struct recompute_setting settings[SETTINGS_MAX];
    const struct plan_request *r = &s->stages[0];
    int layers = 0;
    for (int i = 0; i < r->layout.stages * r->layout.chunks; i++)
        if (r->layout.split[i].num_layers > layers) layers = r->layout.split[i].num_layers;
    int count = settings_list(&r->model, layers, settings);
    for (int i = 0; i < count; i++) rows[i] = (struct micro_batch_row){.setting = settings[i]};
    if (s->setup.request.hardware)
        rows[count++] = (struct micro_batch_row){.setting.flags = "auto", .is_auto = true};
    for (int i = 0; i < count; i++) {
        rows[i].fit =
            micro_batch_search_largest(s, rows[i].is_auto ? NULL : &rows[i].setting.policy, s->limit);
        rows[i].next = next_size(s, rows[i].fit.micro_batch);
    }
    return count;
}

size_t micro_batch_search_limit(const struct micro_batch_search *s) {
    return s->limit;
}

static void write_row(const char *flags, const struct micro_batch_fit *f, struct str *json) {
    json_begin_object(json);
    json_key(json, "recompute");
    json_string(json, flags);
    json_key(json, "micro_batch_size");
    json_integer(json, f->micro_batch);
    if (f->micro_batch) {
        json_key(json, "peak_allocated_bytes");
        json_unsigned(json, f->peak);
    }
    if (f->tokens_per_second > 0) {
        json_key(json, "step_seconds");
        json_double(json, f->step_seconds);
        json_key(json, "tokens_per_second");
        json_double(json, f->tokens_per_second);
    }
    json_end_object(json);
}

static void print_row(const char *flags, const struct micro_batch_fit *f, FILE *out) {
    char peak[32];
    if (!f->micro_batch) {
        fprintf(out, "  %-36s %11s\n", flags, "none fits");
        return;
    }
    fprintf(out, "  %-36s %11lld %12s", flags, (long long)f->micro_batch,
            str_format_bytes(peak, sizeof(peak), (double)f->peak));
    if (f->tokens_per_second > 0)
        fprintf(out, " %14.4g ms %12.4g", 1e3 * f->step_seconds, f->tokens_per_second);
    fputc('\n', out);
}

void micro_batch_search_print(const struct micro_batch_search *s, const struct micro_batch_row *rows,
                              int count, FILE *out, struct str *json) {
    char limit[32];
    fprintf(out, "largest --micro-batch-size in %s per rank (%zu bytes)",
            str_format_bytes(limit, sizeof(limit), (double)s->limit), s->limit);
    if (config_is_given(s->cfg, global_batch_size))
        fprintf(out, ", of the sizes that divide --global-batch-size %lld over %lld data-parallel ranks",
                (long long)s->cfg->global_batch_size, (long long)s->cfg->data_parallel_size);
    fprintf(out, ":\n  %-36s %11s %12s", "--recompute-granularity", "micro-batch", "peak");
    if (s->setup.request.hardware) fprintf(out, " %17s %12s", "predicted step", "tokens/s");
    fputc('\n', out);
    if (json) json_begin_array(json);
    for (int i = 0; i < count; i++) {
        print_row(rows[i].setting.flags, &rows[i].fit, out);
        if (json) write_row(rows[i].setting.flags, &rows[i].fit, json);
    }
    if (json) json_end_array(json);
    if (!s->setup.request.hardware) fprintf(out, "  (with --hardware also auto, and predicted steps)\n");
}

static int find_limit(struct micro_batch_search *s, struct err *err) {
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

static int open_search(struct micro_batch_search *s, int threads, struct err *err) {
    const struct config *cfg = s->cfg;
    if (setup_open(&s->setup, cfg, 0, threads, err) || find_limit(s, err)) return -1;
    if (hardware_open("cpu", &s->cpu, err)) return -1;
    s->stages = mem_new_array(struct plan_request, (size_t)s->num_stages, "requests of the stages");
    s->scaled = mem_new_array(struct plan_request, (size_t)s->num_stages, "requests of the stages");
    if (setup_requests(&s->setup, cfg, s->stages, err)) return -1;
    s->counts = mem_new_array(int, (size_t)s->stages[0].num_other_counts + 1, "micro-batch counts");
    if (config_is_given(cfg, global_batch_size))
        s->largest = s->stages[0].micro_batches * cfg->micro_batch_size;
    return 0;
}

struct micro_batch_search *micro_batch_search_open(const struct config *cfg, int threads, struct err *err) {
    struct micro_batch_search *s = mem_zalloc(sizeof(*s), "micro-batch search");
    *s = (struct micro_batch_search){
        .cfg = cfg, .num_stages = (int)cfg->pipeline_model_parallel_size, .largest = 1 << 20};
    if (!open_search(s, threads, err)) return s;
    micro_batch_search_close(s);
    return NULL;
}

void micro_batch_search_close(struct micro_batch_search *s) {
    if (!s) return;
    mem_free(s->stages);
    mem_free(s->scaled);
    mem_free(s->counts);
    setup_close(&s->setup);
    mem_free(s);
}

int find_max_micro_batch(const struct config *cfg, FILE *out, struct str *json, struct err *err) {
    struct micro_batch_row rows[MICRO_BATCH_ROWS];
    struct micro_batch_search *s = micro_batch_search_open(cfg, 0, err);
    if (!s) return -1;
    int count = micro_batch_search_rows(s, rows);
    micro_batch_search_print(s, rows, count, out, json);
    micro_batch_search_close(s);
    return 0;
}
