#pragma once
/* manifest.json: what a checkpoint directory holds and the checksums that cover every byte of it.
 *
 *     {"format": "pretrain_gpt checkpoint", "version": 2, "iteration": 20, "release": false,
 *      "naming": "llama", "optimizer": true, "state": {...}, "model": {...},
 *      "files": [{"name": "model-00001-of-00001.safetensors", "bytes": 4096, "head_bytes": 512,
 *                 "checksum": "0123456789abcdef"}, ...],
 *      "tensors": {"model.norm.weight": {"file": 0, "checksum": "0123456789abcdef"}, ...},
 *      "manifest_checksum": "0123456789abcdef"}
 *
 * A file's checksum (core/base/hash.h, hexadecimal) is over its first head_bytes: the safetensors header, or
 * all of a small file; the tensors tile the rest and have one each (checksum.h). manifest_checksum is over
 * the manifest's own bytes before that name. Checking by tensor lets several readers share a file and names
 * the damage. */
#include "core/base/json.h"
#include "core/checkpoint/names.h"

struct checkpoint_file {
    const char *name;
    uint64_t bytes, head_bytes, checksum;
};

struct checkpoint_manifest {
    char *path;        /* of the checkpoint's directory; owned */
    struct json *json; /* owned; names point into it */
    int64_t iteration;
    bool release, has_optimizer;
    enum checkpoint_family family;
    struct checkpoint_model model;
    struct checkpoint_state state;
    struct checkpoint_file *files; /* owned */
    int num_files;
    const struct json_node *tensors;
};

/* Reads and fully checks <path>/manifest.json; sizes of the files are compared, their contents not read.
 * NULL on error. */
struct checkpoint_manifest *checkpoint_manifest_open(const char *path, struct err *err);
void checkpoint_manifest_close(struct checkpoint_manifest *manifest); /* NULL is fine */
/* File and checksum of a tensor; -1 when there is none of that name. */
int checkpoint_manifest_tensor(const struct checkpoint_manifest *manifest, const char *name, int *file_p,
                               uint64_t *checksum_p);
/* The text of resolved_config.json, checked. */
int checkpoint_manifest_config(const struct checkpoint_manifest *manifest, struct str *out, struct err *err);

/* Writing, in this order: begin, file for each, tensors, tensor for each, end. */
void checkpoint_manifest_begin(struct str *out, const struct checkpoint_model *model,
                               const struct checkpoint_state *state, bool release, bool has_optimizer);
void checkpoint_manifest_add_file(struct str *out, const struct checkpoint_file *file);
void checkpoint_manifest_begin_tensors(struct str *out);
void checkpoint_manifest_add_tensor(struct str *out, const char *name, int file, uint64_t checksum);
void checkpoint_manifest_end(struct str *out);
