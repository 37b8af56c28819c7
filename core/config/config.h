#pragma once
/* Configuration: every flag, its value and where the value came from. One row of flags.def makes one field of
 * struct config; the field has Megatron-LM's destination name (--norm-epsilon is layernorm_epsilon).
 *
 *     struct config cfg;
 *     struct err err;
 *     if (config_parse(argc, argv, &cfg, &err)) { ...print err.text, exit 2... }
 *     if (config_answer(stdout, &cfg)) { ...exit 0... }     // --help and its kind
 *     // with --use-checkpoint-args: config_load_json(&cfg, text, length, name, &err)
 *     cfg.running_ranks = ranks that the launcher started;
 *     if (config_validate(&cfg, modules, module_count, &err)) { ...exit 2... }
 *     config_print_notes(stderr, &cfg);
 *     config_print_resolved(stdout, &cfg);
 *     config_free(&cfg);
 *
 * Kinds of flags and their C types; in brackets the value that means "unset" (Megatron-LM's None; the word
 * None on the command line, null or None in YAML): INT     int64_t            [CONFIG_UNSET_INT] CHOICE  int,
 * a constant of choices.def  [CONFIG_UNSET_CHOICE] FLOAT   double             [NaN]                     TEXTS
 * struct config_texts             [count is -1] ON/OFF  bool               [cannot be unset]         INTS
 * struct config_ints              [count is -1] TEXT    const char *       [NULL]                    SIZE
 * int64_t, bytes                  [CONFIG_UNSET_INT] config_is_set(&cfg, field) asks for any kind;
 * config_is_given(&cfg, field) whether the user or a checkpoint gave it.
 *
 * Command line: `--flag value` and `--flag=value`, the last one wins, a multi-valued flag takes words until
 * the next
 * "--word", no abbreviations. Precedence: command line, then YAML (--yaml-cfg), then checkpoint, then
 * default.
 *
 * config_validate checks every rule between flags (rules.c) and derives what follows from them: derived flags
 * are written into their own fields (ffn_hidden_size, kv_channels, num_query_groups, global_batch_size,
 * train_iters, lr_decay_iters ..., origin "derived from ..."), everything else into the fields at the end of
 * the struct. After it the config is const.
 *
 * Memory: strings and lists belong to the config and live until config_free. A plain copy of the struct
 * shares them and must not be freed. What can fail: parsing, reading YAML and JSON, validation; each returns
 * -1 with a one-line message that names flag, value, what is allowed and what to do. */
#include "core/base/check.h"
#include "core/base/str.h"
#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#define CONFIG_UNSET_INT    INT64_MIN
#define CONFIG_UNSET_CHOICE (-1)

/* constants of the choices: RECOMPUTE_GRANULARITY_FULL, DEVICE_CPU ... */
#define CHOICES(set)          enum {
#define VALUE(constant, word) constant,
#define NUMBER(value, word)
#define REFUSED(word, why)
#define END(set)                                                                                             \
    CHOICES_END_##set                                                                                        \
    }                                                                                                        \
    ;
#include "core/config/choices.def"
#undef CHOICES
#undef VALUE
#undef NUMBER
#undef REFUSED
#undef END

struct config_texts {
    int64_t count; /* -1: unset */
    const char *const *items;
};

struct config_ints {
    int64_t count; /* -1: unset */
    const int64_t *items;
};

enum config_flag {
#define GROUP(id, title, from_checkpoint, shapes_result)
#define FLAG(kind, field, names, def, limits, help) CONFIG_FLAG_##field,
#define SAME(kind, field, names, def, limits, help) CONFIG_FLAG_##field,
#include "core/config/flags.def"
#undef GROUP
#undef FLAG
#undef SAME
    CONFIG_FLAG_COUNT
};

enum config_origin {
    CONFIG_DEFAULT,
    CONFIG_DERIVED,
    CONFIG_CHECKPOINT,
    CONFIG_YAML,
    CONFIG_COMMAND_LINE,
};

/* The batch size of one stretch of training: from `first_sample` on, steps take `global_batch_size`
 * sequences. */
struct config_batch_stage {
    int64_t first_sample, global_batch_size;
};

#define CONFIG_FIELD_INT(field)    int64_t field;
#define CONFIG_FIELD_SIZE(field)   int64_t field;
#define CONFIG_FIELD_FLOAT(field)  double field;
#define CONFIG_FIELD_ON(field)     bool field;
#define CONFIG_FIELD_OFF(field)    bool field;
#define CONFIG_FIELD_TEXT(field)   const char *field;
#define CONFIG_FIELD_CHOICE(field) int field;
#define CONFIG_FIELD_TEXTS(field)  struct config_texts field;
#define CONFIG_FIELD_INTS(field)   struct config_ints field;

struct config {
#define GROUP(id, title, from_checkpoint, shapes_result)
#define FLAG(kind, field, names, def, limits, help) CONFIG_FIELD_##kind(field)
#define SAME(kind, field, names, def, limits, help) CONFIG_FIELD_##kind(field)
#include "core/config/flags.def"
#undef GROUP
#undef FLAG
#undef SAME

    /* Set by the caller before config_validate: ranks that the launcher started; 0: not known (tests). */
    int64_t running_ranks;

    /* Derived by config_validate; no flags. */
    int mlp_activation;            /* MLP_ACTIVATION_*, same order as enum activation of the kernels */
    int params_dtype;              /* PARAMS_DTYPE_* of weights and activations */
    bool attention_blockwise;      /* flash; false: unfused, with s x s scores */
    bool qkv_bias;                 /* the QKV projection has a bias */
    bool dynamic_loss_scale;       /* fp16 without --loss-scale */
    int64_t data_parallel_size;    /* world / (tensor * pipeline * context) */
    int64_t virtual_stages;        /* model chunks of a pipeline stage; 1: not interleaved */
    int sharding;                  /* SHARDING_* over the data-parallel (times context) ranks */
    int cp_comm;                   /* CP_COMM_* */
    int64_t rotary_dim;            /* rotated dims of a head; 0 without rotary positions */
    const char *moe_layer_pattern; /* a '0' or '1' for each layer: 1 has experts; NULL without experts */
    double output_init_std; /* of attention and MLP output weights: init_method_std / sqrt(2 * layers) */
    int64_t recompute_budget_bytes;                /* of --recompute-memory-budget; 0: it is a share */
    double recompute_budget_share;                 /* of the device memory limit; 0: not a share */
    double split_weights[3];                       /* train, validation, test; sum 1 */
    int64_t batch_stage_count;                     /* at least 1 */
    const struct config_batch_stage *batch_stages; /* by rising first_sample; the first is 0 */
    int64_t lr_decay_steps, lr_wsd_decay_steps, wd_incr_steps; /* in samples; 0 without --train-iters */
    double lr_warmup_steps;                                    /* in samples, may have a fraction */

    /* Provenance and memory. */
    unsigned char origin[CONFIG_FLAG_COUNT];     /* enum config_origin */
    const char *derived_from[CONFIG_FLAG_COUNT]; /* what a derived value follows from, or NULL */
    struct config_block *blocks;                 /* owned */
    struct str notes;                            /* one line per thing the user should know; owned */
};

/* A module that --recompute-modules may name; the list comes from recompute/modules.def through the caller.
 */
struct config_module {
    const char *name;
    bool available;      /* false: this program or this model does not have it */
    const char *why_not; /* reason and remedy when not available */
};

/* Sets every field to its default. config_parse does it itself. */
void config_init(struct config *cfg);
void config_free(struct config *cfg);
/* Parses argv[1..argc) and the file of --yaml-cfg. On error cfg is freed and must not be used. */
int config_parse(int argc, const char *const *argv, struct config *cfg, struct err *err);
/* Merges model and tokenizer flags of a resolved config (as config_write_json wrote it) into the flags that
 * the user did not give; call before config_validate. */
int config_load_json(struct config *cfg, const char *text, size_t length, const char *name, struct err *err);
/* Checks and derives, once. On error cfg still holds its memory and is fit for config_free only. */
int config_validate(struct config *cfg, const struct config_module *modules, int module_count,
                    struct err *err);

bool config_flag_is_set(const struct config *cfg, enum config_flag flag);
bool config_flag_is_given(const struct config *cfg, enum config_flag flag);
#define config_is_set(cfg, field)   config_flag_is_set((cfg), CONFIG_FLAG_##field)
#define config_is_given(cfg, field) config_flag_is_given((cfg), CONFIG_FLAG_##field)
/* "--norm-epsilon" for CONFIG_FLAG_layernorm_epsilon; the first spelling. */
const char *config_flag_name(enum config_flag flag);

/* The word of a CHOICE flag: "1f1b" for CONFIG_FLAG_pipeline_schedule. The flag must be set. */
const char *config_choice_name(const struct config *cfg, enum config_flag flag);

/* Rows of the embedding for a tokenizer with vocab_size ids (--padded-vocab-size, --no-pad-vocab-size,
 * --make-vocab-size-divisible-by x tensor-parallel size); -1 with a message when --padded-vocab-size is too
 * small, or the tensor-parallel size does not divide it. */
int64_t config_padded_vocab_size(const struct config *cfg, int64_t vocab_size, struct err *err);
/* Sequences of the step that starts after consumed_samples. */
int64_t config_batch_size_at(const struct config *cfg, int64_t consumed_samples);

/* Lines of notes: "--transformer-impl: ..." for accepted implementation choices, warnings. */
void config_print_notes(FILE *out, const struct config *cfg);
/* Megatron-LM's table of arguments, each value followed by its origin. */
void config_print_resolved(FILE *out, const struct config *cfg);
/* {"num_layers": {"value": 4, "origin": "command line"}, ...} */
void config_write_json(struct str *out, const struct config *cfg);
/* Prints what --help, --help-recompute and --help-markdown ask for; false when none was given. */
bool config_answer(FILE *out, const struct config *cfg);
void config_help(FILE *out);
void config_help_recompute(FILE *out);
void config_write_flags_markdown(FILE *out);
/* Hash of all values that shape the result (not of paths, logging and device); the same on every rank. */
uint64_t config_hash(const struct config *cfg);
