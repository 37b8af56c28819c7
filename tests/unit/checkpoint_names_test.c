#include "core/checkpoint/names.h"
#include "core/checkpoint/pieces.h"
#include "tests/unit/checkpoint_fixture.h"

static struct err err;

/* The entries of one tensor; valid until the next call. */
static int entries_of(const struct checkpoint_model *model, const char *name, int num_dims,
                      const int64_t dims[2], struct checkpoint_entry **entries_p) {
    static struct checkpoint_entries entries;
    entries.count = 0;
    int n = checkpoint_entries_of(model, name, num_dims, dims, &entries, &err);
    *entries_p = entries.list;
    return n;
}

/* The disk tensor of that name, filled from the fixture's master weights. Owned by the caller. */
static float *on_disk(struct fixture *f, const char *disk_name, struct checkpoint_entry *entry_p) {
    for (int i = 0; i < f->count; i++) {
        struct checkpoint_tensor *t = &f->tensors[i];
        struct checkpoint_entry *entries;
        int n = entries_of(&f->model, t->name, t->num_dims, t->dims, &entries);
        EXPECT(n > 0, "%s", err.text);
        for (int k = 0; k < n; k++) {
            if (strcmp(entries[k].name, disk_name)) continue;
            *entry_p = entries[k];
            size_t bytes = (size_t)(entries[k].dims[0] * entries[k].dims[1]) * sizeof(float);
            float *data = mem_zalloc(bytes, "disk");
            struct checkpoint_rects rects = {0};
            struct checkpoint_block block;
            checkpoint_rects_set(&rects, &entries[k], t);
            EXPECT(checkpoint_block_next(&block, &rects, &entries[k], 0, entries[k].dims[0]), "nothing");
            EXPECT(block.first == 0 && block.num_rows == entries[k].dims[0], "not all rows");
            checkpoint_block_gather(&block, t->master, data);
            checkpoint_rects_free(&rects);
            return data;
        }
    }
    EXPECT(false, "no tensor '%s'", disk_name);
    return NULL;
}

/* Every element says where it is: 1000 * row + column. */
static void number_elements(struct fixture *f) {
    for (int i = 0; i < f->count; i++) {
        int64_t cols = f->tensors[i].num_dims > 1 ? f->tensors[i].dims[1] : 1;
        for (int64_t r = 0; r < f->tensors[i].dims[0]; r++)
            for (int64_t c = 0; c < cols; c++) f->tensors[i].master[r * cols + c] = (float)(1000 * r + c);
    }
}

/* disk rows (or columns, for GPT-2) must be these program rows */
static void expect_rows(struct fixture *f, const char *name, bool transposed, int num_rows, const int *rows) {
    struct checkpoint_entry e;
    float *data = on_disk(f, name, &e);
    if (!data) return;
    int64_t cols = transposed ? e.dims[0] : e.dims[1];
    EXPECT_EQ(transposed ? e.dims[1] : e.dims[0], num_rows);
    for (int r = 0; r < num_rows; r++)
        for (int c = 0; c < cols; c++) {
            float want = (float)(1000 * rows[r] + c);
            float got = transposed ? data[c * e.dims[1] + r] : data[r * e.dims[1] + c];
            EXPECT(got == want, "%s row %d column %d: %g is not %g", name, r, c, (double)got, (double)want);
        }
    mem_free(data);
}

TEST(llama_splits_grouped_qkv_and_gate_up) {
    struct fixture f;
    fixture_open(&f, fixture_llama());
    number_elements(&f);
    /* 2 groups of 2 query heads, head size 2: q q q q k k v v, twice */
    expect_rows(&f, "model.layers.1.self_attn.q_proj.weight", false, 8, (int[]){0, 1, 2, 3, 8, 9, 10, 11});
    expect_rows(&f, "model.layers.1.self_attn.k_proj.weight", false, 4, (int[]){4, 5, 12, 13});
    expect_rows(&f, "model.layers.1.self_attn.v_proj.weight", false, 4, (int[]){6, 7, 14, 15});
    expect_rows(&f, "model.layers.0.mlp.gate_proj.weight", false, 12,
                (int[]){0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11});
    expect_rows(&f, "model.layers.0.mlp.up_proj.weight", false, 12,
                (int[]){12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23});
    expect_rows(&f, "model.layers.0.self_attn.o_proj.weight", false, 8, (int[]){0, 1, 2, 3, 4, 5, 6, 7});
    fixture_close(&f);
}

TEST(gpt2_transposes_and_orders_q_k_v) {
    struct fixture f;
    fixture_open(&f, fixture_gpt2());
    number_elements(&f);
    /* 4 heads of 2: q0 k0 v0 q1 k1 v1 ... becomes all q, all k, all v */
    static const int rows[] = {0,  1,  6,  7,  12, 13, 18, 19, 2,  3,  8,  9,
                               14, 15, 20, 21, 4,  5,  10, 11, 16, 17, 22, 23};
    expect_rows(&f, "transformer.h.1.attn.c_attn.weight", true, 24, rows);
    expect_rows(&f, "transformer.h.1.attn.c_attn.bias", false, 24, rows);
    expect_rows(&f, "transformer.h.0.attn.c_proj.weight", true, 8, (int[]){0, 1, 2, 3, 4, 5, 6, 7});
    expect_rows(&f, "transformer.h.0.ln_2.bias", false, 8, (int[]){0, 1, 2, 3, 4, 5, 6, 7});
    fixture_close(&f);
}

static int count_entries(struct checkpoint_model model, const char *const *names, int num_names) {
    struct fixture f;
    int total = 0, named = 0;
    fixture_open(&f, model);
    for (int i = 0; i < f.count; i++) {
        struct checkpoint_entry *e;
        int n = entries_of(&model, f.tensors[i].name, f.tensors[i].num_dims, f.tensors[i].dims, &e);
        EXPECT(n > 0, "%s", err.text);
        total += n > 0 ? n : 0;
        for (int k = 0; k < n; k++)
            for (int j = 0; j < num_names; j++) named += !strcmp(e[k].name, names[j]);
    }
    fixture_close(&f);
    EXPECT_EQ(named, num_names);
    return total;
}

TEST(tensor_lists_are_hugging_faces) {
    static const char *const llama[] = {"model.embed_tokens.weight",
                                        "model.layers.0.self_attn.q_proj.weight",
                                        "model.layers.0.self_attn.k_proj.weight",
                                        "model.layers.0.self_attn.v_proj.weight",
                                        "model.layers.0.self_attn.o_proj.weight",
                                        "model.layers.0.mlp.gate_proj.weight",
                                        "model.layers.0.mlp.up_proj.weight",
                                        "model.layers.0.mlp.down_proj.weight",
                                        "model.layers.0.input_layernorm.weight",
                                        "model.layers.0.post_attention_layernorm.weight",
                                        "model.layers.1.input_layernorm.weight",
                                        "model.norm.weight",
                                        "lm_head.weight"};
    static const char *const gpt2[] = {"transformer.wte.weight",
                                       "transformer.wpe.weight",
                                       "transformer.h.0.ln_1.weight",
                                       "transformer.h.0.ln_1.bias",
                                       "transformer.h.0.attn.c_attn.weight",
                                       "transformer.h.0.attn.c_attn.bias",
                                       "transformer.h.0.attn.c_proj.weight",
                                       "transformer.h.0.attn.c_proj.bias",
                                       "transformer.h.0.ln_2.weight",
                                       "transformer.h.0.ln_2.bias",
                                       "transformer.h.0.mlp.c_fc.weight",
                                       "transformer.h.0.mlp.c_fc.bias",
                                       "transformer.h.0.mlp.c_proj.weight",
                                       "transformer.h.0.mlp.c_proj.bias",
                                       "transformer.h.1.ln_1.weight",
                                       "transformer.ln_f.weight",
                                       "transformer.ln_f.bias"};
    static const char *const other[] = {"decoder.layers.1.self_attention.linear_qkv.weight",
                                        "output_layer.weight", "decoder.layers.0.input_layernorm.bias",
                                        "embedding.word_embeddings.weight"};
    struct checkpoint_model m = fixture_llama();
    EXPECT_EQ(count_entries(m, llama, ARRAY_COUNT(llama)), 3 + 2 * 9);
    m.tied = true;
    EXPECT_EQ(count_entries(m, llama, ARRAY_COUNT(llama) - 1), 2 + 2 * 9);
    m.qk_norm = true;
    EXPECT_EQ(count_entries(m,
                            (const char *const[]){"model.layers.1.self_attn.q_norm.weight",
                                                  "model.layers.1.self_attn.k_norm.weight"},
                            2),
              2 + 2 * 11);
    m.qk_norm = false, m.qkv_bias = true;
    EXPECT_EQ(count_entries(m, (const char *const[]){"model.layers.1.self_attn.k_proj.bias"}, 1), 2 + 2 * 12);
    m.linear_bias = true;
    EXPECT_EQ(count_entries(m, (const char *const[]){"model.layers.1.mlp.up_proj.bias"}, 1), 2 + 2 * 16);
    EXPECT_EQ(count_entries(fixture_gpt2(), gpt2, ARRAY_COUNT(gpt2)), 4 + 2 * 12);
    EXPECT_EQ(count_entries(fixture_megatron(), other, ARRAY_COUNT(other)), 4 + 2 * 8);
}

TEST(experts_are_tensors_of_their_own_in_both_families) {
    struct fixture f;
    fixture_open(&f, fixture_mixtral());
    number_elements(&f);
    /* 3 experts of width 5: gate 0 .. 4, up 5 .. 9, and so on; fc2: 8 rows each */
    expect_rows(&f, "model.layers.1.block_sparse_moe.experts.0.w1.weight", false, 5, (int[]){0, 1, 2, 3, 4});
    expect_rows(&f, "model.layers.1.block_sparse_moe.experts.2.w1.weight", false, 5,
                (int[]){20, 21, 22, 23, 24});
    expect_rows(&f, "model.layers.1.block_sparse_moe.experts.2.w3.weight", false, 5,
                (int[]){25, 26, 27, 28, 29});
    expect_rows(&f, "model.layers.0.block_sparse_moe.experts.1.w2.weight", false, 8,
                (int[]){8, 9, 10, 11, 12, 13, 14, 15});
    expect_rows(&f, "model.layers.0.block_sparse_moe.gate.weight", false, 3, (int[]){0, 1, 2});
    fixture_close(&f);
    fixture_open(&f, fixture_deepseek());
    number_elements(&f);
    /* layer 0 is dense; 4 experts of width 5; shared experts of width 10 */
    expect_rows(&f, "model.layers.0.mlp.up_proj.weight", false, 12,
                (int[]){12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23});
    expect_rows(&f, "model.layers.1.mlp.experts.3.up_proj.weight", false, 5, (int[]){35, 36, 37, 38, 39});
    expect_rows(&f, "model.layers.1.mlp.experts.3.gate_proj.weight", false, 5, (int[]){30, 31, 32, 33, 34});
    expect_rows(&f, "model.layers.1.mlp.experts.1.down_proj.weight", false, 8,
                (int[]){8, 9, 10, 11, 12, 13, 14, 15});
    expect_rows(&f, "model.layers.1.mlp.shared_experts.up_proj.weight", false, 10,
                (int[]){10, 11, 12, 13, 14, 15, 16, 17, 18, 19});
    /* 4 heads of 3 plain and 2 rotated columns, values of 4: no row moves */
    expect_rows(&f, "model.layers.1.self_attn.kv_a_proj_with_mqa.weight", false, 8,
                (int[]){0, 1, 2, 3, 4, 5, 6, 7});
    expect_rows(&f, "model.layers.0.self_attn.q_b_proj.weight", false, 20,
                (int[]){0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19});
    fixture_close(&f);
}

TEST(experts_and_latents_have_hugging_faces_lists_of_tensors) {
    static const char *const deepseek[] = {"model.layers.1.self_attn.q_a_proj.weight",
                                           "model.layers.1.self_attn.q_a_layernorm.weight",
                                           "model.layers.1.self_attn.q_b_proj.weight",
                                           "model.layers.1.self_attn.kv_a_layernorm.weight",
                                           "model.layers.1.self_attn.kv_b_proj.weight",
                                           "model.layers.1.self_attn.o_proj.weight",
                                           "model.layers.1.mlp.gate.weight",
                                           "model.layers.1.mlp.gate.e_score_correction_bias",
                                           "model.layers.1.mlp.shared_experts.down_proj.weight"};
    static const char *const other[] = {"decoder.layers.0.mlp.experts.linear_fc1.weight",
                                        "decoder.layers.1.self_attention.linear_kv_down_proj.weight"};
    struct checkpoint_model m = fixture_mixtral();
    EXPECT_EQ(count_entries(m, NULL, 0), 3 + 2 * (6 + 1 + 3 * 3));
    m = fixture_deepseek();
    EXPECT_EQ(count_entries(m, deepseek, ARRAY_COUNT(deepseek)), 3 + 2 * 9 + 3 + (1 + 1 + 3 * 4 + 3));
    m.q_lora_rank = 0, m.moe_expert_bias = false;
    EXPECT_EQ(count_entries(m, (const char *const[]){"model.layers.0.self_attn.q_proj.weight"}, 1),
              3 + 2 * 7 + 3 + (1 + 3 * 4 + 3));
    m.num_experts = 0;
    EXPECT_EQ(count_entries(m, (const char *const[]){"model.layers.1.mlp.up_proj.weight"}, 1), 3 + 2 * 10);
    m = fixture_deepseek(), m.qk_norm = false, m.moe_dense_layers = 0;
    EXPECT_EQ(count_entries(m, other, 2), 3 + 2 * (2 + 5 + 6));
}

TEST(the_family_of_experts_and_latents_follows_from_the_tensors) {
    const char *why = NULL;
    struct checkpoint_model m = fixture_mixtral();
    EXPECT_EQ(checkpoint_family(&m, &why), CHECKPOINT_MIXTRAL);
    m.moe_score = CHECKPOINT_SIGMOID, m.moe_topk = 1;
    EXPECT_EQ(checkpoint_family(&m, NULL), CHECKPOINT_MIXTRAL);
    m.moe_dense_layers = 1;
    EXPECT_EQ(checkpoint_family(&m, &why), CHECKPOINT_MEGATRON);
    EXPECT_CONTAINS(why, "--moe-layer-freq");
    m = fixture_mixtral(), m.moe_shared_ffn_size = 5;
    EXPECT_EQ(checkpoint_family(&m, &why), CHECKPOINT_MEGATRON);
    EXPECT_CONTAINS(why, "--moe-shared-expert-intermediate-size");
    m = fixture_deepseek();
    EXPECT_EQ(checkpoint_family(&m, &why), CHECKPOINT_DEEPSEEK_V3);
    m.mtp_layers = 1;
    EXPECT_EQ(checkpoint_family(&m, &why), CHECKPOINT_DEEPSEEK_V3);
    m.num_experts = 0;
    EXPECT_EQ(checkpoint_family(&m, &why), CHECKPOINT_MEGATRON);
    EXPECT_CONTAINS(why, "--mtp-num-layers");
    m.mtp_layers = 0;
    EXPECT_EQ(checkpoint_family(&m, &why), CHECKPOINT_DEEPSEEK_V3);
    m = fixture_mixtral(), m.mtp_layers = 1;
    EXPECT_EQ(checkpoint_family(&m, &why), CHECKPOINT_MEGATRON);
    EXPECT_CONTAINS(why, "--mtp-num-layers");
    m = fixture_deepseek(), m.moe_shared_ffn_size = 0;
    EXPECT_EQ(checkpoint_family(&m, &why), CHECKPOINT_MEGATRON);
    EXPECT_CONTAINS(why, "without shared experts");
    m = fixture_deepseek(), m.qk_norm = false;
    EXPECT_EQ(checkpoint_family(&m, &why), CHECKPOINT_MEGATRON);
    EXPECT_CONTAINS(why, "--qk-layernorm");
}

TEST(the_family_follows_from_the_model) {
    const char *why = NULL;
    struct checkpoint_model m = fixture_llama();
    EXPECT_EQ(checkpoint_family(&m, &why), CHECKPOINT_LLAMA);
    EXPECT(!why, "%s", why);
    m.qk_norm = true;
    EXPECT_EQ(checkpoint_family(&m, NULL), CHECKPOINT_QWEN3);
    m.qk_norm = false, m.qkv_bias = true;
    EXPECT_EQ(checkpoint_family(&m, NULL), CHECKPOINT_QWEN2);
    m.linear_bias = true;
    EXPECT_EQ(checkpoint_family(&m, NULL), CHECKPOINT_LLAMA);
    m = fixture_gpt2();
    EXPECT_EQ(checkpoint_family(&m, NULL), CHECKPOINT_GPT2);
    m.num_query_groups = 2;
    EXPECT_EQ(checkpoint_family(&m, &why), CHECKPOINT_MEGATRON);
    EXPECT_CONTAINS(why, "--group-query-attention");
    m = fixture_megatron();
    EXPECT_EQ(checkpoint_family(&m, &why), CHECKPOINT_MEGATRON);
    EXPECT_CONTAINS(why, "LayerNorm");
    m = fixture_llama(), m.rotary_percent = 0.5;
    EXPECT_EQ(checkpoint_family(&m, &why), CHECKPOINT_MEGATRON);
    m = fixture_llama(), m.rotary_interleaved = true;
    EXPECT_EQ(checkpoint_family(&m, &why), CHECKPOINT_MEGATRON);
    m = fixture_llama(), m.activation = CHECKPOINT_GELU;
    EXPECT_EQ(checkpoint_family(&m, &why), CHECKPOINT_MEGATRON);
    m = fixture_llama(), m.position = CHECKPOINT_POSITION_NONE;
    EXPECT_EQ(checkpoint_family(&m, &why), CHECKPOINT_MEGATRON);
    m = fixture_llama(), snprintf(m.unlike_hf, sizeof(m.unlike_hf), "--some-trait");
    EXPECT_EQ(checkpoint_family(&m, &why), CHECKPOINT_MEGATRON);
    EXPECT_STR(why, "--some-trait");
}

/* One part of a tensor, gathered to disk in blocks of `step` and scattered into a buffer of its own, which
 * has a guard row at each end. */
static void round_trip_part(const struct checkpoint_model *model, const struct checkpoint_tensor *whole,
                            int64_t step, int64_t from, int64_t rows_here) {
    struct checkpoint_entry *e;
    struct checkpoint_tensor t = *whole;
    struct checkpoint_rects rects = {0};
    int n = entries_of(model, t.name, t.num_dims, t.dims, &e);
    size_t row_bytes = (size_t)t.num_cols * sizeof(float), part = (size_t)rows_here * row_bytes;
    char *back = mem_alloc(part + 2 * row_bytes, "back"), *guard = mem_alloc(row_bytes, "guard");
    float *buffer = mem_zalloc(fixture_floats(&t) * sizeof(float), "buffer");
    t.rows[0] = (struct checkpoint_row_run){from, rows_here};
    t.end = rows_here * t.num_cols;
    memset(back, 0xAB, part + 2 * row_bytes);
    memset(guard, 0xAB, row_bytes);
    for (int k = 0; k < n; k++) {
        struct checkpoint_block b = {0};
        checkpoint_rects_set(&rects, &e[k], &t);
        while (checkpoint_block_next(&b, &rects, &e[k], b.first + b.num_rows, step)) {
            EXPECT(b.num_rows <= step, "%d rows at once", (int)b.num_rows);
            checkpoint_block_gather(&b, t.master + from * t.num_cols, buffer);
            checkpoint_block_scatter(&b, buffer, (float *)(void *)(back + row_bytes));
        }
    }
    EXPECT(!memcmp(back + row_bytes, t.master + from * t.num_cols, part), "%s: blocks of %d, rows %d to %d",
           t.name, (int)step, (int)from, (int)(from + rows_here));
    EXPECT(!memcmp(back, guard, row_bytes) && !memcmp(back + row_bytes + part, guard, row_bytes),
           "%s: rows %d to %d: written outside", t.name, (int)from, (int)(from + rows_here));
    checkpoint_rects_free(&rects);
    mem_free(back);
    mem_free(guard);
    mem_free(buffer);
}

static void round_trip(struct fixture *f, int64_t step, int64_t local) {
    for (int i = 0; i < f->count; i++) {
        const struct checkpoint_tensor *t = &f->tensors[i];
        for (int64_t from = 0; from < t->dims[0]; from += local)
            round_trip_part(&f->model, t, step, from, t->dims[0] - from < local ? t->dims[0] - from : local);
    }
}

TEST(every_row_comes_back_whatever_the_blocks_and_parts) {
    struct checkpoint_model wide = fixture_gpt2();
    wide.kv_channels = 5, wide.num_attention_heads = wide.num_query_groups = 7, wide.hidden_size = 35;
    struct checkpoint_model qwen = fixture_llama();
    qwen.qk_norm = true, qwen.kv_channels = 3, qwen.num_query_groups = 1;
    const struct checkpoint_model models[] = {fixture_llama(), fixture_gpt2(), fixture_megatron(), wide,
                                              qwen};
    for (size_t m = 0; m < ARRAY_COUNT(models); m++) {
        struct fixture f;
        fixture_open(&f, models[m]);
        fixture_fill(&f, 3 + m);
        for (int64_t step = 1; step <= 40; step += step < 9 ? 1 : 13)
            for (int64_t local = 1; local <= 120; local += local < 7 ? 1 : 31) round_trip(&f, step, local);
        fixture_close(&f);
    }
}

TEST(unknown_tensors_keep_their_name_and_wrong_shapes_are_refused) {
    struct checkpoint_model m = fixture_llama();
    struct checkpoint_entry *e;
    static const char *const unknown[] = {"decoder.layers.0.mlp.router.weight",
                                          "decoder.layers.7.input_layernorm.weight",
                                          "decoder.layers.x.input_layernorm.weight", "input_layernorm.weight",
                                          "decoder.layers.-1.input_layernorm.weight"};
    for (size_t i = 0; i < ARRAY_COUNT(unknown); i++) {
        EXPECT_EQ(entries_of(&m, unknown[i], 2, (int64_t[]){3, 5}, &e), 1);
        EXPECT_STR(e[0].name, unknown[i]);
        EXPECT(e[0].dims[0] == 3 && e[0].dims[1] == 5 && !e[0].transposed, "shape");
    }
    EXPECT_EQ(entries_of(&m, "decoder.final_layernorm.weight", 1, (int64_t[]){9, 1}, &e), -1);
    EXPECT_CONTAINS(err.text, "decoder.final_layernorm.weight");
    char name[300];
    memset(name, 'x', sizeof(name) - 1), name[sizeof(name) - 1] = 0;
    EXPECT_EQ(entries_of(&m, name, 1, (int64_t[]){9, 1}, &e), -1);
}

RUN_TESTS(CASE(llama_splits_grouped_qkv_and_gate_up), CASE(gpt2_transposes_and_orders_q_k_v),
          CASE(tensor_lists_are_hugging_faces), CASE(the_family_follows_from_the_model),
          CASE(experts_are_tensors_of_their_own_in_both_families),
          CASE(experts_and_latents_have_hugging_faces_lists_of_tensors),
          CASE(the_family_of_experts_and_latents_follows_from_the_tensors),
          CASE(every_row_comes_back_whatever_the_blocks_and_parts),
          CASE(unknown_tensors_keep_their_name_and_wrong_shapes_are_refused))
