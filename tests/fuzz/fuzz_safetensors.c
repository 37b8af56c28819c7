/* Any bytes: refused with a message, or every tensor lies inside the file, tiles it and can be read. Inputs
 * may be header text alone: they are also tried behind a right length with zeros as data. */
#include "core/base/mem.h"
#include "core/checkpoint/safetensors.h"
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void try_bytes(const uint8_t *bytes, size_t size) {
    struct err err = {""};
    struct safetensors *f = safetensors_parse(bytes, size, "fuzz", &err);
    if (!f) {
        CHECK(!strncmp(err.text, "fuzz: ", 6), "no message: %s", err.text);
        return;
    }
    uint64_t at = 0, sum = 0;
    for (size_t i = 0; i < safetensors_count(f); i++) {
        const struct safetensors_tensor *t = safetensors_at(f, i);
        uint64_t bytes_needed = safetensors_dtype_bytes(t->dtype);
        for (int d = 0; d < t->num_dims; d++) bytes_needed *= (uint64_t)t->dims[d];
        CHECK(t->begin == at && t->end - t->begin == bytes_needed, "%s", t->name);
        CHECK(safetensors_find(f, t->name) == t, "%s is not found", t->name);
        for (uint64_t k = 0; k < bytes_needed; k++) sum += ((const uint8_t *)t->data)[k];
        at = t->end;
    }
    CHECK(safetensors_header_bytes(f) + at == size && sum != UINT64_MAX, "bytes left over");
    safetensors_metadata(f, "format");
    safetensors_close(f);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    uint64_t blocks = mem_stats().live_blocks, length = size;
    try_bytes(data, size);
    for (size_t zeros = 0; zeros <= 96; zeros += 24) {
        uint8_t *framed = mem_zalloc(8 + size + zeros, "fuzz input");
        memcpy(framed, &length, 8);
        if (size) memcpy(framed + 8, data, size);
        try_bytes(framed, 8 + size + zeros);
        mem_free(framed);
    }
    CHECK(mem_stats().live_blocks == blocks, "memory is leaked");
    return 0;
}
