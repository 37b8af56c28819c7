#pragma once
/* Names and shapes on disk, and how rows of the program's tensors map to them.
 *
 * A model that Hugging Face has is stored under Hugging Face's names, so that exporting is copying; every
 * other model, and every tensor that the tables do not know, keeps Megatron-LM's name and shape.
 *
 *     gpt2    learned positions, LayerNorm, GELU, biases everywhere      GPT2LMHeadModel
 *     llama   RoPE, RMSNorm, SwiGLU, no biases, or biases everywhere     LlamaForCausalLM
 *     qwen2   as llama with biases on q, k and v only                    Qwen2ForCausalLM
 *     qwen3   as llama with norms on q and k                             Qwen3ForCausalLM
 *     mixtral     as llama with softmax-routed experts in every layer    MixtralForCausalLM
 *     deepseek_v3 multi-latent attention with norms on the latents, RMSNorm, SwiGLU, no biases; dense, or
 *             from some layer on sigmoid-routed experts and shared ones  DeepseekV3ForCausalLM
 *     megatron   all else
 *
 * The program keeps Megatron-LM's layout in memory: linear_qkv holds, for each query group, its query heads,
 * then one key head, then one value head; a gated linear_fc1 holds [gate; up]. Llama's files hold q, k, v,
 * gate and up apart; GPT-2's hold [q | k | v] and, being "Conv1D", each linear weight transposed ([in, out]).
 * Megatron-LM and Hugging Face's Llama both rotate halves (element i with i + d/2), and for multi-latent
 * attention both rotate neighbouring pairs, so RoPE needs no permutation of rows. The experts' weights of a
 * layer are one tensor, expert after expert, each [gate; up]; the files have a tensor for each part of each
 * expert.
 *
 * One entry is one tensor on disk. It is cut out of one program tensor, as up to three segments along the
 * program tensor's rows: row i of a segment is program row base + i / block * stride + i % block. Example: 2
 * groups of 2 heads, 1 row per head; k is {rows 2, base 2, block 1, stride 4}:
 *
 *     program row   0  1  2  3  4  5  6  7
 *                   q0 q1 k0 v0 q2 q3 k1 v1 */
#include "core/checkpoint/checkpoint.h"

enum checkpoint_family {
    CHECKPOINT_MEGATRON,
    CHECKPOINT_GPT2,
    CHECKPOINT_LLAMA,
    CHECKPOINT_QWEN2,
    CHECKPOINT_QWEN3,
    CHECKPOINT_MIXTRAL,
    CHECKPOINT_DEEPSEEK_V3,
    CHECKPOINT_FAMILY_COUNT
};
const char *checkpoint_family_name(enum checkpoint_family family); /* "llama" */
/* The family whose names the model's tensors have; for CHECKPOINT_MEGATRON `why`, when not NULL, is set to a
 * text that says which trait no Hugging Face family has. How experts are chosen, and the like, is not asked
 * here but where a folder is made (checkpoint_unlike_family, hf.h): names do not depend on it. */
enum checkpoint_family checkpoint_family(const struct checkpoint_model *model, const char **why);

struct checkpoint_segment {
    int64_t rows, base, block, stride;
};

struct checkpoint_entry {
    char name[CHECKPOINT_MAX_NAME]; /* on disk */
    int num_dims;
    int64_t dims[2];  /* on disk */
    int tensor;       /* number of the program's tensor */
    bool transposed;  /* disk element [c, r] is program element [row(r), c] */
    bool is_state;    /* has no optimizer state */
    bool vocabulary;  /* rows are tokens: loading and exporting may cut or leave rows */
    int num_segments; /* their rows add up to the disk rows (disk columns when transposed) */
    struct checkpoint_segment segments[3];
};

/* A growing list; zero-initialise it, mem_free(list) in the end. */
struct checkpoint_entries {
    struct checkpoint_entry *list;
    int count, capacity;
};

/* Appends the entries of one program tensor, in disk order; returns how many, or -1 when the tensor's shape
 * contradicts the model. */
int checkpoint_entries_of(const struct checkpoint_model *model, const char *name, int num_dims,
                          const int64_t dims[2], struct checkpoint_entries *entries, struct err *err);

/* Tensors that a model of a Hugging Face family has, for reading a foreign folder: calls fn with
 * Megatron-LM's name and shape of each. */
typedef void (*checkpoint_tensor_fn)(void *context, const char *name, int num_dims, const int64_t dims[2]);
void checkpoint_each_tensor(const struct checkpoint_model *model, checkpoint_tensor_fn fn, void *context);

/* Number of consecutive program rows from row `i` (counted over all segments) on; *row_p is the first. */
int64_t checkpoint_map_rows(const struct checkpoint_entry *entry, int64_t i, int64_t *row_p);
