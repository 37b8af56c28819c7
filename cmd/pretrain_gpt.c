/* main: find the other ranks, parse, plan, (dry run: print and stop), allocate, train, free. */
#include "core/base/log.h"
#include "core/base/mem.h"
#include "core/base/version.h"
#include "core/checkpoint/checkpoint.h"
#include "core/train/dry_run.h"
#include "core/train/measure_hardware.h"
#include "core/train/memory_timeline.h"
#include "core/train/self_check.h"
#include "core/train/sweep.h"
#include "core/train/trainer.h"
#include "core/train/verify_micro_batch.h"
#include <stdio.h>
#include <string.h>

/* Every rank has met the same error: one of them says so. */
static int usage_error(const struct ranks *ranks, const struct err *err) {
    if (ranks->rank == 0) log_error("%s", err->text);
    return STATUS_USAGE;
}

/* The flags are not validated yet, but they say which parts the model has. */
static void list_modules(const struct config *cfg, struct config_module *modules) {
    const struct model model = {.kv_rank = cfg->multi_latent_attention ? cfg->kv_lora_rank : 0,
                                .moe.experts = config_is_set(cfg, num_experts) ? cfg->num_experts : 0,
                                .moe.shared_ffn =
                                    config_is_set(cfg, moe_shared_expert_intermediate_size) ? 1 : 0};
    for (int i = 0; i < MODULE_COUNT; i++) {
        bool internal = recompute_module_info(i)->is_internal;
        modules[i] = (struct config_module){
            recompute_module_info(i)->name, !internal,
            i == MODULE_layer ? "it is what full recompute selects; use --recompute-granularity full"
                              : "it is always recomputed"};
        if (!internal) modules[i].available = model_has_module(&model, i, &modules[i].why_not);
    }
}

static int train(const struct config *cfg, const struct ranks *ranks, struct err *err) {
    struct trainer trainer;
    int status = STATUS_USAGE;
    if (trainer_open(&trainer, cfg, ranks, err)) {
        usage_error(ranks, err);
    } else {
        if (ranks->rank == 0) {
            if (trainer.setup.planned_report.data) fputs(trainer.setup.planned_report.data, stdout);
            plan_print_memory(&trainer.setup.plan, 0, stdout);
            plan_print_recompute(&trainer.setup.plan, stdout);
            if (cfg->recompute_trace) plan_print_trace(&trainer.setup.plan, stdout);
            report_layers(&trainer, stdout);
            if (cfg->print_schedule) setup_print_schedule(&trainer.setup, stdout);
        }
        report_peaks(&trainer, ranks->rank == 0 ? stdout : NULL);
        fflush(stdout);
        status = trainer_run(&trainer);
    }
    trainer_close(&trainer);
    return status;
}

static int measure_hardware(const struct config *cfg, const struct ranks *ranks, struct err *err) {
    struct hardware hw;
    if (ranks->rank > 0) return STATUS_OK;
    if (hardware_measure(cfg, &hw, stdout, err)) return usage_error(ranks, err);
    FILE *f = fopen(cfg->measure_hardware, "w");
    if (f) hardware_write(&hw, f);
    bool failed = !f || ferror(f);
    if ((f && fclose(f)) || failed) {
        err_set(err, "--measure-hardware %s: cannot be written; check the folder and the space on the disk",
                cfg->measure_hardware);
        return usage_error(ranks, err);
    }
    return STATUS_OK;
}

/* --use-checkpoint-args: the saved configuration fills in what the user did not give. */
static int load_checkpoint_args(struct config *cfg, struct err *err) {
    const char *dir = cfg->load ? cfg->load : cfg->pretrained_checkpoint;
    struct checkpoint_info info = {0};
    int64_t step = cfg->load && config_is_set(cfg, ckpt_step) ? cfg->ckpt_step : 0;
    if (!dir) return 0; /* config_validate says so */
    int status = checkpoint_find(dir, step, &info, err);
    if (!status && (!info.found || !info.config_json)) {
        status = err_set(
            err, "--use-checkpoint-args: %s holds no checkpoint with a configuration; drop the flag", dir);
    }
    if (!status) status = config_load_json(cfg, info.config_json, strlen(info.config_json), info.path, err);
    checkpoint_info_free(&info);
    return status;
}

/* Python's levels: 10 debug, 20 info, 30 warning, 40 error. */
static void set_log_level(const struct config *cfg) {
    if (!config_is_set(cfg, logging_level)) return;
    log_set_level(cfg->logging_level <= 10   ? LOG_DEBUG
                  : cfg->logging_level <= 20 ? LOG_INFO
                  : cfg->logging_level <= 30 ? LOG_WARN
                                             : LOG_ERROR);
}

static int print_topology(const struct config *cfg, const struct ranks *ranks, struct err *err) {
    struct mesh mesh;
    if (ranks_mesh(cfg, 0, &mesh, err)) return usage_error(ranks, err);
    if (ranks->rank == 0) mesh_print(&mesh.shape, stdout);
    return STATUS_OK;
}

static int run(struct config *cfg, struct ranks *ranks, struct err *err) {
    struct config_module modules[MODULE_COUNT];
    struct str json = {0};
    set_log_level(cfg);
    if (cfg->measure_hardware) return measure_hardware(cfg, ranks, err);
    cfg->running_ranks = ranks->size;
    if (cfg->use_checkpoint_args && load_checkpoint_args(cfg, err)) return usage_error(ranks, err);
    list_modules(cfg, modules);
    if (config_validate(cfg, modules, MODULE_COUNT, err)) return usage_error(ranks, err);
    if (cfg->print_topology) return print_topology(cfg, ranks, err);
    if (ranks->rank == 0) {
        config_print_notes(stderr, cfg);
        config_print_resolved(stdout, cfg);
    }
    if (cfg->resolved_config_file && ranks->rank == 0) {
        config_write_json(&json, cfg);
        int status = str_write_file(&json, cfg->resolved_config_file, err);
        str_free(&json);
        if (status) die(STATUS_USAGE, "%s", err->text);
    }
    if (cfg->dry_run && ranks->rank > 0) return STATUS_OK;
    if (cfg->dry_run && cfg->memory_timeline &&
        memory_timeline_plan(cfg, 0, "From the plan (--dry-run): nothing was run.", err))
        return usage_error(ranks, err);
    if (cfg->dry_run)
        return cfg->recompute_sweep ? recompute_sweep(cfg, NULL, stdout, err) : dry_run(cfg, stdout, err);
    if (ranks_open_groups(ranks, cfg, err)) return usage_error(ranks, err);
    if (cfg->self_check) return self_check_run(cfg, ranks, stdout, err);
    if (cfg->recompute_sweep) return recompute_sweep(cfg, ranks, stdout, err);
    if (cfg->find_max_micro_batch_size) return verify_max_micro_batch(cfg, ranks, stdout, err);
    return train(cfg, ranks, err);
}

int main(int argc, char **argv) {
    struct ranks ranks;
    struct config cfg;
    struct err err;
    int status = STATUS_OK;
    if (ranks_open(&ranks, &err)) {
        log_error("%s", err.text);
        return STATUS_USAGE;
    }
    if (config_parse(argc, (const char *const *)argv, &cfg, &err)) {
        status = usage_error(&ranks, &err);
    } else {
        if (cfg.version && ranks.rank == 0) puts(version_string());
        if (!cfg.version && (ranks.rank > 0 || !config_answer(stdout, &cfg)))
            status = run(&cfg, &ranks, &err);
        config_free(&cfg);
    }
    ranks_close(&ranks);
    return status;
}
