#include "core/checkpoint/checkpoint.h"
#include "core/checkpoint/safetensors.h"
#include "tests/unit/checkpoint_fixture.h"

static struct err err;

/* These tests read back through the page cache: no need to wait for the disk. */
int fsync(int fd) {
    (void)fd;
    return 0;
}

/* ---- stderr, to see what the user is told ---- */

static char said[4096];
static int saved_stderr;

static void begin_listening(void) {
    fflush(stderr);
    saved_stderr = dup(2);
    int fd = open(fixture_path("stderr"), O_RDWR | O_CREAT | O_TRUNC, 0644);
    dup2(fd, 2);
    close(fd);
}

/* Returns the number of lines said. */
static int end_listening(void) {
    int lines = 0;
    fflush(stderr);
    ssize_t n = pread(2, said, sizeof(said) - 1, 0);
    said[n > 0 ? n : 0] = 0;
    dup2(saved_stderr, 2);
    close(saved_stderr);
    unlink(fixture_path("stderr"));
    for (char *p = said; *p; p++) lines += *p == '\n';
    return lines;
}

static void save_iteration(struct fixture *f, uint64_t iteration) {
    fixture_fill(f, iteration);
    EXPECT(!fixture_save(f, fixture_dir, &err), "%s", err.text);
}

/* The iteration that loads, compared bit by bit; -1 when none does. */
static int64_t resume(struct fixture *f) {
    struct fixture want;
    fixture_fill(f, 999);
    if (fixture_load(f, fixture_dir, &err)) return -1;
    fixture_open(&want, f->model);
    fixture_fill(&want, (uint64_t)f->state.iteration);
    EXPECT(fixture_equal(f, &want), "iteration %d differs", (int)f->state.iteration);
    fixture_close(&want);
    return f->state.iteration;
}

/* ---- round trips ---- */

TEST(every_family_comes_back_bit_equal) {
    struct checkpoint_model qwen2 = fixture_llama(), qwen3 = fixture_llama(), biased = fixture_llama();
    qwen2.qkv_bias = true, qwen3.qk_norm = true, biased.qkv_bias = biased.linear_bias = true;
    struct checkpoint_model untied = fixture_gpt2();
    untied.tied = false;
    const struct checkpoint_model models[] = {
        fixture_llama(),   fixture_gpt2(),     fixture_megatron(),    qwen2, qwen3, biased, untied,
        fixture_mixtral(), fixture_deepseek(), fixture_deepseek_mtp()};
    for (size_t i = 0; i < ARRAY_COUNT(models); i++) {
        struct fixture f;
        fixture_make_dir();
        fixture_open(&f, models[i]);
        save_iteration(&f, 20);
        EXPECT_EQ(resume(&f), 20);
        EXPECT(!checkpoint_verify(fixture_dir, 20, &err), "%s", err.text);
        fixture_close(&f);
        fixture_remove(fixture_dir);
    }
}

TEST(the_files_are_where_the_manual_says) {
    struct fixture f;
    size_t bytes;
    fixture_make_dir();
    fixture_open(&f, fixture_llama());
    save_iteration(&f, 20);
    static const char *const names[] = {"model-00001-of-00001.safetensors",
                                        "optimizer-00001-of-00001.safetensors", "resolved_config.json",
                                        "manifest.json"};
    for (size_t i = 0; i < ARRAY_COUNT(names); i++) {
        char path[96];
        snprintf(path, sizeof(path), "iter_0000020/%s", names[i]);
        EXPECT(fixture_exists(path), "%s is missing", path);
    }
    char *tracker = fixture_read("latest_checkpointed_iteration.txt", &bytes);
    EXPECT_STR(tracker, "20");
    mem_free(tracker);
    struct safetensors *s =
        safetensors_open(fixture_path("iter_0000020/optimizer-00001-of-00001.safetensors"), &err);
    EXPECT(s && safetensors_find(s, "exp_avg_sq.model.layers.1.self_attn.k_proj.weight"), "%s", err.text);
    safetensors_close(s);
    fixture_close(&f);
    fixture_remove(fixture_dir);
}

TEST(shards_are_cut_at_the_size_asked_for) {
    struct fixture f;
    fixture_make_dir();
    fixture_open(&f, fixture_llama());
    for (int64_t bytes = 1; bytes < 20000; bytes = bytes * 3 + 100) {
        struct checkpoint_save_options options = {.max_shard_bytes = bytes};
        fixture_fill(&f, 20);
        EXPECT(!checkpoint_save(fixture_dir, &options, &f.model, f.tensors, f.count, &f.state, "{}", &err),
               "%s", err.text);
        if (bytes == 1)
            EXPECT(fixture_exists("iter_0000020/model-00021-of-00021.safetensors"), "one file per tensor");
        EXPECT_EQ(resume(&f), 20);
        EXPECT(!checkpoint_verify(fixture_dir, 0, &err), "%s", err.text);
    }
    fixture_close(&f);
    fixture_remove(fixture_dir);
}

TEST(large_tensors_pass_through_a_bounded_buffer) {
    struct fixture f;
    struct checkpoint_model m = fixture_gpt2();
    m.num_layers = 1, m.padded_vocab_size = 100000, m.hidden_size = 16, m.kv_channels = 4;
    m.ffn_hidden_size = 200000;
    fixture_make_dir();
    fixture_open(&f, m);
    fixture_fill(&f, 5);
    uint64_t before = mem_stats().live_bytes;
    EXPECT(!fixture_save(&f, fixture_dir, &err), "%s", err.text);
    EXPECT_EQ(mem_stats().live_bytes, before);
    EXPECT(mem_stats().peak_bytes < before + CHECKPOINT_STAGING_BYTES + (1 << 20), "%llu bytes were staged",
           (unsigned long long)(mem_stats().peak_bytes - before));
    EXPECT(!fixture_load(&f, fixture_dir, &err), "%s", err.text);
    EXPECT(mem_stats().peak_bytes < before + CHECKPOINT_STAGING_BYTES + (1 << 20), "%llu bytes were staged",
           (unsigned long long)(mem_stats().peak_bytes - before));
    EXPECT_EQ(resume(&f), 5);
    fixture_close(&f);
    fixture_remove(fixture_dir);
}

/* ---- damage ---- */

static const char *const files[] = {"iter_0000020/model-00001-of-00001.safetensors",
                                    "iter_0000020/optimizer-00001-of-00001.safetensors",
                                    "iter_0000020/manifest.json", "iter_0000020/resolved_config.json"};

TEST(a_flipped_bit_anywhere_is_detected) {
    struct fixture f;
    fixture_make_dir();
    fixture_open(&f, fixture_llama());
    save_iteration(&f, 20);
    for (size_t i = 0; i < ARRAY_COUNT(files); i++)
        for (size_t at = 0, size = fixture_size(files[i]); at < size;
             at += at < 700 || at > size - 60 ? 1 : 7) {
            fixture_flip(files[i], at);
            EXPECT(checkpoint_verify(fixture_dir, 20, &err), "%s byte %zu is not checked", files[i], at);
            fixture_flip(files[i], at);
        }
    EXPECT(!checkpoint_verify(fixture_dir, 20, &err), "%s", err.text);
    fixture_close(&f);
    fixture_remove(fixture_dir);
}

TEST(a_file_cut_or_extended_anywhere_is_detected) {
    struct fixture f;
    fixture_make_dir();
    fixture_open(&f, fixture_llama());
    save_iteration(&f, 20);
    for (size_t i = 0; i < ARRAY_COUNT(files); i++) {
        size_t size;
        char *whole = fixture_read(files[i], &size);
        for (size_t n = 0; n <= size + 1; n += n + 40 < size ? 13 : 1) {
            if (n == size) continue;
            fixture_write(files[i], whole, n);
            EXPECT(checkpoint_verify(fixture_dir, 20, &err), "%s of %zu bytes is accepted", files[i], n);
        }
        unlink(fixture_path(files[i]));
        EXPECT(checkpoint_verify(fixture_dir, 20, &err), "%s is missing and not missed", files[i]);
        fixture_write(files[i], whole, size);
        mem_free(whole);
    }
    EXPECT(!checkpoint_verify(fixture_dir, 20, &err), "%s", err.text);
    fixture_close(&f);
    fixture_remove(fixture_dir);
}

TEST(two_exchanged_files_are_detected) {
    struct fixture f;
    size_t size;
    fixture_make_dir();
    fixture_open(&f, fixture_llama());
    save_iteration(&f, 10);
    save_iteration(&f, 20);
    char *other = fixture_read("iter_0000010/model-00001-of-00001.safetensors", &size);
    fixture_write(files[0], other, size);
    EXPECT(checkpoint_verify(fixture_dir, 20, &err), "another iteration's weights are accepted");
    EXPECT_CONTAINS(err.text, "the checksum of tensor 'model.embed_tokens.weight' (offset ");
    mem_free(other);
    fixture_close(&f);
    fixture_remove(fixture_dir);
}

TEST(a_damaged_newest_checkpoint_falls_back_with_one_line) {
    struct fixture f;
    fixture_make_dir();
    fixture_open(&f, fixture_llama());
    for (size_t i = 0; i < 3; i++) { /* weights, optimizer, manifest */
        save_iteration(&f, 10);
        save_iteration(&f, 20);
        fixture_flip(files[i], fixture_size(files[i]) - 40);
        begin_listening();
        int64_t got = resume(&f);
        int lines = end_listening();
        EXPECT_EQ(got, 10);
        EXPECT_EQ(lines, 1);
        EXPECT_CONTAINS(said, "iter_0000020 cannot be used");
        EXPECT_CONTAINS(said, "going back to iter_0000010");
        EXPECT_CONTAINS(said, "checksum");
    }
    unlink(fixture_path(files[1]));
    EXPECT_EQ(resume(&f), 10);
    fixture_remove(fixture_path("iter_0000010"));
    EXPECT_EQ(resume(&f), -1);
    EXPECT_CONTAINS(err.text, "no valid checkpoint");
    EXPECT_CONTAINS(err.text, "iter_0000020");
    fixture_close(&f);
    fixture_remove(fixture_dir);
}

TEST(a_bad_tracker_falls_back_to_the_newest_with_one_line) {
    struct fixture f;
    static const char *const texts[] = {"", "garbage", "30", "-5", "20x", "99999999999999999999", "release"};
    fixture_make_dir();
    fixture_open(&f, fixture_llama());
    save_iteration(&f, 20);
    save_iteration(&f, 10); /* the tracker says 10 */
    EXPECT_EQ(resume(&f), 10);
    for (size_t i = 0; i <= ARRAY_COUNT(texts); i++) {
        if (i < ARRAY_COUNT(texts))
            fixture_write("latest_checkpointed_iteration.txt", texts[i], strlen(texts[i]));
        else
            unlink(fixture_path("latest_checkpointed_iteration.txt"));
        begin_listening();
        int64_t got = resume(&f);
        int lines = end_listening();
        EXPECT_EQ(got, 20);
        EXPECT_EQ(lines, 1);
        EXPECT_CONTAINS(said, "latest_checkpointed_iteration.txt");
        EXPECT_CONTAINS(said, "taking iter_0000020");
    }
    fixture_write("latest_checkpointed_iteration.txt", "10\n", 3);
    EXPECT_EQ(resume(&f), 10);
    fixture_close(&f);
    fixture_remove(fixture_dir);
}

/* ---- what is asked for ---- */

TEST(one_iteration_can_be_asked_for) {
    struct fixture f;
    struct checkpoint_load_options options = {.step = 10};
    struct checkpoint_info info;
    fixture_make_dir();
    fixture_open(&f, fixture_llama());
    for (uint64_t i = 10; i <= 30; i += 10) save_iteration(&f, i);
    EXPECT(!checkpoint_load(fixture_dir, &options, &f.model, f.tensors, f.count, &f.state, &err), "%s",
           err.text);
    EXPECT_EQ(f.state.iteration, 10);
    options.step = 15;
    EXPECT(checkpoint_load(fixture_dir, &options, &f.model, f.tensors, f.count, &f.state, &err), "loaded");
    EXPECT_CONTAINS(err.text, "iteration 15");
    fixture_flip("iter_0000020/manifest.json", 5);
    options.step = 20;
    EXPECT(checkpoint_load(fixture_dir, &options, &f.model, f.tensors, f.count, &f.state, &err),
           "loaded another");
    EXPECT(checkpoint_find(fixture_dir, 20, &info, &err), "found");
    EXPECT_CONTAINS(err.text, "checksum");
    EXPECT(checkpoint_find(fixture_dir, 15, &info, &err), "found");
    fixture_close(&f);
    fixture_remove(fixture_dir);
}

TEST(find_tells_what_is_there) {
    struct fixture f;
    struct checkpoint_info info;
    fixture_make_dir();
    EXPECT(!checkpoint_find(fixture_dir, 0, &info, &err) && !info.found, "%s", err.text);
    EXPECT(!checkpoint_find("/nonexistent/dir", 0, &info, &err) && !info.found, "%s", err.text);
    EXPECT(checkpoint_load(fixture_dir, NULL, &info.model, NULL, 0, &info.state, &err), "loaded nothing");
    EXPECT_CONTAINS(err.text, "there is no checkpoint");
    fixture_open(&f, fixture_gpt2());
    save_iteration(&f, 20);
    EXPECT(!checkpoint_find(fixture_dir, 0, &info, &err), "%s", err.text);
    EXPECT(info.found && info.iteration == 20 && !info.release && info.has_optimizer, "info");
    EXPECT(!memcmp(&info.state, &f.state, sizeof(f.state)), "state");
    EXPECT(!memcmp(&info.model, &f.model, sizeof(f.model)), "model");
    EXPECT_STR(info.config_json, "{\"lr\": 0.1}");
    EXPECT_STR(info.path, fixture_path("iter_0000020"));
    EXPECT_NEAR(checkpoint_get_extra(&info.state, "lr", 0), 20.1, 0);
    EXPECT_NEAR(checkpoint_get_extra(&info.state, "none", -1), -1, 0);
    checkpoint_info_free(&info);
    fixture_flip("iter_0000020/resolved_config.json", 3);
    EXPECT(checkpoint_find(fixture_dir, 0, &info, &err), "a changed configuration is accepted");
    fixture_close(&f);
    fixture_remove(fixture_dir);
}

/* Loads into another model; returns the message, "" when it loads. */
static const char *misfit(struct checkpoint_model model) {
    struct fixture f;
    fixture_open(&f, model);
    fixture_fill(&f, 1);
    err.text[0] = 0;
    if (!fixture_load(&f, fixture_dir, &err)) err.text[0] = 0;
    fixture_close(&f);
    return err.text;
}

TEST(a_model_that_does_not_fit_is_refused_by_flag_and_never_falls_back) {
    struct fixture f;
    struct checkpoint_model m;
    fixture_make_dir();
    fixture_open(&f, fixture_megatron());
    save_iteration(&f, 10);
    fixture_close(&f);
    fixture_open(&f, fixture_llama());
    save_iteration(&f, 20);
    m = fixture_llama(), m.num_layers = 3;
    EXPECT_CONTAINS(misfit(m), "num_layers 2, this run has 3 (--num-layers)");
    m = fixture_llama(), m.tied = true;
    EXPECT_CONTAINS(misfit(m), "--untie-embeddings-and-output-weights");
    m = fixture_llama(), m.ffn_hidden_size = 13;
    EXPECT_CONTAINS(misfit(m), "--ffn-hidden-size");
    EXPECT_CONTAINS(misfit(fixture_megatron()), "--normalization");
    m = fixture_llama(), m.qk_norm = true;
    EXPECT_CONTAINS(misfit(m), "--qk-layernorm");
    m = fixture_llama(), m.vocab_size = m.padded_vocab_size = 17;
    EXPECT_CONTAINS(misfit(m), "--vocab-size 11");
    m = fixture_llama(), m.vocab_size = m.padded_vocab_size = 10;
    EXPECT_CONTAINS(misfit(m), "--vocab-size 11");
    EXPECT_STR(misfit(fixture_llama()), "");
    m = fixture_llama(), m.rotary_base = 500000, m.max_position_embeddings = 64, m.hidden_dropout = 0.5;
    begin_listening();
    const char *message = misfit(m);
    int lines = end_listening();
    EXPECT_STR(message, "");
    EXPECT_EQ(lines, 1);
    EXPECT_CONTAINS(said, "rotary_base 10000, this run goes on with 500000 (--rotary-base)");
    fixture_close(&f);
    fixture_remove(fixture_dir);
}

TEST(another_padding_of_the_vocabulary_keeps_the_rows_that_both_have) {
    struct fixture saved;
    fixture_make_dir();
    fixture_open(&saved, fixture_llama());
    save_iteration(&saved, 20);
    static const int64_t paddings[] = {11, 12, 16, 24};
    for (size_t i = 0; i < ARRAY_COUNT(paddings); i++) {
        struct fixture f, before;
        struct checkpoint_model m = fixture_llama();
        m.padded_vocab_size = paddings[i];
        fixture_open(&f, m);
        fixture_open(&before, m);
        fixture_fill(&f, 77);
        fixture_fill(&before, 77);
        EXPECT(!fixture_load(&f, fixture_dir, &err), "%s", err.text);
        const char *const names[] = {"embedding.word_embeddings.weight", "output_layer.weight"};
        for (size_t n = 0; n < 2; n++) {
            const float *got = fixture_find(&f, names[n])->master,
                        *want = fixture_find(&saved, names[n])->master;
            size_t row = 8 * sizeof(float), common = (size_t)(paddings[i] < 16 ? paddings[i] : 16);
            EXPECT(!memcmp(got, want, common * row), "%s: common rows differ", names[n]);
            EXPECT(!memcmp(got + common * 8, fixture_find(&before, names[n])->master + common * 8,
                           ((size_t)paddings[i] - common) * row),
                   "%s: rows that only the run has were changed", names[n]);
        }
        EXPECT(!memcmp(fixture_find(&f, "decoder.final_layernorm.weight")->exp_avg,
                       fixture_find(&saved, "decoder.final_layernorm.weight")->exp_avg, 8 * sizeof(float)),
               "the rest differs");
        fixture_close(&f);
        fixture_close(&before);
    }
    fixture_close(&saved);
    fixture_remove(fixture_dir);
}

TEST(optimizer_state_may_be_left_out_but_only_when_asked) {
    struct fixture f, before;
    struct checkpoint_save_options save = {.no_optimizer = true};
    struct checkpoint_load_options load = {.no_optimizer = true};
    fixture_make_dir();
    fixture_open(&f, fixture_llama());
    fixture_open(&before, fixture_llama());
    fixture_fill(&f, 20);
    EXPECT(!checkpoint_save(fixture_dir, &save, &f.model, f.tensors, f.count, &f.state, "{}", &err), "%s",
           err.text);
    EXPECT(!fixture_exists("iter_0000020/optimizer-00001-of-00001.safetensors"), "saved all the same");
    EXPECT(fixture_load(&f, fixture_dir, &err), "loaded without optimizer state");
    EXPECT_CONTAINS(err.text, "--no-load-optim");
    fixture_fill(&f, 3);
    fixture_fill(&before, 3);
    EXPECT(!checkpoint_load(fixture_dir, &load, &f.model, f.tensors, f.count, &f.state, &err), "%s",
           err.text);
    EXPECT_EQ(f.state.iteration, 20);
    for (int i = 0; i < f.count; i++)
        EXPECT(!memcmp(f.tensors[i].exp_avg, before.tensors[i].exp_avg, fixture_floats(&f.tensors[i]) * 4),
               "%s: exp_avg was touched", f.tensors[i].name);
    load = (struct checkpoint_load_options){.finetune = true};
    EXPECT(!checkpoint_load(fixture_dir, &load, &f.model, f.tensors, f.count, &f.state, &err), "%s",
           err.text);
    EXPECT(f.state.iteration == 0 && f.state.consumed_train_samples == 0 && f.state.num_extras == 0, "state");
    fixture_close(&f);
    fixture_close(&before);
    fixture_remove(fixture_dir);
}

TEST(weights_alone_can_be_saved_and_loaded) { /* tensors without optimizer state, as in evaluation */
    struct fixture f;
    fixture_make_dir();
    fixture_open(&f, fixture_llama());
    save_iteration(&f, 20);
    for (int i = 0; i < f.count; i++) {
        mem_free(f.tensors[i].exp_avg), mem_free(f.tensors[i].exp_avg_sq);
        f.tensors[i].exp_avg = f.tensors[i].exp_avg_sq = NULL;
    }
    EXPECT(!fixture_load(&f, fixture_dir, &err), "%s", err.text);
    f.state.iteration = 30;
    EXPECT(!fixture_save(&f, fixture_dir, &err), "%s", err.text);
    EXPECT(!fixture_load(&f, fixture_dir, &err), "%s", err.text);
    EXPECT_EQ(f.state.iteration, 30);
    fixture_close(&f);
    fixture_remove(fixture_dir);
}

/* ---- what stays on disk ---- */

TEST(retain_interval_deletes_the_checkpoint_before_as_megatron_does) {
    struct fixture f;
    struct checkpoint_save_options options = {.retain_interval = 20};
    fixture_make_dir();
    fixture_open(&f, fixture_llama());
    for (uint64_t i = 10; i <= 70; i += 10) {
        fixture_fill(&f, i);
        EXPECT(!checkpoint_save(fixture_dir, &options, &f.model, f.tensors, f.count, &f.state, "{}", &err),
               "%s", err.text);
    }
    for (int i = 10; i <= 70; i += 10) {
        char name[32];
        snprintf(name, sizeof(name), "iter_%07d", i);
        EXPECT(fixture_exists(name) == (i % 20 == 0 || i == 70), "%s", name);
    }
    fixture_close(&f);
    fixture_remove(fixture_dir);
}

TEST(leftovers_of_killed_runs_go_at_the_next_save_and_nothing_else_does) {
    struct fixture f;
    fixture_make_dir();
    fixture_open(&f, fixture_llama());
    static const char *const gone[] = {".saving-iter_0000015", ".removing-iter_0000005",
                                       ".replaced-iter_0000010"};
    static const char *const kept[] = {"iter_0000010", "my_notes", "iter_10", ".hidden"};
    save_iteration(&f, 10);
    for (size_t i = 0; i < ARRAY_COUNT(gone); i++) EXPECT(!mkdir(fixture_path(gone[i]), 0755), "mkdir");
    fixture_write(".saving-iter_0000015/model-00001-of-00001.safetensors", "x", 1);
    for (size_t i = 1; i < ARRAY_COUNT(kept); i++) EXPECT(!mkdir(fixture_path(kept[i]), 0755), "mkdir");
    EXPECT_EQ(resume(&f), 10);
    save_iteration(&f, 20);
    for (size_t i = 0; i < ARRAY_COUNT(gone); i++)
        EXPECT(!fixture_exists(gone[i]), "%s is still there", gone[i]);
    for (size_t i = 0; i < ARRAY_COUNT(kept); i++) EXPECT(fixture_exists(kept[i]), "%s is gone", kept[i]);
    fixture_close(&f);
    fixture_remove(fixture_dir);
}

TEST(a_replaced_checkpoint_counts_until_its_successor_is_there) {
    struct fixture f;
    fixture_make_dir();
    fixture_open(&f, fixture_llama());
    save_iteration(&f, 10);
    EXPECT(!rename(fixture_path("iter_0000010"), fixture_path(".replaced-iter_0000010")), "rename");
    EXPECT_EQ(resume(&f), 10);
    save_iteration(&f, 20);
    EXPECT(fixture_exists("iter_0000010") && !fixture_exists(".replaced-iter_0000010"), "not put back");
    EXPECT(!checkpoint_verify(fixture_dir, 10, &err), "%s", err.text);
    fixture_close(&f);
    fixture_remove(fixture_dir);
}

TEST(a_place_that_cannot_be_written_is_an_error) {
    struct fixture f;
    fixture_make_dir();
    fixture_open(&f, fixture_llama());
    fixture_fill(&f, 20);
    fixture_write("file", "x", 1);
    EXPECT(fixture_save(&f, fixture_path("file"), &err), "saved into a file");
    EXPECT_CONTAINS(err.text, "not a directory");
    EXPECT(fixture_save(&f, fixture_path("file/sub"), &err), "saved below a file");
    EXPECT(!fixture_save(&f, fixture_path("a/b/c"), &err), "%s", err.text);
    EXPECT(fixture_exists("a/b/c/iter_0000020/manifest.json"), "parents were not made");
    f.model.num_query_groups = 0;
    EXPECT(fixture_save(&f, fixture_dir, &err), "saved an impossible model");
    EXPECT_CONTAINS(err.text, "num_query_groups");
    fixture_close(&f);
    fixture_remove(fixture_dir);
}

RUN_TESTS(CASE(every_family_comes_back_bit_equal), CASE(the_files_are_where_the_manual_says),
          CASE(shards_are_cut_at_the_size_asked_for), CASE(large_tensors_pass_through_a_bounded_buffer),
          CASE(a_flipped_bit_anywhere_is_detected), CASE(a_file_cut_or_extended_anywhere_is_detected),
          CASE(two_exchanged_files_are_detected), CASE(a_damaged_newest_checkpoint_falls_back_with_one_line),
          CASE(a_bad_tracker_falls_back_to_the_newest_with_one_line), CASE(one_iteration_can_be_asked_for),
          CASE(find_tells_what_is_there),
          CASE(a_model_that_does_not_fit_is_refused_by_flag_and_never_falls_back),
          CASE(another_padding_of_the_vocabulary_keeps_the_rows_that_both_have),
          CASE(optimizer_state_may_be_left_out_but_only_when_asked),
          CASE(weights_alone_can_be_saved_and_loaded),
          CASE(retain_interval_deletes_the_checkpoint_before_as_megatron_does),
          CASE(leftovers_of_killed_runs_go_at_the_next_save_and_nothing_else_does),
          CASE(a_replaced_checkpoint_counts_until_its_successor_is_there),
          CASE(a_place_that_cannot_be_written_is_an_error))
