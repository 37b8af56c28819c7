/* Runs the two small trainers side by side, judges each step, and prints the result. */
#include "core/train/self_check.h"
#include "core/base/log.h"
#include "core/base/mem.h"
#include <math.h>
#include <stdlib.h>

enum { TABLE_ROWS = 10 };

static bool speaks(const struct self_check *s) {
    return !s->ranks || s->ranks->rank == 0;
}

static struct comm *world_of(const struct self_check *s) {
    return s->ranks ? s->ranks->comms.world : NULL;
}

/* How far apart two correct runs may be. Both round every result of every sum to fp32, in other orders, and
 * one rounding is off by at most u = 2^-24 of its value. A sum of n terms that is rounded after each of them
 * is off by about u sqrt(n) of the size of its terms (roundings are independent; the bound without that, u n,
 * is never met). On the way from the weights to a gradient and back lie SUMS_PER_LAYER sums per layer, each
 * over at most the width of the model, and at the end one over all tokens of the step; their errors add as
 * squares:
 *
 *     u sqrt(tokens + SUMS_PER_LAYER * layers * width)
 *
 * Softmax, norms and activations pass an error on multiplied by a small number, and the largest of many
 * elements is some standard deviations away: MARGIN stands for both. A wrong layout (a missing sum, a bias
 * added twice, a wrong mask) is off by 1e-3 and more. The optimizer's step is a smooth function of the
 * gradients here (self_check_config.c), so the errors of one step do not grow in the next ones. */
enum { SUMS_PER_LAYER = 12, MARGIN = 8 };
static double tolerance_of(const struct config *c) {
    double width = fmax((double)c->ffn_hidden_size, (double)c->seq_length);
    width = fmax(width, (double)(c->num_attention_heads * c->kv_channels));
    double tokens = (double)(c->global_batch_size * c->seq_length);
    return MARGIN * 0x1p-24 * sqrt(tokens + SUMS_PER_LAYER * (double)c->num_layers * width);
}

int self_check_open(struct self_check *s, const struct config *cfg, const struct ranks *ranks,
                    struct err *err) {
    *s = (struct self_check){.ranks = ranks};
    self_check_shrink(cfg, &s->configs);
    s->tolerance = tolerance_of(&s->configs.layout);
    if (trainer_open(&s->layout, &s->configs.layout, ranks, err)) return -1;
    int status = trainer_open(&s->reference, &s->configs.reference, NULL, err);
    if (ranks_agree(ranks, status, err)) return -1;
    s->num_entries = s->reference.setup.plan.num_params;
    s->entries = mem_new_array(struct self_check_entry, (size_t)s->num_entries, "self-check");
    s->weights = mem_new_array(struct self_check_entry, (size_t)s->num_entries, "self-check");
    return 0;
}

void self_check_close(struct self_check *s) {
    trainer_close(&s->layout);
    trainer_close(&s->reference);
    mem_free(s->entries);
    mem_free(s->weights);
    self_check_free_configs(&s->configs);
    *s = (struct self_check){0};
}

/* ---- steps ---- */

static int train_one(struct trainer *t, struct step_result *out, struct err *err) {
    int64_t batch = t->cfg->global_batch_size;
    if (step_run(t, batch, out, err)) return -1;
    t->state.iteration++;
    t->state.consumed_samples += batch;
    return 0;
}

int self_check_train(struct self_check *s, struct step_result *layout_p, struct step_result *reference_p,
                     struct err *err) {
    int status = train_one(&s->layout, layout_p, err);
    if (!status) status = train_one(&s->reference, reference_p, err);
    s->step++;
    return ranks_agree(s->ranks, status, err);
}

static double relative_error(const struct self_check *s, double value, double truth) {
    double error = fabs(value - truth) / fmax(fabs(truth), 1e-30);
    return ranks_max(s->ranks, isfinite(error) ? error : INFINITY);
}

/* Notes the error of a step; one that is not within the tolerance fails the check. */
static double note(struct self_check *s, double *largest, double error) {
    if (!(error <= s->tolerance)) s->failed = true;
    if (!(error <= *largest)) *largest = error;
    return error;
}

static void describe(const struct self_check_entry *e, struct str *out) {
    str_printf(out, "%.1e in %s", e->relative, e->name);
    if (e->missing > 0) str_printf(out, " (%.0f of its elements are on no rank)", e->missing);
    if (e->missing < 0) str_printf(out, " (%.0f of its elements are on two ranks)", -e->missing);
}

void self_check_judge(struct self_check *s, const struct step_result *layout,
                      const struct step_result *reference, FILE *out) {
    double loss = note(s, &s->loss, relative_error(s, layout->lm_loss, reference->lm_loss));
    double norm = note(s, &s->grad_norm, relative_error(s, layout->grad_norm, reference->grad_norm));
    int worst = self_check_compare(&s->layout.executor, &s->reference.executor, world_of(s),
                                   SELF_CHECK_GRADIENTS, s->entries);
    for (int i = 0; i < s->num_entries; i++) {
        struct self_check_entry *e = &s->entries[i];
        note(s, &e->largest_error, e->relative);
    }
    if (!speaks(s)) return;
    struct str text = {0};
    describe(&s->entries[worst], &text);
    fprintf(
        out,
        "self-check step %d: loss %.6f (relative error %.1e), gradient norm %.6f (%.1e), worst gradient %s; "
        "tolerance %.1e\n",
        s->step, layout->lm_loss, loss, layout->grad_norm, norm, text.data, s->tolerance);
    fflush(out);
    str_free(&text);
}

/* ---- reports ---- */

static void print_copy(const struct self_check *s, FILE *out) {
    const struct config *c = &s->configs.layout;
    const struct setup *setup = &s->layout.setup;
    char experts[96] = "";
    if (setup->plan.request.model.moe.experts)
        snprintf(experts, sizeof(experts), "%lld of %lld experts of width %lld, ",
                 (long long)c->moe_router_topk, (long long)c->num_experts, (long long)c->moe_ffn_hidden_size);
    fprintf(
        out,
        "self-check: this layout with %lld layers of width %lld, %lld heads in %lld groups, MLP width %lld, "
        "%s%lld tokens, "
        "vocabulary %lld (%lld with padding), %lld micro-batches of %lld on each of %lld data-parallel "
        "ranks, fp32, seed %lld; against one rank with plain kernels and nothing recomputed\n",
        (long long)c->num_layers, (long long)c->hidden_size, (long long)c->num_attention_heads,
        (long long)c->num_query_groups, (long long)c->ffn_hidden_size, experts, (long long)c->seq_length,
        (long long)setup->vocab_size, (long long)setup->padded_vocab_size,
        (long long)(c->global_batch_size / c->micro_batch_size / c->data_parallel_size),
        (long long)c->micro_batch_size, (long long)c->data_parallel_size, (long long)c->seed);
}

/* Initial weights are a function of name and element: the same bits, or the layout does not hold the model.
 */
static void check_weights_at_start(struct self_check *s, FILE *out) {
    uint64_t mine = update_params_hash(&s->layout.executor),
             truth = update_params_hash(&s->reference.executor);
    bool equal = ranks_max(s->ranks, mine != truth) == 0;
    if (!equal) s->failed = true;
    if (!speaks(s)) return;
    if (equal)
        fprintf(out, "self-check: initial weights are bit-equal to those of one rank (hash %016llx)\n",
                (unsigned long long)mine);
    else
        fprintf(out,
                "self-check: initial weights DIFFER from those of one rank (hash %016llx, not %016llx)\n",
                (unsigned long long)mine, (unsigned long long)truth);
}

static int by_error(const void *a, const void *b) {
    const struct self_check_entry *x = a, *y = b;
    return (x->largest_error < y->largest_error) - (x->largest_error > y->largest_error);
}

static void print_table(const struct self_check *s, FILE *out) {
    int rows = s->num_entries < TABLE_ROWS ? s->num_entries : TABLE_ROWS;
    fprintf(out, "self-check: largest relative errors of gradients over %d steps, %d of %d parameters:\n",
            s->step, rows, s->num_entries);
    for (int i = 0; i < rows; i++)
        fprintf(out, "  %8.1e  %s\n", s->entries[i].largest_error, s->entries[i].name);
}

static void print_verdict(const struct self_check *s, const struct self_check_entry *weights, FILE *out) {
    struct str text = {0};
    describe(weights, &text);
    fprintf(out,
            "self-check: loss %.1e, gradient norm %.1e, worst gradient %.1e in %s, weights at the end %s, "
            "tolerance %.1e: the layout %s with one rank\n",
            s->loss, s->grad_norm, s->entries[0].largest_error, s->entries[0].name, text.data, s->tolerance,
            s->failed ? "DISAGREES" : "agrees");
    str_free(&text);
}

/* Sorts the entries: they are not compared again. */
static void finish(struct self_check *s, FILE *out) {
    double largest = 0;
    int worst = self_check_compare(&s->layout.executor, &s->reference.executor, world_of(s),
                                   SELF_CHECK_WEIGHTS, s->weights);
    note(s, &largest, s->weights[worst].relative);
    qsort(s->entries, (size_t)s->num_entries, sizeof(*s->entries), by_error);
    if (!speaks(s)) return;
    print_table(s, out);
    print_verdict(s, &s->weights[worst], out);
    if (s->failed)
        log_error(
            "--self-check: this layout does not compute what one rank computes; the worst is the gradient "
            "of %s. Do not train with it: report the flags, or change the layout",
            s->entries[0].name);
    fflush(out);
}

int self_check_run(const struct config *cfg, const struct ranks *ranks, FILE *out, struct err *err) {
    struct self_check s;
    struct step_result layout, reference;
    int status = self_check_open(&s, cfg, ranks, err) ? STATUS_USAGE : STATUS_OK;
    if (!status) {
        if (speaks(&s)) print_copy(&s, out);
        if (speaks(&s) && self_check_lifts_capacity(cfg))
            fprintf(out, "self-check: checked without --moe-expert-capacity-factor: each rank limits its own "
                         "tokens, so "
                         "ranks that split sequences drop others than one rank does\n");
        if (speaks(&s) && self_check_replaces_balance(cfg))
            fprintf(
                out,
                "self-check: checked with aux_loss instead of global_aux_loss: the micro-batches so far are "
                "others on several ranks than on one\n");
        check_weights_at_start(&s, out);
    }
    for (int64_t i = 0; i < cfg->self_check_steps && !status; i++) {
        if (self_check_train(&s, &layout, &reference, err))
            status = STATUS_USAGE;
        else
            self_check_judge(&s, &layout, &reference, out);
    }
    if (status && speaks(&s)) log_error("%s", err->text);
    if (!status) {
        finish(&s, out);
        status = s.failed ? STATUS_FAILED : STATUS_OK;
    }
    self_check_close(&s);
    return status;
}
