#include "core/train/tensorboard.h"
#include "core/base/log.h"
#include "core/base/mem.h"
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum {
    BUFFER_BYTES = 1 << 17,
    TAG_BYTES = 200,
    TEXT_BYTES = 60000,
    OVERHEAD_BYTES = 256, /* of framing and fields around tag and text */
};

struct tensorboard {
    int fd;
    bool failed;
    size_t used;
    char path[1024];
    unsigned char buffer[BUFFER_BYTES];
    unsigned char event[TAG_BYTES + TEXT_BYTES + OVERHEAD_BYTES]; /* the event being encoded */
    unsigned char summary[TAG_BYTES + TEXT_BYTES + OVERHEAD_BYTES];
};

/* One bit at a time: events are small and few. Polynomial 0x1EDC6F41, reflected. */
uint32_t tensorboard_crc32c(const void *data, uint64_t bytes) {
    const unsigned char *p = data;
    uint32_t crc = 0xFFFFFFFFu;
    for (uint64_t i = 0; i < bytes; i++) {
        crc ^= p[i];
        for (int bit = 0; bit < 8; bit++) crc = crc >> 1 ^ (0x82F63B78u & (0u - (crc & 1)));
    }
    return ~crc;
}

static uint32_t masked_crc(const void *data, uint64_t bytes) {
    uint32_t crc = tensorboard_crc32c(data, bytes);
    return (crc >> 15 | crc << 17) + 0xA282EAD8u;
}

/* ---- protobuf wire format: key = field << 3 | type; types 0 varint, 1 fixed64, 2 bytes, 5 fixed32 ---- */

static size_t put_varint(unsigned char *out, uint64_t value) {
    size_t n = 0;
    for (; value >= 0x80; value >>= 7) out[n++] = (unsigned char)(value | 0x80);
    out[n++] = (unsigned char)value;
    return n;
}

static size_t put_fixed(unsigned char *out, uint64_t value, size_t bytes) {
    for (size_t i = 0; i < bytes; i++) out[i] = (unsigned char)(value >> 8 * i);
    return bytes;
}

static size_t put_bytes(unsigned char *out, int field, const void *data, size_t length) {
    size_t n = put_varint(out, (uint64_t)field << 3 | 2);
    n += put_varint(out + n, length);
    memcpy(out + n, data, length);
    return n + length;
}

static uint64_t double_bits(double value) {
    uint64_t bits;
    memcpy(&bits, &value, sizeof(bits));
    return bits;
}

/* Event {double wall_time = 1; int64 step = 2;} */
static size_t begin_event(unsigned char *out, int64_t step) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    size_t n = put_varint(out, 1 << 3 | 1);
    n += put_fixed(out + n, double_bits((double)now.tv_sec + 1e-9 * (double)now.tv_nsec), 8);
    n += put_varint(out + n, 2 << 3 | 0);
    return n + put_varint(out + n, (uint64_t)step);
}

/* TFRecord: length (8 bytes), masked CRC of it (4), data, masked CRC of the data (4), little endian. */
static void append_record(struct tensorboard *tb, size_t length) {
    if (tb->used + length + 16 > BUFFER_BYTES) tensorboard_flush(tb);
    unsigned char *out = tb->buffer + tb->used;
    put_fixed(out, length, 8);
    put_fixed(out + 8, masked_crc(out, 8), 4);
    memcpy(out + 12, tb->event, length);
    put_fixed(out + 12 + length, masked_crc(tb->event, length), 4);
    tb->used += length + 16;
}

void tensorboard_flush(struct tensorboard *tb) {
    size_t done = 0;
    while (done < tb->used && !tb->failed) {
        ssize_t n = write(tb->fd, tb->buffer + done, tb->used - done);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) {
            log_error("TensorBoard file %s: %s: no more events are recorded; the training goes on", tb->path,
                      n ? strerror(errno) : "nothing could be written");
            tb->failed = true;
            break;
        }
        done += (size_t)n;
    }
    tb->used = 0;
}

/* mkdir -p */
static int make_directories(const char *path) {
    char copy[700];
    if ((size_t)snprintf(copy, sizeof(copy), "%s", path) >= sizeof(copy)) return errno = ENAMETOOLONG, -1;
    for (char *p = copy + 1; *p; p++) {
        if (*p != '/') continue;
        *p = '\0';
        if (mkdir(copy, 0777) && errno != EEXIST) return -1;
        *p = '/';
    }
    return mkdir(copy, 0777) && errno != EEXIST ? -1 : 0;
}

struct tensorboard *tensorboard_open(const char *directory, struct err *err) {
    char host[128] = "localhost", path[1024];
    if (!directory[0] || make_directories(directory)) {
        err_set(err, "--tensorboard-dir %s: cannot be made: %s", directory,
                directory[0] ? strerror(errno) : "empty name");
        return NULL;
    }
    if (gethostname(host, sizeof(host) - 1)) host[0] = '\0';
    snprintf(path, sizeof(path), "%s/events.out.tfevents.%lld.%s.%lld.0", directory, (long long)time(NULL),
             host, (long long)getpid());
    int fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    if (fd < 0) {
        err_set(err, "--tensorboard-dir %s: %s cannot be written: %s", directory, path, strerror(errno));
        return NULL;
    }
    struct tensorboard *tb = mem_new_array(struct tensorboard, 1, "tensorboard");
    tb->fd = fd;
    memcpy(tb->path, path, sizeof(path));
    size_t n = begin_event(tb->event, 0);
    n += put_bytes(tb->event + n, 3, "brain.Event:2", 13); /* Event.file_version */
    append_record(tb, n);
    tensorboard_flush(tb);
    return tb;
}

void tensorboard_close(struct tensorboard *tb) {
    if (!tb) return;
    tensorboard_flush(tb);
    close(tb->fd);
    mem_free(tb);
}

const char *tensorboard_path(const struct tensorboard *tb) {
    return tb->path;
}

/* Wraps Summary.Value bytes into Event.summary (5) . Summary.value (1) and appends the event. */
static void append_summary(struct tensorboard *tb, int64_t step, size_t value_length) {
    unsigned char head[24];
    size_t n = begin_event(tb->event, step), head_length = put_varint(head, 1 << 3 | 2);
    head_length += put_varint(head + head_length, value_length);
    n += put_varint(tb->event + n, 5 << 3 | 2);
    n += put_varint(tb->event + n, head_length + value_length);
    memcpy(tb->event + n, head, head_length);
    memcpy(tb->event + n + head_length, tb->summary, value_length);
    append_record(tb, n + head_length + value_length);
}

/* Summary.Value {string tag = 1; float simple_value = 2;} */
void tensorboard_scalar(struct tensorboard *tb, const char *tag, int64_t step, double value) {
    float single = (float)value;
    uint32_t bits;
    if (tb->failed) return;
    memcpy(&bits, &single, sizeof(bits));
    size_t n = put_bytes(tb->summary, 1, tag, strnlen(tag, TAG_BYTES));
    n += put_varint(tb->summary + n, 2 << 3 | 5);
    n += put_fixed(tb->summary + n, bits, 4);
    append_summary(tb, step, n);
}

/* Summary.Value {string tag = 1; TensorProto tensor = 8; SummaryMetadata metadata = 9;} with
 * TensorProto {DataType dtype = 1 (7 = string); TensorShapeProto tensor_shape = 2 {Dim dim = 2 {int64 size =
 * 1;}}; bytes string_val = 8;} and SummaryMetadata {PluginData plugin_data = 1 {string plugin_name = 1;}}. */
void tensorboard_text(struct tensorboard *tb, const char *tag, int64_t step, const char *text) {
    static const unsigned char shape[] = {1 << 3 | 0, 7, 2 << 3 | 2, 4, 2 << 3 | 2, 2, 1 << 3 | 0, 1};
    static const unsigned char plugin[] = {1 << 3 | 2, 6, 1 << 3 | 2, 4, 't', 'e', 'x', 't'};
    size_t length = strnlen(text, TEXT_BYTES), n;
    unsigned char head[16];
    if (tb->failed) return;
    size_t head_length = put_varint(head, 8 << 3 | 2);
    head_length += put_varint(head + head_length, length);
    n = put_bytes(tb->summary, 1, tag, strnlen(tag, TAG_BYTES));
    n += put_varint(tb->summary + n, 8 << 3 | 2);
    n += put_varint(tb->summary + n, sizeof(shape) + head_length + length);
    memcpy(tb->summary + n, shape, sizeof(shape)), n += sizeof(shape);
    memcpy(tb->summary + n, head, head_length), n += head_length;
    memcpy(tb->summary + n, text, length), n += length;
    n += put_bytes(tb->summary + n, 9, plugin, sizeof(plugin));
    append_summary(tb, step, n);
}
