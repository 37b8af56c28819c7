#pragma once
/* Writer of TensorBoard event files: TFRecord frames (length, masked CRC-32C, bytes, masked CRC-32C) around
 * protobuf `Event` messages, encoded by hand. One file per run, named
 * <dir>/events.out.tfevents.<unix seconds>.<host>.<pid>.0; the directory is made when missing. The first
 * event is the file version.
 *
 * Events are collected in a fixed buffer and written when it is full, on tensorboard_flush and on close; a
 * reader sees whole events only up to the last flush, and tolerates a torn tail. Nothing is allocated after
 * open. When writing fails later (full disk) the reason is logged once and further events are dropped: a log
 * is never worth a training run. Not thread safe. */
#include "core/base/check.h"
#include <stdint.h>

struct tensorboard;
struct tensorboard *tensorboard_open(const char *directory, struct err *err); /* NULL on error */
void tensorboard_close(struct tensorboard *tb);                               /* NULL is fine */
const char *tensorboard_path(const struct tensorboard *tb);
/* A tag is at most 200 bytes; a longer one is cut. */
void tensorboard_scalar(struct tensorboard *tb, const char *tag, int64_t step, double value);
/* A text panel (the resolved configuration, for one), at most 60,000 bytes. */
void tensorboard_text(struct tensorboard *tb, const char *tag, int64_t step, const char *text);
void tensorboard_flush(struct tensorboard *tb);
/* CRC-32C (Castagnoli) of bytes; what TFRecord masks. */
uint32_t tensorboard_crc32c(const void *data, uint64_t bytes);
