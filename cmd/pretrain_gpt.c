/* main: parse, plan, (dry run: print and stop), allocate, train, free. */
#include "core/base/log.h"
#include "core/base/mem.h"
#include "core/base/version.h"
#include "core/checkpoint/checkpoint.h"
#include "core/train/trainer.h"
#include <stdio.h>
#include <string.h>

static int usage_error(const struct err *err) {
    log_error("%s", err->text);
    return STATUS_USAGE;
}

static void list_modules(struct config_module *modules) {
    for (int i = 0; i < MODULE_COUNT; i++)
        modules[i] =
            (struct config_module){recompute_module_info(i)->name, i != MODULE_layer,
                                   "it is what full recompute selects; use --recompute-granularity full"};
}

static int write_file(const char *path, const struct str *text, struct err *err) {
    FILE *f = fopen(path, "w");
    if (!f || fwrite(text->data, 1, text->length, f) != text->length || fputc('\n', f) == EOF || fclose(f))
        return err_set(err, "%s: cannot be written; check the folder and the space on the disk", path);
    return 0;
}

/* --dry-run is the plan, printed. */
static int dry_run(const struct config *cfg, struct err *err) {
    struct setup setup;
    struct str json = {0};
    int status = STATUS_OK;
    if (setup_open(&setup, cfg, err)) {
        setup_close(&setup);
        return usage_error(err);
    }
    plan_print_memory(&setup.plan, stdout);
    plan_print_recompute(&setup.plan, stdout);
    if (cfg->recompute_trace) plan_print_trace(&setup.plan, stdout);
    plan_write_json(&setup.plan, &json);
    if (cfg->dry_run_json && write_file(cfg->dry_run_json, &json, err)) status = usage_error(err);
    if (config_is_set(cfg, device_memory_limit) &&
        setup.plan.arena_bytes > (uint64_t)cfg->device_memory_limit) {
        log_error("the plan does not fit --device-memory-limit");
        status = STATUS_OUT_OF_MEMORY;
    }
    str_free(&json);
    setup_close(&setup);
    return status;
}

static int train(const struct config *cfg, struct err *err) {
    struct trainer trainer;
    int status = STATUS_USAGE;
    if (trainer_open(&trainer, cfg, err)) {
        usage_error(err);
    } else {
        plan_print_memory(&trainer.setup.plan, stdout);
        plan_print_recompute(&trainer.setup.plan, stdout);
        if (cfg->recompute_trace) plan_print_trace(&trainer.setup.plan, stdout);
        fflush(stdout);
        status = trainer_run(&trainer);
    }
    trainer_close(&trainer);
    return status;
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

static int run(struct config *cfg, struct err *err) {
    struct config_module modules[MODULE_COUNT];
    struct str json = {0};
    set_log_level(cfg);
    list_modules(modules);
    if (cfg->use_checkpoint_args && load_checkpoint_args(cfg, err)) return usage_error(err);
    cfg->running_ranks = 1;
    if (config_validate(cfg, modules, MODULE_COUNT, err)) return usage_error(err);
    config_print_notes(stderr, cfg);
    config_print_resolved(stdout, cfg);
    if (cfg->resolved_config_file) {
        config_write_json(&json, cfg);
        int status = write_file(cfg->resolved_config_file, &json, err);
        str_free(&json);
        if (status) return usage_error(err);
    }
    return cfg->dry_run ? dry_run(cfg, err) : train(cfg, err);
}

int main(int argc, char **argv) {
    struct config cfg;
    struct err err;
    int status = STATUS_OK;
    if (config_parse(argc, (const char *const *)argv, &cfg, &err)) return usage_error(&err);
    if (cfg.version)
        puts(version_string());
    else if (!config_answer(stdout, &cfg))
        status = run(&cfg, &err);
    config_free(&cfg);
    return status;
}
