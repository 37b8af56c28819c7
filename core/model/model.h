#pragma once
/* The dense GPT: one architecture with switches (GPT-2/3: learned positions, LayerNorm, GELU, biases; Llama:
 * RoPE, RMSNorm, SwiGLU, grouped-query attention). `struct model` is what the builders read: plain numbers,
 * derived once from the flags by model_from_config, or set by a test. */
#include "core/tensor/dtype.h"
#include "core/tensor/program.h"
#include "kernels/args/pointwise.h"
#include "recompute/recompute.h"
#include <stdbool.h>

struct model {
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
    /* linear layers */
    bool linear_bias, qkv_bias, tied;
    enum activation activation;
    float init_std, output_init_std, embedding_init_std; /* output: attention projection and fc2 */
    float hidden_dropout, attention_dropout;
    /* loss */
    bool fused_loss;    /* chunked linear cross entropy */
    int64_t loss_chunk; /* tokens per chunk */
};

struct config;
/* `cfg` has passed config_validate; cannot fail. */
void model_from_config(const struct config *cfg, int64_t padded_vocab, struct model *out);

/* Whether a recompute module exists in this model; sets *why_p to what is missing when it does not. */
bool model_has_module(const struct model *m, int module, const char **why_p);

/* ---- segments: each builds into an initialised program and sets its input and output ---- */
void build_embedding(struct program *p, const struct model *m);
/* `count` consecutive layers. */
void build_layers(struct program *p, const struct model *m, int count);
void build_head(struct program *p, const struct model *m);

/* ---- parts of a layer (each a file: attention.c, mlp.c) ---- */
int build_attention(struct program *p, const struct model *m, int x);
int build_mlp(struct program *p, const struct model *m, int x);

/* Rotary tables cos, sin [s, rotary_dim / 2] for positions 0..s-1 (Su et al. 2021; Llama-3 scaling as
 * Meta's). */
void model_fill_rotary(const struct model *m, float *cos_table, float *sin_table);
