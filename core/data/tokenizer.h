#pragma once
/* Text to token ids and back, without Python:
 *
 *   ByteTokenizer         no files: ids 0..255 are the bytes, 256 is the end of document
 *   GPT2BPETokenizer      --vocab-file vocab.json --merge-file merges.txt
 *   HuggingFaceTokenizer  --tokenizer-model: a folder, or a tokenizer.json, of a byte-level BPE model (GPT-2,
 *                         Llama 3, Qwen ...)
 *   NullTokenizer         integers with a space between; --vocab-size, end of document is the last id
 *
 * A tokenizer is read-only after tokenizer_open and may be shared; what one thread needs to encode (regex
 * workspace, word cache, merge heap) is a tokenizer_worker, one per thread. Encoding a text takes time
 * proportional to n log n of its longest word at worst. The BPE kinds need PCRE2 (WITH_PCRE2); without it
 * they are refused with a clear error. Unusual tokenizer.json parts are refused by name, never ignored.
 *
 *     struct tokenizer *tokenizer = tokenizer_open(&(struct tokenizer_options){.type = "ByteTokenizer"},
 * err); struct tokenizer_worker *worker = tokenizer_worker_open(tokenizer); struct token_list ids = {0};
 *     tokenizer_encode(worker, text, length, &ids, err);
 *     token_list_free(&ids); */
#include "core/base/check.h"
#include "core/base/str.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct tokenizer_options {
    const char *type;       /* --tokenizer-type; NULL is GPT2BPETokenizer */
    const char *vocab_file; /* --vocab-file */
    const char *merge_file; /* --merge-file */
    const char *model;      /* --tokenizer-model */
    int64_t vocab_size;     /* --vocab-size, for NullTokenizer; 0: not given */
    int64_t null_eod_id;    /* --null-tokenizer-eod-id; -1: vocab_size - 1 */
    int64_t null_pad_id;    /* --null-tokenizer-pad-id; -1: none */
    bool
        no_special_tokens; /* --tokenizer-hf-no-include-special-tokens: the post-processor (BOS) is not run */
    bool ambiguous_pad;    /* --allow-ambiguous-pad-tokens: a pad token may equal another special token */
};

struct token_list {
    int32_t *data;
    size_t count, capacity;
};
void token_list_reserve(struct token_list *list, size_t extra);
void token_list_free(struct token_list *list);

struct tokenizer;
struct tokenizer_worker;

/* NULL on error, with err set. */
struct tokenizer *tokenizer_open(const struct tokenizer_options *options, struct err *err);
void tokenizer_close(struct tokenizer *tokenizer); /* NULL is fine */
const char *tokenizer_type(const struct tokenizer *tokenizer);
/* Number of ids, special and added tokens included (before padding to a round number). */
int64_t tokenizer_vocab_size(const struct tokenizer *tokenizer);
/* End of document, or -1 when the tokenizer has none. */
int64_t tokenizer_eod(const struct tokenizer *tokenizer);
/* Padding, or -1 when there is none or when it is also another special token (Megatron-LM's rule). */
int64_t tokenizer_pad(const struct tokenizer *tokenizer);
/* Depends on the type and on all bytes of the files: tells whether two tokenizers share a vocabulary. */
uint64_t tokenizer_hash(const struct tokenizer *tokenizer);

struct tokenizer_worker *tokenizer_worker_open(const struct tokenizer *tokenizer);
void tokenizer_worker_close(struct tokenizer_worker *worker); /* NULL is fine */
/* Appends the ids of text. The BPE kinds demand valid UTF-8 (utf8_valid, utf8_repair in core/data/utf8.h). */
int tokenizer_encode(struct tokenizer_worker *worker, const char *text, size_t length, struct token_list *ids,
                     struct err *err);
/* Appends the bytes of the ids; an id outside the vocabulary is an error. */
int tokenizer_decode(const struct tokenizer *tokenizer, const int32_t *ids, size_t count, struct str *text,
                     struct err *err);
