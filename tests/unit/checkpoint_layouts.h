#pragma once
/* What each rank of a parallel layout holds of a model, spelled out from Megatron-LM's rules, and numbers
 * that say where they belong: each element's bits are a function of (seed, name, slot, global row, global
 * column), so that a rank can be filled and judged without the whole model. For the checkpoint tests only. */
#include "core/base/hash.h"
#include "tests/unit/checkpoint_fixture.h"

struct layout {
    int tp, pp, dp;
    bool zero;          /* the dp ranks share the elements, cut anywhere; otherwise they are replicas */
    int64_t vocab_rows; /* padded */
};

static inline int layout_size(const struct layout *l) {
    return l->tp * l->pp * l->dp;
}

struct layout_rank {
    struct checkpoint_tensor *tensors;
    int count, capacity;
};

struct layout_builder {
    const struct layout *layout;
    const struct checkpoint_model *model;
    int tp, pp, dp;
    struct layout_rank *rank;
};

static inline uint32_t layout_bits(uint64_t seed, uint64_t name_hash, int slot, int64_t row, int64_t col) {
    uint64_t x = seed * 0x9E3779B97F4A7C15u ^ name_hash ^ (uint64_t)slot << 60;
    x = (x ^ (uint64_t)row << 32 ^ (uint64_t)col) * 0xD6E8FEB86659FD93u;
    x = (x ^ x >> 32) * 0xD6E8FEB86659FD93u;
    return (uint32_t)(x >> 32);
}

static inline struct checkpoint_tensor *layout_add(struct layout_builder *b, const char *name, int num_dims,
                                                   const int64_t dims[2], bool writes) {
    struct layout_rank *r = b->rank;
    if (r->count == r->capacity) {
        r->capacity = 2 * r->capacity + 64;
        r->tensors = mem_realloc(r->tensors, (size_t)r->capacity * sizeof(*r->tensors), "layout");
    }
    struct checkpoint_tensor *t = &r->tensors[r->count++];
    *t = (struct checkpoint_tensor){
        .name = mem_strdup(name, "layout"), .num_dims = num_dims, .dims = {dims[0], dims[1]}};
    checkpoint_tensor_set_whole(t);
    t->writes = writes;
    return t;
}

static inline void layout_set_rows(struct checkpoint_tensor *t, const struct checkpoint_row_run runs[3]) {
    int64_t rows = 0;
    for (int i = 0; i < 3; i++) t->rows[i] = runs[i], rows += runs[i].count;
    t->end = rows * t->num_cols;
}

/* Query groups go to the ranks; with fewer groups than ranks, a group's key and value heads are held by
 * several, and saved by the first of these. */
static inline void layout_add_qkv(struct layout_builder *b, const char *name, int num_dims,
                                  const int64_t dims[2]) {
    const struct checkpoint_model *m = b->model;
    int64_t d = m->kv_channels, groups = m->num_query_groups, heads = m->num_attention_heads / groups;
    int64_t group_rows = (heads + 2) * d, tp = b->layout->tp;
    if (groups >= tp) {
        int64_t rows = groups / tp * group_rows;
        struct checkpoint_tensor *t = layout_add(b, name, num_dims, dims, true);
        layout_set_rows(t, (struct checkpoint_row_run[3]){{b->tp * rows, rows}});
        return;
    }
    int64_t sharers = tp / groups, mine = heads / sharers * d, base = b->tp / sharers * group_rows;
    struct checkpoint_row_run runs[3] = {
        {base + b->tp % sharers * mine, mine}, {base + heads * d, d}, {base + (heads + 1) * d, d}};
    struct checkpoint_tensor *q = layout_add(b, name, num_dims, dims, true);
    layout_set_rows(q, runs);
    q->end = mine * q->num_cols;
    struct checkpoint_tensor *kv = layout_add(b, name, num_dims, dims, b->tp % sharers == 0);
    layout_set_rows(kv, runs);
    kv->begin = mine * kv->num_cols;
}

static inline void layout_add_cut(struct layout_builder *b, const char *name, int num_dims,
                                  const int64_t dims[2]) {
    int64_t tp = b->layout->tp, part = dims[0] / tp, half = dims[0] / 2;
    if (strstr(name, "linear_qkv")) {
        layout_add_qkv(b, name, num_dims, dims);
    } else if (strstr(name, "linear_fc1") && b->model->gated) {
        struct checkpoint_tensor *t = layout_add(b, name, num_dims, dims, true);
        layout_set_rows(t, (struct checkpoint_row_run[3]){{b->tp * (half / tp), half / tp},
                                                          {half + b->tp * (half / tp), half / tp}});
    } else if (strstr(name, "linear_fc1") || strstr(name, "word_embeddings") ||
               strstr(name, "output_layer")) {
        struct checkpoint_tensor *t = layout_add(b, name, num_dims, dims, true);
        layout_set_rows(t, (struct checkpoint_row_run[3]){{b->tp * part, part}});
    } else if (strstr(name, "linear_proj.weight") || strstr(name, "linear_fc2.weight")) {
        struct checkpoint_tensor *t = layout_add(b, name, num_dims, dims, true);
        t->num_cols = dims[1] / tp, t->first_col = b->tp * t->num_cols, t->end = dims[0] * t->num_cols;
    } else {
        layout_add(b, name, num_dims, dims, b->tp == 0);
    }
}

static inline void layout_visit(void *context, const char *name, int num_dims, const int64_t dims[2]) {
    struct layout_builder *b = context;
    int last = b->layout->pp - 1, stage = strncmp(name, "embedding", 9) ? last : 0, layer;
    if (sscanf(name, "decoder.layers.%d.", &layer) == 1)
        stage = layer / (int)(b->model->num_layers / b->layout->pp);
    int before = b->rank->count;
    bool copy = b->model->tied && b->pp == last && last > 0 && strstr(name, "word_embeddings");
    if (stage == b->pp || copy) layout_add_cut(b, name, num_dims, dims);
    for (int i = before; copy && i < b->rank->count; i++) b->rank->tensors[i].writes = false;
}

/* Leaves each dp rank its share of the concatenated blocks. */
static inline void layout_shard(struct layout_builder *b) {
    int64_t total = 0, at = 0, dp = b->layout->dp;
    for (int i = 0; i < b->rank->count; i++) total += b->rank->tensors[i].end - b->rank->tensors[i].begin;
    int64_t from = total * b->dp / dp, to = total * (b->dp + 1) / dp;
    for (int i = 0; i < b->rank->count; i++) {
        struct checkpoint_tensor *t = &b->rank->tensors[i];
        int64_t begin = t->begin, end = t->end;
        t->begin = from > at ? begin + (from - at) : begin;
        t->end = to < at + end - begin ? begin + (to - at) : end;
        at += end - begin;
        if (t->begin > end) t->begin = end;
        if (t->end < t->begin) t->end = t->begin;
    }
}

/* What rank `number` holds; order of the ranks: tp, dp, pp. */
static inline struct layout_rank layout_open(const struct layout *layout,
                                             const struct checkpoint_model *model, int number) {
    struct checkpoint_model padded = *model;
    struct layout_rank rank = {0};
    struct layout_builder b = {.layout = layout,
                               .model = model,
                               .tp = number % layout->tp,
                               .dp = number / layout->tp % layout->dp,
                               .pp = number / layout->tp / layout->dp,
                               .rank = &rank};
    padded.padded_vocab_size = layout->vocab_rows;
    checkpoint_each_tensor(&padded, layout_visit, &b);
    if (layout->zero) layout_shard(&b);
    for (int i = 0; i < rank.count; i++) {
        struct checkpoint_tensor *t = &rank.tensors[i];
        size_t floats = (size_t)(t->end - t->begin);
        if (!layout->zero && b.dp) t->writes = false;
        t->master = mem_new_array(float, floats, "layout");
        t->exp_avg = mem_new_array(float, floats, "layout");
        t->exp_avg_sq = mem_new_array(float, floats, "layout");
    }
    return rank;
}

static inline void layout_close(struct layout_rank *rank) {
    for (int i = 0; i < rank->count; i++) {
        mem_free((void *)(uintptr_t)rank->tensors[i].name);
        mem_free(rank->tensors[i].master);
        mem_free(rank->tensors[i].exp_avg);
        mem_free(rank->tensors[i].exp_avg_sq);
    }
    mem_free(rank->tensors);
    *rank = (struct layout_rank){0};
}

/* Global row and column of held element `i`. */
static inline void layout_locate(const struct checkpoint_tensor *t, int64_t i, int64_t *row_p,
                                 int64_t *col_p) {
    int64_t local = (t->begin + i) / t->num_cols, run = 0;
    *col_p = t->first_col + (t->begin + i) % t->num_cols;
    while (local >= t->rows[run].count) local -= t->rows[run++].count;
    *row_p = t->rows[run].first + local;
}

/* Fills every element with its own bits (check false), or counts those that differ (check true): rows from
 * `old_rows` on of the vocabulary must have the bits of `old_seed`. */
static inline int64_t layout_pass(struct layout_rank *rank, uint64_t seed, bool check, int64_t old_rows,
                                  uint64_t old_seed) {
    int64_t wrong = 0, row, col;
    for (int n = 0; n < rank->count; n++) {
        struct checkpoint_tensor *t = &rank->tensors[n];
        float *const slots[] = {t->master, t->exp_avg, t->exp_avg_sq};
        uint64_t name = hash_bytes(t->name, strlen(t->name));
        bool vocabulary = strstr(t->name, "word_embeddings") || strstr(t->name, "output_layer");
        for (int64_t i = 0; i < t->end - t->begin; i++) {
            layout_locate(t, i, &row, &col);
            bool old = vocabulary && row >= old_rows;
            for (int slot = 0; slot < 3; slot++) {
                uint32_t want = layout_bits(old ? old_seed : seed, name, slot, row, col), got;
                if (!check) memcpy(&slots[slot][i], &want, 4);
                memcpy(&got, &slots[slot][i], 4);
                wrong += got != want;
            }
        }
    }
    return wrong;
}

static inline void layout_fill(struct layout_rank *rank, uint64_t seed) {
    layout_pass(rank, seed, false, INT64_MAX, 0);
}

/* The global list of a model padded for a layout; names are owned by the list. */
struct layout_list {
    struct checkpoint_shape *all;
    int count;
};

static inline void layout_list_visit(void *context, const char *name, int num_dims, const int64_t dims[2]) {
    struct layout_list *l = context;
    l->all = mem_realloc(l->all, (size_t)(l->count + 1) * sizeof(*l->all), "layout list");
    l->all[l->count++] = (struct checkpoint_shape){
        .name = mem_strdup(name, "layout"), .num_dims = num_dims, .dims = {dims[0], dims[1]}};
}

static inline struct layout_list layout_list_open(const struct checkpoint_model *model,
                                                  const struct layout *layout) {
    struct layout_list l = {0};
    struct checkpoint_model padded = *model;
    padded.padded_vocab_size = layout->vocab_rows;
    checkpoint_each_tensor(&padded, layout_list_visit, &l);
    return l;
}

static inline void layout_list_close(struct layout_list *l) {
    for (int i = 0; i < l->count; i++) mem_free((void *)(uintptr_t)l->all[i].name);
    mem_free(l->all);
}

/* ---- models whose sizes divide by 4 ---- */

static inline struct checkpoint_model layout_llama(void) {
    struct checkpoint_model m = fixture_llama();
    m.num_layers = 4, m.hidden_size = 20, m.num_attention_heads = 8, m.num_query_groups = 2;
    m.kv_channels = 3, m.ffn_hidden_size = 28;
    return m;
}

static inline struct checkpoint_model layout_gpt2(void) {
    struct checkpoint_model m = fixture_gpt2();
    m.num_layers = 4, m.hidden_size = 12, m.kv_channels = 3, m.ffn_hidden_size = 36;
    return m;
}
