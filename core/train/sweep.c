#include "core/train/sweep.h"
#include "core/base/json.h"
#include "core/base/log.h"
#include "core/base/mem.h"
#include "core/plan_time.h"
#include "core/train/find_micro_batch.h"
#include "core/train/timers.h"
#include "core/train/trainer.h"
#include <string.h>

struct sweep {
    const struct config *cfg;
    const struct ranks *ranks; /* NULL: nothing is run */
    FILE *out;                 /* NULL on other ranks than 0 */
    struct sweep_row rows[SWEEP_MAX_ROWS];
    struct recompute_policy policies[SWEEP_MAX_ROWS];
    size_t budgets[SWEEP_MAX_ROWS]; /* of auto; 0: a plain setting */
    int count;
    double samples; /* of a step */
};

static void configure(const struct sweep *s, int i, struct setting_config *row) {
    setting_configure(s->cfg, &s->policies[i], s->budgets[i], row);
}

/* ---- plans ---- */

/* The peak over all stages, and with --hardware the predicted step. */
static int plan_row(struct sweep *s, int i, struct err *err) {
    struct setting_config row;
    struct setup setup;
    struct mesh mesh;
    struct sweep_row *out = &s->rows[i];
    int stages = (int)s->cfg->pipeline_model_parallel_size;
    configure(s, i, &row);
    struct stage_time *times = mem_new_array(struct stage_time, (size_t)stages, "stage times");
    int status = setup_open(&setup, &row.cfg, 0, ranks_threads(s->ranks), err);
    for (int r = 0; r < stages && !status; r++) {
        status = ranks_mesh(&row.cfg, 0, &mesh, err);
        if (!status) status = setup_reopen(&setup, &row.cfg, mesh_stage_rank(&mesh, r), err);
        if (status) break;
        if (setup.plan.arena_bytes > out->peak) out->peak = setup.plan.arena_bytes;
        plan_time_stage(&setup.plan, &times[r]);
    }
    if (!status && s->cfg->hardware) {
        struct step_time t = plan_time_step(&setup.plan, times);
        out->predicted_seconds = t.seconds;
        if (!s->ranks) out->seconds = t.seconds, out->rerun_seconds = t.rerun;
    }
    out->fits =
        !config_is_set(s->cfg, device_memory_limit) || out->peak <= (size_t)s->cfg->device_memory_limit;
    for (int r = 0; r < stages; r++) stage_time_free(&times[r]);
    mem_free(times);
    setup_close(&setup);
    return status;
}

static void add_row(struct sweep *s, const char *name, struct recompute_policy policy, size_t budget) {
    snprintf(s->rows[s->count].name, sizeof(s->rows[0].name), "%.*s", SETTING_FLAGS_BYTES - 1, name);
    s->policies[s->count] = policy;
    s->budgets[s->count++] = budget;
}

/* auto at three budgets between the least and the most memory of the plain settings, and at the limit where
 * that is more: there its largest micro-batch compares with theirs. */
static int plan_rows(struct sweep *s, struct err *err) {
    struct recompute_setting settings[SETTINGS_MAX];
    size_t least = SIZE_MAX, most = 0;
    struct setup setup;
    int layers = 0, status = setup_open(&setup, s->cfg, 0, ranks_threads(s->ranks), err);
    if (status) {
        setup_close(&setup);
        return -1;
    }
    for (int64_t i = 0; i < s->cfg->pipeline_model_parallel_size * s->cfg->virtual_stages; i++)
        if (setup.split[i].num_layers > layers) layers = setup.split[i].num_layers;
    int count = settings_list(&setup.request.model, layers, settings);
    setup_close(&setup);
    for (int i = 0; i < count && !status; i++) {
        add_row(s, settings[i].flags, settings[i].policy, 0);
        status = plan_row(s, i, err);
        if (s->rows[i].peak < least) least = s->rows[i].peak;
        if (s->rows[i].peak > most) most = s->rows[i].peak;
    }
    size_t limit = config_is_set(s->cfg, device_memory_limit) ? (size_t)s->cfg->device_memory_limit : 0;
    for (size_t k = 1; k <= (limit > most ? 4 : 3) && !status; k++) {
        size_t budget = k < 4 ? least + (most - least) * k / 4 : limit;
        char size[32], name[64];
        snprintf(name, sizeof(name), "auto %s", str_format_bytes(size, sizeof(size), (double)budget));
        add_row(s, name, (struct recompute_policy){.granularity = RECOMPUTE_NONE}, budget);
        status = plan_row(s, s->count - 1, err);
    }
    return status;
}

/* ---- runs ---- */

static int run_steps(struct sweep *s, struct trainer *t, struct sweep_row *out, struct err *err) {
    int64_t batch = config_batch_size_at(t->cfg, 0);
    for (int64_t i = 0; i < s->cfg->recompute_sweep_steps; i++) {
        struct step_result result;
        uint64_t begin = clock_now_ns();
        if (ranks_agree(s->ranks, step_run(t, batch, &result, err), err)) return -1;
        double seconds = ranks_max(s->ranks, (double)(clock_now_ns() - begin) * 1e-9);
        double rerun = ranks_max(s->ranks, t->executor.phase_seconds[PHASE_RECOMPUTE]);
        t->state.iteration++;
        t->state.consumed_samples += batch;
        if (i == 0 || (i > 1 && seconds >= out->seconds)) continue; /* the first is warm-up */
        out->seconds = seconds;
        out->rerun_seconds = rerun;
    }
    out->params_hash = update_params_hash(&t->executor);
    out->peak = (size_t)ranks_max(s->ranks, (double)t->executor.high_water);
    return 0;
}

static int run_row(struct sweep *s, int i, struct err *err) {
    struct setting_config row;
    struct trainer t;
    configure(s, i, &row);
    int status = trainer_open(&t, &row.cfg, s->ranks, err);
    if (!status) status = run_steps(s, &t, &s->rows[i], err);
    trainer_close(&t);
    return status;
}

/* ---- the largest micro-batch ---- */

/* Only where a limit is known: the message that says otherwise is not an error here. */
static void find_largest(struct sweep *s) {
    struct err ignored;
    struct micro_batch_search *search = NULL;
    int threads = ranks_threads(s->ranks);
    if (!s->out) return; /* rank 0 prints */
    if (config_is_set(s->cfg, device_memory_limit))
        search = micro_batch_search_open(s->cfg, threads, &ignored);
    for (int i = 0; search && i < s->count; i++) {
        struct micro_batch_fit f =
            micro_batch_search_largest(search, s->budgets[i] ? NULL : &s->policies[i], s->budgets[i]);
        s->rows[i].largest_micro_batch = f.micro_batch;
        s->rows[i].largest_tokens_per_second = f.tokens_per_second;
    }
    micro_batch_search_close(search);
}

/* ---- the table ---- */

void sweep_mark_frontier(struct sweep_row *rows, int count) {
    for (int i = 0; i < count; i++) {
        rows[i].is_frontier = rows[i].fits && rows[i].tokens_per_second > 0;
        for (int k = 0; k < count && rows[i].is_frontier; k++) {
            const struct sweep_row *a = &rows[k], *b = &rows[i];
            if (k == i || !a->fits || a->tokens_per_second <= 0) continue;
            bool no_worse = a->peak <= b->peak && a->tokens_per_second >= b->tokens_per_second;
            bool better = a->peak < b->peak || a->tokens_per_second > b->tokens_per_second || k < i;
            if (no_worse && better) rows[i].is_frontier = false;
        }
    }
}

static void print_table(const struct sweep *s) {
    bool measured = s->ranks != NULL, limited = config_is_set(s->cfg, device_memory_limit);
    char peak[32];
    fprintf(s->out, "recompute sweep, %s (* no other setting takes less memory and is as fast):\n",
            measured ? "measured" : "predicted");
    fprintf(s->out, "  %-36s %12s %11s %13s %10s", "--recompute-granularity", "peak", "step ms",
            "recompute ms", "tokens/s");
    if (measured && s->cfg->hardware) fprintf(s->out, " %13s", "predicted ms");
    if (limited) fprintf(s->out, " %15s %10s", "largest micro-b", s->cfg->hardware ? "tokens/s" : "");
    fputc('\n', s->out);
    for (int i = 0; i < s->count; i++) {
        const struct sweep_row *r = &s->rows[i];
        fprintf(s->out, "%c %-36s %12s", r->is_frontier ? '*' : ' ', r->name,
                str_format_bytes(peak, sizeof(peak), (double)r->peak));
        if (r->seconds > 0)
            fprintf(s->out, " %11.4g %13.4g %10.4g", 1e3 * r->seconds, 1e3 * r->rerun_seconds,
                    r->tokens_per_second);
        else
            fprintf(s->out, " %36s", r->fits ? "no --hardware" : "does not fit");
        if (measured && s->cfg->hardware) fprintf(s->out, " %13.4g", 1e3 * r->predicted_seconds);
        if (limited) {
            fprintf(s->out, " %15lld", (long long)r->largest_micro_batch);
            if (r->largest_tokens_per_second > 0) fprintf(s->out, " %10.4g", r->largest_tokens_per_second);
        }
        if (r->params_hash && r->params_hash != s->rows[0].params_hash)
            fprintf(s->out, "  PARAMETERS DIFFER");
        fputc('\n', s->out);
    }
}

static void write_jsonl(const struct sweep *s, struct str *out) {
    for (int i = 0; i < s->count; i++) {
        const struct sweep_row *r = &s->rows[i];
        char hash[24];
        if (i) str_puts(out, "\n");
        json_begin_object(out);
        json_key(out, "recompute");
        json_string(out, r->name);
        json_key(out, "budget_bytes");
        if (s->budgets[i])
            json_unsigned(out, s->budgets[i]);
        else
            json_null(out);
        json_key(out, "measured");
        json_bool(out, s->ranks != NULL);
        json_key(out, "fits");
        json_bool(out, r->fits);
        json_key(out, "peak_allocated_bytes");
        json_unsigned(out, r->peak);
        json_key(out, "step_seconds");
        json_double(out, r->seconds > 0 ? r->seconds : NAN);
        json_key(out, "recompute_seconds");
        json_double(out, r->seconds > 0 ? r->rerun_seconds : NAN);
        json_key(out, "tokens_per_second");
        json_double(out, r->seconds > 0 ? r->tokens_per_second : NAN);
        json_key(out, "predicted_step_seconds");
        json_double(out, r->predicted_seconds > 0 ? r->predicted_seconds : NAN);
        json_key(out, "largest_micro_batch_size");
        json_integer(out, r->largest_micro_batch);
        json_key(out, "largest_tokens_per_second");
        json_double(out, r->largest_tokens_per_second > 0 ? r->largest_tokens_per_second : NAN);
        json_key(out, "frontier");
        json_bool(out, r->is_frontier);
        snprintf(hash, sizeof(hash), "%016llx", (unsigned long long)r->params_hash);
        json_key(out, "params_hash");
        json_string(out, r->params_hash ? hash : NULL);
        json_end_object(out);
    }
}

static int write_files(const struct sweep *s, struct err *err) {
    struct str text = {0}, name = {0};
    str_printf(&name, "%s.jsonl", s->cfg->recompute_sweep_out);
    write_jsonl(s, &text);
    int status = str_write_file(&text, name.data, err);
    str_clear(&text);
    str_clear(&name);
    str_printf(&name, "%s.svg", s->cfg->recompute_sweep_out);
    sweep_write_svg(s->rows, s->count,
                    s->ranks ? "Recompute settings, measured" : "Recompute settings, predicted", &text);
    if (!status) status = str_write_file(&text, name.data, err);
    str_free(&text);
    str_free(&name);
    return status;
}

static int sweep_all(struct sweep *s, struct err *err) {
    if (plan_rows(s, err)) return -1;
    for (int i = 0; i < s->count && s->ranks; i++) {
        if (!s->rows[i].fits) continue;
        if (s->out) log_info("running %s", s->rows[i].name);
        if (run_row(s, i, err)) return -1;
    }
    for (int i = 0; i < s->count; i++)
        if (s->rows[i].seconds > 0)
            s->rows[i].tokens_per_second = s->samples * (double)s->cfg->seq_length / s->rows[i].seconds;
    find_largest(s);
    sweep_mark_frontier(s->rows, s->count);
    if (!s->out) return 0;
    print_table(s);
    return s->cfg->recompute_sweep_out ? write_files(s, err) : 0;
}

int recompute_sweep(const struct config *cfg, const struct ranks *ranks, FILE *out, struct err *err) {
    struct sweep *s = mem_zalloc(sizeof(*s), "recompute sweep");
    *s = (struct sweep){.cfg = cfg,
                        .ranks = ranks,
                        .out = !ranks || ranks->rank == 0 ? out : NULL,
                        .samples = (double)config_batch_size_at(cfg, 0)};
    int status = sweep_all(s, err) ? STATUS_USAGE : STATUS_OK;
    if (status && s->out) log_error("%s", err->text);
    for (int i = 0; i < s->count && !status; i++)
        if (s->rows[i].params_hash && s->rows[i].params_hash != s->rows[0].params_hash)
            status = STATUS_FAILED;
    mem_free(s);
    return status;
}
