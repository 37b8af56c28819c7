#pragma once
/* The tensors of a Hugging Face folder, for export and import. */
#include "core/checkpoint/names.h"

#define HF_INDEX_NAME "model.safetensors.index.json"

/* DeepSeek's routers have a bias in every folder; whether the program's model has one is the caller's matter.
 * The caller owns the list, also after an error (mem_free). */
int hf_list_tensors(const struct checkpoint_model *model, bool router_bias, struct checkpoint_entries *out,
                    struct err *err);
bool hf_folder_has_router_bias(const struct checkpoint_model *model);
/* Kept in fp32 whatever the folder's dtype, as transformers does. */
bool hf_is_router_bias(const char *name);
bool hf_ends_with(const char *name, const char *end);
