#pragma once
/* The inside of a tokenizer, shared by tokenizer.c and the readers of each file format. Users include
 * core/data/tokenizer.h. */
#include "core/base/hash.h"
#include "core/data/added.h"
#include "core/data/bpe.h"
#include "core/data/presplit.h"
#include "core/data/tokenizer.h"

enum tokenizer_kind { TOKENIZER_BYTE, TOKENIZER_NULL, TOKENIZER_BPE };
enum { TOKENIZER_MOST_FIXED = 8 };

struct tokenizer {
    enum tokenizer_kind kind;
    const char *type;
    int64_t vocab_size, eod, pad;
    struct hash hash; /* of the type and all files */
    /* the rest is for TOKENIZER_BPE */
    struct bpe *bpe;
    struct presplit *split;
    struct added added_raw;        /* found in the text as it comes */
    struct added added_normalized; /* found after normalising */
    bool nfc, prefix_space;
    int32_t before[TOKENIZER_MOST_FIXED], after[TOKENIZER_MOST_FIXED]; /* put around each text (BOS ...) */
    int num_before, num_after;
};

/* The readers fill a zeroed tokenizer, which tokenizer_close releases also when they failed half-way. */
int tokenizer_read_gpt2(struct tokenizer *tokenizer, const struct tokenizer_options *options,
                        struct err *err);
int tokenizer_read_json(struct tokenizer *tokenizer, const struct tokenizer_options *options,
                        struct err *err);
/* The same from memory, for fuzzing: `text` is a tokenizer.json. */
int tokenizer_read_json_text(struct tokenizer *tokenizer, const char *text, size_t length, const char *name,
                             bool special_tokens, struct err *err);
/* Reads a whole file (at most 256 MiB) into text and adds it to the hash. */
int tokenizer_read_file(struct tokenizer *tokenizer, const char *path, struct str *text, struct err *err);
/* Id of a token by its own text: added tokens first, then the vocabulary; -1 when there is none. */
int64_t tokenizer_find(const struct tokenizer *tokenizer, const char *text, size_t length);
