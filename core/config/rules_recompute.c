/* Rules of recompute: which flags go together, which modules there are, which layers are meant. */
#include "core/config/rules.h"
#include <stdlib.h>
#include <string.h>

static void list_modules(struct str *out, const struct config_module *modules, int count) {
    for (int i = 0, shown = 0; i < count; i++) {
        if (modules[i].available) str_printf(out, "%s%s", shown++ ? ", " : "", modules[i].name);
    }
    if (!out->data) str_puts(out, "none");
}

static int check_module(const char *name, const struct config_module *modules, int count, struct err *err) {
    static const char *const elsewhere[] = {"gdn_norm_out", "gdp_in_proj", "gdp_qkv", "mhc"};
    const char *nearest = NULL;
    int best = 4;
    for (int i = 0; i < count; i++) {
        if (!strcmp(modules[i].name, name)) {
            REQUIRE(modules[i].available, "--recompute-modules %s: %s", name, modules[i].why_not);
            return 0;
        }
        int distance = str_edit_distance(name, modules[i].name, best);
        if (distance < best) best = distance, nearest = modules[i].name;
    }
    struct str allowed = {0};
    list_modules(&allowed, modules, count);
    for (size_t i = 0; i < ARRAY_COUNT(elsewhere); i++) {
        if (strcmp(elsewhere[i], name)) continue;
        err_set(err, "--recompute-modules %s: a module of models that this program does not have yet; use %s",
                name, allowed.data);
        str_free(&allowed);
        return -1;
    }
    err_set(err, "--recompute-modules %s: no such module%s%s%s; this model has %s", name,
            nearest ? "; did you mean " : "", nearest ? nearest : "", nearest ? "?" : "", allowed.data);
    str_free(&allowed);
    return -1;
}

/* --recompute-layer-ids: rising, each once. */
static int compare_ids(const void *a, const void *b) {
    const int64_t *x = a, *y = b;
    return (*x > *y) - (*x < *y);
}

static int rules_layer_ids(struct config *cfg, struct err *err) {
    struct config_ints *ids = &cfg->recompute_layer_ids;
    static const int others[] = {CONFIG_FLAG_recompute_method, CONFIG_FLAG_recompute_num_layers,
                                 CONFIG_FLAG_recompute_num_layers_per_stage};
    int64_t *sorted = config_keep(cfg, (size_t)ids->count * sizeof(*sorted));
    for (size_t i = 0; i < ARRAY_COUNT(others); i++) {
        REQUIRE(!config_flag_is_set(cfg, others[i]),
                "--recompute-layer-ids and %s both say which layers are recomputed: drop one of them",
                config_flag_name(others[i]));
    }
    int64_t layers = cfg->num_layers + (config_is_set(cfg, mtp_num_layers) ? cfg->mtp_num_layers : 0);
    for (int64_t i = 0; i < ids->count; i++) {
        REQUIRE(ids->items[i] < layers,
                "--recompute-layer-ids %lld: there is no such layer, the layers are 0 to %lld; drop it",
                (long long)ids->items[i], (long long)layers - 1);
        sorted[i] = ids->items[i];
    }
    qsort(sorted, (size_t)ids->count, sizeof(*sorted), compare_ids);
    for (int64_t i = 1; i < ids->count; i++) {
        REQUIRE(sorted[i] > sorted[i - 1], "--recompute-layer-ids names layer %lld twice: give it once",
                (long long)sorted[i]);
    }
    ids->items = sorted;
    return 0;
}

/* --recompute-num-layers-per-stage: one N per stage, 0 for nothing. */
static int rules_per_stage(const struct config *cfg, struct err *err) {
    const struct config_ints *counts = &cfg->recompute_num_layers_per_stage;
    int64_t sum = 0;
    REQUIRE(!config_is_set(cfg, recompute_num_layers),
            "--recompute-num-layers-per-stage and --recompute-num-layers exclude each other: drop one of "
            "them");
    REQUIRE(
        counts->count == cfg->pipeline_model_parallel_size,
        "--recompute-num-layers-per-stage: %lld numbers for --pipeline-model-parallel-size %lld; give one "
        "for each stage",
        (long long)counts->count, (long long)cfg->pipeline_model_parallel_size);
    for (int64_t i = 0; i < counts->count; i++) {
        REQUIRE(counts->items[i] <= cfg->num_layers,
                "--recompute-num-layers-per-stage %lld: must be from 0 to --num-layers %lld",
                (long long)counts->items[i], (long long)cfg->num_layers);
        sum += counts->items[i];
    }
    REQUIRE(sum > 0, "--recompute-num-layers-per-stage with zeros only recomputes nothing: drop it and "
                     "--recompute-granularity full");
    return 0;
}

/* sqrt finds its N itself. */
static int rules_sqrt(const struct config *cfg, struct err *err) {
    static const int flags[] = {CONFIG_FLAG_recompute_num_layers, CONFIG_FLAG_recompute_num_layers_per_stage};
    for (size_t i = 0; i < ARRAY_COUNT(flags); i++) {
        const char *flag = config_flag_name(flags[i]);
        REQUIRE(!config_flag_is_set(cfg, flags[i]),
                "%s has no effect with --recompute-method sqrt, which takes the square root of each chunk's "
                "layers: drop %s, or use uniform",
                flag, flag);
    }
    return 0;
}

static int rules_full(struct config *cfg, struct err *err) {
    long long n = cfg->recompute_num_layers, layers = cfg->num_layers;
    REQUIRE(!config_is_set(cfg, recompute_modules),
            "--recompute-modules has no effect with --recompute-granularity full, which recomputes whole "
            "layers: drop it or use --recompute-granularity selective");
    if (config_is_set(cfg, recompute_layer_ids)) return rules_layer_ids(cfg, err);
    REQUIRE(config_is_set(cfg, recompute_method),
            "--recompute-granularity full needs --recompute-method: uniform, block or sqrt");
    if (cfg->recompute_method == RECOMPUTE_METHOD_SQRT) return rules_sqrt(cfg, err);
    if (config_is_set(cfg, recompute_num_layers_per_stage)) return rules_per_stage(cfg, err);
    REQUIRE(config_is_set(cfg, recompute_num_layers),
            "--recompute-granularity full needs --recompute-num-layers: 1 to --num-layers %lld", layers);
    REQUIRE(n >= 1 && n <= layers, "--recompute-num-layers %lld: must be from 1 to --num-layers %lld", n,
            layers);
    return 0;
}

/* The flags of full, where granularity is something else: `instead` says what to do. */
static int rules_not_full(const struct config *cfg, const char *instead, struct err *err) {
    static const int flags[] = {CONFIG_FLAG_recompute_method, CONFIG_FLAG_recompute_num_layers,
                                CONFIG_FLAG_recompute_num_layers_per_stage, CONFIG_FLAG_recompute_layer_ids};
    for (size_t i = 0; i < ARRAY_COUNT(flags); i++) {
        const char *flag = config_flag_name(flags[i]);
        REQUIRE(!config_flag_is_set(cfg, flags[i]), "%s %s %s", flag, instead, flag);
    }
    return 0;
}

static int rules_selective(struct config *cfg, struct err *err) {
    static const char *const core_attn[] = {"core_attn"};
    if (rules_not_full(cfg, "is for --recompute-granularity full: selective takes --recompute-modules; drop",
                       err))
        return -1;
    if (!config_is_set(cfg, recompute_modules)) {
        cfg->recompute_modules = (struct config_texts){1, core_attn};
        config_derive(cfg, CONFIG_FLAG_recompute_modules, "--recompute-granularity selective");
    }
    return 0;
}

/* --recompute-save-ops: one class a word from here on; unset: all. */
static int rules_op(struct config *cfg, struct err *err) {
    static const char *const classes[] = {"gemm", "attention", "communication"};
    struct config_texts *given = &cfg->recompute_save_ops;
    const char **kept = config_keep(cfg, ARRAY_COUNT(classes) * sizeof(*kept));
    bool chosen[ARRAY_COUNT(classes)] = {false};
    int64_t count = 0;
    if (rules_not_full(cfg, "is for --recompute-granularity full: op takes --recompute-save-ops; drop", err))
        return -1;
    REQUIRE(!config_is_set(cfg, recompute_modules),
            "--recompute-modules is for --recompute-granularity selective: op takes --recompute-save-ops; "
            "drop it");
    if (!config_is_set(cfg, recompute_save_ops)) {
        *given = (struct config_texts){ARRAY_COUNT(classes), classes};
        config_derive(cfg, CONFIG_FLAG_recompute_save_ops, "--recompute-granularity op");
        return 0;
    }
    for (int64_t i = 0; i < given->count; i++)
        for (const char *word = given->items[i] + strspn(given->items[i], ","); *word;
             word += strspn(word, ",")) {
            size_t length = strcspn(word, ","), k = 0;
            while (k < ARRAY_COUNT(classes) &&
                   (strlen(classes[k]) != length || strncmp(classes[k], word, length)))
                k++;
            REQUIRE(
                k < ARRAY_COUNT(classes),
                "--recompute-save-ops %.*s: no such class of operations; use gemm, attention, communication",
                (int)length, word);
            chosen[k] = true;
            word += length;
        }
    for (size_t k = 0; k < ARRAY_COUNT(classes); k++)
        if (chosen[k]) kept[count++] = classes[k];
    REQUIRE(count > 0, "--recompute-save-ops names no class: give gemm, attention or communication, or use "
                       "--recompute-granularity full");
    *given = (struct config_texts){count, kept};
    return 0;
}

static int rules_distribute(const struct config *cfg, struct err *err) {
    long long tp = cfg->tensor_model_parallel_size;
    if (!cfg->distribute_saved_activations) return 0;
    REQUIRE(tp > 1, "--distribute-saved-activations splits over tensor-parallel ranks: it needs "
                    "--tensor-model-parallel-size above 1; drop it");
    REQUIRE(cfg->recompute_granularity == RECOMPUTE_GRANULARITY_FULL,
            "--distribute-saved-activations splits the saved inputs of whole layers: it needs "
            "--recompute-granularity full; add it or drop --distribute-saved-activations");
    REQUIRE(!cfg->sequence_parallel,
            "--distribute-saved-activations and --sequence-parallel both split the saved activations over "
            "the tensor-parallel ranks: drop --distribute-saved-activations");
    long long tokens = cfg->micro_batch_size % tp * (cfg->seq_length / cfg->context_parallel_size % tp) % tp;
    REQUIRE(tokens * (cfg->hidden_size % tp) % tp == 0,
            "--distribute-saved-activations: a layer's input does not divide over "
            "--tensor-model-parallel-size %lld ranks; change one of --micro-batch-size, --seq-length, "
            "--hidden-size or drop the flag",
            tp);
    return 0;
}

/* --recompute-memory-budget: a size, or a share of at most 1. */
static int read_budget(struct config *cfg, struct err *err) {
    const char *text = cfg->recompute_memory_budget;
    uint64_t bytes;
    char *end;
    if (!text) {
        REQUIRE(config_is_set(cfg, device_memory_limit),
                "--recompute-granularity auto needs to know how much one rank may take: add "
                "--recompute-memory-budget, as 70GiB, or --device-memory-limit");
        cfg->recompute_budget_share = 1;
        return 0;
    }
    double share = strtod(text, &end);
    if (end != text && !*end && share > 0 && share <= 1) {
        REQUIRE(
            config_is_set(cfg, device_memory_limit) || cfg->hardware,
            "--recompute-memory-budget %s is a share of --device-memory-limit: add that flag, or give a size "
            "as 70GiB",
            text);
        cfg->recompute_budget_share = share;
        return 0;
    }
    REQUIRE(!str_parse_bytes(text, &bytes) && strchr(text, 'B') && bytes > 0 && bytes <= INT64_MAX,
            "--recompute-memory-budget %s: must be a size with its unit, as 70GiB, or a share from 0 to 1, "
            "as 0.9",
            text);
    cfg->recompute_budget_bytes = (int64_t)bytes;
    return 0;
}

static int rules_auto(struct config *cfg, struct err *err) {
    if (rules_not_full(cfg, "is for --recompute-granularity full: auto chooses itself; drop", err)) return -1;
    REQUIRE(!config_is_set(cfg, recompute_modules),
            "--recompute-modules is for --recompute-granularity selective: auto chooses itself; drop it");
    if (!cfg->recompute_plan) return read_budget(cfg, err);
    REQUIRE(!cfg->recompute_memory_budget && !cfg->recompute_plan_out,
            "--recompute-plan replays a plan and searches none: drop %s",
            cfg->recompute_memory_budget ? "--recompute-memory-budget" : "--recompute-plan-out");
    return 0;
}

/* The flags of auto, where granularity is something else. */
static int rules_not_auto(const struct config *cfg, struct err *err) {
    static const int flags[] = {CONFIG_FLAG_recompute_memory_budget, CONFIG_FLAG_recompute_plan_out,
                                CONFIG_FLAG_recompute_plan};
    for (size_t i = 0; i < ARRAY_COUNT(flags); i++)
        REQUIRE(!config_flag_is_set(cfg, flags[i]),
                "%s needs --recompute-granularity auto: add it or drop %s", config_flag_name(flags[i]),
                config_flag_name(flags[i]));
    return 0;
}

/* --verify, of --find-max-micro-batch-size. */
static int rules_verify(const struct config *cfg, struct err *err) {
    REQUIRE(!cfg->verify || cfg->find_max_micro_batch_size,
            "--verify confirms the answers of --find-max-micro-batch-size: add that flag, or drop --verify");
    REQUIRE(!cfg->verify || !rules_plans_only(cfg),
            "--verify runs what --find-max-micro-batch-size found: drop %s",
            cfg->dry_run_json ? "--dry-run-json"
            : cfg->dry_run    ? "--dry-run"
                              : "--print-topology");
    REQUIRE(!cfg->verify || !cfg->skip_train, "--verify trains one step: drop --skip-train");
    REQUIRE(!cfg->verify || !(cfg->self_check || cfg->recompute_sweep),
            "--verify and %s both choose what is run: drop one of them",
            cfg->self_check ? "--self-check" : "--recompute-sweep");
    REQUIRE(!cfg->verify || (cfg->recompute_granularity == CONFIG_UNSET_CHOICE && !cfg->recompute_plan),
            "--verify tries all recompute settings: drop the recompute flags beside it");
    return 0;
}

int rules_recompute(struct config *cfg, const struct config_module *modules, int count, struct err *err) {
    if (config_is_set(cfg, recompute_modules)) {
        for (int64_t i = 0; i < cfg->recompute_modules.count; i++) {
            if (check_module(cfg->recompute_modules.items[i], modules, count, err)) return -1;
        }
    }
    if (cfg->recompute_activations) {
        REQUIRE(cfg->recompute_granularity != RECOMPUTE_GRANULARITY_FULL &&
                    cfg->recompute_granularity != RECOMPUTE_GRANULARITY_OP &&
                    cfg->recompute_granularity != RECOMPUTE_GRANULARITY_AUTO && !cfg->recompute_plan,
                "--recompute-activations means --recompute-granularity selective and contradicts "
                "--recompute-granularity %s: drop one of them",
                cfg->recompute_granularity == RECOMPUTE_GRANULARITY_FULL ? "full"
                : cfg->recompute_granularity == RECOMPUTE_GRANULARITY_OP ? "op"
                                                                         : "auto");
        if (cfg->recompute_granularity == CONFIG_UNSET_CHOICE) {
            cfg->recompute_granularity = RECOMPUTE_GRANULARITY_SELECTIVE;
            config_derive(cfg, CONFIG_FLAG_recompute_granularity, "--recompute-activations");
        }
    }
    REQUIRE(cfg->recompute_sweep || !(GAVE(recompute_sweep_steps) || config_is_set(cfg, recompute_sweep_out)),
            "--recompute-sweep-steps and --recompute-sweep-out have no effect without --recompute-sweep: add "
            "it or "
            "drop them");
    if (rules_verify(cfg, err)) return -1;
    REQUIRE(!cfg->recompute_sweep ||
                (cfg->recompute_granularity == CONFIG_UNSET_CHOICE && !cfg->recompute_plan),
            "--recompute-sweep tries all recompute settings: drop the recompute flags beside it");
    if (cfg->recompute_plan && cfg->recompute_granularity == CONFIG_UNSET_CHOICE) {
        cfg->recompute_granularity = RECOMPUTE_GRANULARITY_AUTO;
        config_derive(cfg, CONFIG_FLAG_recompute_granularity, "--recompute-plan");
    }
    if (rules_distribute(cfg, err)) return -1;
    REQUIRE(!config_is_set(cfg, recompute_save_ops) || cfg->recompute_granularity == RECOMPUTE_GRANULARITY_OP,
            "--recompute-save-ops has no effect without --recompute-granularity op: add it or drop "
            "--recompute-save-ops");
    if (cfg->recompute_granularity == RECOMPUTE_GRANULARITY_AUTO) return rules_auto(cfg, err);
    if (rules_not_auto(cfg, err)) return -1;
    if (cfg->recompute_granularity == RECOMPUTE_GRANULARITY_FULL) return rules_full(cfg, err);
    if (cfg->recompute_granularity == RECOMPUTE_GRANULARITY_OP) return rules_op(cfg, err);
    if (cfg->recompute_granularity == RECOMPUTE_GRANULARITY_SELECTIVE) return rules_selective(cfg, err);
    if (rules_not_full(cfg, "has no effect without --recompute-granularity full: add it or drop", err))
        return -1;
    REQUIRE(!config_is_set(cfg, recompute_modules),
            "--recompute-modules has no effect without --recompute-granularity selective: add it or drop "
            "--recompute-modules");
    return 0;
}
