/* Rules of the pipeline: how stages share the layers, chunks of a stage, schedule, micro-batches. The exact
 * split is made, and checked, by parallel/pipeline_split.h; here is what can be said without it. */
#include "core/config/rules.h"
#include <string.h>

enum { MAX_LAYOUT_STAGES = 1 << 20 };

/* ---- flags that need a pipeline, and flags that exclude each other ---- */

static int rules_needs_stages(const struct config *cfg, struct err *err) {
    static const int flags[] = {
        CONFIG_FLAG_num_layers_per_virtual_pipeline_stage, CONFIG_FLAG_microbatch_group_size_per_vp_stage,
        CONFIG_FLAG_decoder_first_pipeline_num_layers, CONFIG_FLAG_decoder_last_pipeline_num_layers,
        CONFIG_FLAG_pipeline_model_parallel_layout};
    static const int switches[] = {CONFIG_FLAG_account_for_embedding_in_pipeline_split,
                                   CONFIG_FLAG_account_for_loss_in_pipeline_split};
    if (cfg->pipeline_model_parallel_size > 1) return 0;
    for (size_t i = 0; i < ARRAY_COUNT(flags); i++) {
        const char *flag = config_flag_name(flags[i]);
        REQUIRE(!config_flag_is_set(cfg, flags[i]),
                "%s needs --pipeline-model-parallel-size above 1: raise it or drop %s", flag, flag);
    }
    for (size_t i = 0; i < ARRAY_COUNT(switches); i++) {
        const char *flag = config_flag_name(switches[i]);
        REQUIRE(!*(const bool *)flag_field(cfg, switches[i]),
                "%s needs --pipeline-model-parallel-size above 1: raise it or drop %s", flag, flag);
    }
    REQUIRE(!config_is_set(cfg, num_virtual_stages_per_pipeline_rank) ||
                cfg->num_virtual_stages_per_pipeline_rank == 1,
            "--num-virtual-stages-per-pipeline-rank %lld needs --pipeline-model-parallel-size above 1: raise "
            "it or drop the flag",
            (long long)cfg->num_virtual_stages_per_pipeline_rank);
    return 0;
}

/* The first of the flags that is given, or NULL. */
static const char *given_of(const struct config *cfg, const int *flags, size_t count) {
    for (size_t i = 0; i < count; i++) {
        const void *field = flag_field(cfg, flags[i]);
        bool on =
            flag_rows[flags[i]].kind == FLAG_ON ? *(const bool *)field : config_flag_is_set(cfg, flags[i]);
        if (on) return config_flag_name(flags[i]);
    }
    return NULL;
}

/* Each flag of one kind of split excludes those of the others. */
static int rules_exclusive(const struct config *cfg, struct err *err) {
    static const int uneven[] = {CONFIG_FLAG_decoder_first_pipeline_num_layers,
                                 CONFIG_FLAG_decoder_last_pipeline_num_layers};
    static const int account[] = {CONFIG_FLAG_account_for_embedding_in_pipeline_split,
                                  CONFIG_FLAG_account_for_loss_in_pipeline_split};
    static const int chunks[] = {CONFIG_FLAG_num_layers_per_virtual_pipeline_stage,
                                 CONFIG_FLAG_num_virtual_stages_per_pipeline_rank};
    const char *with_uneven = given_of(cfg, uneven, 2), *with_account = given_of(cfg, account, 2);
    const char *with_chunks = given_of(cfg, chunks, 2);
    const char *layout = config_is_set(cfg, pipeline_model_parallel_layout)
                             ? config_flag_name(CONFIG_FLAG_pipeline_model_parallel_layout)
                             : NULL;
    const char *pairs[][2] = {
        {layout, with_uneven}, {layout, with_account}, {layout, with_chunks}, {with_uneven, with_account}};
    for (size_t i = 0; i < ARRAY_COUNT(pairs); i++) {
        REQUIRE(!pairs[i][0] || !pairs[i][1],
                "%s and %s both say how many layers a stage has: drop one of them", pairs[i][0], pairs[i][1]);
    }
    REQUIRE(!config_is_set(cfg, num_layers_per_virtual_pipeline_stage) ||
                !config_is_set(cfg, num_virtual_stages_per_pipeline_rank),
            "--num-layers-per-virtual-pipeline-stage and --num-virtual-stages-per-pipeline-rank say the same "
            "in two ways: drop one of them");
    REQUIRE(!config_is_set(cfg, num_layers_per_virtual_pipeline_stage) || !with_uneven,
            "--num-layers-per-virtual-pipeline-stage needs stages of equal size, and %s makes them uneven: "
            "give --num-virtual-stages-per-pipeline-rank instead",
            with_uneven);
    return 0;
}

/* ---- layers of a stage, chunks of a stage ---- */

/* Stages of a layout: `|` separates them, "x*n" and "(...)*n" repeat. -1 when it cannot be counted; the other
 * errors are found where the layout is read. */
static int64_t layout_stages(const char *at) {
    int64_t bars[2] = {0, 0}, unit = 0; /* outside and inside of parentheses; of what `*` repeats */
    int depth = 0;
    for (; *at; at++) {
        int64_t times = 0;
        if (*at == '(') {
            if (depth++) return -1;
            bars[1] = 0;
            continue;
        }
        if (*at == ')') {
            if (!depth--) return -1;
            unit = bars[1];
        } else if (*at == '*') {
            for (; at[1] >= '0' && at[1] <= '9' && times < MAX_LAYOUT_STAGES; at++)
                times = 10 * times + (at[1] - '0');
            if (!times) return -1;
            bars[depth] -= unit; /* it was counted once */
            unit *= times;
        } else {
            unit = *at == '|';
        }
        bars[depth] += unit;
        if (bars[depth] > MAX_LAYOUT_STAGES) return -1;
    }
    return depth ? -1 : bars[0] + 1;
}

static int rules_layout(struct config *cfg, struct err *err) {
    long long stages = layout_stages(cfg->pipeline_model_parallel_layout);
    long long pp = cfg->pipeline_model_parallel_size;
    REQUIRE(
        stages > 0,
        "--pipeline-model-parallel-layout '%.200s' cannot be read: use E, t, m, L, |, (...)*n and x*n as in "
        "\"Et*3|(tt|)*29,t|L\"",
        cfg->pipeline_model_parallel_layout);
    REQUIRE(stages % pp == 0,
            "--pipeline-model-parallel-layout has %lld stages, not a multiple of "
            "--pipeline-model-parallel-size %lld: change one of them",
            stages, pp);
    cfg->virtual_stages = stages / pp;
    return 0;
}

/* First and last stage have their own numbers of layers, the middle shares the rest. */
static int rules_uneven(const struct config *cfg, struct err *err) {
    bool has_first = config_is_set(cfg, decoder_first_pipeline_num_layers);
    bool has_last = config_is_set(cfg, decoder_last_pipeline_num_layers);
    long long first = has_first ? cfg->decoder_first_pipeline_num_layers : 0;
    long long last = has_last ? cfg->decoder_last_pipeline_num_layers : 0;
    long long middle = cfg->pipeline_model_parallel_size - has_first - has_last;
    long long left = cfg->num_layers - first - last, chunks = cfg->virtual_stages;
    REQUIRE(left >= 0 && (middle ? left > 0 && left % middle == 0 : left == 0),
            "--decoder-first-pipeline-num-layers %lld and --decoder-last-pipeline-num-layers %lld leave %lld "
            "of --num-layers %lld for the other %lld stages, which does not divide: change one of them",
            first, last, left, (long long)cfg->num_layers, middle);
    REQUIRE(first % chunks == 0 && last % chunks == 0 && (!middle || left / middle % chunks == 0),
            "the layers of each stage (first %lld, last %lld, others %lld) must be a multiple of "
            "--num-virtual-stages-per-pipeline-rank %lld: change one of them",
            first, last, middle ? left / middle : 0, chunks);
    return 0;
}

/* All stages alike; the embedding and the loss may count as layers. */
static int rules_even(struct config *cfg, struct err *err) {
    long long extra = cfg->account_for_embedding_in_pipeline_split + cfg->account_for_loss_in_pipeline_split;
    long long layers = cfg->num_layers + extra, pp = cfg->pipeline_model_parallel_size, chunks;
    REQUIRE(layers % pp == 0,
            "--num-layers %lld%s is not a multiple of --pipeline-model-parallel-size %lld: change one of "
            "them, or give --decoder-first-pipeline-num-layers, --decoder-last-pipeline-num-layers or "
            "--pipeline-model-parallel-layout",
            (long long)cfg->num_layers,
            extra == 2   ? " + 2 (embedding and loss count as layers)"
            : extra == 1 ? " + 1 (the embedding or the loss counts as a layer)"
                         : "",
            pp);
    if (config_is_set(cfg, num_layers_per_virtual_pipeline_stage)) {
        long long per_chunk = cfg->num_layers_per_virtual_pipeline_stage;
        REQUIRE(layers / pp % per_chunk == 0,
                "--num-layers-per-virtual-pipeline-stage %lld does not divide the %lld layers of a stage: "
                "give a divisor of it",
                per_chunk, layers / pp);
        cfg->virtual_stages = layers / pp / per_chunk;
    }
    chunks = cfg->virtual_stages;
    REQUIRE(layers / pp % chunks == 0,
            "--num-virtual-stages-per-pipeline-rank %lld does not divide the %lld layers of a stage: give a "
            "divisor of it",
            chunks, layers / pp);
    return 0;
}

/* ---- schedule ---- */

static int rules_interleaved(struct config *cfg, struct err *err) {
    long long pp = cfg->pipeline_model_parallel_size;
    REQUIRE(pp > 2 || cfg->overlap_p2p_comm,
            "virtual stages with --no-overlap-p2p-communication need --pipeline-model-parallel-size above 2 "
            "(it is %lld): raise it or drop --no-overlap-p2p-communication",
            pp);
    REQUIRE(!cfg->use_megatron_fsdp || cfg->sharding == SHARDING_NONE,
            "--use-megatron-fsdp does not work with virtual pipeline stages: drop "
            "--num-layers-per-virtual-pipeline-stage or its companion, or use --use-distributed-optimizer");
    if (!config_is_set(cfg, microbatch_group_size_per_vp_stage)) {
        cfg->microbatch_group_size_per_vp_stage = pp;
        config_derive(cfg, CONFIG_FLAG_microbatch_group_size_per_vp_stage, "--pipeline-model-parallel-size");
    }
    REQUIRE(cfg->microbatch_group_size_per_vp_stage >= pp,
            "--microbatch-group-size-per-virtual-pipeline-stage %lld is less than "
            "--pipeline-model-parallel-size %lld: raise it",
            (long long)cfg->microbatch_group_size_per_vp_stage, pp);
    return 0;
}

static int choose_schedule(struct config *cfg, struct err *err) {
    bool interleaved = cfg->virtual_stages > 1;
    int asked = cfg->pipeline_schedule;
    REQUIRE(asked != PIPELINE_SCHEDULE_INTERLEAVED || interleaved,
            "--pipeline-schedule interleaved needs several chunks per stage: give "
            "--num-virtual-stages-per-pipeline-rank or --num-layers-per-virtual-pipeline-stage");
    REQUIRE(asked != PIPELINE_SCHEDULE_1F1B || !interleaved,
            "--pipeline-schedule 1f1b runs one chunk per stage, and there are %lld: use interleaved, or drop "
            "the virtual stages",
            (long long)cfg->virtual_stages);
    REQUIRE(asked != PIPELINE_SCHEDULE_ZERO_BUBBLE || !interleaved,
            "--pipeline-schedule zero-bubble runs one chunk per stage, and there are %lld: use interleaved, "
            "or drop the virtual stages",
            (long long)cfg->virtual_stages);
    if (asked == PIPELINE_SCHEDULE_ZERO_BUBBLE) {
        REQUIRE(cfg->pipeline_model_parallel_size > 1,
                "--pipeline-schedule zero-bubble fills the gaps of a pipeline: it needs "
                "--pipeline-model-parallel-size above 1; raise it or drop the schedule");
        REQUIRE(!cfg->use_megatron_fsdp || cfg->sharding == SHARDING_NONE,
                "--pipeline-schedule zero-bubble does not work with --use-megatron-fsdp: drop one of them, "
                "or use --use-distributed-optimizer");
    }
    REQUIRE(interleaved || !config_is_set(cfg, microbatch_group_size_per_vp_stage),
            "--microbatch-group-size-per-virtual-pipeline-stage has no effect with one chunk per stage: give "
            "--num-virtual-stages-per-pipeline-rank or drop it");
    if (asked == PIPELINE_SCHEDULE_AUTO) {
        cfg->pipeline_schedule = interleaved ? PIPELINE_SCHEDULE_INTERLEAVED : PIPELINE_SCHEDULE_1F1B;
        config_derive(cfg, CONFIG_FLAG_pipeline_schedule, "--pipeline-schedule auto");
    }
    return interleaved ? rules_interleaved(cfg, err) : 0;
}

int rules_pipeline(struct config *cfg, struct err *err) {
    bool uneven = config_is_set(cfg, decoder_first_pipeline_num_layers) ||
                  config_is_set(cfg, decoder_last_pipeline_num_layers);
    int status;
    cfg->virtual_stages = config_is_set(cfg, num_virtual_stages_per_pipeline_rank)
                              ? cfg->num_virtual_stages_per_pipeline_rank
                              : 1;
    if (rules_needs_stages(cfg, err) || rules_exclusive(cfg, err)) return -1;
    if (config_is_set(cfg, pipeline_model_parallel_layout))
        status = rules_layout(cfg, err);
    else
        status = uneven ? rules_uneven(cfg, err) : rules_even(cfg, err);
    return status ? -1 : choose_schedule(cfg, err);
}

/* ---- micro-batches ---- */

/* Interleaved: micro-batches come in groups of G; the last group may be short, but not shorter than the
 * pipeline. */
static int check_interleaved(const struct config *cfg, const char *shown, int64_t batch, struct err *err) {
    long long count = batch / (cfg->micro_batch_size * cfg->data_parallel_size);
    long long group = cfg->microbatch_group_size_per_vp_stage, pp = cfg->pipeline_model_parallel_size;
    REQUIRE(count >= group,
            "%s: a batch of %lld is %lld micro-batches on each data-parallel rank, less than the group of "
            "%lld that virtual pipeline stages run in a row: raise the batch, or lower "
            "--microbatch-group-size-per-virtual-pipeline-stage (at least %lld)",
            shown, (long long)batch, count, group, pp);
    REQUIRE(count % group == 0 || count % group >= pp,
            "%s: a batch of %lld is %lld micro-batches on each data-parallel rank, which leaves %lld after "
            "groups of %lld; virtual pipeline stages need none or at least --pipeline-model-parallel-size "
            "%lld: change the batch or --microbatch-group-size-per-virtual-pipeline-stage",
            shown, (long long)batch, count, count % group, group, pp);
    return 0;
}

int rules_micro_batches(struct config *cfg, struct err *err) {
    const char *shown = config_is_set(cfg, rampup_batch_size)          ? "--rampup-batch-size"
                        : config_is_set(cfg, step_batch_size_schedule) ? "--step-batch-size-schedule"
                                                                       : "--global-batch-size";
    if (cfg->virtual_stages == 1) return 0;
    for (int64_t i = 0; i < cfg->batch_stage_count; i++) {
        if (check_interleaved(cfg, shown, cfg->batch_stages[i].global_batch_size, err)) return -1;
    }
    return check_interleaved(cfg, "--eval-global-batch-size", cfg->eval_global_batch_size, err);
}
