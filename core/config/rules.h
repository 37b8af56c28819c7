#pragma once
/* Shared by the files of rules; private to core/config. */
#include "core/config/flag_table.h"

/* A rule: the condition must hold, else the message (flags and remedy) is the error. */
#define REQUIRE(condition, ...)                                                                              \
    do {                                                                                                     \
        if (!(condition)) return err_set(err, __VA_ARGS__);                                                  \
    } while (0)

/* The user gave it, on the command line or in YAML (a checkpoint's value does not count). */
bool rules_gave(const struct config *cfg, int flag);
#define GAVE(field) rules_gave(cfg, CONFIG_FLAG_##field)

/* The run stops after planning: flags that only training needs may be missing. */
bool rules_plans_only(const struct config *cfg);

/* Sizes of the layout, world size, what is split over the data-parallel ranks. */
int rules_parallel(struct config *cfg, struct err *err);
/* Can the model be split that way? After the rules of the model. */
int rules_parallel_model(struct config *cfg, struct err *err);
/* Pipeline stages, chunks, schedule; needs --num-layers. */
int rules_pipeline(struct config *cfg, struct err *err);
/* Micro-batches of every batch size against the schedule. After rules_schedule. */
int rules_micro_batches(struct config *cfg, struct err *err);
/* Experts, their router, which layers have them. After the rules of the model. */
int rules_moe(struct config *cfg, struct err *err);
/* Multi-latent attention. After the rules of heads and positions. */
int rules_mla(struct config *cfg, struct err *err);
/* Multi-token prediction. After the rules of the model and of recompute. */
int rules_mtp(struct config *cfg, struct err *err);
/* Granularity, method, counts, modules. */
int rules_recompute(struct config *cfg, const struct config_module *modules, int count, struct err *err);
/* Data source, split, tokenizer. */
int rules_data(struct config *cfg, struct err *err);
/* Reads the files of --data-args-path and --per-split-data-args-path into the lists of data paths. */
int rules_data_args(struct config *cfg, struct err *err);
/* Batch sizes, iterations, learning rate, weight decay, evaluation. */
int rules_schedule(struct config *cfg, struct err *err);
