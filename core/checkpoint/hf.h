#pragma once
/* Hugging Face folders: config.json and model.safetensors (or shards with model.safetensors.index.json).
 *
 * Exporting copies a checkpoint's weights, checked against their checksums, into `out_dir`, rounded to the
 * dtype asked for, with the rows of the padded vocabulary cut off. Importing copies a folder's weights (F32,
 * BF16, F16 or F64) into a checkpoint named "release" without optimizer state, with a configuration that
 * --use-checkpoint-args reads. Both stream tensor by tensor and hold at most CHECKPOINT_STAGING_BYTES twice.
 * Model types: gpt2, llama, mistral, qwen2, qwen3, mixtral, deepseek_v3. What a folder asks for that this
 * program's model does not do (sliding windows, other rope scalings, unknown tensors) is an error that names
 * it. DeepSeek's routers always have a bias there: zeros stand for none, either way; the copies of the
 * embedding and the output layer that its layers of multi-token prediction carry are written, and not read.
 */
#include "core/base/json.h"
#include "core/checkpoint/names.h"
#include "core/checkpoint/safetensors.h"

/* dtype: SAFETENSORS_F32, SAFETENSORS_BF16 or SAFETENSORS_F16. iteration 0 means the latest. `out_dir` is
 * made; it must not hold a config.json. *bytes_p gets the size of the weights. */
int checkpoint_export_hf(const char *dir, int64_t iteration, const char *out_dir,
                         enum safetensors_dtype dtype, uint64_t *bytes_p, struct err *err);
int checkpoint_import_hf(const char *hf_dir, const char *out_dir, struct checkpoint_model *model_p,
                         struct err *err);

/* config.json, one way and the other. The state gives token ids when its extras "eod_id" or "bos_id" say so.
 */
void checkpoint_write_hf_config(struct str *out, const struct checkpoint_model *model,
                                const struct checkpoint_state *state, enum safetensors_dtype dtype);
/* What a model whose tensors have a family's names does that config.json of that family cannot say, as a
 * text; NULL: nothing. */
const char *checkpoint_unlike_family(const struct checkpoint_model *model);
int checkpoint_read_hf_config(const struct json_node *root, const char *where,
                              struct checkpoint_model *model_p, struct err *err);
/* The flags that build this model, in the form of resolved_config.json. */
void checkpoint_write_model_flags(struct str *out, const struct checkpoint_model *model);
