#include "core/base/log.h"
#include "core/base/mem.h"
#include "core/plan_auto.h"
#include "core/train/trainer.h"
#include "recompute/planned.h"
#include <stdio.h>

const struct kernels *setup_kernels(const struct config *cfg, struct err *err) {
    static const char *const names[] = {[KERNELS_GENERIC] = "generic",
                                        [KERNELS_AVX2] = "avx2",
                                        [KERNELS_AVX512] = "avx512",
                                        [KERNELS_AMX] = "amx"};
    if (cfg->kernels == KERNELS_AUTO) return kernels_cpu();
    if (cfg->kernels == KERNELS_REFERENCE) return kernels_reference();
    const struct kernels *k = kernels_cpu_isa(names[cfg->kernels]);
    if (!k)
        err_set(err, "--kernels %s: this processor or build does not have it; use auto, reference or generic",
                names[cfg->kernels]);
    return k;
}

static struct recompute_policy policy_from_config(const struct config *cfg) {
    struct recompute_policy p = {.granularity = RECOMPUTE_NONE}; /* of auto: chosen later */
    if (!config_is_set(cfg, recompute_granularity) ||
        cfg->recompute_granularity == RECOMPUTE_GRANULARITY_AUTO)
        return p;
    if (cfg->recompute_granularity == RECOMPUTE_GRANULARITY_FULL) {
        p.granularity = RECOMPUTE_FULL;
        p.method = cfg->recompute_method == RECOMPUTE_METHOD_UNIFORM ? RECOMPUTE_UNIFORM
                   : cfg->recompute_method == RECOMPUTE_METHOD_SQRT  ? RECOMPUTE_SQRT
                                                                     : RECOMPUTE_BLOCK;
        if (config_is_set(cfg, recompute_num_layers)) p.num_layers = (int)cfg->recompute_num_layers;
        p.per_stage = cfg->recompute_num_layers_per_stage.items; /* NULL when unset */
        p.num_stages = cfg->recompute_num_layers_per_stage.count;
        p.layer_ids = cfg->recompute_layer_ids.items;
        p.num_layer_ids = cfg->recompute_layer_ids.count;
        return p;
    }
    p.granularity = RECOMPUTE_SELECTIVE;
    if (cfg->recompute_granularity == RECOMPUTE_GRANULARITY_OP) {
        p.modules = RECOMPUTE_OPS;
        for (int64_t i = 0; i < cfg->recompute_save_ops.count; i++)
            p.modules |= recompute_save_find(cfg->recompute_save_ops.items[i]);
        return p;
    }
    for (int64_t i = 0; i < cfg->recompute_modules.count; i++)
        p.modules |= RECOMPUTE_BIT(recompute_module_find(cfg->recompute_modules.items[i]));
    return p;
}

static int find_vocabulary(struct setup *s, const struct config *cfg, struct err *err) {
    if (tokenizer_open_from_config(cfg, &s->tokenizer, err)) return -1;
    s->vocab_size = s->tokenizer ? tokenizer_vocab_size(s->tokenizer) : cfg->vocab_size;
    if (config_is_set(cfg, vocab_size) && cfg->vocab_size > s->vocab_size) s->vocab_size = cfg->vocab_size;
    s->vocab_size += cfg->vocab_extra_ids;
    s->padded_vocab_size = config_padded_vocab_size(cfg, s->vocab_size, err);
    return s->padded_vocab_size < 0 ? -1 : 0;
}

/* ---- the part of the model and of the schedule that a rank has ---- */

static void place_model(struct model *m, const struct config *cfg, const struct mesh *mesh) {
    m->tp = mesh->shape.tensor;
    m->tp_rank = mesh->tp;
    m->cp = mesh->shape.context;
    m->cp_rank = mesh->cp;
    if (m->moe.experts) {
        m->ep = mesh->shape.expert;
        m->ep_rank = mesh->ep;
        m->etp = mesh->shape.expert_tensor;
        m->etp_rank = mesh->etp;
    }
    m->sequence_parallel = cfg->sequence_parallel;
    m->cp_comm = cfg->cp_comm == CP_COMM_ALL_GATHER ? MODEL_CP_ALL_GATHER
                 : cfg->cp_comm == CP_COMM_A2A      ? MODEL_CP_A2A
                                                    : MODEL_CP_P2P;
}

static int split_layers(struct setup *s, const struct config *cfg, struct err *err) {
    struct pipeline_split_options options = {
        .layers = (int)cfg->num_layers,
        .stages = (int)cfg->pipeline_model_parallel_size,
        .chunks = (int)cfg->virtual_stages,
        .account_embedding = cfg->account_for_embedding_in_pipeline_split,
        .account_loss = cfg->account_for_loss_in_pipeline_split,
        .mtp_layers = config_is_set(cfg, mtp_num_layers) ? (int)cfg->mtp_num_layers : 0,
        .layout = cfg->pipeline_model_parallel_layout};
    if (config_is_set(cfg, decoder_first_pipeline_num_layers))
        options.first_layers = (int)cfg->decoder_first_pipeline_num_layers;
    if (config_is_set(cfg, decoder_last_pipeline_num_layers))
        options.last_layers = (int)cfg->decoder_last_pipeline_num_layers;
    s->split =
        mem_new_array(struct pipeline_chunk, (size_t)(options.stages * options.chunks), "pipeline split");
    if (pipeline_split(&options, s->split, err)) return -1;
    for (int i = 0; i < options.stages * options.chunks; i++) {
        const struct pipeline_chunk *c = &s->split[i];
        if (!c->num_layers && !c->embedding && !c->head)
            return err_set(err,
                           "--pipeline-model-parallel-layout: chunk %d of stage %d holds nothing: give every "
                           "stage a layer, the embedding or the loss",
                           i / options.stages, i % options.stages);
    }
    return 0;
}

static const struct schedule *schedule_from_config(const struct config *cfg) {
    static const char *const names[] = {[PIPELINE_SCHEDULE_1F1B] = "1f1b",
                                        [PIPELINE_SCHEDULE_INTERLEAVED] = "interleaved",
                                        [PIPELINE_SCHEDULE_ZERO_BUBBLE] = "zero-bubble"};
    return schedule_find(names[cfg->pipeline_schedule]);
}

/* Elements after which a bucket closes: Megatron-LM's default unless given. */
static int64_t bucket_elements(const struct config *cfg, int64_t ranks) {
    if (config_is_set(cfg, ddp_bucket_size)) return cfg->ddp_bucket_size;
    return ranks * 1000000 > 40000000 ? ranks * 1000000 : 40000000;
}

static struct plan_layout layout_from_config(struct setup *s, const struct config *cfg,
                                             const struct mesh *mesh) {
    static const enum plan_sharding sharding[] = {[SHARDING_NONE] = PLAN_SHARD_NONE,
                                                  [SHARDING_OPTIM] = PLAN_SHARD_OPTIM,
                                                  [SHARDING_OPTIM_GRADS] = PLAN_SHARD_GRADS,
                                                  [SHARDING_OPTIM_GRADS_PARAMS] = PLAN_SHARD_PARAMS};
    int ranks = mesh->data * mesh->shape.context;
    return (struct plan_layout){.stages = mesh->shape.pipeline,
                                .stage = mesh->pp,
                                .chunks = (int)cfg->virtual_stages,
                                .split = s->split,
                                .schedule = schedule_from_config(cfg),
                                .group = config_is_set(cfg, microbatch_group_size_per_vp_stage)
                                             ? (int)cfg->microbatch_group_size_per_vp_stage
                                             : 0,
                                .late_receive = !cfg->overlap_p2p_comm,
                                .data = ranks,
                                .data_rank = mesh->dp * mesh->shape.context + mesh->cp,
                                .expert_data = mesh->expert_data,
                                .expert_data_rank = mesh->edp,
                                .sharding = sharding[cfg->sharding],
                                .num_buckets =
                                    config_is_set(cfg, ddp_num_buckets) ? (int)cfg->ddp_num_buckets : 0,
                                .bucket_elements = bucket_elements(cfg, ranks),
                                .overlap_param_gather = cfg->overlap_param_gather,
                                .distribute_saved = cfg->distribute_saved_activations,
                                .overlap_grad_reduce = cfg->overlap_grad_reduce};
}

static struct plan_request request_of_rank(struct setup *s, const struct config *cfg,
                                           const struct mesh *mesh) {
    struct plan_request request = s->request;
    place_model(&request.model, cfg, mesh);
    request.layout = layout_from_config(s, cfg, mesh);
    return request;
}

/* Numbers of micro-batches that steps will have, the largest first. */
static void count_micro_batches(struct setup *s, const struct config *cfg, struct plan_request *request) {
    int64_t of_one = cfg->micro_batch_size * cfg->data_parallel_size;
    s->counts = mem_new_array(int, (size_t)cfg->batch_stage_count, "micro-batch counts");
    for (int64_t i = 0; i < cfg->batch_stage_count; i++) {
        int count = (int)(cfg->batch_stages[i].global_batch_size / of_one);
        if (count > request->micro_batches) request->micro_batches = count;
    }
    for (int64_t i = 0; i < cfg->batch_stage_count; i++) {
        int count = (int)(cfg->batch_stages[i].global_batch_size / of_one);
        bool known = count == request->micro_batches;
        for (int k = 0; k < request->num_other_counts; k++) known |= s->counts[k] == count;
        if (!known) s->counts[request->num_other_counts++] = count;
    }
    request->other_counts = s->counts;
    request->eval_micro_batches = (int)(cfg->eval_global_batch_size / of_one);
}

/* The lists of all stages, run against each other: none may wait for ever. Depends on the flags alone. */
static bool prove_schedule(const struct schedule *schedule, const struct schedule_shape *shape) {
    struct schedule_report report;
    schedule_simulate(schedule, shape, &report);
    CHECK(report.finishes,
          "schedule %s with %d stages, %d chunks and %d micro-batches: stage %d waits for ever in action %d",
          schedule->name, shape->stages, shape->chunks, shape->micro_batches, report.stuck_stage,
          report.stuck_action);
    return true;
}

static int check_schedule(const struct config *cfg, const struct plan_request *r, struct err *err) {
    const struct plan_layout *l = &r->layout;
    for (int i = -1; i <= r->num_other_counts; i++) {
        bool eval = i == r->num_other_counts;
        struct schedule_shape shape = {.stages = l->stages,
                                       .stage = l->stage,
                                       .chunks = l->chunks,
                                       .micro_batches = eval    ? r->eval_micro_batches
                                                        : i < 0 ? r->micro_batches
                                                                : r->other_counts[i],
                                       .group = l->group,
                                       .forward_only = eval};
        const char *needs = l->schedule->refuses(&shape);
        if (!needs && l->stages > 1 && prove_schedule(l->schedule, &shape)) continue;
        if (needs)
            return err_set(err,
                           "--pipeline-schedule %s cannot run %d micro-batches on %d stages of %d chunks: %s",
                           l->schedule->name, shape.micro_batches, l->stages, l->chunks, needs);
    }
    (void)cfg;
    return 0;
}

static int check_set(const struct model *m, recompute_set set, const char *flag, struct err *err) {
    for (int i = 0; i < MODULE_COUNT; i++) {
        const char *why;
        if (i != MODULE_layer && set >> i & 1 && !model_has_module(m, i, &why))
            return err_set(err, "%s %s: %s", flag, recompute_module_info(i)->name, why);
    }
    return 0;
}

static int check_modules(const struct plan_request *r, struct err *err) {
    if (r->recompute.granularity != RECOMPUTE_SELECTIVE) return 0;
    return check_set(&r->model, r->recompute.modules, "--recompute-modules", err);
}

void setup_print_schedule(const struct setup *s, FILE *out) {
    const struct plan_request *r = &s->plan.request;
    const struct plan_layout *l = &r->layout;
    struct schedule_shape shape = {.stages = l->stages,
                                   .chunks = l->chunks,
                                   .micro_batches = r->micro_batches,
                                   .group = l->group,
                                   .forward_only = r->forward_only,
                                   .late_receive = l->late_receive};
    schedule_print(s->plan.schedule, &shape, out);
}

/* ---- --recompute-granularity auto ---- */

static int check_planned(const struct setup *s, const struct config *cfg, struct err *err) {
    const struct pipeline_chunk *split = s->split;
    for (int i = 0, layer = 0; i < s->num_planned; layer += s->planned[i++].num_layers) {
        int end = layer + s->planned[i].num_layers;
        if (check_set(&s->request.model, s->planned[i].selected, "--recompute-plan: module", err)) return -1;
        for (int k = 0; k < cfg->pipeline_model_parallel_size * cfg->virtual_stages; k++)
            if (layer < split[k].first_layer && split[k].first_layer < end && split[k].num_layers)
                return err_set(
                    err,
                    "--recompute-plan: layers %d to %d are one group and a pipeline chunk starts at layer "
                    "%d: the plan is for another layout; search again for this one",
                    layer, end - 1, split[k].first_layer);
    }
    return 0;
}

static int find_budget(const struct setup *s, const struct config *cfg, size_t *budget_p, struct err *err) {
    double memory =
        config_is_set(cfg, device_memory_limit) ? (double)cfg->device_memory_limit : s->hardware.memory_bytes;
    *budget_p = (size_t)cfg->recompute_budget_bytes;
    if (cfg->recompute_budget_bytes) return 0;
    if (memory <= 0)
        return err_set(err,
                       "--recompute-memory-budget %s: --hardware %s does not say memory_bytes; add "
                       "--device-memory-limit or give a size as 70GiB",
                       cfg->recompute_memory_budget, s->hardware.name);
    *budget_p = (size_t)(cfg->recompute_budget_share * memory);
    return 0;
}

int setup_requests(struct setup *s, const struct config *cfg, struct plan_request *requests,
                   struct err *err) {
    struct mesh mesh;
    for (int r = 0; r < cfg->pipeline_model_parallel_size; r++) {
        if (ranks_mesh(cfg, 0, &mesh, err)) return -1;
        if (ranks_mesh(cfg, mesh_stage_rank(&mesh, r), &mesh, err)) return -1;
        requests[r] = request_of_rank(s, cfg, &mesh);
    }
    return 0;
}

static int search_plan(struct setup *s, const struct config *cfg, struct err *err) {
    int stages = (int)cfg->pipeline_model_parallel_size;
    struct plan_auto chosen;
    size_t budget;
    if (find_budget(s, cfg, &budget, err)) return -1;
    struct plan_request *requests =
        mem_new_array(struct plan_request, (size_t)stages, "requests of the stages");
    int status = setup_requests(s, cfg, requests, err);
    if (!status) status = plan_auto_choose(requests, stages, budget, &chosen, err);
    if (!status) {
        plan_auto_describe(&chosen, &requests[0], budget, &s->planned_report);
        s->planned = chosen.groups, s->num_planned = chosen.num_groups;
        chosen.groups = NULL;
        plan_auto_free(&chosen);
    }
    mem_free(requests);
    return status;
}

static int choose_recompute(struct setup *s, const struct config *cfg, int rank, struct err *err) {
    struct str text = {0};
    if (cfg->recompute_granularity != RECOMPUTE_GRANULARITY_AUTO) return 0;
    if (cfg->recompute_plan) {
        if (recompute_planned_read(cfg->recompute_plan, (int)cfg->num_layers, &s->planned, &s->num_planned,
                                   err))
            return -1;
        return check_planned(s, cfg, err);
    }
    if (search_plan(s, cfg, err)) return -1;
    if (!cfg->recompute_plan_out || rank > 0) return 0;
    recompute_planned_write(s->planned, s->num_planned, &text);
    int status = str_write_file(&text, cfg->recompute_plan_out, err);
    str_free(&text);
    return status;
}

/* ---- all of it ---- */

static int open_hardware(struct setup *s, const struct config *cfg, struct err *err) {
    bool needs = cfg->recompute_granularity == RECOMPUTE_GRANULARITY_AUTO;
    if (!cfg->hardware && !needs) return 0;
    if (hardware_open(cfg->hardware ? cfg->hardware : "cpu", &s->hardware, err)) return -1;
    s->request.hardware = &s->hardware;
    return 0;
}

int setup_open(struct setup *s, const struct config *cfg, int rank, int threads, struct err *err) {
    *s = (struct setup){0};
    struct plan_request *request = &s->request;
    request->forward_only = cfg->skip_train;
    request->kernels = setup_kernels(cfg, err);
    if (!request->kernels) return -1;
    if (cfg->device == DEVICE_CUDA)
        return err_set(err, "--device cuda: this build has no CUDA backend; use --device cpu or auto");
    if (find_vocabulary(s, cfg, err) || split_layers(s, cfg, err) || open_hardware(s, cfg, err)) return -1;
    s->threads = threads_open(config_is_set(cfg, cpu_threads) ? (int)cfg->cpu_threads : threads);
    request->threads = s->threads;
    model_from_config(cfg, s->padded_vocab_size, &request->model);
    request->model.vocab_used = s->vocab_size;
    request->recompute = policy_from_config(cfg);
    count_micro_batches(s, cfg, request);
    struct mesh mesh;
    if (ranks_mesh(cfg, rank, &mesh, err)) return -1;
    struct plan_request own = request_of_rank(s, cfg, &mesh);
    if (check_modules(&own, err) || check_schedule(cfg, &own, err)) return -1;
    if (choose_recompute(s, cfg, rank, err)) return -1;
    return setup_reopen(s, cfg, rank, err);
}

int setup_reopen(struct setup *s, const struct config *cfg, int rank, struct err *err) {
    struct mesh mesh;
    if (ranks_mesh(cfg, rank, &mesh, err)) return -1;
    struct plan_request request = request_of_rank(s, cfg, &mesh);
    if (s->planned)
        request.recompute = (struct recompute_policy){
            .granularity = RECOMPUTE_PLANNED, .planned = s->planned, .num_planned = s->num_planned};
    plan_free(&s->plan);
    plan_build(&request, &s->plan);
    return 0;
}

void setup_close(struct setup *s) {
    plan_free(&s->plan);
    threads_close(s->threads);
    tokenizer_close(s->tokenizer);
    mem_free(s->split);
    mem_free(s->counts);
    mem_free(s->planned);
    str_free(&s->planned_report);
    *s = (struct setup){0};
}
