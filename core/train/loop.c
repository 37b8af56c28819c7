/* The training loop: iterations, evaluation, saving, and the ways to stop. */
#include "core/base/log.h"
#include "core/base/mem.h"
#include "core/train/signals.h"
#include "core/train/trainer.h"
#include <math.h>
#include <string.h>

/* What a part of the loop returns. Data that cannot be used is the user's to mend, like a bad flag. */
enum { GO_ON = 0, STOP = 1, FAILED = -1, BAD_INPUT = -2 };

/* ---- what all ranks must agree on ---- */

/* Collective: whether any rank was told to stop. */
static bool signal_was_sent(const struct trainer *t) {
    return ranks_max(t->ranks, signals_received()) > 0;
}

/* A rank that cannot go on where the others can takes them down with its own message. */
static int stop_all(const struct trainer *t, int status, const struct err *err) {
    if (t->ranks && t->ranks->size > 1)
        die(status == BAD_INPUT ? STATUS_USAGE : STATUS_FAILED, "%s", err->text);
    return status;
}

/* ---- evaluation ---- */

static int evaluate(struct trainer *t, struct loader *loader, const char *where, struct err *err) {
    const struct config *cfg = t->cfg;
    double loss_sum = 0, tokens = 0;
    uint64_t begin = clock_now_ns();
    for (int64_t i = 0; i < cfg->eval_iters; i++) {
        if (step_evaluate(t, loader, &loss_sum, &tokens, err)) return stop_all(t, BAD_INPUT, err);
        if (loader == t->valid_loader) t->state.consumed_valid_samples += cfg->eval_global_batch_size;
        if (signal_was_sent(t)) break;
    }
    timers_add_seconds(t->timers, t->timer_eval, clock_seconds_since(begin));
    struct metrics_evaluation evaluation = {.iteration = t->state.iteration,
                                            .consumed_samples = t->state.consumed_samples,
                                            .where = where,
                                            .lm_loss = loss_sum / fmax(tokens, 1)};
    if (t->metrics) metrics_evaluation(t->metrics, &evaluation);
    return 0;
}

/* ---- saving and stopping ---- */

static int save(struct trainer *t) {
    struct err err;
    uint64_t begin = clock_now_ns();
    if (!t->cfg->save || t->last_saved_iteration == t->state.iteration) return 0;
    if (state_save(t, &err)) {
        log_error("saving iteration %lld failed: %s; the last good checkpoint is untouched",
                  (long long)t->state.iteration, err.text);
        return -1;
    }
    double seconds = clock_seconds_since(begin);
    timers_add_seconds(t->timers, t->timer_save, seconds);
    if (t->saving)
        log_info("iteration %lld is being saved to %s; training stood still for %.2f s",
                 (long long)t->state.iteration, t->cfg->save, seconds);
    else
        log_info("saved iteration %lld to %s in %.2f s", (long long)t->state.iteration, t->cfg->save,
                 seconds);
    return 0;
}

/* A save in the background: put in force when it is written, or now. */
static int end_save(struct trainer *t, bool wait) {
    struct err err;
    if (!(wait ? state_finish(t, &err) : state_poll(t, &err))) return 0;
    log_error("saving in the background failed: %s; the last good checkpoint is untouched", err.text);
    return -1;
}

/* Why the run should stop after this iteration, or NULL; the same on all ranks. */
static const char *stop_reason(const struct trainer *t) {
    const struct config *cfg = t->cfg;
    bool late = config_is_set(cfg, exit_duration_in_mins) &&
                clock_minutes_passed(t->start_ns, fmax((double)cfg->exit_duration_in_mins, 1e-9));
    double most_urgent = ranks_max(t->ranks, signals_received() ? 2 : late ? 1 : 0);
    if (most_urgent > 1) return "signal";
    if (most_urgent > 0) return "--exit-duration-in-mins";
    if (config_is_set(cfg, exit_interval) && t->state.iteration % cfg->exit_interval == 0)
        return "--exit-interval";
    return NULL;
}

static bool is_skipped_iteration(const struct trainer *t) {
    for (int64_t i = 0; i < t->cfg->iterations_to_skip.count; i++)
        if (t->cfg->iterations_to_skip.items[i] == t->state.iteration + 1) return true;
    return false;
}

static bool eval_is_due(const struct trainer *t) {
    const struct config *cfg = t->cfg;
    return t->valid_loader && cfg->eval_iters > 0 && config_is_set(cfg, eval_interval) &&
           t->state.iteration % cfg->eval_interval == 0 &&
           (!config_is_set(cfg, start_eval_at_iter) || t->state.iteration >= cfg->start_eval_at_iter);
}

static void abort_on_nan(struct trainer *t, const struct step_result *r, int64_t batch_size) {
    struct str where = {0};
    step_diagnose(t, batch_size, &where);
    if (t->ranks && t->ranks->rank > 0) comm_barrier(t->ranks->comms.world); /* rank 0 ends the job */
    die(STATUS_FAILED,
        "iteration %lld: lm loss %g, gradient norm %g: not finite%s. The weights and the last checkpoint are "
        "unchanged; "
        "resume with a lower --lr, or with --on-nan skip",
        (long long)t->state.iteration + 1, r->lm_loss, r->grad_norm, where.data ? where.data : "");
}

/* ---- tracing ---- */

static bool is_traced(const struct trainer *t) {
    const struct config_ints *ranks = &t->cfg->profile_ranks;
    if (!t->cfg->profile) return false;
    for (int64_t i = 0; i < ranks->count; i++)
        if (ranks->items[i] == (t->ranks ? t->ranks->rank : 0)) return true;
    return ranks->count <= 0;
}

enum { SHORTEST_STANDSTILL_NS = 1000 };

static void trace_standstill(struct trace *trace, const struct comm_event *event, uint64_t begin,
                             uint64_t end) {
    if (end - begin < SHORTEST_STANDSTILL_NS) return;
    trace_span(trace, &(struct trace_event){.name = comm_kind_name(event->kind),
                                            .category = event->group,
                                            .track = TRACK_WAITING,
                                            .begin_ns = begin,
                                            .end_ns = end});
}

/* Communication has a track of its own beside compute, and the times in which compute stood still for it have
 * another: what is exposed of it. */
static void trace_communication(void *context, const struct comm_event *event) {
    struct trainer *t = context;
    if (!t->trace) return;
    trace_span(t->trace, &(struct trace_event){.name = comm_kind_name(event->kind),
                                               .category = event->group,
                                               .track = TRACK_COMMUNICATION,
                                               .begin_ns = event->begin_ns,
                                               .end_ns = event->end_ns,
                                               .num_args = 1,
                                               .args = {{"bytes", event->bytes}}});
    trace_standstill(t->trace, event, event->start_begin_ns, event->start_end_ns);
    trace_standstill(t->trace, event, event->wait_begin_ns, event->wait_end_ns);
}

/* One file per rank: trace.json, and trace.rank3.json beside it. */
static int trace_start(struct trainer *t, struct err *err) {
    const char *path = t->cfg->profile_trace_file, *dot = strrchr(path, '.');
    int rank = t->ranks ? t->ranks->rank : 0;
    struct str name = {0};
    if (!dot || strchr(dot, '/')) dot = path + strlen(path);
    str_printf(&name, "%.*s", (int)(dot - path), path);
    if (rank) str_printf(&name, ".rank%d", rank);
    str_puts(&name, dot);
    t->trace = trace_open(name.data, rank, 1u << 22, err);
    str_free(&name);
    if (!t->trace) return -1;
    trace_name_track(t->trace, TRACK_COMPUTE, "compute");
    trace_name_track(t->trace, TRACK_COMMUNICATION, "communication");
    trace_name_track(t->trace, TRACK_WAITING, "waiting for communication");
    if (t->ranks) comm_world_set_observer(t->ranks->world, trace_communication, t);
    return 0;
}

static int trace_switch(struct trainer *t, struct err *err) {
    const struct config *cfg = t->cfg;
    if (!is_traced(t)) return 0;
    if (t->state.iteration == cfg->profile_step_start && !t->trace && trace_start(t, err)) return -1;
    if (t->state.iteration == cfg->profile_step_end && t->trace) {
        if (t->ranks) comm_world_set_observer(t->ranks->world, NULL, NULL);
        trace_close(t->trace);
        t->trace = NULL;
        log_info("wrote the trace of iterations %lld to %lld to %s", (long long)cfg->profile_step_start,
                 (long long)cfg->profile_step_end - 1, cfg->profile_trace_file);
    }
    t->executor.trace = t->trace;
    return 0;
}

/* ---- the loop ---- */

static int skip_iteration(struct trainer *t, int64_t batch_size) { /* data is consumed, nothing is trained */
    struct train_state *s = &t->state;
    s->iteration++;
    s->consumed_samples += batch_size;
    s->skipped_samples += batch_size;
    loader_seek(t->train_loader, s->consumed_samples);
    return 0;
}

static int train_iteration(struct trainer *t, int64_t batch_size, struct err *err) {
    struct train_state *s = &t->state;
    struct step_result r;
    uint64_t begin = clock_now_ns();
    if (step_run(t, batch_size, &r, err)) return stop_all(t, BAD_INPUT, err);
    if (r.not_finite && t->cfg->on_nan == ON_NAN_ABORT) abort_on_nan(t, &r, batch_size);
    s->iteration++;
    s->consumed_samples += batch_size;
    s->skipped_iterations += r.skipped;
    s->nan_iterations += r.not_finite;
    report_iteration(t, &r, batch_size, clock_seconds_since(begin));
    return 0;
}

static int train(struct trainer *t, struct err *err) {
    const struct config *cfg = t->cfg;
    while (t->state.iteration < cfg->train_iters) {
        int64_t batch_size = config_batch_size_at(cfg, t->state.consumed_samples);
        if (trace_switch(t, err)) return stop_all(t, FAILED, err);
        int status =
            is_skipped_iteration(t) ? skip_iteration(t, batch_size) : train_iteration(t, batch_size, err);
        if (status == GO_ON && eval_is_due(t)) status = evaluate(t, t->valid_loader, NULL, err);
        if (status != GO_ON) return status;
        const char *stop = stop_reason(t);
        bool save_due = config_is_set(cfg, save_interval) && t->state.iteration % cfg->save_interval == 0;
        if ((save_due || stop) && save(t)) return FAILED;
        if (end_save(t, stop != NULL)) return FAILED;
        if (stop) {
            log_info("stopped after iteration %lld: %s", (long long)t->state.iteration, stop);
            return STOP;
        }
    }
    return GO_ON;
}

static int final_evaluations(struct trainer *t, struct err *err) {
    int status = GO_ON;
    if (t->cfg->eval_iters <= 0) return GO_ON;
    if (t->valid_loader) status = evaluate(t, t->valid_loader, "validation set", err);
    if (status == GO_ON && t->test_loader) status = evaluate(t, t->test_loader, "test set", err);
    return status;
}

int trainer_run(struct trainer *t) {
    struct err err = {{0}};
    int status = t->cfg->skip_train ? GO_ON : train(t, &err);
    if (status == GO_ON && !t->cfg->skip_train && (save(t) || end_save(t, true))) status = FAILED;
    if (status == GO_ON) status = final_evaluations(t, &err);
    if (err.text[0] && (!t->ranks || t->ranks->rank == 0)) log_error("%s", err.text);
    return status == BAD_INPUT ? STATUS_USAGE : status == FAILED ? STATUS_FAILED : STATUS_OK;
}
