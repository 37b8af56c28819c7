#pragma once
/* The tensors of a Hugging Face folder, for export and import. */
#include "core/checkpoint/names.h"

#define HF_INDEX_NAME "model.safetensors.index.json"

/* The tensors of the model, or of its folder, where DeepSeek's routers always have a bias and each depth of
 * multi-token prediction has copies of the embedding and the output layer. The caller owns the list, also
 * after an error (mem_free). */
int hf_list_tensors(const struct checkpoint_model *model, struct checkpoint_entries *out, struct err *err);
int hf_list_folder(const struct checkpoint_model *model, struct checkpoint_entries *out, struct err *err);
/* What a tensor of a folder is a copy of; NULL for the others. */
const char *hf_copy_of(const struct checkpoint_model *model, const char *name);
/* Kept in fp32 whatever the folder's dtype, as transformers does. */
bool hf_is_router_bias(const char *name);
bool hf_ends_with(const char *name, const char *end);
