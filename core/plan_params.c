/* Parameters of this rank, the buckets in which they are reduced and gathered, and where everything that
 * belongs to them lies: weights in the forms that kernels read, gradients, fp32 masters and moments. */
#include "core/plan_internal.h"
#include "core/base/mem.h"
#include <stdio.h>

enum { SHARD_ALIGNMENT = 128 }; /* elements: buckets are multiples of lcm(ranks, this), as Megatron-LM's */

struct builder {
    struct plan *plan;
    int capacity, bucket_capacity;
    unsigned *forms;   /* per parameter */
    int *last_segment; /* per parameter: the highest segment that uses it */
};

void plan_param_name(const struct param_info *info, int first_layer, char *name, size_t capacity) {
    const char *d = strstr(info->name, "%d");
    if (info->per_layer && d)
        snprintf(name, capacity, "%.*s%d%s", (int)(d - info->name), info->name, first_layer + info->layer,
                 d + 2);
    else
        snprintf(name, capacity, "%s", info->name);
}

static struct plan_param new_param(const struct plan *plan, const char *name, const struct param_info *info) {
    size_t length = strlen(name);
    bool is_bias = length > 5 && !strcmp(name + length - 5, ".bias");
    bool is_word = !strcmp(name, "embedding.word_embeddings.weight");
    struct plan_param p = {
        .name = mem_strdup(name, "parameter name"),
        .num_dims = info->num_dims,
        .dims = {info->dims[0], info->num_dims > 1 ? info->dims[1] : 1},
        .groups = info->groups ? info->groups : 1,
        .family = info->is_expert ? FAMILY_EXPERT : FAMILY_DENSE,
        .shard = info->shard,
        .init = info->init,
        .init_std = info->init_std,
        .decays = info->num_dims > 1 && !is_bias,
        .is_embedding = !strncmp(name, "embedding.", 10) || !strncmp(name, "output_layer.", 13),
        .is_qk_norm = strstr(name, ".q_layernorm.") || strstr(name, ".k_layernorm."),
        .is_vocabulary = is_word || !strcmp(name, "output_layer.weight"),
        .sum_over_tensor = info->sum_over_tensor,
        .is_tied_copy = is_word && (plan->request.model.tied || plan->request.model.mtp_layers) &&
                        plan->request.layout.stages > 1};
    p.count = p.dims[0] * p.dims[1];
    if (!p.shard.full[0]) p.shard.full[0] = p.dims[0];
    if (!p.shard.full[1]) p.shard.full[1] = p.dims[1];
    return p;
}

static int find_or_add(struct builder *b, const char *name, const struct param_info *info, int segment) {
    struct plan *plan = b->plan;
    for (int i = 0; i < plan->num_params && !info->per_layer; i++)
        if (!strcmp(plan->params[i].name, name)) {
            b->forms[i] |= info->forms;
            b->last_segment[i] = segment;
            return i;
        }
    if (plan->num_params == b->capacity) {
        b->capacity = b->capacity ? 2 * b->capacity : 64;
        size_t n = (size_t)b->capacity;
        plan->params = mem_realloc(plan->params, n * sizeof(*plan->params), "plan parameters");
        b->forms = mem_realloc(b->forms, n * sizeof(*b->forms), "plan parameters");
        b->last_segment = mem_realloc(b->last_segment, n * sizeof(*b->last_segment), "plan parameters");
    }
    struct plan_param *p = &plan->params[plan->num_params];
    *p = new_param(plan, name, info);
    p->chunk = plan->segments[segment].chunk;
    p->first_segment = segment;
    b->forms[plan->num_params] = info->forms;
    b->last_segment[plan->num_params] = segment;
    plan->num_parameters += p->count;
    if (p->family == FAMILY_EXPERT) plan->num_expert_parameters += p->count;
    return plan->num_params++;
}

static void list_params(struct builder *b) {
    struct plan *plan = b->plan;
    for (int i = 0; i < plan->num_segments; i++) {
        struct plan_segment *s = &plan->segments[i];
        const struct program *program = &plan->compiled[s->compiled].program;
        s->params = mem_new_array(int, (size_t)program->num_params, "segment parameters");
        for (int k = 0; k < program->num_params; k++) {
            char name[192];
            plan_param_name(&program->params[k], s->first_layer, name, sizeof(name));
            s->params[k] = find_or_add(b, name, &program->params[k], i);
        }
    }
}

/* ---- buckets: from the last parameter to the first, as backward finishes them ---- */

static void set_sharing(struct plan *plan) {
    const struct plan_layout *l = &plan->request.layout;
    const int ranks[FAMILY_COUNT] = {l->data, l->expert_data}, own[] = {l->data_rank, l->expert_data_rank};
    for (int f = 0; f < FAMILY_COUNT; f++) {
        bool sharded = l->sharding != PLAN_SHARD_NONE && ranks[f] > 1;
        plan->sharing[f] = (struct plan_sharing){.ranks = ranks[f] > 1 ? ranks[f] : 1,
                                                 .shards = sharded ? ranks[f] : 1,
                                                 .shard = sharded ? own[f] : 0};
    }
}

static int64_t round_up(int64_t n, int64_t to) {
    return (n + to - 1) / to * to;
}

static int64_t lcm(int64_t a, int64_t b) {
    int64_t x = a, y = b;
    while (y) {
        int64_t rest = x % y;
        x = y, y = rest;
    }
    return a / x * b;
}

static struct plan_bucket *open_bucket(struct builder *b, const struct plan_param *p, bool is_unit) {
    struct plan *plan = b->plan;
    if (plan->num_buckets == b->bucket_capacity) {
        b->bucket_capacity = b->bucket_capacity ? 2 * b->bucket_capacity : 16;
        plan->buckets =
            mem_realloc(plan->buckets, (size_t)b->bucket_capacity * sizeof(*plan->buckets), "buckets");
    }
    struct plan_bucket *bucket = &plan->buckets[plan->num_buckets++];
    *bucket = (struct plan_bucket){
        .family = p->family, .chunk = p->chunk, .segment = p->first_segment, .is_unit = is_unit};
    bucket->gathers_weights = is_unit && plan->request.layout.sharding == PLAN_SHARD_PARAMS;
    if (is_unit) plan->segments[p->first_segment].unit[p->family] = plan->num_buckets - 1;
    return bucket;
}

/* Whether p may join the open bucket. A tied weight is alone, so that both of its copies are cut alike. */
static bool joins(const struct plan *plan, const struct plan_bucket *bucket, const struct plan_param *p,
                  bool is_unit, bool bucket_is_tied) {
    if (!bucket || bucket->chunk != p->chunk || bucket->is_unit != is_unit) return false;
    if (p->is_tied_copy || bucket_is_tied) return false;
    if (is_unit) return bucket->segment == p->first_segment;
    int64_t limit = plan->request.layout.bucket_elements;
    if (plan->request.layout.num_buckets) limit = plan->num_parameters / plan->request.layout.num_buckets;
    return !limit || bucket->elements < limit;
}

/* The buckets of one family. */
static void make_buckets(struct builder *b, enum plan_family family) {
    struct plan *plan = b->plan;
    int shards = plan->sharing[family].shards, first = plan->num_buckets;
    int64_t alignment = shards > 1 ? 64 : TENSOR_ALIGNMENT / 4;
    bool units = shards > 1 && plan->request.layout.sharding >= PLAN_SHARD_GRADS, is_tied = false;
    struct plan_bucket *bucket = NULL;
    for (int i = plan->num_params - 1; i >= 0; i--) {
        struct plan_param *p = &plan->params[i];
        if (p->family != family) continue;
        bool is_unit = units && p->first_segment == b->last_segment[i] && !p->is_tied_copy;
        if (!joins(plan, bucket, p, is_unit, is_tied)) bucket = open_bucket(b, p, is_unit);
        is_tied = p->is_tied_copy;
        if (p->first_segment < bucket->segment) bucket->segment = p->first_segment;
        p->bucket = plan->num_buckets - 1;
        p->offset = bucket->elements;
        bucket->elements += round_up(p->count, alignment);
    }
    for (int i = first; i < plan->num_buckets; i++) {
        bucket = &plan->buckets[i];
        if (shards > 1) bucket->elements = round_up(bucket->elements, lcm(shards, SHARD_ALIGNMENT));
        bucket->shard_elements = bucket->elements / shards;
    }
}

/* ---- places ---- */

/* Compute copies of one parameter: plain, and packed where the kernels pack. In a unit the places are
 * relative to the unit's weight buffer. */
static void place_weight(struct plan *plan, struct plan_param *p, unsigned forms) {
    enum dtype dtype = plan->request.model.dtype;
    struct plan_bucket *bucket = &plan->buckets[p->bucket];
    size_t (*packed_bytes)(enum dtype, int64_t, int64_t) = plan->request.kernels->gemm_packed_bytes;
    size_t groups = (size_t)p->groups;
    int64_t rows = p->dims[0] / p->groups;
    size_t packed = p->num_dims == 2 ? groups * packed_bytes(dtype, p->dims[1], rows) : 0;
    size_t packed_back = p->num_dims == 2 ? groups * packed_bytes(dtype, rows, p->dims[1]) : 0;
    unsigned packed_forms = PARAM_FORM_PACKED_FORWARD | PARAM_FORM_PACKED_BACKWARD;
    bool is_master = dtype == DTYPE_F32 && plan->sharing[p->family].shards == 1;
    if (forms & packed_forms && !(packed && packed_back)) forms |= PARAM_FORM_PLAIN, forms &= ~packed_forms;
    size_t bytes[3] = {forms & PARAM_FORM_PLAIN && !is_master ? (size_t)p->count * dtype_bytes(dtype) : 0,
                       forms & PARAM_FORM_PACKED_FORWARD ? packed : 0,
                       forms & PARAM_FORM_PACKED_BACKWARD && !plan->request.forward_only ? packed_back : 0};
    size_t *places[3] = {&p->plain, &p->packed_forward, &p->packed_backward};
    for (int i = 0; i < 3; i++) {
        *places[i] = SIZE_MAX;
        if (!bytes[i]) continue;
        if (bucket->gathers_weights) {
            *places[i] = bucket->weight_bytes;
            bucket->weight_bytes += align_up(bytes[i]);
        } else {
            *places[i] = plan_take(plan, CATEGORY_WEIGHTS, bytes[i]);
        }
    }
}

static void place_buckets(struct plan *plan) {
    bool training = !plan->request.forward_only, is_fp32 = plan->request.model.dtype == DTYPE_F32;
    for (int i = 0; i < plan->num_buckets; i++) {
        struct plan_bucket *b = &plan->buckets[i];
        const struct plan_sharing *sharing = &plan->sharing[b->family];
        size_t shard = (size_t)b->shard_elements * 4;
        b->master =
            plan_take(plan, is_fp32 && sharing->shards == 1 ? CATEGORY_WEIGHTS : CATEGORY_OPTIMIZER, shard);
        b->exp_avg = b->exp_avg_sq = b->grad = b->grad_shard = SIZE_MAX;
        if (!training) continue;
        b->exp_avg = plan_take(plan, CATEGORY_OPTIMIZER, shard);
        b->exp_avg_sq = plan_take(plan, CATEGORY_OPTIMIZER, shard);
        b->grad = b->is_unit ? SIZE_MAX : plan_take(plan, CATEGORY_GRADIENTS, (size_t)b->elements * 4);
        b->grad_shard = b->is_unit ? plan_take(plan, CATEGORY_GRADIENTS, shard)
                                   : b->grad + (size_t)sharing->shard * shard;
    }
}

static void raise(size_t *largest, size_t bytes) {
    if (bytes > *largest) *largest = bytes;
}

/* Staging of gathers and the buffers through which units pass. Two of each, so that the next transfer runs
 * beside the present use; where no gather runs ahead, all share one staging buffer. */
static void place_buffers(struct plan *plan) {
    size_t element = dtype_bytes(plan->request.model.dtype), largest = 0;
    bool ahead = plan->request.layout.overlap_param_gather;
    for (int i = 0; i < plan->num_buckets; i++) {
        const struct plan_bucket *b = &plan->buckets[i];
        struct plan_sharing *s = &plan->sharing[b->family];
        if (s->shards == 1) continue;
        raise(&s->gather_bytes, (size_t)b->elements * element);
        raise(&s->unit_weight_bytes, b->weight_bytes);
        if (b->is_unit && !plan->request.forward_only) raise(&s->unit_grad_bytes, (size_t)b->elements * 4);
        raise(&largest, s->gather_bytes);
        ahead |= b->gathers_weights;
    }
    size_t shared = ahead ? 0 : plan_take(plan, CATEGORY_COMMUNICATION, largest);
    for (int f = 0; f < FAMILY_COUNT; f++) {
        struct plan_sharing *s = &plan->sharing[f];
        for (int i = 0; i < 2; i++) {
            s->gather[i] = ahead ? plan_take(plan, CATEGORY_COMMUNICATION, s->gather_bytes) : shared;
            s->unit_weights[i] = plan_take(plan, CATEGORY_WEIGHTS, s->unit_weight_bytes);
            s->unit_grads[i] = plan_take(plan, CATEGORY_GRADIENTS, s->unit_grad_bytes);
        }
    }
}

/* How many of the held elements no lower rank holds too. Experts are held by no other rank of the tensor- or
 * expert-parallel groups. */
static int64_t counted_of(const struct plan *plan, const struct plan_param *p) {
    const struct plan_layout *l = &plan->request.layout;
    const struct model *m = &plan->request.model;
    int64_t tp = model_tp(m), limit = p->count;
    bool is_expert = p->family == FAMILY_EXPERT, is_split = is_expert || p->shard.num_runs > 0;
    int rank = is_expert ? l->expert_data_rank : l->data_rank;
    if (plan->sharing[p->family].shards == 1 && rank > 0) return 0;
    if (p->is_tied_copy && l->stage > 0) return 0;
    if (tp > 1 && !is_split && m->tp_rank > 0) return 0;
    if (p->shard.shared_from_row && m->tp_rank % (tp / m->groups))
        limit = p->shard.shared_from_row * p->dims[1];
    int64_t counted = limit - p->held_begin;
    if (counted < 0) counted = 0;
    return counted < p->held_count ? counted : p->held_count;
}

static void place_params(struct plan *plan) {
    for (int i = 0; i < plan->num_params; i++) {
        struct plan_param *p = &plan->params[i];
        const struct plan_bucket *b = &plan->buckets[p->bucket];
        int64_t shard_begin = plan->sharing[p->family].shard * b->shard_elements;
        int64_t begin = shard_begin - p->offset, end = begin + b->shard_elements;
        if (begin < 0) begin = 0;
        if (end > p->count) end = p->count;
        p->held_begin = begin < p->count ? begin : p->count;
        p->held_count = end > p->held_begin ? end - p->held_begin : 0;
        p->counted = counted_of(plan, p);
        size_t in_shard = (size_t)(p->offset + p->held_begin - shard_begin) * 4;
        if (!p->held_count) in_shard = 0;
        p->master = b->master + in_shard;
        if (plan->request.forward_only) continue;
        p->exp_avg = b->exp_avg + in_shard;
        p->exp_avg_sq = b->exp_avg_sq + in_shard;
        p->held_grad = b->grad_shard + in_shard;
        p->grad = (b->is_unit ? 0 : b->grad) + (size_t)p->offset * 4;
    }
}

/* Of row runs inside each of the groups, one group after the other. */
int64_t plan_global_row(const struct plan_param *p, int64_t row, int64_t *count_p) {
    const struct param_shard *s = &p->shard;
    int64_t of_group = p->dims[0] / p->groups, full = s->full_groups ? s->full[0] / s->full_groups : 0;
    if (!s->num_runs) {
        *count_p = p->dims[0] - row;
        return s->first_group * full + row;
    }
    int64_t group = row / of_group, local = row % of_group;
    int run = 0;
    while (local >= s->runs[run].count) local -= s->runs[run++].count;
    *count_p = s->runs[run].count - local;
    return (s->first_group + group) * full + s->runs[run].first + local;
}

void plan_make_params(struct plan *plan) {
    struct builder b = {.plan = plan};
    set_sharing(plan);
    list_params(&b);
    for (int f = 0; f < FAMILY_COUNT; f++) make_buckets(&b, (enum plan_family)f);
    for (int i = 0; i < plan->num_params; i++) place_weight(plan, &plan->params[i], b.forms[i]);
    place_buckets(plan);
    place_buffers(plan);
    place_params(plan);
    mem_free(b.forms);
    mem_free(b.last_segment);
}

/* ---- the whole model ---- */

struct tensor_list {
    struct plan_tensor *items;
    int count, capacity;
};

static bool is_listed(const struct tensor_list *l, const char *name) {
    for (int i = 0; i < l->count; i++)
        if (!strcmp(l->items[i].name, name)) return true;
    return false;
}

static void list_tensors(struct tensor_list *l, const struct param_info *infos, int count, int first_layer,
                         bool is_state) {
    for (int k = 0; k < count; k++) {
        const struct param_info *info = &infos[k];
        char name[192];
        plan_param_name(info, first_layer, name, sizeof(name));
        if (!info->per_layer && is_listed(l, name)) continue;
        if (l->count == l->capacity) {
            l->capacity = l->capacity ? 2 * l->capacity : 64;
            l->items = mem_realloc(l->items, (size_t)l->capacity * sizeof(*l->items), "all tensors");
        }
        l->items[l->count++] = (struct plan_tensor){
            mem_strdup(name, "all tensors"),
            info->num_dims,
            {info->shard.full[0] ? info->shard.full[0] : info->dims[0],
             info->num_dims > 1 ? (info->shard.full[1] ? info->shard.full[1] : info->dims[1]) : 1},
            is_state};
    }
}

static void list_program(struct tensor_list *l, const struct model *m, const struct program *program,
                         int first_layer) {
    list_tensors(l, program->params, program->num_params, first_layer, false);
    if (m->moe.expert_bias) list_tensors(l, program->routers, program->num_routers, first_layer, true);
}

int plan_all_tensors(const struct model *model, struct plan_tensor **tensors_p) {
    struct tensor_list list = {0};
    struct program embedding, layer, head;
    program_init(&embedding), program_init(&layer), program_init(&head);
    build_embedding(&embedding, model);
    build_head(&head, model);
    list_program(&list, model, &embedding, 0);
    for (int i = 0; i < model->layers; i++) {
        if (!i || !model_layers_are_alike(model, i - 1, i, 1)) {
            program_free(&layer);
            build_layers(&layer, model, i, 1);
        }
        list_program(&list, model, &layer, i);
    }
    list_program(&list, model, &head, 0);
    for (int i = 0; i < model->mtp_layers; i++) {
        program_free(&layer);
        build_mtp(&layer, model, i);
        list_program(&list, model, &layer, i);
    }
    program_free(&embedding), program_free(&layer), program_free(&head);
    *tensors_p = list.items;
    return list.count;
}
