#pragma once
/* Reads tensors of one complete checkpoint in blocks, checking every byte against the manifest. */
#include "core/checkpoint/manifest.h"
#include "core/checkpoint/safetensors.h"

struct checkpoint_reader {
    const struct checkpoint_manifest *manifest;
    struct safetensors **files; /* opened when first needed; owned */
};

void checkpoint_reader_init(struct checkpoint_reader *reader, const struct checkpoint_manifest *manifest);
void checkpoint_reader_free(struct checkpoint_reader *reader);
/* A file of the manifest that ends in ".safetensors", its header checked. NULL on error. */
const struct safetensors *checkpoint_reader_file(struct checkpoint_reader *reader, int file, struct err *err);
bool checkpoint_reader_is_tensor_file(const struct checkpoint_reader *reader, int file);

/* Takes rows [first, first + num_rows) of a tensor, as they lie in the file. */
typedef void (*checkpoint_rows_fn)(void *context, const struct safetensors_tensor *tensor, const void *rows,
                                   int64_t first, int64_t num_rows);

/* Looks the tensor up; NULL with a message when it is not there. */
const struct safetensors_tensor *checkpoint_reader_find(struct checkpoint_reader *reader, const char *name,
                                                        const struct safetensors **file_p,
                                                        uint64_t *checksum_p, struct err *err);
/* Reads the whole tensor through `staging` (at least CHECKPOINT_STAGING_BYTES or one row), gives each block
 * to fn (may be NULL) and compares the checksum. */
int checkpoint_reader_stream(const struct safetensors *file, const struct safetensors_tensor *tensor,
                             uint64_t checksum, void *staging, checkpoint_rows_fn fn, void *context,
                             struct err *err);
/* Bytes that `staging` needs for this tensor: one block. */
size_t checkpoint_reader_staging(const struct safetensors_tensor *tensor);
