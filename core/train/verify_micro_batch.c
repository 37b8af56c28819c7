#include "core/train/verify_micro_batch.h"
#include "core/base/log.h"
#include "core/train/find_micro_batch.h"
#include "core/train/trainer.h"

struct sized_config {
    struct setting_config of;
    struct config_batch_stage batch;
};

struct verification {
    const struct config *cfg;
    const struct ranks *ranks;
    FILE *out; /* NULL on other ranks than 0 */
    size_t limit;
    int threads, failures;
};

/* The flags with a row's recompute setting and another micro-batch size. Without --global-batch-size the
 * number of micro-batches stays, as in the search. */
static void configure(const struct verification *v, const struct micro_batch_row *row, int64_t size,
                      struct sized_config *out) {
    struct config *c = &out->of.cfg;
    setting_configure(v->cfg, &row->setting.policy, row->is_auto ? v->limit : 0, &out->of);
    c->memory_timeline = NULL;
    if (!config_is_given(v->cfg, global_batch_size)) {
        c->global_batch_size = v->cfg->global_batch_size / v->cfg->micro_batch_size * size;
        c->eval_global_batch_size = v->cfg->eval_global_batch_size / v->cfg->micro_batch_size * size;
        out->batch = (struct config_batch_stage){0, c->global_batch_size};
        c->batch_stages = &out->batch;
        c->batch_stage_count = 1;
    }
    c->micro_batch_size = c->eval_micro_batch_size = size;
}

/* The highest peak of any stage, planned from flags; 0: auto finds nothing that fits. */
static size_t planned_peak(const struct verification *v, const struct micro_batch_row *row, int64_t size) {
    struct sized_config sized;
    struct setup setup;
    struct mesh mesh;
    struct err err;
    size_t peak = 0;
    configure(v, row, size, &sized);
    int status = setup_open(&setup, &sized.of.cfg, 0, v->threads, &err);
    for (int r = 0; r < v->cfg->pipeline_model_parallel_size && !status; r++) {
        status = ranks_mesh(&sized.of.cfg, 0, &mesh, &err) ||
                 setup_reopen(&setup, &sized.of.cfg, mesh_stage_rank(&mesh, r), &err);
        if (!status && setup.plan.arena_bytes > peak) peak = setup.plan.arena_bytes;
    }
    setup_close(&setup);
    return status ? 0 : peak;
}

static int64_t largest_batch(const struct config *cfg) {
    int64_t largest = 0;
    for (int64_t i = 0; i < cfg->batch_stage_count; i++)
        if (cfg->batch_stages[i].global_batch_size > largest)
            largest = cfg->batch_stages[i].global_batch_size;
    return largest;
}

/* One step at the answer: the highest measured peak, and whether each rank's is the planned one. */
static int run_answer(const struct verification *v, const struct micro_batch_row *row, size_t *peak_p,
                      bool *equal_p, struct err *err) {
    struct sized_config sized;
    struct step_result result;
    struct trainer t;
    configure(v, row, row->fit.micro_batch, &sized);
    int status = trainer_open(&t, &sized.of.cfg, v->ranks, err);
    if (!status)
        status = ranks_agree(v->ranks, step_run(&t, largest_batch(&sized.of.cfg), &result, err), err);
    if (!status) {
        *peak_p = (size_t)ranks_max(v->ranks, (double)t.executor.high_water);
        *equal_p = ranks_max(v->ranks, t.executor.high_water != t.setup.plan.arena_bytes) == 0;
    }
    trainer_close(&t);
    return status;
}

/* Whether the next size is too large, in words. */
static bool check_next(const struct verification *v, const struct micro_batch_row *row) {
    char size[32];
    if (!row->next) {
        fprintf(v->out, "no larger size may be given");
        return true;
    }
    size_t peak = planned_peak(v, row, row->next);
    bool too_large = row->is_auto ? peak == 0 : peak > v->limit;
    fprintf(v->out, "%lld ", (long long)row->next);
    if (peak) fprintf(v->out, "needs %s and ", str_format_bytes(size, sizeof(size), (double)peak));
    fprintf(v->out, too_large ? "does not fit" : "FITS TOO");
    return too_large;
}

static int verify_row(struct verification *v, const struct micro_batch_row *row, struct err *err) {
    char size[32];
    size_t peak = 0;
    bool equal = true, fine = true;
    if (row->fit.micro_batch && run_answer(v, row, &peak, &equal, err)) return -1;
    if (!v->out) return 0;
    fprintf(v->out, "  %-36s ", row->setting.flags);
    if (row->fit.micro_batch) {
        fine = equal && peak == row->fit.peak && peak <= v->limit;
        fprintf(v->out, "%lld: measured %s (%zu bytes), %s; ", (long long)row->fit.micro_batch,
                str_format_bytes(size, sizeof(size), (double)peak), peak,
                !fine ? "NOT AS PLANNED" : "as planned");
    }
    fine &= check_next(v, row);
    fputc('\n', v->out);
    fflush(v->out);
    v->failures += !fine;
    return 0;
}

/* Rank 0's answers count: other ranks may have another number of threads. */
static void share_rows(const struct ranks *ranks, struct micro_batch_row *rows, int count) {
    for (int i = 0; i < count; i++) {
        struct micro_batch_fit *fit = &rows[i].fit;
        bool mine = ranks->rank == 0;
        fit->micro_batch = (int64_t)ranks_max(ranks, mine ? (double)fit->micro_batch : 0);
        fit->peak = (size_t)ranks_max(ranks, mine ? (double)fit->peak : 0);
    }
}

static int verify_all(struct verification *v, struct err *err) {
    struct micro_batch_row rows[MICRO_BATCH_ROWS];
    struct micro_batch_search *s = micro_batch_search_open(v->cfg, v->threads, err);
    if (ranks_agree(v->ranks, s ? 0 : -1, err)) {
        micro_batch_search_close(s);
        return -1;
    }
    v->limit = micro_batch_search_limit(s);
    int status = 0, count = micro_batch_search_rows(s, rows);
    if (v->out) micro_batch_search_print(s, rows, count, v->out, NULL);
    micro_batch_search_close(s);
    share_rows(v->ranks, rows, count);
    if (v->out) fprintf(v->out, "verified by one step of each, and by planning the next size:\n");
    for (int i = 0; i < count && !status; i++) status = verify_row(v, &rows[i], err);
    return status;
}

int verify_max_micro_batch(const struct config *cfg, const struct ranks *ranks, FILE *out, struct err *err) {
    struct verification v = {
        .cfg = cfg, .ranks = ranks, .out = ranks->rank == 0 ? out : NULL, .threads = ranks_threads(ranks)};
    if (verify_all(&v, err)) {
        if (v.out) log_error("%s", err->text);
        return STATUS_USAGE;
    }
    if (v.out && v.failures) log_error("%d answers are not confirmed", v.failures);
    return ranks_max(ranks, v.failures) > 0 ? STATUS_FAILED : STATUS_OK;
}
