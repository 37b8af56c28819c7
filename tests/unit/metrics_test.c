#include "core/base/mem.h"
#include "core/train/metrics.h"
#include "tests/temp_dir.h"
#include "tests/test.h"

static struct metrics_record record(int64_t iteration, double loss) {
    return (struct metrics_record){
        .iteration = iteration,
        .consumed_samples = 8 * iteration,
        .global_batch_size = 8,
        .tokens = 2048,
        .seconds = 0.5,
        .learning_rate = 1e-3,
        .lm_loss = loss,
        .loss_scale = 1,
        .grad_norm = 1.25,
        .params_norm = -1,
        .num_zeros = -1,
        .max_attention_logit = -1,
        .model_flops = 1e12,
        .hardware_flops = 1.25e12,
        .recompute_seconds = 0.0625,
        .memory = {.peak_allocated = 3 << 28, .peak_reserved = 1000, .peak_activation = 77}};
}

static struct metrics_options options(FILE *out) {
    return (struct metrics_options){.out = out,
                                    .train_iters = 20,
                                    .log_interval = 1,
                                    .tensorboard_log_interval = 1,
                                    .world_size = 1,
                                    .log_loss_scale_to_tensorboard = true};
}

static char text[1 << 16];

/* Runs the records through a fresh metrics object and returns what was printed, time stamps cut out. */
static const char *printed(struct metrics_options o, const struct metrics_record *records, int count) {
    struct err err = {""};
    o.out = fmemopen(text, sizeof(text), "w");
    struct metrics *m = metrics_open(&o, &err);
    EXPECT(m != NULL, "%s", err.text);
    for (int i = 0; i < count; i++) metrics_iteration(m, &records[i]);
    metrics_close(m);
    fputc('\0', o.out);
    fclose(o.out);
    for (char *p = text; (p = strstr(p, " ["));) {
        size_t length = strspn(p, " [0123456789-:.]");
        EXPECT_EQ(length, strlen(" [2026-01-31 12:00:00.123456] "));
        memmove(p, p + length - 1, strlen(p + length - 1) + 1);
    }
    return text;
}

TEST(the_iteration_line_is_the_known_one) {
    struct metrics_record r = record(7, 6.912345);
    EXPECT_STR(
        printed(options(NULL), &r, 1),
        " iteration        7/      20 | consumed samples:           56 | elapsed time per iteration (ms): "
        "500.0 | "
        "learning rate: 1.000000E-03 | global batch size:     8 | lm loss: 6.912345E+00 | loss scale: 1.0 | "
        "grad norm: 1.250 | number of skipped iterations:   0 | number of nan iterations:   0 | "
        "mem 0.75 GiB |\n");
}

TEST(every_optional_piece_stands_at_its_place) {
    struct metrics_record r = record(7, 2);
    struct metrics_options o = options(NULL);
    r.skipped_samples = 3, r.num_zeros = 12, r.params_norm = 99.5, r.memory.peak_rank = 3;
    r.num_extra = 3;
    r.extra[0] = (struct metrics_value){"z_loss", 0.5};
    r.extra[1] = (struct metrics_value){"overload_factor", 1.375};
    r.extra[2] = (struct metrics_value){"mtp_1 loss", 3};
    o.log_throughput = true, o.world_size = 4, o.peak_flops_per_rank = 1e12;
    EXPECT_STR(
        printed(o, &r, 1),
        " iteration        7/      20 | consumed samples:           56 | skipped samples:            3 | "
        "elapsed time per iteration (ms): 500.0 | throughput per GPU (TFLOP/s/GPU): 0.5 | "
        "learning rate: 1.000000E-03 | global batch size:     8 | lm loss: 2.000000E+00 | "
        "z_loss: 5.000000E-01 | overload_factor: 1.38 | mtp_1 loss: 3.000000E+00 | loss scale: 1.0 | "
        "grad norm: 1.250 | num zeros: 12 | params norm: 99.500 | number of skipped iterations:   0 | "
        "number of nan iterations:   0 | mem 0.75 GiB (rank 3) | tokens per second: 4096.0 | "
        "hardware TFLOP/s/GPU: 0.6 | MFU: 50.0% |\n");
    r.grad_norm = -1, r.hardware_flops = -1, o.peak_flops_per_rank = 0;
    EXPECT(!strstr(printed(o, &r, 1), "grad norm"), "%s", text);
    EXPECT(!strstr(text, "hardware") && !strstr(text, "MFU"), "%s", text);
}

TEST(averages_run_over_the_log_interval) {
    struct metrics_record r[6];
    struct metrics_options o = options(NULL);
    for (int i = 0; i < 6; i++) r[i] = record(i + 1, i + 1), r[i].seconds = i + 1;
    o.log_interval = 3;
    printed(o, r, 6);
    /* the first iteration has a line of its own, which does not reset the sums: 1; (1+2+3)/3; (4+5+6)/3 */
    const char *first = strstr(text, "iteration        1/"), *second = strstr(text, "iteration        3/");
    const char *third = strstr(text, "iteration        6/");
    EXPECT(first && second && third && !strstr(text, "iteration        2/"), "%s", text);
    EXPECT_CONTAINS(first, "(ms): 1000.0 |");
    EXPECT_CONTAINS(second, "(ms): 2000.0 |");
    EXPECT_CONTAINS(third, "(ms): 5000.0 |");
    EXPECT_CONTAINS(second, "lm loss: 2.000000E+00");
    EXPECT_CONTAINS(third, "lm loss: 5.000000E+00");
}

TEST(skipped_iterations_are_counted_and_left_out_of_the_loss) {
    struct metrics_record r[4];
    struct metrics_options o = options(NULL);
    for (int i = 0; i < 4; i++) r[i] = record(i + 1, 2);
    r[1].skipped = true, r[1].lm_loss = (double)INFINITY;
    r[2].skipped = true, r[2].lm_loss = 100;
    o.log_interval = 4;
    printed(o, r, 4);
    const char *last = strstr(text, "iteration        4/");
    EXPECT(last != NULL, "%s", text);
    EXPECT_CONTAINS(last, "lm loss: 2.000000E+00 |");
    EXPECT_CONTAINS(last, "number of skipped iterations:   2 | number of nan iterations:   1 |");
    r[0].skipped = true; /* nothing to average: no loss is printed */
    EXPECT(!strstr(printed(options(NULL), r, 1), "lm loss"), "%s", text);
}

TEST(a_nan_loss_is_printed_and_counted_even_when_not_skipped) {
    struct metrics_record r = record(1, -(double)NAN);
    r.grad_norm = -(double)NAN;
    printed(options(NULL), &r, 1);
    EXPECT_CONTAINS(text, "lm loss: NAN |");
    EXPECT_CONTAINS(text, "grad norm: nan |");
    EXPECT_CONTAINS(text, "number of skipped iterations:   0 | number of nan iterations:   1 |");
}

TEST(the_validation_block_is_the_known_one) {
    struct err err;
    struct metrics_options o = options(fmemopen(text, sizeof(text), "w"));
    struct metrics *m = metrics_open(&o, &err);
    metrics_evaluation(m, &(struct metrics_evaluation){.iteration = 10, .lm_loss = 2});
    metrics_evaluation(
        m, &(struct metrics_evaluation){.iteration = 20, .lm_loss = 30, .set = "1", .where = "test set"});
    metrics_evaluation_progress(m, 0, 4, 32);
    metrics_evaluation_progress(m, 1, 4, 32);
    metrics_close(m);
    fputc('\0', o.out);
    fclose(o.out);
    EXPECT_STR(
        text,
        "----------------------------------------------------------------------------------------------\n"
        " validation loss at iteration 10 | lm loss value: 2.000000E+00 | lm loss PPL: 7.389056E+00 | \n"
        "----------------------------------------------------------------------------------------------\n"
        "--------------------------------------------------------------------------------------------------"
        "----------\n"
        " validation-1 loss at iteration 20 on test set | lm loss value: 3.000000E+01 | lm loss PPL: "
        "4.851652E+08 | \n"
        "--------------------------------------------------------------------------------------------------"
        "----------\n"
        "Evaluating on 32 samples\nEvaluating iter 1/4\n");
}

TEST(the_memory_report_is_the_known_one) {
    FILE *out = fmemopen(text, sizeof(text), "w");
    struct metrics_memory m = {
        .allocated = 1 << 20, .peak_allocated = 3 << 19, .reserved = 2 << 20, .peak_reserved = 4 << 20};
    metrics_memory_report(out, 2, 5, &m);
    m.device_used = 1 << 30;
    metrics_memory_report(out, 0, 6, &m);
    fputc('\0', out);
    fclose(out);
    EXPECT_STR(
        text, "[Rank 2] (after 5 iterations) memory (MB) | allocated: 1.00 | max allocated: 1.50 | reserved: "
              "2.00 | max reserved: 4.00\n"
              "[Rank 0] (after 6 iterations) memory (MB) | allocated: 1.00 | max allocated: 1.50 | reserved: "
              "2.00 | max reserved: 4.00 | total device memory used: 1024.00\n");
}

/* ---- the metrics file ---- */

static const char *read_file(const char *path) {
    FILE *file = fopen(path, "rb");
    text[0] = '\0';
    if (!file) return "(no file)";
    text[fread(text, 1, sizeof(text) - 1, file)] = '\0';
    fclose(file);
    return text;
}

static void write_file(const char *path, const char *content) {
    FILE *file = fopen(path, "wb");
    fputs(content, file);
    fclose(file);
}

static int run_file(const char *path, int64_t start, int64_t end, struct err *err) {
    struct metrics_options o = options(NULL);
    o.metrics_file = path, o.start_iteration = start;
    struct metrics *m = metrics_open(&o, err);
    if (!m) return -1;
    for (int64_t i = start + 1; i <= end; i++) {
        struct metrics_record r = record(i, (double)i);
        metrics_iteration(m, &r);
    }
    metrics_close(m);
    return 0;
}

TEST(json_lines_hold_exactly_the_keys_of_the_contract) {
    struct temp_dir dir;
    struct err err = {""};
    temp_dir_make(&dir);
    struct metrics_options o = options(NULL);
    o.metrics_file = temp_dir_file(&dir, "m.jsonl"), o.world_size = 2, o.peak_flops_per_rank = 4e12;
    struct metrics *m = metrics_open(&o, &err);
    EXPECT(m != NULL, "%s", err.text);
    struct metrics_record r = record(1, 0.1f);
    r.has_params_hash = true, r.params_hash = 0x00ABCDEF12345678;
    r.extra[r.num_extra++] = (struct metrics_value){"z_loss", 0.5};
    r.extra[r.num_extra++] = (struct metrics_value){"mtp_1 loss", 3};
    metrics_iteration(m, &r);
    r = record(2, (double)NAN);
    r.grad_norm = -1, r.hardware_flops = -1, r.recompute_seconds = -1, r.seconds = 0;
    metrics_iteration(m, &r);
    metrics_close(m);
    EXPECT_STR(
        read_file(dir.file),
        "{\"iteration\":1,\"consumed_samples\":8,\"lm_loss\":0.100000001,\"grad_norm\":1.25,"
        "\"learning_rate\":0.001,\"elapsed_ms\":500,\"tokens_per_second\":4096,\"model_tflops\":1,"
        "\"hardware_tflops\":1.25,\"mfu\":0.25,\"recompute_ms\":62.5,\"peak_allocated_bytes\":805306368,"
        "\"peak_reserved_bytes\":1000,\"peak_activation_bytes\":77,\"z_loss\":0.5,\"mtp_1_loss\":3,"
        "\"params_hash\":\"00abcdef12345678\"}\n"
        "{\"iteration\":2,\"consumed_samples\":16,\"lm_loss\":null,\"grad_norm\":null,"
        "\"learning_rate\":0.001,\"elapsed_ms\":0,\"tokens_per_second\":null,\"model_tflops\":null,"
        "\"hardware_tflops\":null,\"mfu\":null,\"recompute_ms\":null,\"peak_allocated_bytes\":805306368,"
        "\"peak_reserved_bytes\":1000,\"peak_activation_bytes\":77}\n");
    temp_dir_remove(&dir);
}

TEST(nine_digits_bring_back_every_float32) {
    uint32_t bits = 0x00800000;
    for (int i = 0; i < 100000; i++, bits += 21001) {
        char digits[40];
        float value, back;
        memcpy(&value, &bits, 4);
        snprintf(digits, sizeof(digits), "%.9g", (double)value);
        back = strtof(digits, NULL);
        EXPECT(back == value, "%08x", bits);
    }
}

TEST(a_resumed_run_continues_the_file_and_a_fresh_run_empties_it) {
    struct temp_dir dir;
    struct err err = {""};
    char path[600], *straight;
    temp_dir_make(&dir);
    snprintf(path, sizeof(path), "%s", temp_dir_file(&dir, "m.jsonl"));
    EXPECT_EQ(run_file(path, 0, 200, &err), 0);
    straight = mem_strdup(read_file(path), "copy");
    EXPECT_EQ(run_file(path, 0, 150, &err), 0); /* killed at 150, ... */
    FILE *file = fopen(path, "ab");             /* ... in the middle of a line ... */
    fputs("{\"iteration\":151,\"consu", file);
    fclose(file);
    EXPECT_EQ(run_file(path, 120, 200, &err), 0); /* ... with the last checkpoint at 120 */
    EXPECT_STR(read_file(path), straight);
    EXPECT_EQ(run_file(path, 150, 151, &err), 0);
    EXPECT_EQ(strlen(read_file(path)), strstr(straight, "{\"iteration\":152") - straight);
    mem_free(straight);
    temp_dir_remove(&dir);
}

TEST(a_file_that_is_no_metrics_file_is_not_emptied) {
    struct temp_dir dir;
    struct err err = {""};
    char path[600];
    temp_dir_make(&dir);
    snprintf(path, sizeof(path), "%s", temp_dir_file(&dir, "thesis.txt"));
    write_file(path, "{\"years\": 5}\n");
    EXPECT_EQ(run_file(path, 0, 1, &err), -1);
    EXPECT_CONTAINS(err.text, "--metrics-file");
    EXPECT_STR(read_file(path), "{\"years\": 5}\n");
    EXPECT_EQ(run_file("/nonexistent/m.jsonl", 0, 1, &err), -1);
    EXPECT_CONTAINS(err.text, "/nonexistent/m.jsonl");
    EXPECT_EQ(run_file("/", 0, 1, &err), -1);
    EXPECT_EQ(run_file("/dev/null", 0, 1, &err), 0);
    write_file(path, "{\"itera"); /* torn while the first line was written */
    EXPECT_EQ(run_file(path, 0, 1, &err), 0);
    EXPECT(!strncmp(read_file(path), "{\"iteration\":1,", 15), "%s", text);
    temp_dir_remove(&dir);
}

TEST(a_full_disk_does_not_stop_the_training) {
    struct err err = {""};
    if (!freopen("/dev/null", "w", stderr)) return; /* the reason is logged once */
    EXPECT_EQ(run_file("/dev/full", 0, 5, &err), 0);
}

/* ---- TensorBoard: tags, taken out of the file by looking for them ---- */

static int count_tag(const char *data, size_t size, const char *tag) {
    char field[200];
    int count = 0;
    size_t n =
        (size_t)snprintf(field, sizeof(field), "\n%c%s\x15", (int)strlen(tag), tag); /* field 1, then 2 */
    for (size_t i = 0; i + n <= size; i++) count += !memcmp(data + i, field, n);
    return count;
}

static int tags_written(struct metrics_options o, struct metrics_record r, const char *const *tags,
                        int count) {
    struct temp_dir dir;
    struct err err = {""};
    int found = 0;
    temp_dir_make(&dir);
    o.tensorboard = tensorboard_open(dir.path, &err);
    struct metrics *m = metrics_open(&o, &err);
    metrics_iteration(m, &r);
    metrics_evaluation(m, &(struct metrics_evaluation){.iteration = 1, .lm_loss = 2});
    metrics_evaluation(m, &(struct metrics_evaluation){.iteration = 1, .lm_loss = 2, .where = "test set"});
    metrics_close(m);
    FILE *file = fopen(tensorboard_path(o.tensorboard), "rb");
    size_t size = fread(text, 1, sizeof(text), file);
    fclose(file);
    tensorboard_close(o.tensorboard);
    temp_dir_remove(&dir);
    for (int i = 0; i < count; i++) {
        int n = count_tag(text, size, tags[i]);
        EXPECT(n <= 1, "'%s' was written %d times", tags[i], n);
        found += n;
    }
    for (size_t i = 0; i + 1 < size; i++) found -= 1000 * (text[i] == '\n' && text[i + 1] == 0);
    return found;
}

TEST(scalars_have_the_known_names_and_conditions) {
    static const char *const always[] = {
        "learning-rate", "learning-rate vs samples", "batch-size",         "batch-size vs samples",
        "lm loss",       "lm loss vs samples",       "loss-scale",         "loss-scale vs samples",
        "grad-norm",     "grad-norm vs samples",     "lm loss validation", "lm loss validation vs samples"};
    static const char *const optional[] = {"skipped-train-samples",
                                           "world-size",
                                           "world-size vs samples",
                                           "num-zeros",
                                           "num-zeros vs samples",
                                           "params-norm",
                                           "params-norm vs samples",
                                           "mem-reserved-bytes",
                                           "mem-allocated-bytes",
                                           "mem-max-allocated-bytes",
                                           "mem-allocated-count",
                                           "max_attention_logit",
                                           "iteration-time",
                                           "throughput",
                                           "z_loss",
                                           "z_loss vs samples",
                                           "lm loss validation ppl",
                                           "lm loss validation ppl vs samples"};
    struct metrics_options o = options(NULL);
    struct metrics_record r = record(1, 2);
    int all = ARRAY_COUNT(always), more = ARRAY_COUNT(optional);
    EXPECT_EQ(tags_written(o, r, always, all), all);
    EXPECT_EQ(tags_written(o, r, optional, more), 0);
    o.log_world_size_to_tensorboard = o.log_memory_to_tensorboard = o.log_validation_ppl_to_tensorboard =
        true;
    o.log_timers_to_tensorboard = o.log_throughput = true;
    r.skipped_samples = 1, r.num_zeros = 0, r.params_norm = 0, r.max_attention_logit = 0;
    r.num_extra = 1, r.extra[0] = (struct metrics_value){"z_loss", 1};
    EXPECT_EQ(tags_written(o, r, always, all), all);
    EXPECT_EQ(tags_written(o, r, optional, more), more);
    o.log_loss_scale_to_tensorboard = false, r.grad_norm = -1;
    EXPECT_EQ(tags_written(o, r, always, all), all - 4);
    o.tensorboard_log_interval = 2; /* iteration 1 is not written, its validation is */
    EXPECT_EQ(tags_written(o, r, always, all), 2);
}

TEST(nothing_is_allocated_after_open) {
    struct temp_dir dir;
    struct err err = {""};
    char path[600];
    temp_dir_make(&dir);
    snprintf(path, sizeof(path), "%s", temp_dir_file(&dir, "m.jsonl"));
    struct metrics_options o = options(fopen("/dev/null", "w"));
    o.tensorboard = tensorboard_open(dir.path, &err), o.metrics_file = path, o.log_throughput = true;
    struct metrics *m = metrics_open(&o, &err);
    uint64_t before = mem_stats().allocations, live = mem_stats().live_bytes;
    for (int i = 1; i < 3000; i++) {
        struct metrics_record r = record(i, 1);
        r.num_extra = 1, r.extra[0] = (struct metrics_value){"z_loss", 1};
        metrics_iteration(m, &r);
        if (i % 100 == 0) metrics_evaluation(m, &(struct metrics_evaluation){.iteration = i, .lm_loss = 1});
    }
    EXPECT_EQ(mem_stats().allocations, before);
    EXPECT_EQ(mem_stats().live_bytes, live);
    metrics_close(m);
    tensorboard_close(o.tensorboard);
    fclose(o.out);
    temp_dir_remove(&dir);
}

RUN_TESTS(CASE(the_iteration_line_is_the_known_one), CASE(every_optional_piece_stands_at_its_place),
          CASE(averages_run_over_the_log_interval),
          CASE(skipped_iterations_are_counted_and_left_out_of_the_loss),
          CASE(a_nan_loss_is_printed_and_counted_even_when_not_skipped),
          CASE(the_validation_block_is_the_known_one), CASE(the_memory_report_is_the_known_one),
          CASE(json_lines_hold_exactly_the_keys_of_the_contract), CASE(nine_digits_bring_back_every_float32),
          CASE(a_resumed_run_continues_the_file_and_a_fresh_run_empties_it),
          CASE(a_file_that_is_no_metrics_file_is_not_emptied), CASE(a_full_disk_does_not_stop_the_training),
          CASE(scalars_have_the_known_names_and_conditions), CASE(nothing_is_allocated_after_open))
