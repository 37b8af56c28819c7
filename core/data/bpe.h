#pragma once
/* Byte-level byte pair encoding: a vocabulary of byte strings, an ordered list of merges, and the encoding of
 * one word. Tokens are given in the "byte alphabet" of GPT-2's files, where each byte is one printable
 * character (a space is U+0120).
 *
 * Encoding a word applies the merge of lowest rank, the leftmost first, until none applies, exactly as
 * Hugging Face's tokenizers do. A word of n bytes costs n log n (a heap over a linked list); short words take
 * a plain scan. A worker holds a cache of words and the scratch memory, one per thread; it allocates only for
 * words longer than any before.
 *
 *     struct bpe *bpe = bpe_open(ignore_merges);
 *     bpe_add_token(bpe, 17, "\xC4\xA0the", 5, "vocab.json", err);
 *     bpe_add_merge(bpe, "a", 1, "b", 1, 0, "merges.txt: line 2", err);        // after all tokens
 *     bpe_encode(worker, word, n, &ids, err); */
#include "core/base/check.h"
#include "core/base/str.h"
#include "core/data/tokenizer.h"
#include <stdbool.h>
#include <stdint.h>

enum { BPE_MOST_IDS = 1 << 24 };

struct bpe;
struct bpe_worker;

/* ignore_merges: a word that is a token by itself becomes that token, whatever the merges say (Llama 3). */
struct bpe *bpe_open(bool ignore_merges);
void bpe_close(struct bpe *bpe); /* NULL is fine */
/* `where` starts the message of an error. A token whose text has other characters than the byte alphabet
 * (added tokens do) is kept for decoding only. */
int bpe_add_token(struct bpe *bpe, int64_t id, const char *text, size_t length, const char *where,
                  struct err *err);
/* A token that is its own text, such as "<|endoftext|>": decoded as it is, never made by merges. Replaces
 * the text of an id that exists. */
int bpe_add_plain(struct bpe *bpe, int64_t id, const char *text, size_t length, const char *where,
                  struct err *err);
/* Both parts and their sum must be tokens. A later merge of the same pair replaces the earlier. */
int bpe_add_merge(struct bpe *bpe, const char *left, size_t left_length, const char *right,
                  size_t right_length, uint32_t rank, const char *where, struct err *err);

/* Highest id plus one. */
int64_t bpe_vocab_size(const struct bpe *bpe);
/* Id of a token by the bytes that it stands for, -1 when there is none. */
int32_t bpe_find(const struct bpe *bpe, const char *bytes, size_t length);
/* The bytes of an id; NULL when the id is not in use. */
const char *bpe_bytes(const struct bpe *bpe, int64_t id, size_t *length_p);

struct bpe_worker *bpe_worker_open(const struct bpe *bpe);
void bpe_worker_close(struct bpe_worker *worker); /* NULL is fine */
/* Appends the ids of one word. Fails when a byte of it has no token. */
int bpe_encode(struct bpe_worker *worker, const char *word, size_t length, struct token_list *ids,
               struct err *err);
