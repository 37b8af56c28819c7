/* Any command line is parsed and validated, or refused with one line; nothing else. The input is cut into
 * words at NUL bytes and newlines; a word whose first byte is above 127 stands for the flag that its first
 * two bytes number. An input that starts with '+' is put behind a working command line, so that the rules are
 * reached. */
#include "core/config/config.h"
#include "core/base/mem.h"
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const char *const working[] = {"pretrain_gpt",
                                      "--num-layers",
                                      "4",
                                      "--hidden-size",
                                      "256",
                                      "--num-attention-heads",
                                      "8",
                                      "--seq-length",
                                      "256",
                                      "--max-position-embeddings",
                                      "256",
                                      "--micro-batch-size",
                                      "4",
                                      "--train-iters",
                                      "20",
                                      "--lr",
                                      "1e-3",
                                      "--mock-data",
                                      "--vocab-size",
                                      "1024"};

static const struct config_module modules[] = {
    {"core_attn", true, NULL}, {"mlp", true, NULL}, {"moe", false, "this model has no experts; drop it"}};

/* What main does with a config. */
static void use(struct config *cfg) {
    struct err err = {""};
    struct str json = {0};
    FILE *out = fopen("/dev/null", "w");
    if (!config_validate(cfg, modules, ARRAY_COUNT(modules), &err)) {
        config_print_notes(out, cfg);
        config_print_resolved(out, cfg);
        config_write_json(&json, cfg);
        config_hash(cfg);
        CHECK(config_batch_size_at(cfg, 0) > 0 && config_batch_size_at(cfg, INT64_MAX) > 0, "no batch size");
        config_padded_vocab_size(cfg, 1000, &err);
    } else {
        CHECK(err.text[0] && !strchr(err.text, '\n'), "message is not one line: '%s'", err.text);
    }
    fclose(out);
    str_free(&json);
    config_free(cfg);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    enum { MOST = 64 };
    const char *argv[ARRAY_COUNT(working) + MOST];
    int argc = 1;
    struct err err = {""};
    struct config cfg;
    memcpy(argv, working, sizeof(working));
    if (size && data[0] == '+') argc = ARRAY_COUNT(working), data++, size--;
    int most = argc + MOST;
    char *text = mem_alloc(size + 1, "fuzz input");
    if (size) memcpy(text, data, size);
    text[size] = 0;
    for (char *at = text, *end = text + size; at < end && argc < most; at += strlen(at) + 1) {
        char *newline = strchr(at, '\n');
        if (newline) *newline = 0;
        const unsigned char *byte = (const unsigned char *)at;
        const char *word =
            byte[0] > 127 ? config_flag_name((byte[0] * 256u + byte[1]) % CONFIG_FLAG_COUNT) : at;
        if (strncmp(word, "--yaml-cfg", 10)) argv[argc++] = word; /* fuzz_yaml reads YAML */
    }
    if (!config_parse(argc, argv, &cfg, &err))
        use(&cfg);
    else
        CHECK(err.text[0], "no message");
    mem_free(text);
    return 0;
}
