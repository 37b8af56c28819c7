#pragma once
/* The dense GPT: one architecture with switches (GPT-2/3: learned positions, LayerNorm, GELU, biases; Llama:
 * RoPE, RMSNorm, SwiGLU, grouped-query attention; DeepSeek: multi-latent attention). `struct model` is what
 * the builders read: plain numbers, derived once from the flags by model_from_config, or set by a test. */
#include "core/tensor/dtype.h"
#include "core/tensor/program.h"
#include "kernels/args/attention.h"
#include "kernels/args/moe.h"
#include "kernels/args/pointwise.h"
#include "recompute/recompute.h"
#include <stdbool.h>

enum { MODEL_MAX_MTP_LAYERS = 8 };
enum model_cp_comm { MODEL_CP_P2P, MODEL_CP_ALL_GATHER, MODEL_CP_A2A };

struct model {
    /* Sizes are those of the whole model; the functions below give this rank's share. */
    int64_t layers, hidden, heads, groups, head_dim, ffn;
    int64_t seq, micro_batch, vocab /* padded */, max_positions;
    enum dtype dtype; /* of activations and of the parameters' compute copy */
    /* norms */
    bool rms, zero_centered, qk_norm;
    float norm_epsilon;
    /* attention */
    bool learned_positions, flash;
    int64_t rotary_dim; /* 0: no rotary embedding */
    bool rotary_interleaved;
    double rotary_base, rotary_interpolation; /* positions are divided by rotary_interpolation; 1 for none */
    double rope_scaling_factor;               /* Llama-3 frequency scaling; 0 for none */
    /* multi-latent attention, when kv_rank > 0: then groups = heads and head_dim = plain_dim + rotary_dim */
    int64_t kv_rank, q_rank; /* of the latents; q_rank 0: queries straight from the hidden states */
    int64_t plain_dim;       /* columns of a query or key head that are not rotated */
    int64_t value_dim;       /* head size of the values */
    double yarn_factor;      /* context extension by YaRN; 0: plain rotary frequencies */
    double yarn_mscale, yarn_mscale_all_dim;
    /* linear layers */
    bool linear_bias, qkv_bias, tied;
    enum activation activation;
    float init_std, output_init_std, embedding_init_std; /* output: attention projection and fc2 */
    float hidden_dropout, attention_dropout;
    /* loss */
    bool fused_loss;    /* chunked linear cross entropy */
    int64_t loss_chunk; /* tokens per chunk */
    int64_t
        vocab_used; /* rows of the vocabulary that exist; the rest is padding, which no loss sees; 0: all */
    /* mixture of experts; 0 experts: every layer is dense */
    struct {
        int64_t experts, topk, ffn, shared_ffn; /* shared_ffn 0: no shared experts */
        const char *pattern; /* per layer '1' (experts) or '0' (dense); NULL: all have experts */
        int64_t group_count, group_topk;
        enum router_score score;
        bool pre_softmax, shared_gate;
        bool balance_by_sequence; /* the balancing loss counts sequence by sequence */
        bool balance_globally;    /* or over all micro-batches of the step so far, on all ranks */
        float scaling, balance_coeff, z_coeff;
        bool gathers;        /* dispatcher: all tokens to all ranks of the experts, not rows to their ranks */
        float rank_capacity; /* rows that an expert-parallel rank takes at a time, as a multiple of balanced
                                load; 0: 1.25 */
        bool expert_bias;    /* choices are by score + bias, moved by the loads of each step */
        double capacity_factor; /* of an even load; 0: no expert has a limit */
        bool drops_by_position, pads_to_capacity;
        float jitter;       /* of the router's input, up and down; 0: none */
        bool random_logits; /* choices are drawn at random: a benchmark's even load */
    } moe;
    /* this rank's place; sizes 0 and 1 both mean no parallelism of that kind */
    int tp, tp_rank, cp, cp_rank;
    int ep, ep_rank, etp,
        etp_rank;           /* experts: ep ranks have different ones, etp ranks each a part of every one */
    bool sequence_parallel; /* hidden states between the linear layers are split over the tensor-parallel
                               ranks */
    enum model_cp_comm cp_comm;
    int64_t mtp_layers; /* multi-token prediction: depths beyond the next token, each with a layer (mtp.c) */
};

static inline int64_t model_tp(const struct model *m) {
    return m->tp > 1 ? m->tp : 1;
}
static inline int64_t model_cp(const struct model *m) {
    return m->cp > 1 ? m->cp : 1;
}
static inline bool model_splits_sequence(const struct model *m) {
    return m->sequence_parallel && m->tp > 1;
}
static inline bool model_has_latents(const struct model *m) {
    return m->kv_rank > 0;
}
static inline int64_t model_value_dim(const struct model *m) {
    return m->value_dim ? m->value_dim : m->head_dim;
}
/* Query heads, key/value heads, MLP width, vocabulary rows of this tensor-parallel rank. */
static inline int64_t model_heads(const struct model *m) {
    return m->heads / model_tp(m);
}
static inline int64_t model_groups(const struct model *m) {
    return m->groups >= model_tp(m) ? m->groups / model_tp(m) : 1;
}
static inline int64_t model_ffn(const struct model *m) {
    return m->ffn / model_tp(m);
}
static inline int64_t model_vocab(const struct model *m) {
    return m->vocab / model_tp(m);
}
static inline bool model_layer_is_moe(const struct model *m, int64_t layer) {
    return m->moe.experts > 0 && (!m->moe.pattern || m->moe.pattern[layer] == '1');
}
static inline int64_t model_ep(const struct model *m) {
    return m->ep > 1 ? m->ep : 1;
}
static inline int64_t model_etp(const struct model *m) {
    return m->etp > 1 ? m->etp : 1;
}
/* Experts of this expert-parallel rank: from experts * ep_rank / ep on; and the width of this rank's part of
 * each. */
static inline int64_t model_experts(const struct model *m) {
    return m->moe.experts / model_ep(m);
}
static inline int64_t model_expert_ffn(const struct model *m) {
    return m->moe.ffn / model_etp(m);
}
/* Ranks that exchange tokens: each has tokens of its own and etp of them share an expert. */
static inline int64_t model_expert_ranks(const struct model *m) {
    return model_ep(m) * model_etp(m);
}
/* Those of multi-token prediction included: they are of the kind of the last layer. */
int64_t model_num_moe_layers(const struct model *m);
/* Tokens per sequence on this context-parallel rank: rows of what the linear layers and attention see. */
static inline int64_t model_seq(const struct model *m) {
    return m->seq / model_cp(m);
}
/* Rows per sequence of hidden states between them (norms, dropout, residuals, segment boundaries). */
static inline int64_t model_rows(const struct model *m) {
    return model_splits_sequence(m) ? model_seq(m) / m->tp : model_seq(m);
}

/* What attention sees on this rank. */
static inline struct attention_shape model_attention_shape(const struct model *m) {
    return (struct attention_shape){.s = model_seq(m),
                                    .b = m->micro_batch,
                                    .a = model_heads(m),
                                    .g = model_groups(m),
                                    .d = m->head_dim,
                                    .dv = m->value_dim};
}

/* Where local rows lie in the whole sequence. Context parallelism cuts it into 2 cp chunks and gives rank r
 * chunks r and 2 cp - 1 - r (causal work is then even); sequence parallelism cuts that once more. */
struct model_piece {
    int64_t first, global_first, count;
};
enum { MODEL_MAX_PIECES = 2 };
/* Of hidden states (model_rows), or with `whole` of what attention sees (model_seq). Returns how many. */
int model_pieces(const struct model *m, bool whole, struct model_piece pieces[MODEL_MAX_PIECES]);

struct config;
/* `cfg` has passed config_validate; cannot fail. */
void model_from_config(const struct config *cfg, int64_t padded_vocab, struct model *out);

/* Whether a recompute module exists in this model; sets *why_p to what is missing when it does not. */
bool model_has_module(const struct model *m, int module, const char **why_p);

/* ---- segments: each builds into an initialised program and sets its input and output ---- */
void build_embedding(struct program *p, const struct model *m);
/* `count` consecutive layers, from layer `first` of the model on: which kind a layer is depends on its
 * number. Two segments with model_layers_are_alike have the same program. */
void build_layers(struct program *p, const struct model *m, int first, int count);
bool model_layers_are_alike(const struct model *m, int first, int other, int count);
/* With multi-token prediction the segments of the depths follow the head: it passes its normed hidden states
 * on to the first, and each depth to the next. */
void build_head(struct program *p, const struct model *m);
/* Depth `layer` + 1; its batch_view is that many tokens on. */
void build_mtp(struct program *p, const struct model *m, int layer);
bool model_mtp_passes_on(const struct model *m, int layer);

/* ---- parts of a segment, and of a layer (each a file: attention.c, mla.c, mlp.c, moe.c) ---- */
/* The segment's input: hidden states. */
int build_input(struct program *p, const struct model *m);
int build_layer(struct program *p, const struct model *m, int x, int64_t layer);
/* Tokens to hidden states. */
int build_words(struct program *p, const struct model *m);
/* Output layer and loss of normed hidden states, which are the segment's output when they are passed on. */
void build_output(struct program *p, const struct model *m, int x, bool passes_on);
int build_attention(struct program *p, const struct model *m, int x);
/* Core attention, recomputable, on head-major q, k and v. */
int build_core_attention(struct program *p, const struct model *m, const int qkv[3]);
/* Multi-latent attention; x is [model_rows, b, h], not gathered. */
int build_mla(struct program *p, const struct model *m, int x);
int build_mlp(struct program *p, const struct model *m, int x);
int build_moe(struct program *p, const struct model *m, int x);
/* What a column-split layer reads of x [model_rows, b, ..]: x gathered over the sequence, or x itself. */
int build_gather(struct program *p, const struct model *m, int x);

/* Rotary tables cos, sin [model_seq, rotary_dim / 2] for the positions of this rank's tokens (Su et al. 2021;
 * Llama-3 scaling as Meta's; YaRN, Peng et al. 2023, with its concentration factor in the tables). */
void model_fill_rotary(const struct model *m, float *cos_table, float *sin_table);
/* What scores are multiplied by: 1 / sqrt(head_dim), with YaRN times mscale(mscale_all_dim)^2. */
double model_softmax_scale(const struct model *m);
