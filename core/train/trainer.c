/* Everything between the flags and the first iteration. */
#include "core/train/trainer.h"
#include "core/base/log.h"
#include "core/base/mem.h"
#include "core/train/memory_timeline.h"
#include "core/train/out_of_memory.h"
#include "core/train/signals.h"
#include "core/train/sync.h"
#include <math.h>
#include <stdio.h>
#include <string.h>

/* ---- schedules ---- */

static void open_schedules(struct trainer *t) {
    const struct config *cfg = t->cfg;
    struct lr_schedule lr = {.max_lr = config_is_set(cfg, lr) ? cfg->lr : 0,
                             .min_lr = cfg->min_lr,
                             .init_lr = cfg->lr_warmup_init,
                             .warmup_samples = (double)cfg->lr_warmup_steps,
                             .decay_samples = (double)cfg->lr_decay_steps,
                             .wsd_samples = (double)cfg->lr_wsd_decay_steps,
                             .decay_style = (enum lr_decay_style)cfg->lr_decay_style,
                             .wsd_style = (enum lr_wsd_style)cfg->lr_wsd_decay_style};
    t->lr = t->decoupled_lr = lr;
    t->has_decoupled_lr = config_is_set(cfg, decoupled_lr);
    if (t->has_decoupled_lr) {
        t->decoupled_lr.max_lr = cfg->decoupled_lr;
        t->decoupled_lr.min_lr = config_is_set(cfg, decoupled_min_lr) ? cfg->decoupled_min_lr : cfg->min_lr;
    }
    bool growing = cfg->weight_decay_incr_style != WEIGHT_DECAY_INCR_STYLE_CONSTANT;
    t->wd =
        (struct wd_schedule){growing ? cfg->start_weight_decay : cfg->weight_decay,
                             growing ? cfg->end_weight_decay : cfg->weight_decay, (double)cfg->wd_incr_steps,
                             (enum wd_incr_style)cfg->weight_decay_incr_style};
}

static int open_loss_scale(struct trainer *t, struct err *err) {
    const struct config *cfg = t->cfg;
    if (cfg->dynamic_loss_scale)
        return loss_scale_init_dynamic(&t->state.loss_scale, cfg->initial_loss_scale, cfg->min_loss_scale,
                                       (int64_t)cfg->loss_scale_window, cfg->hysteresis, err);
    bool fixed = cfg->fp16 && config_is_set(cfg, loss_scale);
    return loss_scale_init_static(&t->state.loss_scale, fixed ? cfg->loss_scale : 1, err);
}

/* ---- data ---- */

static int open_data(struct trainer *t, struct err *err) {
    const struct config *cfg = t->cfg;
    struct data_options options;
    if (data_options_from_config(cfg, t->setup.tokenizer, &options, err)) return -1;
    if (datasets_open(&options, &t->data, err)) return -1;
    int64_t b = cfg->micro_batch_size;
    int rank = t->ranks ? t->ranks->mesh.dp : 0, ranks = (int)cfg->data_parallel_size;
    const struct train_state *s = &t->state;
    struct dataset *const *split = t->data->split;
    if (!cfg->skip_train && !split[DATA_TRAIN])
        return err_set(err, "there is no training data; give --data-path, --train-data-path or --mock-data");
    if (!cfg->skip_train &&
        loader_open(split[DATA_TRAIN], b, rank, ranks, s->consumed_samples, &t->train_loader, err))
        return -1;
    if (split[DATA_VALID] &&
        loader_open(split[DATA_VALID], b, rank, ranks, s->consumed_valid_samples, &t->valid_loader, err))
        return -1;
    return split[DATA_TEST] ? loader_open(split[DATA_TEST], b, rank, ranks, 0, &t->test_loader, err) : 0;
}

/* ---- reports ---- */

struct flops_shape setup_flops_shape(const struct model *m) {
    return (struct flops_shape){.num_layers = m->layers,
                                .hidden_size = m->hidden,
                                .ffn_hidden_size = m->ffn,
                                .seq_length = m->seq,
                                .padded_vocab_size = m->vocab,
                                .num_attention_heads = m->heads,
                                .num_query_groups = m->groups,
                                .kv_channels = m->head_dim,
                                .gated_linear_unit = activation_is_gated(m->activation),
                                .mtp_num_layers = m->mtp_layers,
                                .num_moe_layers = model_num_moe_layers(m),
                                .moe_ffn_hidden_size = m->moe.ffn,
                                .moe_router_topk = m->moe.topk,
                                .moe_shared_expert_size = m->moe.shared_ffn,
                                .multi_latent_attention = model_has_latents(m),
                                .q_lora_rank = m->q_rank,
                                .kv_lora_rank = m->kv_rank,
                                .qk_head_dim = m->plain_dim,
                                .qk_pos_emb_head_dim = model_has_latents(m) ? m->rotary_dim : 0,
                                .v_head_dim = m->value_dim};
}

/* For the utilisation figures; 0 when nobody asks for them. */
static double measured_peak(const struct trainer *t) {
    const struct plan_request *r = &t->setup.plan.request;
    if (!r->kernels->peak_flops || !(t->cfg->metrics_file || t->cfg->log_throughput)) return 0;
    return r->kernels->peak_flops(t->setup.threads, r->model.dtype);
}

static int open_reports(struct trainer *t, struct err *err) {
    const struct config *cfg = t->cfg;
    t->flops = setup_flops_shape(&t->setup.plan.request.model);
    t->timers = timers_open((int)cfg->timing_log_level, (enum timers_option)cfg->timing_log_option);
    t->timer_step = timers_add(t->timers, "forward-backward", 1);
    t->timer_data = timers_add(t->timers, "batch-generator", 2);
    t->timer_optimizer = timers_add(t->timers, "optimizer", 1);
    t->timer_eval = timers_add(t->timers, "eval-time", 0);
    t->timer_save = timers_add(t->timers, "save-checkpoint", 0);
    if (t->ranks && t->ranks->rank > 0) return 0; /* rank 0 reports */
    if (cfg->tensorboard_dir && !(t->tensorboard = tensorboard_open(cfg->tensorboard_dir, err))) return -1;
    struct metrics_options options = {.out = stdout,
                                      .metrics_file = cfg->metrics_file,
                                      .tensorboard = t->tensorboard,
                                      .train_iters = cfg->train_iters,
                                      .start_iteration = t->state.iteration,
                                      .log_interval = cfg->log_interval,
                                      .tensorboard_log_interval = cfg->tensorboard_log_interval,
                                      .world_size = (int)cfg->world_size,
                                      .peak_flops_per_rank = measured_peak(t),
                                      .log_throughput = cfg->log_throughput,
                                      .log_loss_scale_to_tensorboard = cfg->log_loss_scale_to_tensorboard,
                                      .log_world_size_to_tensorboard = cfg->log_world_size_to_tensorboard,
                                      .log_memory_to_tensorboard = cfg->log_memory_to_tensorboard,
                                      .log_validation_ppl_to_tensorboard =
                                          cfg->log_validation_ppl_to_tensorboard,
                                      .log_timers_to_tensorboard = cfg->log_timers_to_tensorboard};
    t->metrics = metrics_open(&options, err);
    return t->metrics ? 0 : -1;
}

/* ---- all ranks together ---- */

/* What rank 0 says about all of them: their host names, FLOPs of the whole step. */
static void gather_ranks(struct trainer *t) {
    int size = t->ranks ? t->ranks->size : 1, rank = t->ranks ? t->ranks->rank : 0;
    t->rank_reports = mem_new_array(double, (size_t)(size * RANK_REPORT_WORDS), "reports of the ranks");
    t->busy_sorted = mem_new_array(double, (size_t)size, "reports of the ranks");
    t->hosts = mem_new_array(char, (size_t)(size * RANK_HOST_BYTES), "hosts of the ranks");
    t->world_gemm_flops = t->setup.plan.step_gemm_flops;
    t->num_layer_losses = t->setup.plan.request.model.layers + t->setup.plan.request.model.mtp_layers;
    if (t->cfg->moe_per_layer_logging)
        t->layer_losses = mem_new_array(struct router_losses, (size_t)t->num_layer_losses, "losses by layer");
    if (!t->ranks) return;
    snprintf(t->hosts + (ptrdiff_t)rank * RANK_HOST_BYTES, RANK_HOST_BYTES, "%s",
             comm_world_host(t->ranks->world));
    comm_all_gather(t->ranks->comms.world, t->hosts, RANK_HOST_BYTES, COMM_U8);
    comm_all_reduce(t->ranks->comms.world, &t->world_gemm_flops, 1, COMM_F64, COMM_SUM);
}

/* Ranks that compute the same layers must have the same plan. */
static void check_equal_plans(const struct trainer *t) {
    if (!t->ranks) return;
    const struct executor_comms *c = &t->ranks->comms;
    struct comm *const comms[] = {c->tensor, c->data, c->expert, c->expert_data};
    for (size_t i = 0; i < ARRAY_COUNT(comms); i++) {
        if (!comms[i]) continue;
        int64_t hashes[2] = {(int64_t)t->setup.plan.hash, -(int64_t)t->setup.plan.hash};
        comm_all_reduce(comms[i], &hashes[0], 1, COMM_I64, COMM_MAX);
        comm_all_reduce(comms[i], &hashes[1], 1, COMM_I64, COMM_MAX);
        CHECK(hashes[0] == -hashes[1],
              "the ranks of group %s have different plans: start the same binary "
              "with the same flags on every node",
              comm_name(comms[i]));
    }
}

static int open_memory(struct trainer *t, int threads, struct err *err) {
    const struct config *cfg = t->cfg;
    if (setup_open(&t->setup, cfg, t->ranks ? t->ranks->rank : 0, threads, err)) return -1;
    if (out_of_memory_check(cfg, &t->setup, t->ranks ? t->ranks->rank : 0, err)) return -1;
    if (arena_open(&t->arena, t->setup.plan.arena_bytes, err)) die(STATUS_OUT_OF_MEMORY, "%s", err->text);
    executor_open(&t->executor, &t->setup.plan, &t->arena, t->setup.threads, (uint32_t)cfg->seed,
                  t->ranks ? &t->ranks->comms : NULL);
    sync_set_overlap(t->executor.sync, cfg->overlap_grad_reduce, cfg->overlap_param_gather);
    config_write_json(&t->config_json, cfg);
    if (open_loss_scale(t, err)) return -1;
    open_schedules(t);
    return 0;
}

int trainer_open(struct trainer *t, const struct config *cfg, const struct ranks *ranks, struct err *err) {
    *t = (struct trainer){.cfg = cfg, .ranks = ranks, .start_ns = clock_now_ns(), .last_saved_iteration = -1};
    int threads = ranks_threads(ranks);
    int status = cfg->exit_signal_handler ? signals_install(cfg->exit_signal, err) : 0;
    if (!status) status = open_memory(t, threads, err);
    if (ranks_agree(ranks, status, err)) return -1;
    check_equal_plans(t);
    gather_ranks(t);
    state_open(t);
    update_initialize(&t->executor);
    if (ranks_agree(ranks, state_load(t, err), err)) return -1;
    update_compute_copies(&t->executor);
    t->start_iteration = t->state.iteration;
    status = open_data(t, err);
    if (!status) status = open_reports(t, err);
    if (!status) status = memory_timeline_open(t, err);
    return ranks_agree(ranks, status, err);
}

void trainer_close(struct trainer *t) {
    loader_close(t->train_loader);
    loader_close(t->valid_loader);
    loader_close(t->test_loader);
    datasets_close(t->data);
    metrics_close(t->metrics);
    tensorboard_close(t->tensorboard);
    timers_close(t->timers);
    memory_timeline_close(t);
    if (t->executor.plan) executor_close(&t->executor); /* ends what is under way; the trace sees it */
    trace_close(t->trace);
    arena_close(&t->arena);
    state_close(t);
    mem_free(t->rank_reports);
    mem_free(t->busy_sorted);
    mem_free(t->layer_losses);
    mem_free(t->hosts);
    str_free(&t->config_json);
    setup_close(&t->setup);
    *t = (struct trainer){0};
}
