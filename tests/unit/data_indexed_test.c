/* Indexed datasets: what is written is read back; a truncated or corrupt file is refused by name and offset.
 */
#include "core/base/mem.h"
#include "core/base/str.h"
#include "core/data/indexed.h"
#include "core/data/indexed_writer.h"
#include "tests/test.h"
#include "tests/unit/data_files.h"
#include <fcntl.h>
#include <sys/resource.h>
#include <signal.h>
#include <unistd.h>

static char folder[256];

static const char *at(const char *name) {
    static char path[512];
    snprintf(path, sizeof(path), "%s/%s", folder, name);
    return path;
}

/* Documents of 3, 0 and 2 tokens. */
static void write_small(const char *name, enum indexed_type type) {
    static const int32_t a[] = {1, 2, 65499}, b[] = {7, 8};
    struct indexed_writer *w;
    struct err err;
    EXPECT(indexed_writer_open(at(name), type, &w, &err) == 0, "%s", err.text);
    EXPECT_EQ(indexed_writer_document(w, a, 3, &err), 0);
    EXPECT_EQ(indexed_writer_document(w, NULL, 0, &err), 0);
    EXPECT_EQ(indexed_writer_document(w, b, 2, &err), 0);
    EXPECT(indexed_writer_finish(w, &err) == 0, "%s", err.text);
    indexed_writer_close(w);
}

TEST(a_written_dataset_is_megatrons_byte_for_byte) {
    static const unsigned char want[] = {
        'M', 'M', 'I', 'D', 'I', 'D', 'X', 0, 0, 1, 0, 0, 0, 0, 0, 0, 0,
        8,   2,   0,   0,   0,   0,   0,   0, 0, 4, 0, 0, 0, 0, 0, 0, 0, /* 34 bytes of header */
        3,   0,   0,   0,   2,   0,   0,   0,                            /* lengths */
        0,   0,   0,   0,   0,   0,   0,   0, 6, 0, 0, 0, 0, 0, 0, 0,    /* offsets */
        0,   0,   0,   0,   0,   0,   0,   0, 1, 0, 0, 0, 0, 0, 0, 0, 1,
        0,   0,   0,   0,   0,   0,   0,   2, 0, 0, 0, 0, 0, 0, 0};
    static const unsigned char want_bin[] = {1, 0, 2, 0, 0xDB, 0xFF, 7, 0, 8, 0};
    size_t n;
    write_small("exact", INDEXED_U16);
    unsigned char *idx = files_read(at("exact.idx"), &n);
    EXPECT(n == sizeof(want) && !memcmp(idx, want, n), "%zu bytes", n);
    mem_free(idx);
    unsigned char *bin = files_read(at("exact.bin"), &n);
    EXPECT(n == sizeof(want_bin) && !memcmp(bin, want_bin, n), "%zu bytes", n);
    mem_free(bin);
}

TEST(a_written_dataset_reads_back_mapped_and_unmapped) {
    struct err err;
    for (int round = 0; round < 4; round++) {
        struct indexed *d;
        int32_t t[3];
        write_small("small", round & 1 ? INDEXED_U16 : INDEXED_I32);
        EXPECT(indexed_open(at("small"), round & 2, &d, &err) == 0, "%s", err.text);
        EXPECT(d->sequences == 2 && d->documents == 3 && d->tokens == 5, "counts");
        EXPECT_EQ(indexed_read(d, 0, 0, 3, t, &err), 0);
        EXPECT(t[0] == 1 && t[1] == 2 && t[2] == 65499, "%d %d %d", t[0], t[1], t[2]);
        EXPECT_EQ(indexed_read(d, 1, 1, 1, t, &err), 0);
        EXPECT_EQ(t[0], 8);
        EXPECT_EQ(indexed_find_document(d, 0), 0);
        EXPECT_EQ(indexed_find_document(d, 1), 2);
        EXPECT_EQ(indexed_check(d, &err), 0);
        indexed_close(d);
    }
    EXPECT(access(at("small.bin.tmp"), F_OK) && access(at("small.idx.tmp"), F_OK),
           "temporary files are left");
}

TEST(every_element_type_is_read) {
    static const int64_t bytes[] = {0, 1, 1, 2, 4, 8, 8, 4, 2};
    struct err err;
    for (int type = 0; type <= 10; type++) {
        EXPECT_EQ(indexed_type_bytes(type), type < 9 ? bytes[type] : 0);
        if (!type || type > 8) continue;
        unsigned char idx[INDEXED_HEADER_BYTES + 4 + 8 + 16] = {'M', 'M', 'I', 'D', 'I', 'D', 'X', 0, 0, 1},
                                                         bin[24] = {0};
        idx[17] = (unsigned char)type, idx[18] = 1, idx[26] = 2, idx[34] = 3, idx[34 + 12 + 8] = 1;
        for (int i = 0; i < 3; i++) {
            float f = (float)(5 + i);
            double g = 5 + i + (i == 2 ? 0.5 : 0);
            if (type == INDEXED_F32)
                memcpy(bin + 4 * i, &f, 4);
            else if (type == INDEXED_F64)
                memcpy(bin + 8 * i, &g, 8);
            else
                bin[bytes[type] * i] = (unsigned char)(5 + i);
        }
        if (type == INDEXED_I64) bin[16 + 5] = 1; /* beyond int32 */
        files_write(at("typed.idx"), idx, sizeof(idx));
        files_write(at("typed.bin"), bin, (size_t)(3 * bytes[type]));
        struct indexed *d;
        int32_t t[3] = {0};
        EXPECT(indexed_open(at("typed"), type & 1, &d, &err) == 0, "%s", err.text);
        EXPECT_EQ(indexed_read(d, 0, 0, 3, t, &err), 0);
        int last = type == INDEXED_I64 || type == INDEXED_F64 ? -1 : 7;
        EXPECT(t[0] == 5 && t[1] == 6 && t[2] == last, "type %d: %d %d %d", type, t[0], t[1], t[2]);
        indexed_close(d);
    }
}

static const struct {
    const char *what, *part; /* of the message */
    int at, width;           /* where to put the value; width 0: cut the file to `at` bytes */
    int64_t value;
} faults[] = {
    {"empty file", "0 bytes are too few", 0, 0, 0},
    {"cut header", "33 bytes are too few", 33, 0, 0},
    {"magic", "byte 0: not an index", 3, 1, 'X'},
    {"version", "byte 9: version 2", 9, 8, 2},
    {"type 0", "byte 17: element type 0", 17, 1, 0},
    {"type 9", "byte 17: element type 9", 17, 1, 9},
    {"negative sequences", "byte 18: -1 sequences", 18, 8, -1},
    {"many sequences", "byte 18: 1152921504606846976 sequences", 18, 8, INT64_C(1) << 60},
    {"one sequence more", "the file is truncated", 18, 8, 3},
    {"one sequence less", "the file is corrupt", 18, 8, 1},
    {"no documents", "byte 26: 0 document entries", 26, 8, 0},
    {"negative documents", "byte 26: -5 document entries", 26, 8, -5},
    {"many documents", "byte 26: ", 26, 8, INT64_MAX},
    {"negative length", "byte 34: sequence 0 has length -1", 34, 4, -1},
    {"length beyond the .bin", "byte 38: sequence 1 ends at byte 12 of the .bin", 38, 4, 3},
    {"huge length", "byte 38: sequence 1 ends at byte 4294967300", 38, 4, INT32_MAX},
    {"first offset", "byte 42: sequence 0 starts at byte 2", 42, 8, 2},
    {"offset not monotone", "byte 50: sequence 1 starts at byte 4", 50, 8, 4},
    {"negative offset", "byte 50: sequence 1 starts at byte -6", 50, 8, -6},
    {"first document", "byte 58: document 0 starts at sequence 1", 58, 8, 1},
    {"document beyond", "byte 66: document 1 starts at sequence 3", 66, 8, 3},
    {"documents not monotone", "byte 74: document 2 starts at sequence 0", 74, 8, 0},
    {"last document", "byte 82: the documents end at sequence 1 of 2", 82, 8, 1},
    {"cut documents", "89 bytes, but 2 sequences and 4 document entries take 90; the file is truncated", 89,
     0, 0},
    {"cut lengths", "too few", 30, 0, 0},
};

TEST(corrupt_index_is_refused_with_file_and_offset) {
    write_small("good", INDEXED_U16);
    for (size_t i = 0; i < ARRAY_COUNT(faults); i++) {
        size_t n;
        unsigned char *idx = files_read(at("good.idx"), &n);
        struct indexed *d;
        struct err err = {{0}};
        if (faults[i].width)
            memcpy(idx + faults[i].at, &faults[i].value, (size_t)faults[i].width);
        else
            n = (size_t)faults[i].at;
        files_write(at("bad.idx"), idx, n);
        EXPECT(indexed_open_image(idx, n, 10, "bad.idx", &d, &err) == -1, "%s: accepted", faults[i].what);
        EXPECT_CONTAINS(err.text, faults[i].part);
        EXPECT_CONTAINS(err.text, "bad.idx");
        mem_free(idx);
        size_t bin_bytes;
        unsigned char *bin = files_read(at("good.bin"), &bin_bytes);
        files_write(at("bad.bin"), bin, bin_bytes);
        mem_free(bin);
        EXPECT(indexed_open(at("bad"), true, &d, &err) == -1, "%s: accepted", faults[i].what);
        EXPECT_CONTAINS(err.text, "/bad.idx");
        EXPECT_CONTAINS(err.text, faults[i].part);
    }
}

TEST(every_truncation_of_an_index_is_refused) {
    size_t n;
    write_small("good", INDEXED_U16);
    unsigned char *idx = files_read(at("good.idx"), &n);
    for (size_t cut = 0; cut < n; cut++) {
        struct indexed *d;
        struct err err;
        unsigned char *copy =
            mem_alloc(cut ? cut : 1, "test copy"); /* so that a sanitizer sees reads beyond */
        memcpy(copy, idx, cut);
        EXPECT(indexed_open_image(copy, cut, 10, "cut", &d, &err) == -1, "%zu bytes were accepted", cut);
        mem_free(copy);
    }
    mem_free(idx);
}

TEST(truncated_bin_is_refused_at_open_and_noticed_later) {
    struct indexed *d;
    struct err err;
    write_small("torn", INDEXED_U16);
    EXPECT_EQ(indexed_open(at("torn"), true, &d, &err), 0);
    EXPECT_EQ(truncate(at("torn.bin"), 9), 0);
    EXPECT_EQ(indexed_check(d, &err), -1);
    EXPECT_CONTAINS(err.text, "torn.bin: was truncated from 10 to 9 bytes");
    indexed_close(d);
    EXPECT_EQ(indexed_open(at("torn"), true, &d, &err), -1);
    EXPECT_CONTAINS(err.text, "torn.idx: byte 38: sequence 1 ends at byte 10 of the .bin, which has only 9");
    write_small("torn", INDEXED_U16);
    EXPECT_EQ(indexed_open(at("torn"), false, &d, &err), 0);
    EXPECT_EQ(truncate(at("torn.bin"), 0), 0);
    int32_t t[3];
    EXPECT_EQ(indexed_read(d, 0, 0, 3, t, &err), -1);
    EXPECT_CONTAINS(err.text, "torn.bin: byte 0: the file ends here");
    indexed_close(d);
}

TEST(missing_files_say_how_a_data_path_looks) {
    struct indexed *d;
    struct err err;
    EXPECT_EQ(indexed_open(at("nothing"), true, &d, &err), -1);
    EXPECT_CONTAINS(err.text, "nothing.idx: No such file");
    write_small("good", INDEXED_U16);
    EXPECT_EQ(indexed_open(at("good.bin"), true, &d, &err), -1);
    EXPECT_CONTAINS(err.text, "leave the suffix out");
    write_small("books_text_document", INDEXED_U16);
    EXPECT_EQ(indexed_open(at("books"), true, &d, &err), -1);
    EXPECT_CONTAINS(err.text, "books_text_document?");
    EXPECT_EQ(indexed_open(folder, true, &d, &err), -1);
}

TEST(multimodal_index_is_read_without_its_modes) {
    size_t n;
    struct indexed *d;
    struct err err;
    write_small("good", INDEXED_U16);
    unsigned char *idx = files_read(at("good.idx"), &n), *more = mem_zalloc(n + 2, "test copy");
    memcpy(more, idx, n);
    EXPECT(indexed_open_image(more, n + 2, 10, "modes", &d, &err) == 0, "%s", err.text);
    indexed_close(d);
    mem_free(idx);
    mem_free(more);
}

TEST(offsets_beyond_two_to_the_32_bytes_are_read) {
    /* a sparse .bin of 6 GiB: sequence 0 fills 2^31 - 1 ints, sequence 1 has three at the end */
    const int64_t length = INT32_MAX, tail = 4 * length;
    unsigned char idx[INDEXED_HEADER_BYTES + 2 * 12 + 3 * 8] = {'M', 'M', 'I', 'D', 'I', 'D', 'X', 0, 0, 1};
    static const int32_t values[] = {11, 12, 13};
    const int32_t lengths[] = {INT32_MAX, 3};
    const int64_t offsets[] = {0, tail}, documents[] = {0, 1, 2};
    idx[17] = INDEXED_I32, idx[18] = 2, idx[26] = 3;
    memcpy(idx + 34, lengths, 8);
    memcpy(idx + 42, offsets, 16);
    memcpy(idx + 58, documents, 24);
    files_write(at("huge.idx"), idx, sizeof(idx));
    int file = open(at("huge.bin"), O_WRONLY | O_CREAT | O_TRUNC, 0666);
    if (pwrite(file, values, sizeof(values), tail) != (ssize_t)sizeof(values)) {
        close(file);
        SKIP("the file system has no sparse files");
    }
    close(file);
    for (int map = 0; map < 2; map++) {
        struct indexed *d;
        struct err err;
        int32_t t[3] = {0};
        EXPECT(indexed_open(at("huge"), map, &d, &err) == 0, "%s", err.text);
        EXPECT_EQ(d->tokens, length + 3);
        EXPECT_EQ(indexed_read(d, 1, 0, 3, t, &err), 0);
        EXPECT(t[0] == 11 && t[2] == 13, "%d %d", t[0], t[2]);
        EXPECT_EQ(indexed_read(d, 0, length - 2, 2, t, &err), 0);
        EXPECT_EQ(t[0], 0);
        indexed_close(d);
    }
    unlink(at("huge.bin"));
}

TEST(full_disk_leaves_no_file_behind) {
    struct indexed_writer *w;
    struct err err = {{0}};
    static int32_t tokens[100000];
    struct rlimit old, small;
    getrlimit(RLIMIT_FSIZE, &old);
    small = old;
    small.rlim_cur = 2 << 20; /* writing beyond it fails, as on a full disk */
    signal(SIGXFSZ, SIG_IGN);
    setrlimit(RLIMIT_FSIZE, &small);
    EXPECT_EQ(indexed_writer_open(at("full"), INDEXED_I32, &w, &err), 0);
    int status = 0;
    for (int i = 0; i < 20 && !status; i++) status = indexed_writer_document(w, tokens, 100000, &err);
    EXPECT_EQ(status, -1);
    EXPECT_CONTAINS(err.text, "full.bin.tmp: cannot write");
    indexed_writer_close(w);
    setrlimit(RLIMIT_FSIZE, &old);
    EXPECT(access(at("full.bin"), F_OK) && access(at("full.idx"), F_OK),
           "a half-written file has its final name");
    EXPECT(access(at("full.bin.tmp"), F_OK) && access(at("full.idx.tmp"), F_OK), "a temporary file is left");
}

TEST(writer_picks_the_narrow_type_as_megatron_does) {
    EXPECT_EQ(indexed_writer_type(257), INDEXED_U16);
    EXPECT_EQ(indexed_writer_type(65499), INDEXED_U16);
    EXPECT_EQ(indexed_writer_type(65500), INDEXED_I32);
}

TEST(begin) {
    files_make_folder(folder, sizeof(folder));
}
TEST(end_removes_its_files) {
    files_remove_folder(folder);
    EXPECT_EQ(mem_stats().live_blocks, 0);
}

RUN_TESTS(CASE(begin), CASE(a_written_dataset_is_megatrons_byte_for_byte),
          CASE(a_written_dataset_reads_back_mapped_and_unmapped), CASE(every_element_type_is_read),
          CASE(corrupt_index_is_refused_with_file_and_offset), CASE(every_truncation_of_an_index_is_refused),
          CASE(truncated_bin_is_refused_at_open_and_noticed_later),
          CASE(missing_files_say_how_a_data_path_looks), CASE(multimodal_index_is_read_without_its_modes),
          CASE(offsets_beyond_two_to_the_32_bytes_are_read), CASE(full_disk_leaves_no_file_behind),
          CASE(writer_picks_the_narrow_type_as_megatron_does), CASE(end_removes_its_files))
