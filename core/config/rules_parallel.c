/* Rules of the parallel layout: sizes against the world, what the data-parallel ranks split, and whether the
 * model can be cut that way. Sources: Megatron-LM's validate_args and TransformerConfig.__post_init__. Where
 * it drops a flag that has nothing to act on (sequence parallelism on one tensor-parallel rank), a line says
 * so. */
#include "core/config/rules.h"
#include <string.h>

/* ---- sizes ---- */

/* The ranks of the run, or of the plan. */
static int rules_world(struct config *cfg, struct err *err) {
    long long running = cfg->running_ranks, world;
    if (!config_is_set(cfg, world_size)) {
        cfg->world_size = running ? running : 1;
        config_derive(cfg, CONFIG_FLAG_world_size, "the ranks that run");
    }
    world = cfg->world_size;
    REQUIRE(!running || running == world || rules_plans_only(cfg),
            "--world-size %lld, but %lld rank%s run%s: start %lld with mpirun -np %lld or srun -n %lld, drop "
            "--world-size, or add --dry-run to plan only",
            world, running, running == 1 ? "" : "s", running == 1 ? "s" : "", world, world, world);
    return 0;
}

static int rules_sizes(struct config *cfg, struct err *err) {
    long long tensor = cfg->tensor_model_parallel_size, pipeline = cfg->pipeline_model_parallel_size;
    long long context = cfg->context_parallel_size, model = tensor * pipeline * context;
    REQUIRE(cfg->world_size % model == 0,
            "%lld rank%s not a multiple of --tensor-model-parallel-size %lld * "
            "--pipeline-model-parallel-size %lld * --context-parallel-size %lld = %lld: start a multiple of "
            "%lld ranks (mpirun -np, srun -n; with --dry-run give --world-size) or change the sizes",
            (long long)cfg->world_size, cfg->world_size == 1 ? " is" : "s are", tensor, pipeline, context,
            model, model);
    cfg->data_parallel_size = cfg->world_size / model;
    return 0;
}

/* ---- data parallel ---- */

static int rules_fsdp(struct config *cfg, struct err *err) {
    cfg->sharding = cfg->use_distributed_optimizer ? SHARDING_OPTIM : SHARDING_NONE;
    if (!cfg->use_megatron_fsdp) return 0;
    REQUIRE(cfg->data_parallel_sharding_strategy != SHARDING_NONE || !cfg->use_distributed_optimizer,
            "--data-parallel-sharding-strategy no_shard and --use-distributed-optimizer contradict each "
            "other: drop one of them");
    cfg->sharding = cfg->data_parallel_sharding_strategy;
    return 0;
}

/* Whether other ranks have the same experts: tensor-parallel ones may, where experts are not split. */
static bool shares_experts(const struct config *cfg) {
    int64_t split = config_is_set(cfg, expert_tensor_parallel_size) ? cfg->expert_tensor_parallel_size
                                                                    : cfg->tensor_model_parallel_size;
    split *= cfg->expert_model_parallel_size * cfg->pipeline_model_parallel_size;
    return config_is_set(cfg, num_experts) && cfg->num_experts > 0 && cfg->world_size > split;
}

/* Flags that do nothing where no other rank holds the same weights. */
static void note_lonely(struct config *cfg) {
    static const int flags[] = {CONFIG_FLAG_use_distributed_optimizer, CONFIG_FLAG_overlap_grad_reduce,
                                CONFIG_FLAG_overlap_param_gather, CONFIG_FLAG_use_megatron_fsdp};
    if (cfg->use_tp_pp_dp_mapping && cfg->world_size == 1)
        config_note(cfg, "--use-tp-pp-dp-mapping: one rank has one order");
    if (cfg->data_parallel_size * cfg->context_parallel_size > 1 || shares_experts(cfg)) return;
    for (size_t i = 0; i < ARRAY_COUNT(flags); i++) {
        if (!*(const bool *)flag_field(cfg, flags[i])) continue;
        config_note(cfg, "%s: one rank holds each weight, so there is nothing to split or to reduce",
                    config_flag_name(flags[i]));
    }
}

static int rules_data_parallel(struct config *cfg, struct err *err) {
    REQUIRE(cfg->num_distributed_optimizer_instances == 1,
            "--num-distributed-optimizer-instances %lld: only 1 is built; drop it",
            (long long)cfg->num_distributed_optimizer_instances);
    if (rules_fsdp(cfg, err)) return -1;
    REQUIRE(!cfg->overlap_param_gather || cfg->sharding != SHARDING_NONE,
            "--overlap-param-gather needs --use-distributed-optimizer or --use-megatron-fsdp: add it or drop "
            "--overlap-param-gather");
    REQUIRE(!cfg->overlap_param_gather || cfg->overlap_grad_reduce,
            "--overlap-param-gather needs --overlap-grad-reduce: add it or drop --overlap-param-gather");
    REQUIRE(!config_is_set(cfg, ddp_bucket_size) || !config_is_set(cfg, ddp_num_buckets),
            "--ddp-bucket-size and --ddp-num-buckets exclude each other: drop one of them");
    REQUIRE(!cfg->data_parallel_random_init || cfg->data_parallel_size == 1,
            "--data-parallel-random-init with %lld data-parallel ranks starts them from different weights, "
            "which is not built: drop it",
            (long long)cfg->data_parallel_size);
    note_lonely(cfg);
    return 0;
}

int rules_parallel(struct config *cfg, struct err *err) {
    if (rules_world(cfg, err) || rules_sizes(cfg, err)) return -1;
    return rules_data_parallel(cfg, err);
}

/* ---- can the model be cut that way? ---- */

static int rules_tensor(struct config *cfg, struct err *err) {
    long long tp = cfg->tensor_model_parallel_size, heads = cfg->num_attention_heads;
    long long groups = cfg->num_query_groups, ffn = cfg->ffn_hidden_size;
    REQUIRE(
        heads % tp == 0,
        "--num-attention-heads %lld is not a multiple of --tensor-model-parallel-size %lld: change one of "
        "them",
        heads, tp);
    REQUIRE(groups % tp == 0 || tp % groups == 0,
            "--num-query-groups %lld and --tensor-model-parallel-size %lld: one must be a multiple of the "
            "other; change one of them",
            groups, tp);
    REQUIRE(ffn % tp == 0,
            "--ffn-hidden-size %lld is not a multiple of --tensor-model-parallel-size %lld: change one of "
            "them",
            ffn, tp);
    if (cfg->sequence_parallel && tp == 1) {
        config_note(cfg, "--sequence-parallel: nothing to split with --tensor-model-parallel-size 1");
        cfg->sequence_parallel = false;
        config_derive(cfg, CONFIG_FLAG_sequence_parallel, "--tensor-model-parallel-size 1");
    }
    return 0;
}

static int cp_comm_find(const char *word) {
    static const struct {
        const char *word;
        int value;
    } words[] = {{"p2p", CP_COMM_P2P},
                 {"all_gather", CP_COMM_ALL_GATHER},
                 {"allgather", CP_COMM_ALL_GATHER},
                 {"a2a", CP_COMM_A2A}};
    for (size_t i = 0; i < ARRAY_COUNT(words); i++) {
        if (!strcmp(words[i].word, word)) return words[i].value;
    }
    return -1;
}

static int rules_cp_comm(struct config *cfg, struct err *err) {
    const struct config_texts *list = &cfg->cp_comm_type;
    for (int64_t i = 0; i < list->count; i++) {
        int kind = cp_comm_find(list->items[i]);
        REQUIRE(strcmp(list->items[i], "a2a+p2p"),
                "--cp-comm-type a2a+p2p: two levels of exchange are not built; use p2p, all_gather or a2a");
        REQUIRE(kind >= 0, "--cp-comm-type %s: must be p2p, all_gather (or allgather) or a2a",
                list->items[i]);
        REQUIRE(!i || kind == cfg->cp_comm,
                "--cp-comm-type: another kind of exchange in some layers is not built; give one word");
        cfg->cp_comm = kind;
    }
    REQUIRE(list->count == 1 || list->count == cfg->num_layers,
            "--cp-comm-type: %lld words for --num-layers %lld layers; give one word, or one for each layer",
            (long long)list->count, (long long)cfg->num_layers);
    if (GAVE(cp_comm_type) && cfg->context_parallel_size == 1) {
        config_note(cfg, "--cp-comm-type: nothing to exchange with --context-parallel-size 1");
    }
    return 0;
}

static int rules_sequence(struct config *cfg, struct err *err) {
    long long tp = cfg->tensor_model_parallel_size, cp = cfg->context_parallel_size;
    long long heads = cfg->num_attention_heads / tp, groups = cfg->num_query_groups, seq = cfg->seq_length;
    if (rules_cp_comm(cfg, err)) return -1;
    REQUIRE(
        cp == 1 || seq % (2 * cp) == 0,
        "--seq-length %lld is not a multiple of 2 * --context-parallel-size %lld, the pieces that balance "
        "the causal mask: change one of them",
        seq, cp);
    REQUIRE(!cfg->sequence_parallel || seq / cp % tp == 0,
            "--sequence-parallel splits the %lld tokens of a rank (--seq-length %lld / "
            "--context-parallel-size %lld) over --tensor-model-parallel-size %lld ranks, which does not "
            "divide them: change one of them",
            seq / cp, seq, cp, tp);
    REQUIRE(cp == 1 || cfg->attention_blockwise,
            "--attention-backend unfused does not work with --context-parallel-size %lld: use flash", cp);
    if (cp == 1 || cfg->cp_comm != CP_COMM_A2A) return 0;
    REQUIRE(heads % cp == 0 && groups % tp == 0 && groups / tp % cp == 0,
            "--cp-comm-type a2a splits the heads of a rank over --context-parallel-size %lld, and %lld query "
            "heads with %lld key/value heads over %lld tensor-parallel ranks do not divide: use p2p or "
            "all_gather, or change the sizes",
            cp, (long long)cfg->num_attention_heads, groups, tp);
    return 0;
}

int rules_parallel_model(struct config *cfg, struct err *err) {
    return rules_tensor(cfg, err) || rules_sequence(cfg, err) ? -1 : 0;
}
