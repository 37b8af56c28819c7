#include "core/checkpoint/safetensors.h"
#include "core/base/mem.h"
#include "tests/unit/checkpoint_fixture.h"

static struct err err;

/* Parses header text with `data_bytes` zeros behind it. "" when accepted, else the message. */
static const char *fault(const char *header, size_t data_bytes) {
    uint64_t length = strlen(header);
    char *bytes = mem_zalloc(8 + length + data_bytes, "file");
    memcpy(bytes, &length, 8);
    memcpy(bytes + 8, header, length);
    err.text[0] = 0;
    struct safetensors *f = safetensors_parse(bytes, 8 + length + data_bytes, "f", &err);
    if (f) err.text[0] = 0;
    safetensors_close(f);
    mem_free(bytes);
    return err.text;
}

TEST(well_formed_headers_are_accepted) {
    EXPECT_STR(fault("{}", 0), "");
    EXPECT_STR(fault("{\"__metadata__\":{\"format\":\"pt\"}}   ", 0), "");
    EXPECT_STR(fault("{\"a\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[0,24]}}", 24), "");
    EXPECT_STR(fault("{\"s\":{\"dtype\":\"F64\",\"shape\":[],\"data_offsets\":[0,8]}}", 8), "");
    EXPECT_STR(fault("{\"e\":{\"dtype\":\"BF16\",\"shape\":[4,0],\"data_offsets\":[0,0]}}", 0), "");
    EXPECT_STR(fault("{\"b\":{\"dtype\":\"U8\",\"shape\":[3],\"data_offsets\":[2,5]},"
                     "\"a\":{\"dtype\":\"I16\",\"shape\":[1],\"data_offsets\":[0,2]}}",
                     5),
               "");
}

TEST(every_kind_of_bad_header_is_refused_by_name) {
    static const struct {
        const char *header;
        size_t data_bytes;
        const char *message;
    } cases[] = {
        {"[]", 0, "the header is no JSON object"},
        {"{", 0, "f: header: line 1, column 2"},
        {"{\"a\":1}", 0, "entry 'a' is no object"},
        {"{\"a\":{\"shape\":[1],\"data_offsets\":[0,4]}}", 4, "tensor 'a' has no dtype"},
        {"{\"a\":{\"dtype\":\"F99\",\"shape\":[1],\"data_offsets\":[0,4]}}", 4, "dtype 'F99'"},
        {"{\"a\":{\"dtype\":\"F32\",\"data_offsets\":[0,4]}}", 4, "no shape array"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[-1],\"data_offsets\":[0,4]}}", 4,
         "dimension 0 is no whole number"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1.5],\"data_offsets\":[0,4]}}", 4,
         "dimension 0 is no whole number"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1,1,1,1,1,1,1,1,1],\"data_offsets\":[0,4]}}", 4,
         "9 dimensions"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[4294967296,4294967296],\"data_offsets\":[0,0]}}", 0,
         "overflows"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[4611686018427387904],\"data_offsets\":[0,0]}}", 0,
         "overflows"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1]}}", 4, "data_offsets must be"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0]}}", 4, "data_offsets must be"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,0]}}", 4, "data_offsets must be"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[-4,0]}}", 4, "data_offsets must be"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}", 4,
         "tensor 'a' ends at byte 8 of the data, but the file holds 4"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,9223372036854775807]}}", 4,
         "the file holds 4"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,4]}}", 4,
         "takes bytes 0 to 4, but its shape and dtype need 8"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}", 8,
         "bytes 4 to 8 of the data, after"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,8]}}", 8,
         "bytes 0 to 4 of the data, before"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]},"
         "\"b\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,8]}}",
         8, "tensors 'a' and 'b' overlap at byte 4"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]},"
         "\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,8]}}",
         8, "'a' is listed twice"},
        {"{\"a\\u0000\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}", 4, "NUL in its name"},
    };
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        EXPECT(fault(cases[i].header, cases[i].data_bytes)[0], "accepted: %s", cases[i].header);
        EXPECT_CONTAINS(err.text, cases[i].message);
        EXPECT(!strncmp(err.text, "f: ", 3), "no file name: %s", err.text);
    }
}

TEST(bad_header_lengths_are_refused) {
    char bytes[64] = {0};
    for (size_t size = 0; size < 8; size++)
        EXPECT(!safetensors_parse(bytes, size, "f", &err), "%zu bytes are accepted", size);
    static const uint64_t lengths[] = {0, 57, 1000, UINT64_MAX, UINT64_MAX - 7, (uint64_t)1 << 40};
    for (size_t i = 0; i < ARRAY_COUNT(lengths); i++) {
        memcpy(bytes, &lengths[i], 8);
        EXPECT(!safetensors_parse(bytes, sizeof(bytes), "f", &err), "length %llu",
               (unsigned long long)lengths[i]);
    }
    EXPECT_CONTAINS(err.text, "offset 0");
}

static void write_sample(const char *path) {
    struct safetensors_layout layout = {0};
    float a[6] = {1, 2, 3, 4, 5, 6};
    unsigned short b[2] = {7, 8};
    safetensors_layout_metadata(&layout, "format", "pt");
    safetensors_layout_metadata(&layout, "a \"key\"", "v");
    int ta = safetensors_layout_add(&layout, "a", SAFETENSORS_F32, 2, (int64_t[]){2, 3});
    int tb = safetensors_layout_add(&layout, "b \"quoted\"", SAFETENSORS_BF16, 1, (int64_t[]){2});
    int tc = safetensors_layout_add(&layout, "scalar", SAFETENSORS_F32, 0, NULL);
    struct safetensors_writer *w = safetensors_writer_open(path, &layout, &err);
    EXPECT(w, "%s", err.text);
    struct safetensors_writer *second = safetensors_writer_attach(path, &layout, &err);
    EXPECT(second, "%s", err.text);
    EXPECT(!safetensors_write(second, tb, 2, b + 1, 2, &err), "%s",
           err.text); /* pieces, any order, two writers */
    EXPECT(!safetensors_write(w, tc, 0, a + 5, 4, &err), "%s", err.text);
    EXPECT(!safetensors_write(w, tb, 0, b, 2, &err), "%s", err.text);
    EXPECT(!safetensors_write(w, ta, 12, a + 3, 12, &err), "%s", err.text);
    EXPECT(!safetensors_write(second, ta, 0, a, 12, &err), "%s", err.text);
    EXPECT(!safetensors_writer_close(second, &err), "%s", err.text);
    EXPECT(!safetensors_writer_close(w, &err), "%s", err.text);
    EXPECT_EQ(safetensors_layout_bytes(&layout), fixture_size("f.safetensors"));
    safetensors_layout_free(&layout);
}

TEST(what_is_written_in_pieces_is_read_back) {
    fixture_make_dir();
    const char *path = fixture_path("f.safetensors");
    write_sample(path);
    struct safetensors *f = safetensors_open(path, &err);
    EXPECT(f, "%s", err.text);
    if (f) {
        const struct safetensors_tensor *a = safetensors_find(f, "a"),
                                        *b = safetensors_find(f, "b \"quoted\"");
        EXPECT_EQ(safetensors_count(f), 3);
        EXPECT_EQ(safetensors_header_bytes(f) % 8, 0);
        EXPECT(a && a->num_dims == 2 && a->dims[0] == 2 && a->dims[1] == 3 && a->dtype == SAFETENSORS_F32,
               "a");
        EXPECT(b && b->num_dims == 1 && b->dims[0] == 2 && b->dtype == SAFETENSORS_BF16, "b");
        EXPECT(a && ((const float *)a->data)[4] == 5, "a[4]");
        unsigned short last = 0;
        EXPECT(b && !safetensors_read(f, b, 2, &last, 2, &err) && last == 8, "b[1] is %d", last);
        EXPECT(safetensors_at(f, 2)->num_dims == 0 && *(const float *)safetensors_at(f, 2)->data == 6,
               "scalar");
        EXPECT_STR(safetensors_metadata(f, "format"), "pt");
        EXPECT_STR(safetensors_metadata(f, "a \"key\""), "v");
        EXPECT(!safetensors_metadata(f, "none") && !safetensors_find(f, "none"), "found what is not there");
    }
    safetensors_close(f);
    fixture_remove(fixture_dir);
}

TEST(a_cut_or_extended_file_is_refused_at_every_length) {
    fixture_make_dir();
    write_sample(fixture_path("f.safetensors"));
    size_t size;
    char *whole = fixture_read("f.safetensors", &size);
    for (size_t n = 0; n <= size + 1; n++) {
        fixture_write("g.safetensors", whole, n);
        struct safetensors *f = safetensors_open(fixture_path("g.safetensors"), &err);
        EXPECT((f != NULL) == (n == size), "%zu of %zu bytes", n, size);
        if (!f) EXPECT_CONTAINS(err.text, "g.safetensors: ");
        safetensors_close(f);
    }
    mem_free(whole);
    EXPECT(!safetensors_open(fixture_path("none"), &err), "opened");
    EXPECT_CONTAINS(err.text, "cannot open");
    EXPECT(!safetensors_open(fixture_dir, &err), "opened");
    fixture_remove(fixture_dir);
}

TEST(a_file_cut_while_open_is_an_error_not_a_crash) {
    fixture_make_dir();
    const char *path = fixture_path("f.safetensors");
    char buffer[24];
    write_sample(path);
    struct safetensors *f = safetensors_open(path, &err);
    EXPECT(f && !truncate(path, 20), "%s", err.text);
    EXPECT(f && safetensors_read(f, safetensors_find(f, "a"), 0, buffer, 24, &err), "read what is not there");
    EXPECT_CONTAINS(err.text, "the file ends here");
    safetensors_close(f);
    fixture_remove(fixture_dir);
}

TEST(a_write_that_fails_is_reported) {
    struct safetensors_layout layout = {0};
    safetensors_layout_add(&layout, "a", SAFETENSORS_F32, 1, (int64_t[]){4});
    EXPECT(!safetensors_writer_open("/nonexistent/a", &layout, &err), "opened");
    EXPECT_CONTAINS(err.text, "/nonexistent/a: cannot create");
    EXPECT(!safetensors_writer_open("/dev/full", &layout, &err), "wrote to a full device");
    EXPECT_CONTAINS(err.text, "/dev/full: cannot");
    safetensors_layout_free(&layout);
}

RUN_TESTS(CASE(well_formed_headers_are_accepted), CASE(every_kind_of_bad_header_is_refused_by_name),
          CASE(bad_header_lengths_are_refused), CASE(what_is_written_in_pieces_is_read_back),
          CASE(a_cut_or_extended_file_is_refused_at_every_length),
          CASE(a_file_cut_while_open_is_an_error_not_a_crash), CASE(a_write_that_fails_is_reported))
