/* Bytes before the first 0xFF 0xFE are a tokenizer.json, those after it a text. The file is refused with a
 * message or opened; then the text, repaired, is encoded, every id lies inside the vocabulary, and decoding
 * works. */
#include "core/base/mem.h"
#include "core/data/tokenizer_parts.h"
#include "core/data/utf8.h"
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void encode(const struct tokenizer *t, const char *text, size_t length) {
    struct tokenizer_worker *w = tokenizer_worker_open(t);
    struct token_list ids = {0};
    struct str good = {0}, back = {0};
    struct err err = {""};
    utf8_repair(text, length, &good);
    CHECK(utf8_check(good.data ? good.data : "", good.length) == good.length, "repaired text is not UTF-8");
    if (tokenizer_encode(w, good.data ? good.data : "", good.length, &ids, &err)) {
        CHECK(err.text[0], "no message");
    } else {
        for (size_t i = 0; i < ids.count; i++)
            CHECK(ids.data[i] >= 0 && ids.data[i] < tokenizer_vocab_size(t), "id %d", ids.data[i]);
        CHECK(!tokenizer_decode(t, ids.data, ids.count, &back, &err), "%s", err.text);
    }
    str_free(&good);
    str_free(&back);
    token_list_free(&ids);
    tokenizer_worker_close(w);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    uint64_t blocks = mem_stats().live_blocks;
    const uint8_t *cut = size ? memmem(data, size, "\xFF\xFE", 2) : NULL;
    size_t json = cut ? (size_t)(cut - data) : size, text = cut ? size - json - 2 : 0;
    struct err err = {""};
    struct tokenizer *t = mem_zalloc(sizeof(*t), "fuzz tokenizer");
    hash_init(&t->hash);
    t->type = "HuggingFaceTokenizer";
    if (tokenizer_read_json_text(t, (const char *)data, json, "fuzz", true, &err))
        CHECK(strstr(err.text, "fuzz"), "no name in: %s", err.text);
    else
        encode(t, text ? (const char *)cut + 2 : "", text);
    tokenizer_close(t);
    CHECK(mem_stats().live_blocks == blocks, "memory is leaked");
    return 0;
}
