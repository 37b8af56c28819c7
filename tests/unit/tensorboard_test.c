/* The files are read back by a reader written for this test, which shares nothing with the writer. */
#include "core/base/mem.h"
#include "core/train/tensorboard.h"
#include "tests/temp_dir.h"
#include "tests/test.h"
#include <time.h>

struct event {
    double wall_time;
    int64_t step;
    char file_version[32], tag[256], text[256];
    float value;
    bool has_value;
};

static uint64_t little(const unsigned char *p, int bytes) {
    uint64_t v = 0;
    while (bytes--) v = v << 8 | p[bytes];
    return v;
}

/* CRC-32C by polynomial division, most significant bit first, on reflected bytes: another way than the
 * writer's. */
static uint32_t reference_crc32c(const unsigned char *p, uint64_t n) {
    uint32_t crc = 0xFFFFFFFFu, out = 0;
    for (uint64_t i = 0; i < n; i++) {
        for (int bit = 0; bit < 8; bit++) {
            uint32_t in = p[i] >> bit & 1, top = crc >> 31;
            crc = crc << 1 ^ (in ^ top ? 0x1EDC6F41u : 0);
        }
    }
    crc = ~crc;
    for (int bit = 0; bit < 32; bit++) out |= (crc >> bit & 1) << (31 - bit);
    return out;
}

static uint32_t unmask(uint32_t masked) {
    uint32_t rotated = masked - 0xA282EAD8u;
    return rotated >> 17 | rotated << 15;
}

static uint64_t varint(const unsigned char **p) {
    uint64_t v = 0;
    for (int shift = 0;; shift += 7) {
        unsigned char byte = *(*p)++;
        v |= (uint64_t)(byte & 0x7F) << shift;
        if (byte < 0x80) return v;
    }
}

/* Decodes any of the messages in use into *e; `path` is the field path so far: Event, Event.summary (5),
 * Summary.value (51), Value.tensor (518). */
static void decode(const unsigned char *p, const unsigned char *end, int path, struct event *e) {
    while (p < end) {
        uint64_t key = varint(&p);
        int field = (int)(key >> 3), full = path * 10 + field, type = (int)(key & 7);
        if (type == 0) {
            uint64_t v = varint(&p);
            if (full == 2) e->step = (int64_t)v;
        } else if (type == 1) {
            if (full == 1) memcpy(&e->wall_time, p, 8);
            p += 8;
        } else if (type == 5) {
            if (full == 512) memcpy(&e->value, p, 4), e->has_value = true;
            p += 4;
        } else if (type == 2) {
            uint64_t n = varint(&p);
            EXPECT(n <= (uint64_t)(end - p), "a field of %d overruns its message", path);
            if (n > (uint64_t)(end - p)) return;
            size_t cut = n < 255 ? n : 255;
            if (full == 3) memcpy(e->file_version, p, n < 31 ? n : 31);
            if (full == 511) memcpy(e->tag, p, cut);
            if (full == 5188) memcpy(e->text, p, cut);
            if (full == 5 || full == 51 || full == 518) decode(p, p + n, full, e);
            p += n;
        } else {
            EXPECT(false, "wire type %d", type);
            return;
        }
    }
    EXPECT(p == end, "message of %d does not end where it says", path);
}

static int read_events(const char *path, struct event *events, int capacity) {
    static unsigned char data[1 << 23];
    FILE *file = fopen(path, "rb");
    int count = 0;
    EXPECT(file != NULL, "%s", path);
    if (!file) return 0;
    size_t size = fread(data, 1, sizeof(data), file), at = 0;
    fclose(file);
    while (at < size && count < capacity) {
        uint64_t length = little(data + at, 8);
        EXPECT(at + 16 + length <= size, "record at %zu overruns the file", at);
        if (at + 16 + length > size) break;
        EXPECT_EQ(unmask((uint32_t)little(data + at + 8, 4)), reference_crc32c(data + at, 8));
        EXPECT_EQ(unmask((uint32_t)little(data + at + 12 + length, 4)),
                  reference_crc32c(data + at + 12, length));
        events[count] = (struct event){0};
        decode(data + at + 12, data + at + 12 + length, 0, &events[count++]);
        at += 16 + length;
    }
    return count;
}

static struct event events[20000];

TEST(crc32c_gives_the_published_check_values) {
    unsigned char zeros[32] = {0};
    EXPECT_EQ(tensorboard_crc32c("123456789", 9), 0xE3069283u);
    EXPECT_EQ(tensorboard_crc32c(zeros, 32), 0x8A9136AAu); /* RFC 3720, B.4 */
    EXPECT_EQ(reference_crc32c((const unsigned char *)"123456789", 9), 0xE3069283u);
}

TEST(a_reader_gets_back_what_was_written) {
    struct temp_dir dir;
    struct err err = {""};
    temp_dir_make(&dir);
    struct tensorboard *tb = tensorboard_open(dir.path, &err);
    EXPECT(tb != NULL, "%s", err.text);
    tensorboard_scalar(tb, "lm loss", 1, 6.25);
    tensorboard_scalar(tb, "lm loss vs samples", 1234567890123, 1.0 / 3);
    tensorboard_scalar(tb, "grad-norm", 300, (double)NAN);
    tensorboard_text(tb, "config", 0, "| lr | 1e-3 |");
    tensorboard_flush(tb);
    EXPECT_EQ(read_events(tensorboard_path(tb), events, 10), 5);
    EXPECT_STR(events[0].file_version, "brain.Event:2");
    EXPECT(fabs(events[0].wall_time - (double)time(NULL)) < 100, "%f", events[0].wall_time);
    EXPECT_STR(events[1].tag, "lm loss");
    EXPECT_EQ(events[1].step, 1);
    EXPECT(events[1].has_value && events[1].value == 6.25f, "%g", (double)events[1].value);
    EXPECT_STR(events[2].tag, "lm loss vs samples");
    EXPECT_EQ(events[2].step, 1234567890123);
    EXPECT(events[2].value == 1.0f / 3, "%g", (double)events[2].value);
    EXPECT(events[3].has_value && isnan(events[3].value), "%g", (double)events[3].value);
    EXPECT_STR(events[4].text, "| lr | 1e-3 |");
    tensorboard_close(tb);
    temp_dir_remove(&dir);
}

TEST(the_file_name_is_one_that_tensorboard_finds) {
    struct temp_dir dir;
    struct err err = {""};
    char nested[400], host[128], expected[200];
    temp_dir_make(&dir);
    snprintf(nested, sizeof(nested), "%s/a/b/", dir.path);
    struct tensorboard *tb = tensorboard_open(nested, &err);
    EXPECT(tb != NULL, "%s", err.text);
    gethostname(host, sizeof(host));
    snprintf(expected, sizeof(expected), ".%s.%d.0", host, (int)getpid());
    EXPECT_CONTAINS(tensorboard_path(tb), "/events.out.tfevents.1");
    EXPECT_CONTAINS(tensorboard_path(tb), expected);
    unlink(tensorboard_path(tb));
    tensorboard_close(tb);
    snprintf(nested, sizeof(nested), "%s/a/b", dir.path), rmdir(nested);
    snprintf(nested, sizeof(nested), "%s/a", dir.path), rmdir(nested);
    temp_dir_remove(&dir);
}

TEST(many_events_pass_through_the_fixed_buffer_without_allocation) {
    struct temp_dir dir;
    struct err err = {""};
    char tag[400];
    temp_dir_make(&dir);
    struct tensorboard *tb = tensorboard_open(dir.path, &err);
    uint64_t before = mem_stats().allocations;
    memset(tag, 'x', sizeof(tag)), tag[399] = '\0';
    for (int i = 0; i < 9999; i++) tensorboard_scalar(tb, tag + 150 + i % 200, i, i);
    EXPECT_EQ(mem_stats().allocations, before);
    tensorboard_flush(tb);
    EXPECT_EQ(read_events(tensorboard_path(tb), events, 20000), 10000);
    for (int i = 0; i < 9999; i++) {
        size_t length = (size_t)(399 - 150 - i % 200);
        if (length > 200) length = 200; /* longer tags are cut */
        EXPECT_EQ(events[i + 1].step, i);
        EXPECT_EQ(strlen(events[i + 1].tag), length);
        EXPECT(events[i + 1].value == (float)i, "event %d", i);
    }
    tensorboard_close(tb);
    temp_dir_remove(&dir);
}

TEST(a_text_of_any_length_is_framed_correctly) {
    static char text[70000];
    struct temp_dir dir;
    struct err err = {""};
    temp_dir_make(&dir);
    struct tensorboard *tb = tensorboard_open(dir.path, &err);
    memset(text, 'y', sizeof(text) - 1);
    for (int i = 0; i < 70000; i += 6999) tensorboard_text(tb, "t", i, text + 69999 - i);
    tensorboard_flush(tb);
    EXPECT_EQ(read_events(tensorboard_path(tb), events, 20000), 12);
    for (int i = 0; i < 11; i++) EXPECT_EQ(events[i + 1].step, 6999 * i);
    tensorboard_close(tb);
    temp_dir_remove(&dir);
}

TEST(a_directory_that_cannot_be_made_is_a_user_error) {
    struct err err = {""};
    EXPECT(tensorboard_open("/dev/null/x", &err) == NULL, "opened");
    EXPECT_CONTAINS(err.text, "--tensorboard-dir /dev/null/x");
    EXPECT(tensorboard_open("", &err) == NULL, "opened");
    tensorboard_close(NULL);
}

RUN_TESTS(CASE(crc32c_gives_the_published_check_values), CASE(a_reader_gets_back_what_was_written),
          CASE(the_file_name_is_one_that_tensorboard_finds),
          CASE(many_events_pass_through_the_fixed_buffer_without_allocation),
          CASE(a_text_of_any_length_is_framed_correctly),
          CASE(a_directory_that_cannot_be_made_is_a_user_error))
