#pragma once
/* The only place where the data module reads the configuration: flags to plain option structs. The strings
 * stay the configuration's. */
#include "core/base/check.h"
#include "core/data/datasets.h"
#include "core/data/tokenizer.h"

struct config;

/* NULL in *tokenizer_p with status 0: no tokenizer is needed (mock data with --vocab-size and no tokenizer
 * flags). */
int tokenizer_open_from_config(const struct config *config, struct tokenizer **tokenizer_p, struct err *err);
/* tokenizer may be NULL; then eod is the last id of --vocab-size. */
int data_options_from_config(const struct config *config, const struct tokenizer *tokenizer,
                             struct data_options *options, struct err *err);
