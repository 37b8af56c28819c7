#include "core/data/preprocess_flags.h"
#include "core/base/mem.h"
#include <limits.h>
#include <stdlib.h>
#include <string.h>

enum kind { TEXT, WORDS, NUMBER, SWITCH, REFUSED };

/* One row per flag; `field` is its place in struct preprocess_flags. For REFUSED, help says why. */
static const struct flag {
    const char *name;
    enum kind kind;
    size_t field;
    const char *help;
} flags[] = {
#define AT(member) offsetof(struct preprocess_flags, member)
    {"--input", WORDS, AT(inputs), "files, folders or patterns: JSON lines or plain text"},
    {"--input-format", TEXT, SIZE_MAX, "jsonl, text or auto, which goes by the file's name (default auto)"},
    {"--json-keys", WORDS, AT(keys), "keys of each JSON line that hold text (default text)"},
    {"--skip-bad-lines", SWITCH, AT(options.skip_bad_lines),
     "leave bad JSON lines out and count them (default: stop)"},
    {"--output-prefix", TEXT, AT(options.output_prefix), "writes PREFIX_KEY_document.bin and .idx"},
    {"--append-eod", SWITCH, AT(options.append_eod), "end each document with the end-of-document token"},
    {"--workers", NUMBER, AT(options.workers), "threads (default: one per processor)"},
    {"--log-interval", NUMBER, AT(log_interval), "documents between progress lines (default 1000)"},
    {"--tokenizer-type", TEXT, AT(options.tokenizer.type),
     "ByteTokenizer, GPT2BPETokenizer, HuggingFaceTokenizer or NullTokenizer"},
    {"--vocab-file", TEXT, AT(options.tokenizer.vocab_file), "vocab.json of GPT2BPETokenizer"},
    {"--merge-file", TEXT, AT(options.tokenizer.merge_file), "merges.txt of GPT2BPETokenizer"},
    {"--tokenizer-model", TEXT, AT(options.tokenizer.model),
     "folder or tokenizer.json of HuggingFaceTokenizer"},
    {"--vocab-size", NUMBER, AT(options.tokenizer.vocab_size), "ids of NullTokenizer"},
    {"--null-tokenizer-eod-id", NUMBER, AT(options.tokenizer.null_eod_id),
     "its end of document (default: the last id)"},
    {"--tokenizer-hf-no-include-special-tokens", SWITCH, AT(options.tokenizer.no_special_tokens),
     "do not put the tokens of tokenizer.json's post_processor (BOS) around each document"},
    {"--help", SWITCH, AT(help), "this text"},
    {"--split-sentences", REFUSED, 0,
     "sentence splitting is for BERT-style training, which this program does not do"},
    {"--keep-newlines", REFUSED, 0, "it belongs to --split-sentences"},
    {"--lang", REFUSED, 0, "it belongs to --split-sentences"},
    {"--partitions", REFUSED, 0, "one process with --workers threads does all of it"},
    {"--keep-sequential-samples", REFUSED, 0, "the order of the input is always kept; leave the flag out"},
    {"--find-optimal-num-workers", REFUSED, 0,
     "leave it and --workers out: one thread per processor is used"},
    {"--workers-to-check", REFUSED, 0, "it belongs to --find-optimal-num-workers"},
    {"--max-documents", REFUSED, 0, "it belongs to --find-optimal-num-workers"},
    {"--performance-dir", REFUSED, 0, "it belongs to --find-optimal-num-workers"},
    {"--vocab-extra-ids", REFUSED, 0, "extra ids are not supported"},
    {"--tiktoken-pattern", REFUSED, 0,
     "TikTokenizer is not supported; convert the model to a tokenizer.json"},
};

static const struct flag *find_flag(const char *name, size_t length) {
    for (size_t i = 0; i < ARRAY_COUNT(flags); i++)
        if (strlen(flags[i].name) == length && !memcmp(flags[i].name, name, length)) return &flags[i];
    return NULL;
}

static int unknown_flag(const char *word, struct err *err) {
    const char *nearest = NULL;
    int best = 4;
    for (size_t i = 0; i < ARRAY_COUNT(flags); i++) {
        int distance = str_edit_distance(word, flags[i].name, best);
        if (distance < best) best = distance, nearest = flags[i].name;
    }
    return err_set(err, "%s is no flag of preprocess_data%s%s%s; --help lists them", word,
                   nearest ? "; did you mean " : "", nearest ? nearest : "", nearest ? "?" : "");
}

static int parse_number(const char *name, const char *word, int64_t *value_p, struct err *err) {
    char *end;
    long long value = strtoll(word, &end, 10);
    if (end == word || *end || value < 0 || value > INT32_MAX)
        return err_set(err, "%s %s: must be a whole number from 0 to %d", name, word, INT32_MAX);
    *value_p = value;
    return 0;
}

static int set_format(struct preprocess_flags *f, const char *word, struct err *err) {
    static const char *const names[] = {
        [TEXT_FORMAT_AUTO] = "auto", [TEXT_FORMAT_JSONL] = "jsonl", [TEXT_FORMAT_TEXT] = "text"};
    for (size_t i = 0; i < ARRAY_COUNT(names); i++)
        if (!strcmp(word, names[i])) {
            f->options.format = (enum text_format)i;
            return 0;
        }
    return err_set(err, "--input-format %s: must be jsonl, text or auto", word);
}

static int set_number(struct preprocess_flags *f, const struct flag *flag, const char *word,
                      struct err *err) {
    int64_t value = 0;
    if (parse_number(flag->name, word, &value, err)) return -1;
    char *field = (char *)f + flag->field;
    if (flag->field == AT(options.workers))
        f->options.workers = (int)value;
    else
        memcpy(field, &value, sizeof(value));
    return 0;
}

/* Takes the value of one flag; *i_p is the index of the last word used. */
static int take_flag(struct preprocess_flags *f, const struct flag *flag, const char *value, int argc,
                     char **argv, int *i_p, struct err *err) {
    char *field = (char *)f + flag->field;
    if (flag->kind == REFUSED) return err_set(err, "%s: %s", flag->name, flag->help);
    if (flag->kind == SWITCH) {
        if (value) return err_set(err, "%s takes no value", flag->name);
        *(bool *)(void *)field = true;
        return 0;
    }
    if (flag->kind == WORDS && !value) {
        const char ***list = (const char ***)(void *)field;
        int *count = flag->field == AT(inputs) ? &f->options.num_inputs : &f->options.num_keys;
        for (*count = 0; *i_p + 1 < argc && strncmp(argv[*i_p + 1], "--", 2); ++*i_p)
            (*list)[(*count)++] = argv[*i_p + 1];
        return *count ? 0 : err_set(err, "%s needs at least one value", flag->name);
    }
    if (!value && *i_p + 1 < argc) value = argv[++*i_p];
    if (!value) return err_set(err, "%s needs a value", flag->name);
    if (flag->kind == WORDS) {
        (*(const char ***)(void *)field)[0] = value;
        *(flag->field == AT(inputs) ? &f->options.num_inputs : &f->options.num_keys) = 1;
        return 0;
    }
    if (flag->kind == NUMBER) return set_number(f, flag, value, err);
    if (flag->field == SIZE_MAX) return set_format(f, value, err);
    memcpy(field, &value, sizeof(value));
    return 0;
}

int preprocess_flags_parse(int argc, char **argv, struct preprocess_flags *result, struct err *err) {
    struct preprocess_flags f = {.log_interval = 1000};
    f.options.tokenizer.null_eod_id = f.options.tokenizer.null_pad_id = -1;
    f.inputs = mem_new_array(const char *, (size_t)argc + 1, "input words");
    f.keys = mem_new_array(const char *, (size_t)argc + 1, "key words");
    int status = 0;
    for (int i = 1; i < argc && !status; i++) {
        const char *equals = strchr(argv[i], '=');
        size_t length = equals ? (size_t)(equals - argv[i]) : strlen(argv[i]);
        const struct flag *flag = find_flag(argv[i], length);
        status = flag ? take_flag(&f, flag, equals ? equals + 1 : NULL, argc, argv, &i, err)
                      : unknown_flag(argv[i], err);
    }
    f.options.inputs = f.inputs;
    f.options.json_keys = f.keys;
    if (!status && !f.help && !f.options.num_inputs)
        status = err_set(err, "--input is missing: the text files, folders or JSON lines to read");
    if (!status && !f.help && !f.options.output_prefix)
        status = err_set(err, "--output-prefix is missing: the path of the output without suffix");
    if (status)
        preprocess_flags_free(&f);
    else
        *result = f;
    return status;
}

void preprocess_flags_free(struct preprocess_flags *f) {
    mem_free(f->inputs);
    mem_free(f->keys);
    f->inputs = f->keys = NULL;
}

void preprocess_flags_help(FILE *out) {
    fprintf(out,
            "usage: preprocess_data --input FILE... --output-prefix PREFIX --tokenizer-type TYPE [flags]\n"
            "turns text into an indexed dataset for pretrain_gpt --data-path PREFIX_text_document\n\n");
    for (size_t i = 0; i < ARRAY_COUNT(flags); i++) {
        static const char *const value[] = {[TEXT] = " X", [WORDS] = " X...", [NUMBER] = " N", [SWITCH] = ""};
        if (flags[i].kind == REFUSED) continue;
        int used = fprintf(out, "  %s%s", flags[i].name, value[flags[i].kind]);
        fprintf(out, "%*s%s\n", used < 30 ? 30 - used : 1, "", flags[i].help);
    }
    fprintf(out, "\nexample: preprocess_data --input books/ --output-prefix books --tokenizer-type "
                 "ByteTokenizer --append-eod\n");
}
