/* What the ranks tell each other after an iteration, and the lines that rank 0 makes of it. */
#include "core/base/mem.h"
#include "core/train/trainer.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum {
    WORD_PEAK,
    WORD_ACTIVATIONS,
    WORD_ALLOCATED,
    WORD_RESERVED,
    WORD_RECOMPUTE_SECONDS,
    WORD_BUSY_SECONDS,
    WORD_WAIT_SECONDS
};

static size_t fixed_bytes(const struct plan *plan) {
    return plan->activations - plan->fixed_bytes[CATEGORY_ACTIVATIONS];
}

/* Seconds that this rank stood still for others, since the last call. */
static double waited_seconds(const struct trainer *t) {
    if (!t->ranks) return 0;
    struct comm *comms[EXECUTOR_MAX_COMMS];
    int count = executor_list_comms(&t->ranks->comms, comms);
    double seconds = 0;
    for (int i = 0; i < count; i++) {
        for (int kind = 0; kind < COMM_KIND_COUNT; kind++)
            seconds += comm_stats(comms[i], (enum comm_kind)kind)->wait_seconds;
        comm_reset_stats(comms[i]);
    }
    return seconds;
}

/* Every rank's words on every rank. */
static void exchange(struct trainer *t, double seconds) {
    int rank = t->ranks ? t->ranks->rank : 0;
    double *own = t->rank_reports + (ptrdiff_t)rank * RANK_REPORT_WORDS;
    own[WORD_PEAK] = (double)t->executor.high_water;
    own[WORD_ACTIVATIONS] = (double)(t->executor.high_water - fixed_bytes(&t->setup.plan));
    own[WORD_ALLOCATED] = (double)t->setup.plan.activations;
    own[WORD_RESERVED] = (double)t->arena.bytes;
    own[WORD_RECOMPUTE_SECONDS] = t->executor.phase_seconds[PHASE_RECOMPUTE];
    own[WORD_WAIT_SECONDS] = waited_seconds(t);
    own[WORD_BUSY_SECONDS] = fmax(seconds - own[WORD_WAIT_SECONDS], 0);
    if (t->ranks) comm_all_gather(t->ranks->comms.world, t->rank_reports, RANK_REPORT_WORDS, COMM_F64);
}

static int largest_rank(const struct trainer *t, int word) {
    int best = 0, size = t->ranks ? t->ranks->size : 1;
    for (int i = 1; i < size; i++)
        if (t->rank_reports[i * RANK_REPORT_WORDS + word] > t->rank_reports[best * RANK_REPORT_WORDS + word])
            best = i;
    return best;
}

/* Of the rank with the highest peak. */
static struct metrics_memory memory_of(const struct trainer *t) {
    int rank = largest_rank(t, WORD_PEAK);
    const double *words = t->rank_reports + (ptrdiff_t)rank * RANK_REPORT_WORDS;
    return (struct metrics_memory){.allocated = (uint64_t)words[WORD_ALLOCATED],
                                   .peak_allocated = (uint64_t)words[WORD_PEAK],
                                   .reserved = (uint64_t)words[WORD_RESERVED],
                                   .peak_reserved = (uint64_t)words[WORD_RESERVED],
                                   .peak_activation = (uint64_t)words[WORD_ACTIVATIONS],
                                   .blocks = 1,
                                   .peak_rank = rank};
}

/* ---- who is slow ---- */

static double busy_seconds(const struct trainer *t, int rank) {
    return t->rank_reports[rank * RANK_REPORT_WORDS + WORD_BUSY_SECONDS];
}

/* Ranks from the slowest on; equal ones by number. A selection: few are shown. */
static int next_slowest(const struct trainer *t, int after) {
    int best = -1;
    for (int i = 0; i < t->ranks->size; i++) {
        double here = busy_seconds(t, i);
        if (after >= 0) {
            double last = busy_seconds(t, after);
            if (here > last || (here == last && i <= after)) continue;
        }
        if (best < 0 || here > busy_seconds(t, best)) best = i;
    }
    return best;
}

static int by_seconds(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Time that a rank computed, without waiting for others: the slowest rank is the one that they wait for. One
 * is named, or with --log-straggler as many as --straggler-minmax-count says. */
static void print_stragglers(const struct trainer *t, FILE *out) {
    int size = t->ranks ? t->ranks->size : 1;
    int64_t count = t->cfg->log_straggler ? t->cfg->straggler_minmax_count : 1;
    if (size == 1) return;
    for (int i = 0; i < size; i++) t->busy_sorted[i] = busy_seconds(t, i);
    qsort(t->busy_sorted, (size_t)size, sizeof(double), by_seconds);
    fprintf(out, " rank times without waiting (ms): min %.1f | median %.1f | max %.1f | slowest:",
            1e3 * t->busy_sorted[0], 1e3 * t->busy_sorted[size / 2], 1e3 * t->busy_sorted[size - 1]);
    for (int64_t k = 0, rank = -1; k < count && k < size; k++) {
        rank = next_slowest(t, (int)rank);
        fprintf(out, "%s rank %d on %s", k ? "," : "", (int)rank, t->hosts + rank * RANK_HOST_BYTES);
    }
    fputc('\n', out);
}

/* ---- the iteration line ---- */

static const char *balance_name(const struct model *m) {
    if (m->moe.balance_globally) return "global_load_balancing_loss";
    return m->moe.balance_by_sequence ? "seq_load_balancing_loss" : "load_balancing_loss";
}

/* Before their coefficients, as Megatron-LM logs them. */
static void add_router_losses(const struct trainer *t, struct metrics_record *record) {
    const struct model *m = &t->setup.plan.request.model;
    const struct router_losses *l = &t->executor.router_losses;
    if (!m->moe.experts) return;
    if (m->moe.balance_coeff != 0)
        record->extra[record->num_extra++] = (struct metrics_value){balance_name(m), l->balance};
    if (m->moe.z_coeff != 0) record->extra[record->num_extra++] = (struct metrics_value){"z_loss", l->z};
}

/* Before their factor, as Megatron-LM logs them. */
static void add_mtp_losses(const struct trainer *t, struct metrics_record *record) {
    static const char *const names[MODEL_MAX_MTP_LAYERS] = {"mtp_1 loss", "mtp_2 loss", "mtp_3 loss",
                                                            "mtp_4 loss", "mtp_5 loss", "mtp_6 loss",
                                                            "mtp_7 loss", "mtp_8 loss"};
    for (int64_t k = 0; k < t->setup.plan.request.model.mtp_layers; k++)
        record->extra[record->num_extra++] = (struct metrics_value){names[k], t->mtp_loss[k]};
}

/* --moe-per-layer-logging, with Megatron-LM's tags; layers without experts have none. */
static void write_layer_losses(const struct trainer *t) {
    const struct model *m = &t->setup.plan.request.model;
    if (!t->layer_losses || !t->tensorboard || t->state.iteration % t->cfg->tensorboard_log_interval) return;
    for (int layer = 0; layer < (int)t->num_layer_losses; layer++) {
        char tag[64];
        if (!model_layer_is_moe(m, layer < m->layers ? layer : m->layers - 1)) continue;
        snprintf(tag, sizeof(tag), "moe/%s_layer_%d", balance_name(m), layer);
        if (m->moe.balance_coeff != 0)
            tensorboard_scalar(t->tensorboard, tag, t->state.iteration, t->layer_losses[layer].balance);
        snprintf(tag, sizeof(tag), "moe/z_loss_layer_%d", layer);
        if (m->moe.z_coeff != 0)
            tensorboard_scalar(t->tensorboard, tag, t->state.iteration, t->layer_losses[layer].z);
    }
}

bool report_iteration(struct trainer *t, const struct step_result *r, int64_t batch_size, double seconds) {
    const struct plan *plan = &t->setup.plan;
    double share = (double)r->micro_batches / plan->request.micro_batches;
    uint64_t params_hash = t->cfg->log_params_hash ? update_params_hash(&t->executor) : 0;
    exchange(t, seconds);
    if (!t->metrics) return false;
    struct metrics_record record = {
        .iteration = t->state.iteration,
        .consumed_samples = t->state.consumed_samples,
        .skipped_samples = t->state.skipped_samples,
        .global_batch_size = batch_size,
        .tokens = r->tokens,
        .seconds = seconds,
        .learning_rate = r->learning_rate,
        .lm_loss = r->lm_loss,
        .skipped = r->skipped,
        .loss_scale = t->state.loss_scale.scale,
        .grad_norm = r->grad_norm,
        .params_norm = r->params_norm,
        .num_zeros = r->num_zeros,
        .model_flops = flops_of_batch(&t->flops, (double)batch_size),
        .hardware_flops = t->world_gemm_flops * share,
        .recompute_seconds = t->rank_reports[largest_rank(t, WORD_RECOMPUTE_SECONDS) * RANK_REPORT_WORDS +
                                             WORD_RECOMPUTE_SECONDS],
        .max_attention_logit = -1,
        .memory = memory_of(t),
        .rank_peaks = t->ranks && t->ranks->size > 1 ? t->rank_reports + WORD_PEAK : NULL,
        .rank_peaks_stride = RANK_REPORT_WORDS,
        .exposed_communication_seconds =
            t->rank_reports[largest_rank(t, WORD_WAIT_SECONDS) * RANK_REPORT_WORDS + WORD_WAIT_SECONDS],
        .has_params_hash = t->cfg->log_params_hash,
        .params_hash = params_hash};
    add_router_losses(t, &record);
    add_mtp_losses(t, &record);
    write_layer_losses(t);
    bool printed = metrics_iteration(t->metrics, &record);
    bool first_reports =
        t->state.iteration <= t->start_iteration + 1 ||
        (config_is_set(t->cfg, log_memory_interval) && t->state.iteration % t->cfg->log_memory_interval == 0);
    if (printed && first_reports)
        metrics_memory_report(stdout, record.memory.peak_rank, t->state.iteration, &record.memory);
    if (printed) timers_report(t->timers, (double)t->cfg->log_interval, stdout);
    if (printed) print_stragglers(t, stdout);
    return printed;
}

/* ---- at start ---- */

void report_peaks(struct trainer *t, FILE *out) {
    if (!t->ranks || t->ranks->size == 1) return;
    char size[32];
    t->rank_reports[t->ranks->rank * RANK_REPORT_WORDS + WORD_PEAK] = (double)t->setup.plan.arena_bytes;
    comm_all_gather(t->ranks->comms.world, t->rank_reports, RANK_REPORT_WORDS, COMM_F64);
    int rank = largest_rank(t, WORD_PEAK);
    double bytes = t->rank_reports[rank * RANK_REPORT_WORDS + WORD_PEAK];
    if (out)
        fprintf(out, "of %d ranks, rank %d has the highest peak: %.0f bytes, %s\n", t->ranks->size, rank,
                bytes, str_format_bytes(size, sizeof(size), bytes));
    waited_seconds(t); /* what the start waited for belongs to no iteration */
}

static bool is_recomputed(const struct trainer *t, int stage, int chunk, int layer) {
    const struct pipeline_chunk *part = &t->setup.split[chunk * t->setup.plan.request.layout.stages + stage];
    struct recompute_group *groups =
        mem_new_array(struct recompute_group, (size_t)part->num_layers + 1, "recompute groups");
    struct recompute_chunk place = {stage, chunk, part->first_layer, part->num_layers};
    int count = recompute_groups(&t->setup.plan.request.recompute, &place, groups), at = part->first_layer;
    bool selected = false;
    for (int i = 0; i < count; at += groups[i++].num_layers)
        if (layer >= at && layer < at + groups[i].num_layers) selected = groups[i].selected != 0;
    mem_free(groups);
    return selected;
}

void report_layers(const struct trainer *t, FILE *out) {
    const struct plan_layout *l = &t->setup.plan.request.layout;
    int layers = (int)t->setup.plan.request.model.layers, found = 0;
    if (l->stages == 1) return;
    fprintf(out, "layers of each stage and chunk (r: recomputed):\n");
    for (int stage = 0; stage < l->stages; stage++)
        for (int chunk = 0; chunk < l->chunks; chunk++) {
            const struct pipeline_chunk *part = &t->setup.split[chunk * l->stages + stage];
            fprintf(out, "  stage %d chunk %d:%s", stage, chunk, part->embedding ? " embedding" : "");
            for (int i = part->first_layer; i < part->first_layer + part->num_layers; i++, found++)
                fprintf(out, " %d%s", i, is_recomputed(t, stage, chunk, i) ? "r" : "");
            fprintf(out, "%s", part->head ? " head" : "");
            for (int i = 0; part->head && i < t->setup.plan.request.model.mtp_layers; i++)
                fprintf(out, " mtp_%d%s", i + 1,
                        recompute_of_mtp(&t->setup.plan.request.recompute, stage, layers + i) ? "r" : "");
            fputc('\n', out);
        }
    CHECK(found == layers, "%d layers are on the stages, the model has %d", found, layers);
}
