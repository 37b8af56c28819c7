#pragma once
/* Checkpoints: one format, whatever the layout that wrote it or will read it.
 *
 *     <dir>/latest_checkpointed_iteration.txt           "20", or "release" for imported weights
 *     <dir>/iter_0000020/model-00001-of-00001.safetensors       fp32 master weights, global tensors
 *                        optimizer-00001-of-00001.safetensors   exp_avg.NAME, exp_avg_sq.NAME, fp32
 *                        resolved_config.json                   the text that the caller gave
 *                        manifest.json                          state, model, sizes, 64-bit checksums
 *
 * Tensors are global: no file knows how many ranks there were. They carry Hugging Face's names and shapes
 * where Hugging Face has the model (GPT-2, Llama, Qwen2, Qwen3, Mixtral, DeepSeek-V3; names.h), Megatron-LM's
 * names elsewhere.
 * fp32 master, exp_avg and exp_avg_sq are all that AdamW carries over an iteration, and random numbers are a
 * function of the seed, so a resumed run is bit-equal to one that never stopped. A 16-bit working copy is the
 * rounded master and is not stored.
 *
 * Every rank writes and reads its own byte ranges. The layout of the files is a pure function of the global
 * list of tensors, which every rank knows; which elements a rank holds, it says in its own list. Functions
 * marked "collective" are called by all ranks of `world` in the same order and return the same on all of
 * them: the message of the lowest rank that failed, everywhere.
 *
 * Saving never endangers what is there: everything goes to a hidden directory, is synced, the directory is
 * renamed, the tracker file is replaced last. A full disk, a failed write or a kill of any rank at any point
 * leaves the last good checkpoint in force. Loading takes the tracker's checkpoint; if that is damaged, the
 * newest valid one, and says so in one line. Every byte read is covered by a checksum.
 *
 * Memory: the caller owns the tensors; save and load stage at most CHECKPOINT_STAGING_BYTES (or one row on
 * disk, where that is longer). Failures are returned (0, or -1 with a message). Not thread safe for one
 * directory.
 *
 *     struct checkpoint_info info;
 *     if (checkpoint_find(dir, -1, &info, err)) return -1;
 *     if (info.found && checkpoint_load(dir, NULL, &model, tensors, count, &state, err)) return -1;
 *     ...
 *     if (checkpoint_save(dir, NULL, &model, tensors, count, &state, config_json, err)) return -1;
 *
 * and over many ranks: options.world = world, options.all = names and shapes of all tensors of the model. */
#include "core/base/check.h"
#include "parallel/comm/comm.h"
#include <stdbool.h>
#include <stdint.h>

enum {
    CHECKPOINT_STAGING_BYTES = 4 << 20,
    CHECKPOINT_MAX_EXTRAS = 32,
    CHECKPOINT_MAX_NAME = 192,
    CHECKPOINT_MAX_ROW_RUNS = 3
};

/* One tensor of the model, of all ranks together. */
struct checkpoint_shape {
    const char *name; /* Megatron-LM's, e.g. decoder.layers.3.self_attention.linear_qkv.weight */
    int num_dims;     /* 1 or 2 */
    int64_t dims[2];  /* global; dims[1] is ignored for num_dims 1 */
    bool is_state;    /* updated by a rule of its own: has no optimizer state (a router's expert bias) */
};

/* What this rank holds of one tensor, or one part of that: a tensor may be listed several times.
 *
 * The rank's block of the tensor is up to three runs of rows, rising, and one run of columns:
 *
 *     global rows 0 .. 7 of [gate; up], rank 1 of 2      rows = {2, 2}, {6, 2}
 *     . . G G . . U U                                    local rows: G G U U
 *
 * Of equal matrices one after the other (experts) it may be the same runs of rows inside each of several.
 *
 *     two experts of [gate; up] from the third on       num_groups = 2, first_group = 2, group_rows = 8
 *
 * Of that block's elements, in row-major order, the rank holds [begin, end): all of them, or a shard of the
 * distributed optimizer, which cuts anywhere and may be empty. */
struct checkpoint_tensor {
    const char *name;
    int num_dims;
    int64_t dims[2]; /* global, as in struct checkpoint_shape */
    struct checkpoint_row_run {
        int64_t first, count;
    } rows[CHECKPOINT_MAX_ROW_RUNS]; /* unused ones are zero */
    int64_t num_groups, first_group; /* 0: one matrix, and the runs are of rows of the tensor */
    int64_t group_rows;              /* of a whole group */
    int64_t first_col, num_cols;     /* 0 and 1 for num_dims 1 */
    int64_t begin, end;
    float *master;               /* element `begin` */
    float *exp_avg, *exp_avg_sq; /* likewise; NULL: no optimizer state */
    bool is_state;               /* as in struct checkpoint_shape */
    bool writes; /* this rank saves these elements. Over all ranks, each element of each tensor is saved once:
                    replicas are listed with false, and are loaded all the same */
};

/* Fills in rows, columns, [begin, end) and writes from dims: all of the tensor, saved by this rank. */
void checkpoint_tensor_set_whole(struct checkpoint_tensor *tensor);

enum checkpoint_position { CHECKPOINT_POSITION_LEARNED, CHECKPOINT_POSITION_ROPE, CHECKPOINT_POSITION_NONE };
enum checkpoint_activation {
    CHECKPOINT_GELU,      /* exact, with erf */
    CHECKPOINT_GELU_TANH, /* the tanh form, Hugging Face's gelu_new */
    CHECKPOINT_SILU,
    CHECKPOINT_RELU,
    CHECKPOINT_SQUARED_RELU,
    CHECKPOINT_QUICK_GELU,
};
enum checkpoint_score { CHECKPOINT_SOFTMAX, CHECKPOINT_SIGMOID, CHECKPOINT_SQRTSOFTPLUS };

/* What the weights mean. Decides the family of names, is stored in the manifest and compared on load. */
struct checkpoint_model {
    int64_t num_layers, hidden_size, ffn_hidden_size;
    int64_t num_attention_heads, num_query_groups, kv_channels;
    int64_t vocab_size;        /* tokens that exist */
    int64_t padded_vocab_size; /* rows of the embedding table */
    int64_t max_position_embeddings;
    enum checkpoint_position position;
    enum checkpoint_activation activation;
    bool gated;       /* fc1 holds [gate; up] */
    bool linear_bias; /* biases on every linear layer */
    bool qkv_bias;    /* on linear_qkv; true whenever linear_bias is */
    bool qk_norm, rms_norm, zero_centered_norm;
    bool tied; /* the output layer is the embedding table */
    bool rotary_interleaved;
    double rotary_base, rotary_percent;
    double rope_scaling_factor; /* Llama 3's frequency scaling; 0: none */
    double norm_epsilon;
    double hidden_dropout, attention_dropout;
    /* Multi-latent attention; kv_lora_rank 0: none. Then num_query_groups is num_attention_heads, kv_channels
     * is qk_head_dim + qk_pos_emb_head_dim, and rope_scaling_factor is YaRN's. */
    int64_t q_lora_rank /* 0: queries have no latent */, kv_lora_rank;
    int64_t qk_head_dim, qk_pos_emb_head_dim, v_head_dim;
    double mscale, mscale_all_dim;
    /* Mixture of experts in all layers from moe_dense_layers on; num_experts 0: none. */
    int64_t num_experts, moe_dense_layers;            /* 0: then ffn_hidden_size is moe_ffn_hidden_size */
    int64_t moe_ffn_hidden_size, moe_shared_ffn_size; /* shared: 0 for none */
    int64_t moe_topk, moe_num_groups, moe_group_topk; /* groups 0: none */
    double moe_scaling;                               /* of the probabilities; 1: none */
    enum checkpoint_score moe_score;
    bool moe_pre_softmax, moe_shared_gate, moe_expert_bias;
    int64_t mtp_layers; /* depths of multi-token prediction, behind the last layer and of its kind */
    char unlike_hf[96]; /* any other trait that Hugging Face's families do not have, as a flag; "" for none */
};

/* What the run carries over, tensors apart. Values of `extras` are the caller's own. */
struct checkpoint_state {
    int64_t iteration;
    int64_t consumed_train_samples, consumed_valid_samples;
    int64_t skipped_iterations;
    int64_t optimizer_steps; /* exponent of AdamW's bias correction */
    uint64_t seed;
    double loss_scale;
    int64_t loss_scale_growth, loss_scale_hysteresis;
    int num_extras;
    struct checkpoint_extra {
        char key[64];
        double value;
    } extras[CHECKPOINT_MAX_EXTRAS];
};

/* Sets or replaces one extra. More than CHECKPOINT_MAX_EXTRAS breaks an invariant. */
void checkpoint_set_extra(struct checkpoint_state *state, const char *key, double value);
double checkpoint_get_extra(const struct checkpoint_state *state, const char *key, double if_missing);

/* Which ranks save or load together. Without `all`, this is the only rank, and its tensors are the list. */
struct checkpoint_group {
    struct comm *world;                 /* NULL: one rank */
    const struct checkpoint_shape *all; /* every tensor of the model once, on all ranks in the same order */
    int num_all;
};

struct checkpoint_save_options {
    struct checkpoint_group group;
    bool no_optimizer;       /* --no-save-optim */
    int64_t retain_interval; /* --save-retain-interval: the checkpoint before this one is deleted unless its
                                iteration is a multiple; 0 keeps all */
    int64_t max_shard_bytes; /* files are cut between tensors at about this size; 0 means 5 GB */
};

/* Collective. Writes <dir>/iter_%07d for state->iteration; `dir` is made when missing. Model, state and
 * configuration are taken from the lowest rank. options may be NULL. On error nothing that was there before
 * has changed. */
int checkpoint_save(const char *dir, const struct checkpoint_save_options *options,
                    const struct checkpoint_model *model, const struct checkpoint_tensor *tensors, int count,
                    const struct checkpoint_state *state, const char *config_json, struct err *err);

/* ---- saving in the background (--async-save) ----
 *
 *     struct checkpoint_async *a = checkpoint_async_open(checkpoint_async_bytes(tensors, count));
 *     ...
 *     if (checkpoint_async_begin(a, dir, ...)) ...            // collective: files are made, numbers are
 * copied
 *     ... train on; checkpoint_async_poll(a) != CHECKPOINT_WRITING on every rank? then
 *     if (checkpoint_async_finish(a, err)) ...                // collective: the checkpoint is in force
 *     checkpoint_async_close(a);
 *
 * A thread writes and syncs the copy; it makes no call to other ranks. Until finish the last good checkpoint
 * is in force, whatever happens. The snapshot is the only memory that is kept. */
struct checkpoint_async;
enum checkpoint_progress {
    CHECKPOINT_IDLE,    /* nothing begun */
    CHECKPOINT_WRITING, /* this rank's part is being written */
    CHECKPOINT_WRITTEN, /* this rank's part is on disk: waits for finish */
    CHECKPOINT_FAILED   /* likewise; finish will say why */
};

/* Bytes of the snapshot: of all elements that these tensors write. */
uint64_t checkpoint_async_bytes(const struct checkpoint_tensor *tensors, int count);
struct checkpoint_async *checkpoint_async_open(uint64_t snapshot_bytes);
/* Waits for the thread. A save that was not finished is dropped: the next save removes what it left. NULL is
 * fine. */
void checkpoint_async_close(struct checkpoint_async *async);
/* Collective. As checkpoint_save, up to the copy; no other save may be under way. The tensors may change as
 * soon as it returns; their names must live until finish. After an error nothing is under way. */
int checkpoint_async_begin(struct checkpoint_async *async, const char *dir,
                           const struct checkpoint_save_options *options,
                           const struct checkpoint_model *model, const struct checkpoint_tensor *tensors,
                           int count, const struct checkpoint_state *state, const char *config_json,
                           struct err *err);
/* Local and cheap. */
enum checkpoint_progress checkpoint_async_poll(const struct checkpoint_async *async);
/* The iteration being saved; -1 when idle. */
int64_t checkpoint_async_iteration(const struct checkpoint_async *async);
/* Collective. Waits for this rank's thread if need be, puts the checkpoint in force or, when any rank failed,
 * removes it. When idle: 0. */
int checkpoint_async_finish(struct checkpoint_async *async, struct err *err);

/* ---- loading ---- */

struct checkpoint_load_options {
    struct checkpoint_group group;
    int64_t step;      /* --ckpt-step: this iteration and no other; 0 means the latest */
    bool no_optimizer; /* --no-load-optim: exp_avg and exp_avg_sq are left alone */
    bool finetune;     /* --finetune: as no_optimizer, and the state comes back as of iteration 0 */
};

/* Collective. Fills the elements that each tensor holds. Rows of a padded vocabulary that the checkpoint does
 * not have keep their values. A shape or a tensor that does not fit, or missing optimizer state, is an error
 * (not a reason to fall back). After an error the tensors' contents are undefined. A release checkpoint is
 * loaded as if by --finetune. */
int checkpoint_load(const char *dir, const struct checkpoint_load_options *options,
                    const struct checkpoint_model *model, const struct checkpoint_tensor *tensors, int count,
                    struct checkpoint_state *state_p, struct err *err);

struct checkpoint_info {
    bool found, release;
    int64_t iteration;
    char path[4096]; /* of the checkpoint's own directory */
    bool has_optimizer;
    struct checkpoint_model model;
    struct checkpoint_state state;
    char *config_json; /* owned: checkpoint_info_free */
};

/* What checkpoint_load would take (step as there, -1 or 0 for the latest), with its configuration for
 * --use-checkpoint-args. Nothing in `dir`, or no `dir`: 0 with found = false. Something, but nothing usable:
 * -1. Reads no tensor data. */
int checkpoint_find(const char *dir, int64_t step, struct checkpoint_info *info_p, struct err *err);
/* Collective: the lowest rank looks, all get what it found. world NULL is one rank. */
int checkpoint_find_together(struct comm *world, const char *dir, int64_t step,
                             struct checkpoint_info *info_p, struct err *err);
void checkpoint_info_free(struct checkpoint_info *info);

/* Reads all of one checkpoint (iteration 0: the latest) against its checksums. */
int checkpoint_verify(const char *dir, int64_t iteration, struct err *err);
