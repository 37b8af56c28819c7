#pragma once
/* Small models of each family with tensors full of arbitrary bits, a scratch directory, and helpers to damage
 * files. For the checkpoint tests only. */
#include "core/base/mem.h"
#include "core/base/str.h"
#include "core/checkpoint/checkpoint.h"
#include "core/checkpoint/names.h"
#include "tests/test.h"
#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

static inline struct checkpoint_model fixture_llama(void) {
    return (struct checkpoint_model){.num_layers = 2,
                                     .hidden_size = 8,
                                     .ffn_hidden_size = 12,
                                     .num_attention_heads = 4,
                                     .num_query_groups = 2,
                                     .kv_channels = 2,
                                     .vocab_size = 11,
                                     .padded_vocab_size = 16,
                                     .max_position_embeddings = 32,
                                     .position = CHECKPOINT_POSITION_ROPE,
                                     .activation = CHECKPOINT_SILU,
                                     .gated = true,
                                     .rms_norm = true,
                                     .rotary_base = 10000,
                                     .rotary_percent = 1,
                                     .norm_epsilon = 1e-5};
}

static inline struct checkpoint_model fixture_gpt2(void) {
    return (struct checkpoint_model){.num_layers = 2,
                                     .hidden_size = 8,
                                     .ffn_hidden_size = 32,
                                     .num_attention_heads = 4,
                                     .num_query_groups = 4,
                                     .kv_channels = 2,
                                     .vocab_size = 11,
                                     .padded_vocab_size = 16,
                                     .max_position_embeddings = 20,
                                     .position = CHECKPOINT_POSITION_LEARNED,
                                     .activation = CHECKPOINT_GELU_TANH,
                                     .linear_bias = true,
                                     .qkv_bias = true,
                                     .tied = true,
                                     .rotary_base = 10000,
                                     .rotary_percent = 1,
                                     .norm_epsilon = 1e-5,
                                     .hidden_dropout = 0.1,
                                     .attention_dropout = 0.1};
}

static inline struct checkpoint_model fixture_mixtral(void) {
    struct checkpoint_model m = fixture_llama();
    m.num_experts = 3, m.moe_topk = 2, m.moe_scaling = 1;
    m.ffn_hidden_size = m.moe_ffn_hidden_size = 5;
    return m;
}

/* A dense layer, then one with experts. */
static inline struct checkpoint_model fixture_deepseek(void) {
    struct checkpoint_model m = fixture_llama();
    m.num_query_groups = 4, m.qk_norm = true, m.norm_epsilon = 1e-6;
    m.q_lora_rank = 7, m.kv_lora_rank = 6;
    m.qk_head_dim = 3, m.qk_pos_emb_head_dim = 2, m.v_head_dim = 4, m.kv_channels = 5;
    m.rope_scaling_factor = 40, m.mscale = 1, m.mscale_all_dim = 0.5;
    m.num_experts = 4, m.moe_dense_layers = 1, m.moe_topk = 2;
    m.moe_ffn_hidden_size = 5, m.moe_shared_ffn_size = 10;
    m.moe_num_groups = 2, m.moe_group_topk = 1, m.moe_scaling = 2.5;
    m.moe_score = CHECKPOINT_SIGMOID, m.moe_expert_bias = true;
    return m;
}

/* The same with two depths of multi-token prediction. */
static inline struct checkpoint_model fixture_deepseek_mtp(void) {
    struct checkpoint_model m = fixture_deepseek();
    m.mtp_layers = 2;
    return m;
}

/* LayerNorm with rope: a model that Hugging Face does not have. */
static inline struct checkpoint_model fixture_megatron(void) {
    struct checkpoint_model m = fixture_llama();
    m.rms_norm = false;
    return m;
}

struct fixture {
    struct checkpoint_model model;
    struct checkpoint_tensor *tensors;
    int count, capacity;
    struct checkpoint_state state;
};

static inline void fixture_add(void *context, const char *name, int num_dims, const int64_t dims[2]) {
    struct fixture *f = context;
    if (f->count == f->capacity) {
        f->capacity = f->capacity ? 2 * f->capacity : 32;
        f->tensors = mem_realloc(f->tensors, (size_t)f->capacity * sizeof(*f->tensors), "fixture");
    }
    size_t floats = (size_t)(dims[0] * dims[1]);
    f->tensors[f->count++] = (struct checkpoint_tensor){
        .name = mem_strdup(name, "fixture"),
        .num_dims = num_dims,
        .dims = {dims[0], dims[1]},
        .master = mem_new_array(float, floats, "fixture"),
        .exp_avg = mem_new_array(float, floats, "fixture"),
        .exp_avg_sq = mem_new_array(float, floats, "fixture"),
    };
    checkpoint_tensor_set_whole(&f->tensors[f->count - 1]);
}

static inline size_t fixture_floats(const struct checkpoint_tensor *t) {
    return (size_t)(t->end - t->begin);
}

/* Arbitrary bits (NaN, infinities and subnormals too), a function of `seed`. */
static inline void fixture_fill(struct fixture *f, uint64_t seed) {
    uint64_t x = seed * 0x9E3779B97F4A7C15u + 1;
    for (int i = 0; i < f->count; i++)
        for (int slot = 0; slot < 3; slot++) {
            float *data = slot == 0 ? f->tensors[i].master
                                    : (slot == 1 ? f->tensors[i].exp_avg : f->tensors[i].exp_avg_sq);
            for (size_t k = 0; data && k < fixture_floats(&f->tensors[i]); k++) {
                x ^= x << 13, x ^= x >> 7, x ^= x << 17;
                uint32_t bits = (uint32_t)(x >> 16);
                memcpy(&data[k], &bits, 4);
            }
        }
    f->state = (struct checkpoint_state){.iteration = (int64_t)seed,
                                         .consumed_train_samples = (int64_t)seed * 8,
                                         .consumed_valid_samples = 3,
                                         .optimizer_steps = (int64_t)seed - 1,
                                         .skipped_iterations = 1,
                                         .seed = 0xFFFFFFFFFFFFFFF0u,
                                         .loss_scale = 65536.5,
                                         .loss_scale_growth = 7,
                                         .loss_scale_hysteresis = 2};
    checkpoint_set_extra(&f->state, "lr", 0.1 + (double)seed);
}

static inline void fixture_open(struct fixture *f, struct checkpoint_model model) {
    *f = (struct fixture){.model = model};
    checkpoint_each_tensor(&model, fixture_add, f);
}

static inline void fixture_close(struct fixture *f) {
    for (int i = 0; i < f->count; i++) {
        mem_free((void *)(uintptr_t)f->tensors[i].name);
        mem_free(f->tensors[i].master);
        mem_free(f->tensors[i].exp_avg);
        mem_free(f->tensors[i].exp_avg_sq);
    }
    mem_free(f->tensors);
}

static inline struct checkpoint_tensor *fixture_find(struct fixture *f, const char *name) {
    for (int i = 0; i < f->count; i++)
        if (!strcmp(f->tensors[i].name, name)) return &f->tensors[i];
    return NULL;
}

/* Bits of all three slots and of the state. */
static inline bool fixture_equal(const struct fixture *a, const struct fixture *b) {
    if (a->count != b->count || memcmp(&a->state, &b->state, sizeof(a->state))) return false;
    for (int i = 0; i < a->count; i++) {
        size_t bytes = fixture_floats(&a->tensors[i]) * sizeof(float);
        if (memcmp(a->tensors[i].master, b->tensors[i].master, bytes) ||
            memcmp(a->tensors[i].exp_avg, b->tensors[i].exp_avg, bytes) ||
            memcmp(a->tensors[i].exp_avg_sq, b->tensors[i].exp_avg_sq, bytes))
            return false;
    }
    return true;
}

static inline int fixture_save(struct fixture *f, const char *dir, struct err *err) {
    return checkpoint_save(dir, NULL, &f->model, f->tensors, f->count, &f->state, "{\"lr\": 0.1}", err);
}

static inline int fixture_load(struct fixture *f, const char *dir, struct err *err) {
    return checkpoint_load(dir, NULL, &f->model, f->tensors, f->count, &f->state, err);
}

/* ---- files ---- */

static char fixture_dir[64];

static inline const char *fixture_make_dir(void) {
    snprintf(fixture_dir, sizeof(fixture_dir), "/tmp/checkpoint_test_XXXXXX");
    return mkdtemp(fixture_dir);
}

static inline void fixture_remove(const char *path) {
    DIR *d = opendir(path);
    for (struct dirent *e; d && (e = readdir(d));) {
        struct str child = {0};
        if (!strcmp(e->d_name, ".") || !strcmp(e->d_name, "..")) continue;
        str_printf(&child, "%s/%s", path, e->d_name);
        if (unlink(child.data)) fixture_remove(child.data);
        str_free(&child);
    }
    if (d) closedir(d);
    rmdir(path);
}

static inline const char *fixture_path(const char *name) {
    static char paths[4][512];
    static int next;
    char *path = paths[next++ % 4];
    snprintf(path, sizeof(paths[0]), "%s/%s", fixture_dir, name);
    return path;
}

static inline bool fixture_exists(const char *name) {
    return access(fixture_path(name), F_OK) == 0;
}

static inline void fixture_write(const char *name, const void *data, size_t bytes) {
    int fd = open(fixture_path(name), O_WRONLY | O_CREAT | O_TRUNC, 0644);
    EXPECT(fd >= 0 && write(fd, data, bytes) == (ssize_t)bytes, "cannot write %s", name);
    close(fd);
}

static inline size_t fixture_size(const char *name) {
    struct stat st;
    return stat(fixture_path(name), &st) ? 0 : (size_t)st.st_size;
}

/* The whole file; *bytes_p may be NULL. Owned by the caller: mem_free. */
static inline char *fixture_read(const char *name, size_t *bytes_p) {
    size_t bytes = fixture_size(name);
    char *data = mem_zalloc(bytes + 1, "fixture file");
    int fd = open(fixture_path(name), O_RDONLY);
    EXPECT(fd >= 0 && read(fd, data, bytes) == (ssize_t)bytes, "cannot read %s", name);
    close(fd);
    if (bytes_p) *bytes_p = bytes;
    return data;
}

/* Flips one bit. */
static inline void fixture_flip(const char *name, size_t offset) {
    unsigned char byte = 0;
    int fd = open(fixture_path(name), O_RDWR);
    EXPECT(fd >= 0 && pread(fd, &byte, 1, (off_t)offset) == 1, "cannot read %s", name);
    byte ^= 4;
    EXPECT(pwrite(fd, &byte, 1, (off_t)offset) == 1, "cannot write %s", name);
    close(fd);
}
