/* Any bytes as an .idx over a .bin of any size: refused with a message, or every sequence lies inside the
 * .bin and the sample walk over it stays inside the sequences. */
#include "core/base/mem.h"
#include "core/data/gpt_index.h"
#include "core/data/indexed.h"
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void walk_samples(const struct indexed *d) {
    struct gpt_index_request r = {
        .name = "fuzz",
        .split = "train",
        .lengths = d->idx + INDEXED_HEADER_BYTES,
        .end = d->sequences,
        .seq_length = 1 + d->tokens % 7,
        .num_samples = d->tokens % 50,
        .seed = 1,
    };
    struct gpt_index x;
    struct err err = {""};
    if (gpt_index_build(&r, &x, &err)) {
        CHECK(strstr(err.text, "fuzz: "), "no name in: %s", err.text);
        return;
    }
    for (int64_t i = 0; i <= x.samples; i++) {
        CHECK(x.start_position[i] < x.positions, "row %lld", (long long)i);
        int64_t sequence = x.documents[x.start_position[i]];
        CHECK(i == 0 || x.start_offset[i] < indexed_length(d, sequence), "row %lld", (long long)i);
    }
    gpt_index_free(&x);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    uint64_t blocks = mem_stats().live_blocks;
    struct indexed *d;
    struct err err = {""};
    int64_t bin_bytes = 0;
    if (size < 2) return 0;
    memcpy(&bin_bytes, data, 2); /* the first two bytes are the size of the .bin */
    unsigned char *copy = mem_alloc(size, "fuzz index");
    memcpy(copy, data + 2, size - 2);
    if (indexed_open_image(copy, size - 2, bin_bytes, "fuzz", &d, &err)) {
        CHECK(strstr(err.text, "fuzz: "), "no name in: %s", err.text);
    } else {
        int64_t tokens = 0;
        for (int64_t i = 0; i < d->sequences; i++) {
            int64_t bytes = indexed_length(d, i) * d->element_bytes;
            CHECK(indexed_offset(d, i) >= 0 && bytes >= 0 && indexed_offset(d, i) + bytes <= bin_bytes,
                  "sequence");
            int64_t document = indexed_find_document(d, i);
            CHECK(indexed_document(d, document) <= i && i < indexed_document(d, document + 1), "document");
            tokens += indexed_length(d, i);
        }
        CHECK(tokens == d->tokens, "tokens");
        if (d->tokens < 100000) walk_samples(d);
        indexed_close(d);
    }
    mem_free(copy);
    CHECK(mem_stats().live_blocks == blocks, "memory is leaked");
    return 0;
}
