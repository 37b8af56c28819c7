/* Parallel layouts: what a layout needs is refused by the names of its flags with a remedy, what follows from
 * it is derived, and no flag that has nothing to act on passes without a line. */
#include "core/config/config.h"
#include "tests/test.h"

static const struct config_module modules[] = {
    {"core_attn", true, NULL}, {"mlp", true, NULL}, {"layernorm", true, NULL}};

static int words(char *text, const char **argv, int capacity) {
    int argc = 0;
    for (char *at = text; *at && argc < capacity;) {
        at += strspn(at, " ");
        if (!*at) break;
        argv[argc++] = at;
        at += strcspn(at, " ");
        if (*at) *at++ = 0;
    }
    return argc;
}

#define MODEL                                                                                                \
    "pretrain_gpt --num-layers 8 --hidden-size 256 --num-attention-heads 8 --seq-length 256 "                \
    "--max-position-embeddings 256 --micro-batch-size 2 --train-iters 20 --lr 1e-3 --mock-data "             \
    "--vocab-size "                                                                                          \
    "1024 "

static struct config cfg;
static struct err err;

/* 0 and a config to free, or -1 and err. `running` is what a launcher started; 0: not known. */
static int validate(int64_t running, const char *tail) {
    static char text[4096];
    const char *argv[256];
    snprintf(text, sizeof(text), "%s %s", MODEL, tail);
    int argc = words(text, argv, 256);
    err.text[0] = 0;
    if (config_parse(argc, argv, &cfg, &err)) return -1;
    cfg.running_ranks = running;
    if (!config_validate(&cfg, modules, ARRAY_COUNT(modules), &err)) return 0;
    config_free(&cfg);
    return -1;
}

#define ACCEPTS(running, tail) EXPECT(!validate(running, tail), "%s: %s", tail, err.text)

struct refusal {
    int running;
    const char *tail, *says;
};

static void walk(const struct refusal *rows, size_t count) {
    static const char *const remedies[] = {"give",   "add",  "drop", "use",  "raise",
                                           "change", "must", "need", "once", "takes"};
    for (size_t i = 0; i < count; i++) {
        const struct refusal *r = &rows[i];
        if (!validate(r->running, r->tail)) {
            EXPECT(false, "'%s' is taken", r->tail);
            config_free(&cfg);
            continue;
        }
        EXPECT_CONTAINS(err.text, r->says);
        EXPECT(!strchr(err.text, '\n'), "not one line: %s", err.text);
        bool remedy = false;
        for (size_t k = 0; k < ARRAY_COUNT(remedies); k++) remedy = remedy || strstr(err.text, remedies[k]);
        EXPECT(remedy, "no remedy: %s", err.text);
    }
}

#define TP2   "--tensor-model-parallel-size 2 "
#define TP4   "--tensor-model-parallel-size 4 "
#define PP2   "--pipeline-model-parallel-size 2 "
#define PP4   "--pipeline-model-parallel-size 4 "
#define CP2   "--context-parallel-size 2 "
#define VP2   "--num-virtual-stages-per-pipeline-rank 2 "
#define BATCH "--global-batch-size 16 "
#define FULL  "--recompute-granularity full "

TEST(sizes_that_do_not_fit_the_ranks_are_refused) {
    static const struct refusal rows[] = {
        {1, TP2, "1 rank is not a multiple of --tensor-model-parallel-size 2"},
        {4, TP2 PP2 CP2, "4 ranks are not a multiple of"},
        {6, TP4, "start a multiple of 4 ranks"},
        {1, "--world-size 2", "--world-size 2, but 1 rank runs: start 2 with mpirun -np 2 or srun -n 2"},
        {4, "--world-size 2", "--world-size 2, but 4 ranks run:"},
        {1, "--dry-run --world-size 6 " TP4, "6 ranks are not a multiple of"},
        {2, "--expert-model-parallel-size 2", "has no effect without --num-experts"},
        {2, TP2 "--expert-tensor-parallel-size 2", "has no effect without --num-experts"},
        {0, "--num-distributed-optimizer-instances 2", "only 1 is built"},
        {8, "--profile --profile-ranks 8", "the ranks are 0 to 7"},
    };
    walk(rows, ARRAY_COUNT(rows));
}

TEST(a_plan_may_have_any_number_of_ranks_and_a_run_has_its_own) {
    ACCEPTS(1, "--dry-run --world-size 64 " TP4 PP2);
    EXPECT_EQ(cfg.world_size, 64);
    EXPECT_EQ(cfg.data_parallel_size, 8);
    config_free(&cfg);
    ACCEPTS(1, "--print-topology --world-size 16 " TP2);
    EXPECT_EQ(cfg.data_parallel_size, 8);
    config_free(&cfg);
    ACCEPTS(8, TP2 CP2);
    EXPECT_EQ(cfg.world_size, 8);
    EXPECT_EQ(cfg.data_parallel_size, 2);
    EXPECT_EQ(cfg.global_batch_size, 4); /* micro batch 2 on each of 2 */
    config_free(&cfg);
    ACCEPTS(4, "--world-size 4 --profile --profile-ranks 3");
    config_free(&cfg);
    ACCEPTS(0, "");
    EXPECT_EQ(cfg.world_size, 1);
    config_free(&cfg);
}

TEST(a_model_that_cannot_be_cut_that_way_is_refused) {
    static const struct refusal rows[] = {
        {3, "--tensor-model-parallel-size 3", "--num-attention-heads 8 is not a multiple of"},
        {4, TP4 "--group-query-attention --num-attention-heads 24 --hidden-size 240 --num-query-groups 6",
         "--num-query-groups 6 and --tensor-model-parallel-size 4: one must be a multiple of the other"},
        {4, TP4 "--ffn-hidden-size 1022", "--ffn-hidden-size 1022 is not a multiple of"},
        {2, CP2 "--seq-length 254", "--seq-length 254 is not a multiple of 2 * --context-parallel-size 2"},
        {2, CP2 "--attention-backend unfused", "--attention-backend unfused does not work with"},
        {4, TP4 "--sequence-parallel --seq-length 254", "--sequence-parallel splits the 254 tokens"},
        {16, "--tensor-model-parallel-size 8 " CP2 "--sequence-parallel --seq-length 232",
         "the 116 tokens of a rank (--seq-length 232 / --context-parallel-size 2)"},
        {8, TP2 "--context-parallel-size 4 --cp-comm-type a2a --group-query-attention --num-query-groups 4",
         "use p2p or all_gather"},
        {8, TP4 CP2 "--cp-comm-type a2a --group-query-attention --num-query-groups 2", "--cp-comm-type a2a"},
        {2, CP2 "--cp-comm-type a2a+p2p", "two levels of exchange are not built; use p2p"},
        {2, CP2 "--cp-comm-type ring", "--cp-comm-type ring: must be p2p, all_gather"},
        {2, CP2 "--cp-comm-type p2p a2a p2p p2p p2p p2p p2p p2p", "another kind of exchange in some layers"},
        {2, CP2 "--cp-comm-type p2p p2p", "2 words for --num-layers 8 layers"},
    };
    walk(rows, ARRAY_COUNT(rows));
}

TEST(models_that_can_be_cut_are_taken) {
    static const struct {
        int running;
        const char *tail;
    } rows[] = {
        {8, "--tensor-model-parallel-size 8 --group-query-attention --num-query-groups 2"},
        {8, "--tensor-model-parallel-size 8 --sequence-parallel"},
        {2, TP2 "--group-query-attention --num-query-groups 4"},
        {4, CP2 TP2 "--cp-comm-type a2a --group-query-attention --num-query-groups 4"},
        {4, "--context-parallel-size 4 --cp-comm-type a2a"},
        {2, CP2 "--cp-comm-type p2p p2p p2p p2p p2p p2p p2p p2p"},
        {2, TP2 "--attention-backend unfused"},
        {16, TP2 PP2 CP2 "--sequence-parallel --use-distributed-optimizer --overlap-grad-reduce "
                         "--overlap-param-gather --use-tp-pp-dp-mapping --no-align-grad-reduce"},
    };
    for (size_t i = 0; i < ARRAY_COUNT(rows); i++) {
        ACCEPTS(rows[i].running, rows[i].tail);
        config_free(&cfg);
    }
}

TEST(the_kind_of_exchange_is_one_of_three) {
    static const struct {
        const char *word;
        int kind;
    } rows[] = {{"", CP_COMM_P2P},
                {"--cp-comm-type p2p", CP_COMM_P2P},
                {"--cp-comm-type all_gather", CP_COMM_ALL_GATHER},
                {"--cp-comm-type allgather", CP_COMM_ALL_GATHER},
                {"--cp-comm-type a2a", CP_COMM_A2A}};
    for (size_t i = 0; i < ARRAY_COUNT(rows); i++) {
        char tail[128];
        snprintf(tail, sizeof(tail), "%s %s", CP2, rows[i].word);
        ACCEPTS(2, tail);
        EXPECT_EQ(cfg.cp_comm, rows[i].kind);
        EXPECT(!cfg.notes.data || !strstr(cfg.notes.data, "nothing to exchange"), "%s", cfg.notes.data);
        config_free(&cfg);
    }
}

TEST(what_the_data_parallel_ranks_split_follows_from_the_flags) {
    static const struct {
        const char *tail;
        int sharding;
    } rows[] = {
        {"", SHARDING_NONE},
        {"--use-distributed-optimizer", SHARDING_OPTIM},
        {"--use-megatron-fsdp", SHARDING_OPTIM_GRADS_PARAMS},
        {"--use-megatron-fsdp --use-distributed-optimizer", SHARDING_OPTIM_GRADS_PARAMS},
        {"--use-megatron-fsdp --data-parallel-sharding-strategy no_shard", SHARDING_NONE},
        {"--use-megatron-fsdp --data-parallel-sharding-strategy optim", SHARDING_OPTIM},
        {"--use-megatron-fsdp --data-parallel-sharding-strategy optim_grads", SHARDING_OPTIM_GRADS},
        {"--use-megatron-fsdp --megatron-fsdp-version 2 --init-model-with-meta-device --ckpt-format "
         "fsdp_dtensor "
         "--overlap-grad-reduce --overlap-param-gather",
         SHARDING_OPTIM_GRADS_PARAMS},
    };
    for (size_t i = 0; i < ARRAY_COUNT(rows); i++) {
        ACCEPTS(2, rows[i].tail);
        EXPECT_EQ(cfg.sharding, rows[i].sharding);
        config_free(&cfg);
    }
    static const struct refusal refused[] = {
        {2, "--data-parallel-sharding-strategy optim", "without --use-megatron-fsdp"},
        {2, "--megatron-fsdp-version 2", "without --use-megatron-fsdp"},
        {2, "--use-megatron-fsdp --data-parallel-sharding-strategy no_shard --use-distributed-optimizer",
         "contradict each other"},
        {2, "--overlap-param-gather --overlap-grad-reduce",
         "needs --use-distributed-optimizer or --use-megatron-fsdp"},
        {2,
         "--overlap-param-gather --overlap-grad-reduce --use-megatron-fsdp "
         "--data-parallel-sharding-strategy no_shard",
         "needs --use-distributed-optimizer or --use-megatron-fsdp"},
        {2, "--overlap-param-gather --use-distributed-optimizer", "needs --overlap-grad-reduce"},
        {2, "--ddp-bucket-size 1000", "--ddp-bucket-size has no effect without --overlap-grad-reduce"},
        {2, "--ddp-num-buckets 4", "--ddp-num-buckets has no effect without --overlap-grad-reduce"},
        {2, "--overlap-grad-reduce --ddp-num-buckets 4 --ddp-bucket-size 9", "exclude each other"},
        {2, "--data-parallel-random-init", "--data-parallel-random-init with 2 data-parallel ranks"},
        {2, "--use-torch-fsdp2", "give --use-megatron-fsdp"},
        {2, "--tp-comm-overlap", "drop it, the result is the same"},
        {2, "--hierarchical-context-parallel-sizes 2 1", "use --cp-comm-type"},
        {2, "--defer-embedding-wgrad-compute", "--pipeline-schedule zero-bubble"},
        {2, "--overlap-p2p-communication-warmup-flush", "--no-overlap-p2p-communication"},
        {2, "--fake-process-group", "give --dry-run --world-size N"},
    };
    walk(refused, ARRAY_COUNT(refused));
}

TEST(a_flag_with_nothing_to_act_on_gets_a_line) {
    static const struct {
        int running;
        const char *tail, *says;
    } rows[] = {
        {1, "--sequence-parallel",
         "--sequence-parallel: nothing to split with --tensor-model-parallel-size 1"},
        {2, TP2 "--cp-comm-type a2a", "--cp-comm-type: nothing to exchange with --context-parallel-size 1"},
        {2, TP2 "--use-distributed-optimizer", "--use-distributed-optimizer: one rank holds each weight"},
        {1, "--overlap-grad-reduce", "--overlap-grad-reduce: one rank holds each weight"},
        {2, PP2 "--use-megatron-fsdp", "--use-megatron-fsdp: one rank holds each weight"},
        {1, "--use-tp-pp-dp-mapping", "--use-tp-pp-dp-mapping: one rank has one order"},
        {2, "--bf16 --grad-reduce-in-bf16", "--grad-reduce-in-bf16: gradients are accumulated and reduced"},
        {2, "--distributed-backend mpi", "--distributed-backend mpi: CPU ranks talk over MPI"},
    };
    for (size_t i = 0; i < ARRAY_COUNT(rows); i++) {
        ACCEPTS(rows[i].running, rows[i].tail);
        EXPECT_CONTAINS(cfg.notes.data ? cfg.notes.data : "", rows[i].says);
        EXPECT_EQ(cfg.sequence_parallel, false);
        config_free(&cfg);
    }
    ACCEPTS(2, "--use-distributed-optimizer --overlap-grad-reduce --overlap-param-gather "
               "--ddp-bucket-size 1000000");
    EXPECT(!strstr(cfg.notes.data, "nothing to"), "%s", cfg.notes.data);
    config_free(&cfg);
    ACCEPTS(2, CP2 "--use-distributed-optimizer"); /* context-parallel ranks hold the same weights */
    EXPECT(!strstr(cfg.notes.data, "nothing to"), "%s", cfg.notes.data);
    config_free(&cfg);
    ACCEPTS(2, TP2 "--sequence-parallel");
    EXPECT_EQ(cfg.sequence_parallel, true);
    config_free(&cfg);
}

TEST(every_rule_of_the_pipeline_refuses_with_a_remedy) {
    static const struct refusal rows[] = {
        {3, "--pipeline-model-parallel-size 3", "--num-layers 8 is not a multiple of"},
        {1, VP2, "--num-virtual-stages-per-pipeline-rank 2 needs --pipeline-model-parallel-size above 1"},
        {1, "--num-layers-per-virtual-pipeline-stage 2", "needs --pipeline-model-parallel-size above 1"},
        {1, "--decoder-first-pipeline-num-layers 2", "needs --pipeline-model-parallel-size above 1"},
        {1, "--decoder-last-pipeline-num-layers 2", "needs --pipeline-model-parallel-size above 1"},
        {1, "--account-for-embedding-in-pipeline-split", "needs --pipeline-model-parallel-size above 1"},
        {1, "--account-for-loss-in-pipeline-split", "needs --pipeline-model-parallel-size above 1"},
        {1, "--pipeline-model-parallel-layout Ettttttt|tL", "needs --pipeline-model-parallel-size above 1"},
        {2, PP2 VP2 "--num-layers-per-virtual-pipeline-stage 2", "say the same in two ways"},
        {2, PP2 "--num-layers-per-virtual-pipeline-stage 3", "does not divide the 4 layers of a stage"},
        {2, PP2 "--num-virtual-stages-per-pipeline-rank 3", "does not divide the 4 layers of a stage"},
        {2, PP2 "--account-for-loss-in-pipeline-split", "+ 1 (the embedding or the loss counts as a layer)"},
        {4, PP4 "--account-for-loss-in-pipeline-split --account-for-embedding-in-pipeline-split",
         "+ 2 (embedding and loss count as layers)"},
        {2, PP2 "--decoder-first-pipeline-num-layers 3 --account-for-loss-in-pipeline-split", "drop one"},
        {2, PP2 "--decoder-first-pipeline-num-layers 3 --decoder-last-pipeline-num-layers 4",
         "leave 1 of --num-layers 8 for the other 0 stages"},
        {2, PP2 "--decoder-first-pipeline-num-layers 8", "leave 0 of --num-layers 8 for the other 1 stages"},
        {2, PP2 "--decoder-first-pipeline-num-layers 9", "which does not divide"},
        {4, PP4 "--decoder-last-pipeline-num-layers 3", "leave 5 of --num-layers 8 for the other 3 stages"},
        {4, PP4 VP2 BATCH "--decoder-last-pipeline-num-layers 5",
         "must be a multiple of --num-virtual-stages-per-pipeline-rank 2"},
        {4, PP4 "--num-layers-per-virtual-pipeline-stage 1 --decoder-last-pipeline-num-layers 2",
         "give --num-virtual-stages-per-pipeline-rank instead"},
        {2, PP2 VP2 "--pipeline-model-parallel-layout Etttt|ttttL", "both say how many layers"},
        {2, PP2 "--pipeline-model-parallel-layout Et|tt|tttttL", "has 3 stages, not a multiple of"},
        {2, PP2 "--pipeline-model-parallel-layout E(t|", "cannot be read"},
        {2, PP2 "--pipeline-model-parallel-layout Et)|L", "cannot be read"},
        {2, PP2 "--pipeline-model-parallel-layout E((t|)*2)*2L", "cannot be read"},
        {2, PP2 "--pipeline-model-parallel-layout Et*|L", "cannot be read"},
        {2, PP2 "--pipeline-model-parallel-layout E(t|)*99999999999L", "cannot be read"},
        {2, PP2 BATCH VP2 "--no-overlap-p2p-communication", "need --pipeline-model-parallel-size above 2"},
        {2, PP2 BATCH VP2 "--use-megatron-fsdp", "does not work with virtual pipeline stages"},
        {2, PP2 BATCH VP2 "--microbatch-group-size-per-virtual-pipeline-stage 1", "is less than"},
        {2, PP2 "--microbatch-group-size-per-virtual-pipeline-stage 2", "has no effect with one chunk"},
        {2, PP2 "--pipeline-schedule interleaved", "needs several chunks per stage"},
        {2, PP2 VP2 BATCH "--pipeline-schedule 1f1b", "runs one chunk per stage, and there are 2"},
        {2, PP2 VP2 BATCH "--pipeline-schedule zero-bubble", "runs one chunk per stage, and there are 2"},
        {2, "--pipeline-schedule zero-bubble", "it needs --pipeline-model-parallel-size above 1"},
        {2, PP2 "--pipeline-schedule zero-bubble --use-megatron-fsdp",
         "does not work with --use-megatron-fsdp"},
        {2, PP2 "--pipeline-schedule gpipe", "--pipeline-schedule gpipe"},
        {2, PP2 "--overlap-p2p-communication", "drop it: stages do not wait"},
        {2, "--self-check --dry-run", "--self-check trains, and --dry-run stops before training"},
        {2, "--self-check --print-topology", "--self-check trains, and --print-topology stops"},
        {2, "--self-check-steps 2", "without --self-check"},
        {2, "--straggler-minmax-count 2", "without --log-straggler"},
        {2, "--async-save", "without --save"},
    };
    walk(rows, ARRAY_COUNT(rows));
}

TEST(chunks_and_schedule_follow_from_the_flags) {
    static const char *const names[] = {"auto", "1f1b", "interleaved", "zero-bubble"};
    static const struct {
        int running;
        const char *tail;
        int chunks, schedule;
    } rows[] = {
        {1, "", 1, PIPELINE_SCHEDULE_1F1B},
        {2, PP2, 1, PIPELINE_SCHEDULE_1F1B},
        {2,
         PP2 "--pipeline-schedule zero-bubble --cross-entropy-loss-fusion --cross-entropy-fusion-impl linear",
         1, PIPELINE_SCHEDULE_ZERO_BUBBLE},
        {2, PP2 BATCH "--num-layers-per-virtual-pipeline-stage 1", 4, PIPELINE_SCHEDULE_INTERLEAVED},
        {2, PP2 "--num-layers-per-virtual-pipeline-stage 4", 1, PIPELINE_SCHEDULE_1F1B},
        {1, "--num-virtual-stages-per-pipeline-rank 1", 1, PIPELINE_SCHEDULE_1F1B},
        {2, PP2 BATCH VP2 "--pipeline-schedule interleaved", 2, PIPELINE_SCHEDULE_INTERLEAVED},
        {4, PP4 BATCH VP2 "--no-overlap-p2p-communication", 2, PIPELINE_SCHEDULE_INTERLEAVED},
        {4,
         PP4 BATCH VP2 "--num-layers 6 --account-for-embedding-in-pipeline-split "
                       "--account-for-loss-in-pipeline-split",
         2, PIPELINE_SCHEDULE_INTERLEAVED},
        {4,
         PP4 BATCH VP2 "--num-layers 12 --decoder-first-pipeline-num-layers 2 "
                       "--decoder-last-pipeline-num-layers 2",
         2, PIPELINE_SCHEDULE_INTERLEAVED},
        {2, PP2 "--decoder-first-pipeline-num-layers 3 --decoder-last-pipeline-num-layers 5", 1,
         PIPELINE_SCHEDULE_1F1B},
        {4, PP4 "--decoder-first-pipeline-num-layers 2", 1, PIPELINE_SCHEDULE_1F1B},
        {2, PP2 "--pipeline-model-parallel-layout Etttt|ttttL", 1, PIPELINE_SCHEDULE_1F1B},
        {2, PP2 BATCH "--pipeline-model-parallel-layout Et|(tt|)*2,tttL", 2, PIPELINE_SCHEDULE_INTERLEAVED},
        {2, PP2 BATCH "--pipeline-model-parallel-layout E|*3t*8L", 2, PIPELINE_SCHEDULE_INTERLEAVED},
        {8, "--pipeline-model-parallel-size 8 " BATCH "--pipeline-model-parallel-layout Et*3|(tt|)*29,m|L", 4,
         PIPELINE_SCHEDULE_INTERLEAVED}, /* 1 + 29 + 1 bars: 32 stages */
    };
    for (size_t i = 0; i < ARRAY_COUNT(rows); i++) {
        ACCEPTS(rows[i].running, rows[i].tail);
        EXPECT_EQ(cfg.virtual_stages, rows[i].chunks);
        EXPECT_EQ(cfg.pipeline_schedule, rows[i].schedule);
        EXPECT_STR(config_choice_name(&cfg, CONFIG_FLAG_pipeline_schedule), names[rows[i].schedule]);
        if (rows[i].chunks > 1)
            EXPECT_EQ(cfg.microbatch_group_size_per_vp_stage, cfg.pipeline_model_parallel_size);
        config_free(&cfg);
    }
}

/* The layers, and what counts as one, fill every chunk alike: there is a whole number of them per chunk. */
static bool fills(int slots, int stages, int chunks) {
    for (int each = 1; each * stages * chunks <= slots; each++)
        if (each * stages * chunks == slots) return true;
    return false;
}

TEST(an_even_split_is_taken_exactly_when_the_layers_fill_every_chunk) {
    int taken = 0, refused = 0;
    for (int layers = 1; layers <= 12; layers++)
        for (int stages = 2; stages <= 4; stages++)
            for (int chunks = 1; chunks <= 3; chunks++)
                for (int extra = 0; extra < 4; extra++) {
                    char tail[512];
                    snprintf(tail, sizeof(tail),
                             "--num-layers %d --pipeline-model-parallel-size %d --global-batch-size 24 "
                             "--num-virtual-stages-per-pipeline-rank %d %s %s",
                             layers, stages, chunks,
                             extra & 1 ? "--account-for-embedding-in-pipeline-split" : "",
                             extra & 2 ? "--account-for-loss-in-pipeline-split" : "");
                    bool ok = !validate(stages, tail);
                    if (ok) config_free(&cfg);
                    EXPECT(ok == fills(layers + (extra & 1) + extra / 2, stages, chunks), "%s: %s", tail,
                           ok ? "taken" : err.text);
                    ok ? taken++ : refused++;
                }
    EXPECT(taken > 50 && refused > 50, "%d taken, %d refused", taken, refused);
}

/* Deals the micro-batches into groups: the first is whole, the last is whole or as long as the pipeline. */
static bool deals(int count, int group, int stages) {
    int left = count, dealt = 0;
    while (left >= group) left -= group, dealt++;
    return dealt && (!left || left >= stages);
}

TEST(interleaved_micro_batches_are_taken_exactly_when_they_deal_into_groups) {
    int taken = 0, refused = 0;
    for (int stages = 2; stages <= 4; stages += 2)
        for (int group = stages; group <= 7; group++)
            for (int count = 1; count <= 20; count++) {
                char tail[512];
                snprintf(tail, sizeof(tail),
                         "--pipeline-model-parallel-size %d --num-virtual-stages-per-pipeline-rank 2 "
                         "--microbatch-group-size-per-virtual-pipeline-stage %d --global-batch-size %d",
                         stages, group, count * 2 * 3);
                bool ok = !validate(stages * 3, tail);
                if (ok) config_free(&cfg);
                EXPECT(ok == deals(count, group, stages), "%s: %s", tail, ok ? "taken" : err.text);
                ok ? taken++ : refused++;
            }
    EXPECT(taken > 40 && refused > 40, "%d taken, %d refused", taken, refused);
    static const struct refusal rows[] = {
        {2, PP2 VP2 "--global-batch-size 8 --rampup-batch-size 2 2 80",
         "--rampup-batch-size: a batch of 2 is 1"},
        {2, PP2 VP2 "--step-batch-size-schedule 0:8,1M:6", "--step-batch-size-schedule: a batch of 6 is 3"},
        {2, PP2 VP2 BATCH "--eval-global-batch-size 6", "--eval-global-batch-size: a batch of 6 is 3"},
        {2, PP2 VP2, "--global-batch-size: a batch of 2 is 1 micro-batches"},
    };
    walk(rows, ARRAY_COUNT(rows));
}

TEST(every_rule_of_recompute_under_a_layout_refuses_with_a_remedy) {
#define BLOCK   FULL "--recompute-method block "
#define UNIFORM FULL "--recompute-method uniform "
    static const struct refusal rows[] = {
        {2, TP2 "--distribute-saved-activations", "needs --recompute-granularity full"},
        {2, TP2 "--distribute-saved-activations --recompute-activations",
         "needs --recompute-granularity full"},
        {2, TP2 "--distribute-saved-activations " FULL "--recompute-num-layers 1",
         "needs --recompute-method"},
        {1, BLOCK "--recompute-num-layers 1 --distribute-saved-activations",
         "it needs "
         "--tensor-model-parallel-size"},
        {2, TP2 BLOCK "--recompute-num-layers 1 --sequence-parallel --distribute-saved-activations",
         "drop --distribute-saved-activations"},
        {4,
         TP4 BLOCK
         "--recompute-num-layers 1 --distribute-saved-activations --micro-batch-size 1 --kv-channels 32 "
         "--hidden-size 254 --seq-length 255",
         "does not divide over --tensor-model-parallel-size 4"},
        {2, PP2 BLOCK "--recompute-num-layers 1 --recompute-num-layers-per-stage 1 1", "exclude each other"},
        {2, PP2 BLOCK "--recompute-num-layers-per-stage 1", "1 numbers for --pipeline-model-parallel-size 2"},
        {2, PP2 BLOCK "--recompute-num-layers-per-stage 1,2,3", "3 numbers for"},
        {2, PP2 BLOCK "--recompute-num-layers-per-stage 0 9", "must be from 0 to --num-layers 8"},
        {2, PP2 BLOCK "--recompute-num-layers-per-stage 0 0", "recomputes nothing: drop it"},
        {2, PP2 BLOCK "--recompute-num-layers-per-stage -1 1", "--recompute-num-layers-per-stage"},
        {2, PP2 BLOCK "--recompute-num-layers-per-stage 1,,1", "--recompute-num-layers-per-stage"},
        {2, PP2 FULL "--recompute-num-layers-per-stage 1 1", "needs --recompute-method"},
        {2, PP2 "--recompute-num-layers-per-stage 1 1", "has no effect without --recompute-granularity full"},
        {2, PP2 "--recompute-activations --recompute-num-layers-per-stage 1 1",
         "is for --recompute-granularity full"},
        {1, "--recompute-layer-ids 1", "has no effect without --recompute-granularity full"},
        {1, "--recompute-activations --recompute-layer-ids 1", "is for --recompute-granularity full"},
        {1, FULL "--recompute-layer-ids 8", "there is no such layer, the layers are 0 to 7"},
        {1, FULL "--recompute-layer-ids -1", "--recompute-layer-ids -1"},
        {1, FULL "--recompute-layer-ids 3 1 3", "names layer 3 twice"},
        {1, BLOCK "--recompute-layer-ids 3", "--recompute-method both say"},
        {1, FULL "--recompute-num-layers 1 --recompute-layer-ids 3", "--recompute-num-layers both say"},
        {2, PP2 FULL "--recompute-num-layers-per-stage 1 1 --recompute-layer-ids 3",
         "--recompute-num-layers-per-stage both say"},
        {1, FULL "--recompute-layer-ids 3 --recompute-modules mlp", "--recompute-modules has no effect"},
        {2, PP2 UNIFORM "--recompute-num-layers 0", "must be from 1 to --num-layers 8"},
    };
    walk(rows, ARRAY_COUNT(rows));
}

TEST(recompute_lists_are_taken_with_blanks_or_commas_and_layers_are_sorted) {
    ACCEPTS(4, PP4 BLOCK "--recompute-num-layers-per-stage 2,1 0,8");
    EXPECT_EQ(cfg.recompute_num_layers_per_stage.count, 4);
    static const int64_t counts[] = {2, 1, 0, 8};
    for (int i = 0; i < 4; i++) EXPECT_EQ(cfg.recompute_num_layers_per_stage.items[i], counts[i]);
    config_free(&cfg);
    ACCEPTS(1, FULL "--recompute-layer-ids 7 0 3,1");
    static const int64_t ids[] = {0, 1, 3, 7};
    EXPECT_EQ(cfg.recompute_layer_ids.count, 4);
    for (int i = 0; i < 4; i++) EXPECT_EQ(cfg.recompute_layer_ids.items[i], ids[i]);
    config_free(&cfg);
    ACCEPTS(2, TP2 UNIFORM "--recompute-num-layers 2 --distribute-saved-activations");
    config_free(&cfg);
    ACCEPTS(2, TP2 FULL "--recompute-layer-ids 2 --distribute-saved-activations");
    config_free(&cfg);
    ACCEPTS(2, PP2 UNIFORM "--recompute-num-layers-per-stage 0 3");
    config_free(&cfg);
}

TEST(the_vocabulary_is_padded_for_the_tensor_parallel_ranks) {
    ACCEPTS(8, "--tensor-model-parallel-size 8 --make-vocab-size-divisible-by 64");
    EXPECT_EQ(config_padded_vocab_size(&cfg, 50257, &err), 50688); /* 99 * 512 */
    config_free(&cfg);
    ACCEPTS(8, "--tensor-model-parallel-size 8 --no-pad-vocab-size");
    EXPECT_EQ(config_padded_vocab_size(&cfg, 50264, &err), 50264);
    EXPECT_EQ(config_padded_vocab_size(&cfg, 50257, &err), -1);
    EXPECT_CONTAINS(err.text, "drop the flag");
    config_free(&cfg);
    ACCEPTS(8, "--tensor-model-parallel-size 8 --padded-vocab-size 50260");
    EXPECT_EQ(config_padded_vocab_size(&cfg, 50257, &err), -1);
    EXPECT_CONTAINS(err.text,
                    "--padded-vocab-size 50260 is not a multiple of --tensor-model-parallel-size 8");
    config_free(&cfg);
}

RUN_TESTS(CASE(sizes_that_do_not_fit_the_ranks_are_refused),
          CASE(a_plan_may_have_any_number_of_ranks_and_a_run_has_its_own),
          CASE(a_model_that_cannot_be_cut_that_way_is_refused), CASE(models_that_can_be_cut_are_taken),
          CASE(the_kind_of_exchange_is_one_of_three),
          CASE(what_the_data_parallel_ranks_split_follows_from_the_flags),
          CASE(a_flag_with_nothing_to_act_on_gets_a_line),
          CASE(every_rule_of_the_pipeline_refuses_with_a_remedy),
          CASE(chunks_and_schedule_follow_from_the_flags),
          CASE(an_even_split_is_taken_exactly_when_the_layers_fill_every_chunk),
          CASE(interleaved_micro_batches_are_taken_exactly_when_they_deal_into_groups),
          CASE(every_rule_of_recompute_under_a_layout_refuses_with_a_remedy),
          CASE(recompute_lists_are_taken_with_blanks_or_commas_and_layers_are_sorted),
          CASE(the_vocabulary_is_padded_for_the_tensor_parallel_ranks))
