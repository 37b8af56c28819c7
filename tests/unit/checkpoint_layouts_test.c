/* Many ranks in one process: one caller that holds the pieces of all ranks of a layout. What is between the
 * ranks (agreement, sums) is tested over MPI in tests/parallel. */
#include "tests/unit/checkpoint_layouts.h"
#include "core/base/hash.h"
#include "core/checkpoint/checksum.h"
#include "core/checkpoint/safetensors.h"
#include <sys/syscall.h>
#include <errno.h>
#include <pthread.h>

static struct err err;

static pthread_t main_thread;
static bool thread_fails; /* writes of any other thread find no space */

ssize_t pwrite(int fd, const void *data, size_t bytes, off_t offset) {
    if (!thread_fails || pthread_equal(pthread_self(), main_thread))
        return syscall(SYS_pwrite64, fd, data, bytes, offset);
    errno = ENOSPC;
    return -1;
}

int fsync(int fd) { /* read back through the page cache */
    (void)fd;
    return 0;
}

static const struct layout layouts[] = {
    {1, 1, 1, false, 16}, {2, 1, 1, false, 16}, {4, 1, 1, false, 16}, {1, 2, 1, false, 16},
    {1, 4, 1, false, 16}, {2, 2, 1, false, 12}, {4, 4, 1, false, 12}, {1, 1, 3, true, 16},
    {1, 1, 7, true, 24},  {2, 1, 5, true, 24},  {4, 2, 3, true, 12},  {2, 4, 2, true, 20},
    {2, 1, 3, false, 16}, {4, 1, 13, true, 40}, {1, 1, 31, true, 11},
};

/* The pieces of all ranks side by side. */
static struct layout_rank open_all(const struct layout *layout, const struct checkpoint_model *model) {
    struct layout_rank all = {0};
    for (int r = 0; r < layout_size(layout); r++) {
        struct layout_rank one = layout_open(layout, model, r);
        all.tensors = mem_realloc(all.tensors, (size_t)(all.count + one.count) * sizeof(*all.tensors), "all");
        memcpy(all.tensors + all.count, one.tensors, (size_t)one.count * sizeof(*all.tensors));
        all.count += one.count;
        mem_free(one.tensors);
    }
    return all;
}

static struct checkpoint_model padded(const struct checkpoint_model *model, const struct layout *layout) {
    struct checkpoint_model m = *model;
    m.padded_vocab_size = layout->vocab_rows;
    return m;
}

static int save_as(const struct layout *layout, const struct checkpoint_model *model,
                   const struct layout_rank *ranks, int64_t iteration) {
    struct layout_list list = layout_list_open(model, layout);
    struct checkpoint_save_options options = {.group = {.all = list.all, .num_all = list.count}};
    struct checkpoint_state state = {.iteration = iteration};
    struct checkpoint_model m = padded(model, layout);
    int status = checkpoint_save(fixture_dir, &options, &m, ranks->tensors, ranks->count, &state, "{}", &err);
    layout_list_close(&list);
    return status;
}

static int load_as(const struct layout *layout, const struct checkpoint_model *model,
                   const struct layout_rank *ranks, int64_t *iteration_p) {
    struct layout_list list = layout_list_open(model, layout);
    struct checkpoint_load_options options = {.group = {.all = list.all, .num_all = list.count}};
    struct checkpoint_state state = {.iteration = -1};
    struct checkpoint_model m = padded(model, layout);
    int status = checkpoint_load(fixture_dir, &options, &m, ranks->tensors, ranks->count, &state, &err);
    *iteration_p = state.iteration;
    layout_list_close(&list);
    return status;
}

static void save_filled(const struct layout *layout, const struct checkpoint_model *model, uint64_t seed) {
    struct layout_rank ranks = open_all(layout, model);
    layout_fill(&ranks, seed);
    EXPECT(!save_as(layout, model, &ranks, (int64_t)seed), "%s", err.text);
    layout_close(&ranks);
}

static struct checkpoint_model model_number(int i) {
    struct checkpoint_model m = i == 1 ? layout_gpt2() : layout_llama();
    if (i == 2) m.rms_norm = false; /* Megatron-LM's names: nothing is cut apart or transposed */
    if (i == 3) m.qkv_bias = m.linear_bias = true;
    return m;
}

TEST(any_layout_loads_what_any_other_saved_bit_for_bit) {
    for (int i = 0; i < 4; i++) {
        struct checkpoint_model model = model_number(i);
        for (size_t a = 0; a < ARRAY_COUNT(layouts); a++) {
            fixture_make_dir();
            save_filled(&layouts[a], &model, 7);
            EXPECT(!checkpoint_verify(fixture_dir, 0, &err), "%s", err.text);
            for (size_t b = 0; b < ARRAY_COUNT(layouts); b++) {
                struct layout_rank ranks = open_all(&layouts[b], &model);
                int64_t iteration;
                layout_fill(&ranks, 1234);
                EXPECT(!load_as(&layouts[b], &model, &ranks, &iteration), "%s", err.text);
                EXPECT_EQ(iteration, 7);
                int64_t wrong = layout_pass(&ranks, 7, true, layouts[a].vocab_rows, 1234);
                EXPECT(!wrong, "model %d from layout %d to %d: %d elements are wrong", i, (int)a, (int)b,
                       (int)wrong);
                layout_close(&ranks);
            }
            fixture_remove(fixture_dir);
        }
    }
}

TEST(the_files_are_the_same_bytes_whatever_the_layout) {
    static const char *const names[] = {"model-00001-of-00001.safetensors",
                                        "optimizer-00001-of-00001.safetensors", "manifest.json"};
    for (int i = 0; i < 4; i++) {
        struct checkpoint_model model = model_number(i);
        uint64_t want[3] = {0};
        fixture_make_dir();
        for (size_t a = 0; a < ARRAY_COUNT(layouts); a++) {
            struct layout layout = layouts[a];
            layout.vocab_rows = 40;
            save_filled(&layout, &model, 7);
            for (int f = 0; f < 3; f++) {
                char path[96];
                size_t bytes;
                snprintf(path, sizeof(path), "iter_0000007/%s", names[f]);
                char *data = fixture_read(path, &bytes);
                uint64_t got = hash_bytes(data, bytes);
                if (a == 0) want[f] = got;
                EXPECT(got == want[f], "model %d, layout %d: %s differs", i, (int)a, names[f]);
                mem_free(data);
            }
        }
        fixture_remove(fixture_dir);
    }
}

TEST(a_list_that_leaves_elements_out_or_saves_them_twice_is_refused) {
    struct checkpoint_model model = layout_llama();
    const struct layout *layout = &layouts[9];
    fixture_make_dir();
    save_filled(layout, &model, 7);
    for (int twice = 0; twice < 2; twice++) {
        struct layout_rank ranks = open_all(layout, &model);
        int changed = 0;
        layout_fill(&ranks, 8);
        for (int i = ranks.count - 1; i >= 0 && !changed; i--)
            if (ranks.tensors[i].writes == !twice && ranks.tensors[i].begin < ranks.tensors[i].end)
                ranks.tensors[i].writes = twice, changed = 1;
        EXPECT(changed && save_as(layout, &model, &ranks, 8), "saved");
        EXPECT_CONTAINS(err.text, "the ranks wrote ");
        EXPECT(!fixture_exists(".saving-iter_0000008") && !fixture_exists("iter_0000008"), "left over");
        layout_close(&ranks);
    }
    EXPECT(!checkpoint_verify(fixture_dir, 7, &err), "%s", err.text);
    fixture_remove(fixture_dir);
}

/* The bits of rows that only the file has are covered too. */
TEST(damage_in_rows_that_this_layout_does_not_hold_is_detected) {
    struct checkpoint_model model = layout_gpt2();
    struct layout wide = {1, 1, 1, false, 40}, narrow = {2, 1, 3, true, 12};
    struct layout_rank ranks = open_all(&narrow, &model);
    struct safetensors *file;
    int64_t iteration;
    const char *name = "iter_0000007/model-00001-of-00001.safetensors";
    fixture_make_dir();
    save_filled(&wide, &model, 7);
    file = safetensors_open(fixture_path(name), &err);
    const struct safetensors_tensor *t = safetensors_find(file, "transformer.wte.weight");
    size_t begin = (size_t)(safetensors_header_bytes(file) + t->begin), row = 12 * sizeof(float);
    safetensors_close(file);
    EXPECT(!load_as(&narrow, &model, &ranks, &iteration), "%s", err.text);
    for (size_t r = 0; r < 40; r += 3) {
        fixture_flip(name, begin + r * row + 5);
        EXPECT(load_as(&narrow, &model, &ranks, &iteration), "row %zu is not checked", r);
        EXPECT_CONTAINS(err.text, "'transformer.wte.weight' differs");
        fixture_flip(name, begin + r * row + 5);
    }
    layout_close(&ranks);
    fixture_remove(fixture_dir);
}

TEST(pieces_pass_through_a_bounded_buffer) {
    struct checkpoint_model model = layout_gpt2();
    struct layout layout = {4, 1, 3, true, 16};
    int64_t iteration;
    model.num_layers = 1, model.hidden_size = 1536, model.kv_channels = 384, model.ffn_hidden_size = 6144;
    fixture_make_dir();
    struct layout_rank ranks = open_all(&layout, &model);
    layout_fill(&ranks, 7);
    uint64_t before = mem_stats().peak_bytes;
    EXPECT(before - mem_stats().live_bytes < 1 << 20, "the peak was long ago");
    EXPECT(!save_as(&layout, &model, &ranks, 7), "%s", err.text);
    EXPECT(!load_as(&layout, &model, &ranks, &iteration), "%s", err.text);
    EXPECT(mem_stats().peak_bytes < before + CHECKPOINT_STAGING_BYTES + (1 << 20), "%llu bytes were staged",
           (unsigned long long)(mem_stats().peak_bytes - before));
    EXPECT(!layout_pass(&ranks, 7, true, 16, 0), "elements are wrong");
    layout_close(&ranks);
    fixture_remove(fixture_dir);
}

TEST(a_checksum_tells_values_places_and_lengths_apart) {
    static float data[4096];
    for (int64_t i = 0; i < 4096; i++) data[i] = (float)(i % 7);
    uint64_t want = checkpoint_checksum(data, 0, 4096);
    EXPECT(checkpoint_checksum(data, 0, 1000) + checkpoint_checksum(data + 1000, 1000, 3096) == want,
           "a sum of parts is another");
    EXPECT(checkpoint_checksum(data, 1, 4096) != want && checkpoint_checksum(data, 0, 4095) != want &&
               checkpoint_checksum(data, (int64_t)1 << 32, 4096) != want,
           "another place or length");
    for (int i = 0; i < 4096; i++)
        for (int bit = 0; bit < 32; bit++) {
            uint32_t bits;
            memcpy(&bits, &data[i], 4);
            bits ^= 1u << bit;
            memcpy(&data[i], &bits, 4);
            EXPECT(checkpoint_checksum(data, 0, 4096) != want || i % 64, "bit %d of %d", bit, i);
            bits ^= 1u << bit;
            memcpy(&data[i], &bits, 4);
            if (i % 64) break;
        }
    for (int i = 1; i < 4096; i++) { /* neighbours exchanged */
        if (i % 7 == 0) continue;
        uint64_t pair = checkpoint_checksum(data + i - 1, i - 1, 2);
        float other[2] = {data[i], data[i - 1]};
        EXPECT(checkpoint_checksum(other, i - 1, 2) != pair, "exchange at %d is not seen", i);
    }
}

/* A manifest is rewritten with another version and a right checksum of its own. */
TEST(a_manifest_of_another_version_is_refused_and_says_so) {
    struct fixture f;
    size_t bytes;
    fixture_make_dir();
    fixture_open(&f, fixture_llama());
    fixture_fill(&f, 20);
    EXPECT(!fixture_save(&f, fixture_dir, &err), "%s", err.text);
    char *text = fixture_read("iter_0000020/manifest.json", &bytes);
    char *version = strstr(text, "\"version\":2"), *seal = strstr(text, "\"manifest_checksum\":\"");
    EXPECT(version && seal, "no version or no seal");
    if (version && seal) {
        version[10] = '1';
        snprintf(seal + 21, 17, "%016llx", (unsigned long long)hash_bytes(text, (size_t)(seal - text)));
        seal[37] = '"';
        fixture_write("iter_0000020/manifest.json", text, bytes);
    }
    EXPECT(fixture_load(&f, fixture_dir, &err), "loaded");
    EXPECT_CONTAINS(err.text, "format version 1; this program reads version 2 only");
    mem_free(text);
    fixture_close(&f);
    fixture_remove(fixture_dir);
}

/* ---- in the background ---- */

static int begin(struct checkpoint_async *a, struct fixture *f) {
    return checkpoint_async_begin(a, fixture_dir, NULL, &f->model, f->tensors, f->count, &f->state, "{}",
                                  &err);
}

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

TEST(a_background_save_holds_the_numbers_of_its_beginning) {
    struct fixture f;
    fixture_make_dir();
    fixture_open(&f, fixture_gpt2());
    uint64_t bytes = checkpoint_async_bytes(f.tensors, f.count), want = 0;
    for (int i = 0; i < f.count; i++) want += 12 * fixture_floats(&f.tensors[i]);
    EXPECT_EQ(bytes, want);
    uint64_t before = mem_stats().live_bytes;
    struct checkpoint_async *a = checkpoint_async_open(bytes);
    EXPECT(mem_stats().live_bytes - before < bytes + 16384, "more than the snapshot is held");
    EXPECT_EQ(checkpoint_async_poll(a), CHECKPOINT_IDLE);
    EXPECT_EQ(checkpoint_async_iteration(a), -1);
    EXPECT(!checkpoint_async_finish(a, &err), "%s", err.text);
    for (uint64_t i = 10; i <= 40; i += 10) {
        fixture_fill(&f, i);
        EXPECT(!begin(a, &f), "%s", err.text);
        EXPECT_EQ(checkpoint_async_iteration(a), (int64_t)i);
        fixture_fill(&f, i + 5); /* training goes on */
        for (int ms = 0; checkpoint_async_poll(a) == CHECKPOINT_WRITING && ms < 20000; ms++) usleep(1000);
        EXPECT_EQ(checkpoint_async_poll(a), CHECKPOINT_WRITTEN);
        EXPECT_EQ(resume(&f), i > 10 ? (int64_t)i - 10 : -1); /* not before finish */
        EXPECT(!checkpoint_async_finish(a, &err), "%s", err.text);
        EXPECT_EQ(checkpoint_async_poll(a), CHECKPOINT_IDLE);
        EXPECT_EQ(resume(&f), (int64_t)i);
    }
    fixture_fill(&f, 50);
    EXPECT(!begin(a, &f) && !checkpoint_async_finish(a, &err), "%s", err.text); /* finish waits */
    EXPECT_EQ(resume(&f), 50);
    checkpoint_async_close(a);
    EXPECT_EQ(mem_stats().live_bytes, before);
    fixture_close(&f);
    fixture_remove(fixture_dir);
}

TEST(a_background_save_that_fails_or_is_dropped_keeps_the_last_good_checkpoint) {
    struct fixture f;
    fixture_make_dir();
    fixture_open(&f, fixture_llama());
    uint64_t before = mem_stats().live_bytes;
    struct checkpoint_async *a = checkpoint_async_open(checkpoint_async_bytes(f.tensors, f.count));
    main_thread = pthread_self();
    fixture_fill(&f, 10);
    EXPECT(!begin(a, &f) && !checkpoint_async_finish(a, &err), "%s", err.text);
    fixture_fill(&f, 20);
    thread_fails = true;
    EXPECT(!begin(a, &f), "%s", err.text);
    for (int ms = 0; checkpoint_async_poll(a) == CHECKPOINT_WRITING && ms < 20000; ms++) usleep(1000);
    EXPECT_EQ(checkpoint_async_poll(a), CHECKPOINT_FAILED);
    EXPECT(checkpoint_async_finish(a, &err), "a failed save is taken for a good one");
    thread_fails = false;
    EXPECT_CONTAINS(err.text, "No space left on device; the checkpoint was not saved");
    EXPECT_EQ(checkpoint_async_poll(a), CHECKPOINT_IDLE);
    EXPECT_EQ(resume(&f), 10);
    EXPECT(!fixture_exists(".saving-iter_0000020"), "left over");
    fixture_write("file", "x", 1);
    fixture_fill(&f, 30);
    EXPECT(checkpoint_async_begin(a, fixture_path("file"), NULL, &f.model, f.tensors, f.count, &f.state, "{}",
                                  &err),
           "saved into a file");
    EXPECT_EQ(checkpoint_async_poll(a), CHECKPOINT_IDLE);
    fixture_fill(&f, 20);
    EXPECT(!begin(a, &f) && !checkpoint_async_finish(a, &err), "%s", err.text);
    EXPECT_EQ(resume(&f), 20);
    fixture_fill(&f, 40);
    EXPECT(!begin(a, &f), "%s", err.text);
    checkpoint_async_close(a); /* dropped */
    EXPECT_EQ(resume(&f), 20);
    fixture_fill(&f, 50);
    EXPECT(!fixture_save(&f, fixture_dir, &err), "%s", err.text);
    EXPECT(!fixture_exists(".saving-iter_0000040"), "left over");
    EXPECT_EQ(mem_stats().live_bytes, before);
    fixture_close(&f);
    fixture_remove(fixture_dir);
}

RUN_TESTS(CASE(any_layout_loads_what_any_other_saved_bit_for_bit),
          CASE(the_files_are_the_same_bytes_whatever_the_layout),
          CASE(a_list_that_leaves_elements_out_or_saves_them_twice_is_refused),
          CASE(damage_in_rows_that_this_layout_does_not_hold_is_detected),
          CASE(pieces_pass_through_a_bounded_buffer), CASE(a_checksum_tells_values_places_and_lengths_apart),
          CASE(a_manifest_of_another_version_is_refused_and_says_so),
          CASE(a_background_save_holds_the_numbers_of_its_beginning),
          CASE(a_background_save_that_fails_or_is_dropped_keeps_the_last_good_checkpoint))
