#pragma once
/* Streaming writer of an indexed dataset (format: core/data/indexed.h). Tokens go to PREFIX.bin.tmp as they
 * come; indexed_writer_finish writes PREFIX.idx.tmp, flushes both to disk and renames them, the .idx last, so
 * a file under its final name is always whole. Closing an unfinished writer removes its temporary files.
 *
 *     indexed_writer_open(prefix, indexed_writer_type(vocab_size), &w, err);
 *     indexed_writer_document(w, tokens, count, err);     // one call per document
 *     indexed_writer_finish(w, err);
 *     indexed_writer_close(w); */
#include "core/base/check.h"
#include "core/data/indexed.h"

struct indexed_writer;

/* Megatron-LM's choice: 16 bits unsigned below 65500 ids, else 32 bits. */
enum indexed_type indexed_writer_type(int64_t vocab_size);
/* type is INDEXED_U16 or INDEXED_I32. */
int indexed_writer_open(const char *prefix, enum indexed_type type, struct indexed_writer **writer_p,
                        struct err *err);
/* One sequence of the current document, for documents of several. A sequence without tokens is not stored. */
int indexed_writer_sequence(struct indexed_writer *writer, const int32_t *tokens, int64_t count,
                            struct err *err);
void indexed_writer_end_document(struct indexed_writer *writer);
/* Both in one: a document of one sequence. A document without tokens adds a document boundary and no
 * sequence, as in Megatron-LM. */
int indexed_writer_document(struct indexed_writer *writer, const int32_t *tokens, int64_t count,
                            struct err *err);
int indexed_writer_finish(struct indexed_writer *writer, struct err *err);
void indexed_writer_close(struct indexed_writer *writer); /* NULL is fine */
