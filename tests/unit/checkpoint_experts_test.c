/* Checkpoints of experts' weights: tensors of many equal matrices, of which a rank holds some, and of each
 * the same runs of rows or of columns. What any layout saved, any other loads bit for bit, and the files are
 * the same bytes. */
#include "tests/unit/checkpoint_layouts.h"

static struct err err;

enum { EXPERTS = 12, HIDDEN = 10, FFN = 12 };

/* ep ranks have different experts, etp ranks each a part of every one, edp ranks share the elements, cut
 * anywhere (zero), or are replicas. */
struct split {
    int ep, etp, edp;
    bool zero;
};

static const struct split splits[] = {{1, 1, 1, false}, {4, 1, 1, false}, {1, 3, 1, false}, {2, 2, 1, false},
                                      {3, 4, 1, false}, {1, 1, 5, true},  {2, 3, 7, true},  {6, 2, 2, true},
                                      {12, 1, 3, true}, {2, 2, 3, false}, {1, 6, 2, true},  {4, 3, 1, false}};

static const struct checkpoint_shape shapes[] = {
    {"decoder.layers.0.mlp.experts.linear_fc1.weight", 2, {EXPERTS * 2 * FFN, HIDDEN}, false},
    {"decoder.layers.0.mlp.experts.linear_fc2.weight", 2, {EXPERTS * HIDDEN, FFN}, false},
    {"decoder.layers.1.mlp.experts.linear_fc1.weight", 2, {EXPERTS * FFN, HIDDEN}, false}}; /* no gate */

static struct checkpoint_model model(void) {
    struct checkpoint_model m = fixture_llama();
    snprintf(m.unlike_hf, sizeof(m.unlike_hf), "--num-experts");
    return m;
}

static void add_tensor(struct layout_rank *all, const struct split *s, int rank,
                       const struct checkpoint_shape *shape) {
    int etp = rank % s->etp, ep = rank / s->etp % s->ep, edp = rank / s->etp / s->ep;
    int parts = shape->dims[0] == EXPERTS * 2 * FFN ? 2 : 1, part = FFN / s->etp;
    struct checkpoint_tensor t = {.name = mem_strdup(shape->name, "split"),
                                  .num_dims = 2,
                                  .dims = {shape->dims[0], shape->dims[1]},
                                  .num_cols = HIDDEN,
                                  .num_groups = EXPERTS / s->ep,
                                  .first_group = EXPERTS / s->ep * ep,
                                  .group_rows = shape->dims[0] / EXPERTS};
    if (strstr(shape->name, "fc2")) {
        t.rows[0].count = HIDDEN;
        t.first_col = etp * part, t.num_cols = part;
    } else {
        for (int i = 0; i < parts; i++) t.rows[i] = (struct checkpoint_row_run){i * FFN + etp * part, part};
    }
    int64_t elements = t.num_groups * (t.rows[0].count + t.rows[1].count) * t.num_cols;
    t.begin = s->zero ? elements * edp / s->edp : 0;
    t.end = s->zero ? elements * (edp + 1) / s->edp : elements;
    t.writes = s->zero || !edp;
    t.master = mem_new_array(float, (size_t)(t.end - t.begin), "split");
    t.exp_avg = mem_new_array(float, (size_t)(t.end - t.begin), "split");
    t.exp_avg_sq = mem_new_array(float, (size_t)(t.end - t.begin), "split");
    all->tensors[all->count++] = t;
}

/* The pieces of all ranks side by side, as one caller's. */
static struct layout_rank open_split(const struct split *s) {
    int size = s->ep * s->etp * s->edp;
    struct layout_rank all = {0};
    all.tensors = mem_new_array(struct checkpoint_tensor, ARRAY_COUNT(shapes) * (size_t)size, "split");
    for (int rank = 0; rank < size; rank++)
        for (size_t i = 0; i < ARRAY_COUNT(shapes); i++) add_tensor(&all, s, rank, &shapes[i]);
    return all;
}

/* Fills every element with its own bits (check false), or counts those that differ (check true). */
static int64_t pass(struct layout_rank *all, uint64_t seed, bool check) {
    int64_t wrong = 0;
    for (int n = 0; n < all->count; n++) {
        struct checkpoint_tensor *t = &all->tensors[n];
        float *const slots[] = {t->master, t->exp_avg, t->exp_avg_sq};
        int64_t rows = t->rows[0].count + t->rows[1].count;
        for (int64_t i = t->begin; i < t->end; i++) {
            int64_t col = i % t->num_cols, row = i / t->num_cols % rows, group = i / t->num_cols / rows;
            row = row < t->rows[0].count ? t->rows[0].first + row : t->rows[1].first + row - t->rows[0].count;
            row += (t->first_group + group) * t->group_rows;
            for (int slot = 0; slot < 3; slot++) {
                uint64_t name = hash_bytes(t->name, strlen(t->name));
                uint32_t want = layout_bits(seed, name, slot, row, t->first_col + col), got;
                if (!check) memcpy(&slots[slot][i - t->begin], &want, 4);
                memcpy(&got, &slots[slot][i - t->begin], 4);
                wrong += got != want;
            }
        }
    }
    return wrong;
}

static int save_split(const struct split *s, uint64_t seed) {
    struct layout_rank all = open_split(s);
    struct checkpoint_save_options options = {.group = {.all = shapes, .num_all = ARRAY_COUNT(shapes)}};
    struct checkpoint_state state = {.iteration = (int64_t)seed};
    struct checkpoint_model m = model();
    pass(&all, seed, false);
    int status = checkpoint_save(fixture_dir, &options, &m, all.tensors, all.count, &state, "{}", &err);
    layout_close(&all);
    return status;
}

static void expect_loads(const struct split *s, uint64_t seed) {
    struct layout_rank all = open_split(s);
    struct checkpoint_load_options options = {.group = {.all = shapes, .num_all = ARRAY_COUNT(shapes)}};
    struct checkpoint_state state;
    struct checkpoint_model m = model();
    EXPECT(!checkpoint_load(fixture_dir, &options, &m, all.tensors, all.count, &state, &err), "%s", err.text);
    EXPECT_EQ(pass(&all, seed, true), 0);
    layout_close(&all);
}

TEST(any_split_of_the_experts_loads_what_any_other_saved_bit_for_bit) {
    fixture_make_dir();
    for (size_t i = 0; i < ARRAY_COUNT(splits); i++) {
        EXPECT(!save_split(&splits[i], i + 1), "split %zu: %s", i, err.text);
        for (size_t k = 0; k < ARRAY_COUNT(splits); k++) expect_loads(&splits[k], i + 1);
    }
    fixture_remove(fixture_dir);
}

TEST(the_files_are_the_same_bytes_however_the_experts_are_split) {
    size_t bytes, first_bytes;
    char *text, *first;
    fixture_make_dir();
    EXPECT(!save_split(&splits[0], 7), "%s", err.text);
    first = fixture_read("iter_0000007/model-00001-of-00001.safetensors", &first_bytes);
    for (size_t i = 1; i < ARRAY_COUNT(splits); i++) {
        EXPECT(!save_split(&splits[i], 7), "split %zu: %s", i, err.text);
        text = fixture_read("iter_0000007/model-00001-of-00001.safetensors", &bytes);
        EXPECT(bytes == first_bytes && !memcmp(text, first, bytes), "split %zu: other bytes", i);
        mem_free(text);
    }
    mem_free(first);
    fixture_remove(fixture_dir);
}

RUN_TESTS(CASE(any_split_of_the_experts_loads_what_any_other_saved_bit_for_bit),
          CASE(the_files_are_the_same_bytes_however_the_experts_are_split))
