#include "core/plan_remedy.h"
#include "core/base/mem.h"
#include <stdlib.h>
#include <string.h>

/* A change to the requests of all stages. */
struct change {
    const struct recompute_policy *policy; /* NULL: as given */
    char policy_flags[224];
    bool shards;
    int divisor; /* of the micro-batch, which becomes as many more; 1: as given */
};

struct search {
    const struct plan_remedy_options *options;
    struct plan_remedies *out;
    const struct plan_request *any; /* of the first stage tried */
};

/* ---- one attempt ---- */

/* Plans a stage with the change; false: it does not fit, or the schedule cannot do it. */
static bool stage_fits(const struct search *s, int stage, const struct change *c, struct plan_remedy *r) {
    struct plan_request request = s->options->stages[stage];
    const struct plan_layout *l = &request.layout;
    int *counts = mem_new_array(int, (size_t)request.num_other_counts + 1, "micro-batches");
    struct plan plan;
    if (c->policy) request.recompute = *c->policy;
    if (c->shards) request.layout.sharding = PLAN_SHARD_OPTIM;
    request.model.micro_batch /= c->divisor;
    request.micro_batches *= c->divisor;
    request.eval_micro_batches *= c->divisor;
    for (int i = 0; i < request.num_other_counts; i++) counts[i] = request.other_counts[i] * c->divisor;
    request.other_counts = counts;
    struct schedule_shape shape = {.stages = l->stages ? l->stages : 1,
                                   .stage = l->stage,
                                   .chunks = l->chunks ? l->chunks : 1,
                                   .micro_batches = request.micro_batches,
                                   .group = l->group};
    bool fits = !l->schedule || !l->schedule->refuses(&shape);
    if (fits) {
        plan_build(&request, &plan);
        fits = plan.arena_bytes <= s->options->limit;
        if (plan.arena_bytes > r->bytes) r->bytes = plan.arena_bytes;
        r->rerun_flops += plan.step_rerun_flops;
        plan_free(&plan);
    }
    mem_free(counts);
    return fits;
}

static bool attempt(struct search *s, const struct change *c) {
    struct plan_remedies *out = s->out;
    struct plan_remedy r = {.changes_recompute = c->policy, .changes_more = c->shards || c->divisor > 1};
    int first = s->options->first;
    char batch[96] = "";
    if (out->count == PLAN_MAX_REMEDIES || !stage_fits(s, first, c, &r)) return false;
    for (int i = 0; i < s->options->num_stages; i++)
        if (i != first && !stage_fits(s, i, c, &r)) return false;
    if (c->divisor > 1)
        snprintf(batch, sizeof(batch), "--micro-batch-size %lld%s",
                 (long long)(s->any->model.micro_batch / c->divisor), s->options->with_batch);
    snprintf(r.flags, sizeof(r.flags), "%s%s%s%s%s", c->policy_flags,
             *c->policy_flags && r.changes_more ? " " : "", c->shards ? "--use-distributed-optimizer" : "",
             c->shards && *batch ? " " : "", batch);
    for (int i = 0; i < out->count; i++)
        if (!strcmp(out->at[i].flags, r.flags)) return true;
    out->at[out->count++] = r;
    return true;
}

/* ---- recompute settings ---- */

static const char *const module_sets[] = {"layernorm",
                                          "mlp_act",
                                          "layernorm mlp_act",
                                          "core_attn",
                                          "mla_up_proj",
                                          "mla_up_proj layernorm mlp_act",
                                          "core_attn layernorm mlp_act",
                                          "layernorm mlp",
                                          "core_attn layernorm mlp",
                                          "moe_act",
                                          "moe_act layernorm",
                                          "moe layernorm",
                                          "core_attn moe_act layernorm",
                                          "core_attn moe layernorm"};

static recompute_set set_of(const char *names) {
    recompute_set set = 0;
    char name[32];
    for (int n = 0; sscanf(names, "%31s%n", name, &n) == 1; names += n)
        set |= RECOMPUTE_BIT(recompute_module_find(name));
    return set;
}

static bool has_modules(const struct model *m, recompute_set set) {
    const char *why_not;
    for (int i = 0; i < MODULE_COUNT; i++)
        if (set & RECOMPUTE_BIT(i) && !model_has_module(m, i, &why_not)) return false;
    return true;
}

static bool attempt_full(struct search *s, struct change c, enum recompute_method method, int layers) {
    struct recompute_policy policy = {.granularity = RECOMPUTE_FULL, .method = method, .num_layers = layers};
    c.policy = &policy;
    snprintf(c.policy_flags, sizeof(c.policy_flags),
             "--recompute-granularity full --recompute-method %s --recompute-num-layers %d",
             method == RECOMPUTE_UNIFORM ? "uniform" : "block", layers);
    return attempt(s, &c);
}

/* Layers of the largest chunk of any stage. */
static int layers_of_chunk(const struct search *s) {
    int most = 0;
    for (int i = 0; i < s->options->num_stages; i++) {
        const struct plan_layout *l = &s->options->stages[i].layout;
        if (!l->split) return (int)s->any->model.layers;
        for (int v = 0; v < l->chunks; v++)
            if (l->split[v * l->stages + l->stage].num_layers > most)
                most = l->split[v * l->stages + l->stage].num_layers;
    }
    return most;
}

static void attempt_modules(struct search *s, struct change c, recompute_set modules) {
    struct recompute_policy policy = {.granularity = RECOMPUTE_SELECTIVE, .modules = modules};
    char *flags = c.policy_flags;
    int n = snprintf(flags, sizeof(c.policy_flags), "--recompute-granularity selective --recompute-modules");
    for (int i = 0; i < MODULE_COUNT; i++)
        if (modules >> i & 1)
            n += snprintf(flags + n, sizeof(c.policy_flags) - (size_t)n, " %s",
                          recompute_module_info(i)->name);
    if (modules == RECOMPUTE_BIT(MODULE_core_attn))
        snprintf(flags, sizeof(c.policy_flags), "--recompute-activations");
    c.policy = &policy;
    attempt(s, &c);
}

/* The named sets, and each of them beside the modules given. */
static void attempt_selective(struct search *s, struct change c) {
    const struct recompute_policy *given = &s->any->recompute;
    recompute_set own = given->granularity == RECOMPUTE_SELECTIVE ? given->modules & ~RECOMPUTE_OP_BITS : 0;
    for (size_t i = 0; i < ARRAY_COUNT(module_sets); i++) {
        recompute_set set = set_of(module_sets[i]), more = set | own;
        if (!has_modules(&s->any->model, set)) continue;
        attempt_modules(s, c, set);
        if (more != set && more != own) attempt_modules(s, c, more);
    }
}

static void attempt_recompute(struct search *s, struct change c) {
    int layers = layers_of_chunk(s), low = 1, high = layers;
    if (!s->any->layout.distribute_saved) attempt_selective(s, c); /* that flag is for full recompute */
    for (int n = 1; n <= layers; n *= 2) attempt_full(s, c, RECOMPUTE_UNIFORM, n);
    while (low <=
           high) { /* fewer layers recompute less and keep more: halve towards the smallest that fits */
        int middle = (low + high) / 2;
        if (attempt_full(s, c, RECOMPUTE_BLOCK, middle))
            high = middle - 1;
        else
            low = middle + 1;
    }
}

/* ---- all of it ---- */

static int by_cost(const void *a, const void *b) {
    const struct plan_remedy *x = a, *y = b;
    if (x->rerun_flops != y->rerun_flops) return x->rerun_flops < y->rerun_flops ? -1 : 1;
    return strcmp(x->flags, y->flags);
}

void plan_find_remedies(const struct plan_remedy_options *options, struct plan_remedies *out) {
    struct search s = {options, out, &options->stages[options->first]};
    int micro_batch = (int)s.any->model.micro_batch;
    bool may_shard = options->may_shard && s.any->layout.data > 1 &&
                     s.any->layout.sharding == PLAN_SHARD_NONE && !s.any->forward_only;
    *out = (struct plan_remedies){.count = 0};
    if (!s.any->forward_only) attempt_recompute(&s, (struct change){.divisor = 1});
    if (may_shard) attempt(&s, &(struct change){.shards = true, .divisor = 1});
    for (int d = 2; d <= micro_batch; d++)
        if (micro_batch % d == 0 && attempt(&s, &(struct change){.divisor = d})) break;
    /* two changes, and three */
    if (!out->count && may_shard) attempt_recompute(&s, (struct change){.shards = true, .divisor = 1});
    for (int shards = 0; shards <= may_shard; shards++)
        for (int d = 2; d <= micro_batch && !out->count; d++) {
            if (micro_batch % d) continue;
            if (shards) attempt(&s, &(struct change){.shards = true, .divisor = d});
            if (!s.any->forward_only) attempt_recompute(&s, (struct change){.shards = shards, .divisor = d});
        }
    qsort(out->at, (size_t)out->count, sizeof(*out->at), by_cost);
}

const struct plan_remedy *plan_recompute_remedy(const struct plan_remedies *r) {
    for (int i = 0; i < r->count; i++)
        if (r->at[i].changes_recompute && !r->at[i].changes_more) return &r->at[i];
    return NULL;
}

const struct plan_remedy *plan_other_remedy(const struct plan_remedies *r) {
    for (int i = 0; i < r->count; i++)
        if (!r->at[i].changes_recompute) return &r->at[i];
    return NULL;
}
