#pragma once
/* What a dataset was made with, in PREFIX.info.json beside its .bin and .idx, so that training with another
 * tokenizer is noticed. Megatron-LM's files have none, which is fine; the file may be deleted at any time.
 *
 *     provenance_write(prefix, &(struct provenance){...}, err);       // preprocess_data
 *     if (provenance_read(prefix, &p) && p.tokenizer_hash != hash) log_warn(...); */
#include "core/base/check.h"
#include <stdbool.h>
#include <stdint.h>

struct provenance {
    char tokenizer_type[64];
    int64_t vocab_size;
    uint64_t tokenizer_hash; /* tokenizer_hash() */
    bool append_eod;
};

int provenance_write(const char *prefix, const struct provenance *provenance, struct err *err);
/* False when there is no such file, or it is not readable as one. */
bool provenance_read(const char *prefix, struct provenance *provenance);
