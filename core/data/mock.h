#pragma once
/* Megatron-LM's mock corpus: 100,000 documents whose lengths are numpy.random.default_rng(0).integers(1,
 * 4096, 100000, int32), document i holding 1, 2, 3 ... (each modulo the vocabulary) and the end of document.
 * Plain data, nothing can fail. */
#include <stdint.h>

enum { MOCK_DOCUMENTS = 100000, MOCK_LONGEST = 4095 };

void mock_lengths(int32_t *lengths); /* [MOCK_DOCUMENTS] */
/* Tokens [first, first + count) of a document of `length` tokens. */
void mock_read(int64_t length, int64_t first, int64_t count, int64_t vocab_size, int64_t eod,
               int32_t *tokens);
