#include "core/train/dry_run.h"
#include "core/base/json.h"
#include "core/base/log.h"
#include "core/base/mem.h"
#include "core/plan_holders.h"
#include "core/plan_time.h"
#include "core/train/find_micro_batch.h"
#include "core/train/out_of_memory.h"
#include "core/train/trainer.h"

/* Ranks of one pipeline stage have the same plan: the first of them is printed, all are listed in the JSON.
 */
enum { HOLDERS_SHOWN = 10 };

struct stage_plan {
    struct str json; /* empty: not planned yet */
    size_t bytes;
    double flops, rerun_flops;
};

struct world {
    const struct config *cfg;
    FILE *out;
    struct stage_plan *stages;
    struct stage_time *times;
    int num_stages;
    struct str json;
    size_t largest;
    int largest_rank;
    struct plan_holder *holders; /* at the peak of that rank */
    int num_holders;
    double flops, rerun_flops;
    struct hardware hardware;
    struct setup any; /* of the last stage that was planned: what all stages share */
};

static int plan_stage(struct world *w, int rank, int stage, struct err *err) {
    const struct plan *plan = &w->any.plan;
    struct stage_plan *s = &w->stages[stage];
    if (w->any.threads ? setup_reopen(&w->any, w->cfg, rank, err) : setup_open(&w->any, w->cfg, rank, 0, err))
        return -1;
    if (rank == 0 && w->any.planned_report.data) fputs(w->any.planned_report.data, w->out);
    plan_print_memory(plan, rank, w->out);
    if (rank == 0) plan_print_recompute(plan, w->out);
    if (rank == 0 && w->cfg->recompute_trace) plan_print_trace(plan, w->out);
    if (rank == 0 && w->cfg->print_schedule) setup_print_schedule(&w->any, w->out);
    plan_write_json(plan, &s->json);
    plan_time_stage(plan, &w->times[stage]);
    s->bytes = plan->arena_bytes;
    s->flops = plan->step_gemm_flops;
    s->rerun_flops = plan->step_rerun_gemm_flops;
    return 0;
}

static int plan_ranks(struct world *w, struct err *err) {
    str_puts(&w->json, "{\"ranks\": [");
    for (int rank = 0; rank < (int)w->cfg->world_size; rank++) {
        struct mesh mesh;
        if (ranks_mesh(w->cfg, rank, &mesh, err)) return -1;
        struct stage_plan *s = &w->stages[mesh.pp];
        if (!s->json.length && plan_stage(w, rank, mesh.pp, err)) return -1;
        str_printf(&w->json, "%s\n{\"rank\": %d, %s", rank ? "," : "", rank, s->json.data + 1);
        if (s->bytes > w->largest) { /* then it was planned just now */
            w->largest = s->bytes;
            w->largest_rank = rank;
            mem_free(w->holders);
            w->num_holders = plan_holders(&w->any.plan, &w->holders);
        }
        w->flops += s->flops;
        w->rerun_flops += s->rerun_flops;
    }
    return 0;
}

/* The predicted step, in text and JSON. */
static void predict(struct world *w) {
    const struct plan *plan = &w->any.plan;
    const struct model *m = &plan->request.model;
    const struct hardware *hw = plan->request.hardware;
    if (!hw || plan->request.forward_only) return;
    struct step_time t = plan_time_step(plan, w->times);
    struct flops_shape shape = setup_flops_shape(m);
    double sequences =
        (double)(plan->request.micro_batches * w->cfg->micro_batch_size * w->cfg->data_parallel_size);
    double tokens = sequences * (double)m->seq / t.seconds, world = (double)w->cfg->world_size;
    double mfu = flops_of_batch(&shape, sequences) / (t.seconds * world * hardware_peak(hw, m->dtype));
    fprintf(w->out,
            "predicted step on %s: %.4g ms, %.4g tokens/s, MFU %.1f%% (forward and backward %.4g ms with "
            "%.1f%% of it "
            "idle and %.4g ms of recompute, exposed data-parallel messages %.4g ms, optimizer %.4g ms)\n",
            hw->name, 1e3 * t.seconds, tokens, 100 * mfu, 1e3 * t.schedule, 100 * t.bubble, 1e3 * t.rerun,
            1e3 * t.exposed, 1e3 * t.optimizer);
    json_key(&w->json, "predicted");
    json_begin_object(&w->json);
    const struct {
        const char *key;
        double value;
    } numbers[] = {{"step_seconds", t.seconds},    {"schedule_seconds", t.schedule},
                   {"bubble", t.bubble},           {"recompute_seconds", t.rerun},
                   {"exposed_seconds", t.exposed}, {"optimizer_seconds", t.optimizer},
                   {"tokens_per_second", tokens},  {"mfu", mfu}};
    json_key(&w->json, "hardware");
    json_string(&w->json, hw->name);
    for (size_t i = 0; i < ARRAY_COUNT(numbers); i++) {
        json_key(&w->json, numbers[i].key);
        json_double(&w->json, numbers[i].value);
    }
    json_end_object(&w->json);
}

static void summarize(struct world *w) {
    char size[32], limit[32];
    int world = (int)w->cfg->world_size;
    str_printf(&w->json,
               "],\n\"world_size\": %d, \"max_peak_allocated_bytes\": %zu, \"max_peak_rank\": %d, "
               "\"step_flops\": %.17g, \"step_recompute_flops\": %.17g",
               world, w->largest, w->largest_rank, w->flops, w->rerun_flops);
    str_format_bytes(size, sizeof(size), (double)w->largest);
    if (world > 1)
        fprintf(w->out, "of %d ranks, rank %d has the highest peak: %zu bytes, %s\n", world, w->largest_rank,
                w->largest, size);
    plan_print_holder_rows(w->holders, w->num_holders, HOLDERS_SHOWN, w->out);
    json_key(&w->json, "holders");
    plan_write_holders_json(w->holders, w->num_holders, HOLDERS_SHOWN, &w->json);
    if (config_is_set(w->cfg, device_memory_limit)) {
        double left = (double)w->cfg->device_memory_limit - (double)w->largest;
        fprintf(w->out, "%s --device-memory-limit: %s %s\n", left < 0 ? "does not fit" : "fits",
                str_format_bytes(limit, sizeof(limit), left < 0 ? -left : left),
                left < 0 ? "too much" : "left");
        str_printf(&w->json, ", \"fits\": %s", left < 0 ? "false" : "true");
    }
    predict(w);
}

static void world_close(struct world *w) {
    for (int i = 0; i < w->num_stages; i++) {
        str_free(&w->stages[i].json);
        stage_time_free(&w->times[i]);
    }
    mem_free(w->holders);
    mem_free(w->stages);
    mem_free(w->times);
    setup_close(&w->any);
    str_free(&w->json);
}

int dry_run(const struct config *cfg, FILE *out, struct err *err) {
    int status = STATUS_OK, stages = (int)cfg->pipeline_model_parallel_size;
    struct world w = {.cfg = cfg, .out = out, .num_stages = stages};
    w.stages = mem_new_array(struct stage_plan, (size_t)stages, "plans of the stages");
    w.times = mem_new_array(struct stage_time, (size_t)stages, "times of the stages");
    int failed = plan_ranks(&w, err);
    if (!failed) {
        summarize(&w);
        if (cfg->find_max_micro_batch_size) {
            json_key(&w.json, "largest_micro_batch");
            failed = find_max_micro_batch(cfg, out, &w.json, err);
        }
        str_puts(&w.json, "}");
    }
    if (!failed) {
        if (cfg->dry_run_json) failed = str_write_file(&w.json, cfg->dry_run_json, err);
    }
    bool fits = !config_is_set(cfg, device_memory_limit) || w.largest <= (uint64_t)cfg->device_memory_limit;
    if (!failed && !fits) {
        status = STATUS_OUT_OF_MEMORY;
        failed = out_of_memory_explain(cfg, stderr, err);
    }
    if (failed) {
        log_error("%s", err->text);
        status = STATUS_USAGE;
    }
    world_close(&w);
    return status;
}
