#pragma once
/* What both directions of config.json know. */
#include "core/checkpoint/hf.h"

/* Megatron-LM's --use-rope-scaling fixes these three of Llama 3's four numbers; its YaRN these three. */
#define LLAMA3_LOW_FREQ_FACTOR    1.0
#define LLAMA3_HIGH_FREQ_FACTOR   4.0
#define LLAMA3_ORIGINAL_POSITIONS 8192
#define YARN_BETA_FAST            32.0
#define YARN_BETA_SLOW            1.0
#define YARN_ORIGINAL_POSITIONS   4096
/* DeepSeek's norms on the latents have it in Hugging Face's code, whatever config.json says of the others. */
#define LATENT_NORM_EPSILON 1e-6

/* Of activation number i; NULL behind the last. An activation may have several names, its own comes first. */
const char *hf_activation_name(size_t i, enum checkpoint_activation *activation_p);
/* What YaRN multiplies the rotated columns by. */
double hf_yarn_concentration(const struct checkpoint_model *model);
