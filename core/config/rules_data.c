/* Rules and derived values of data sources, split and tokenizer. */
#include "core/config/rules.h"
#include <stdlib.h>
#include <string.h>

/* "969, 30, 1", "99,1,0", with or without quotes that a shell script left in: the numbers count. */
static int rules_split(struct config *cfg, struct err *err) {
    const char *at = cfg->split;
    double sum = 0;
    int count = 0;
    REQUIRE(strspn(at, "0123456789., '\"") == strlen(at),
            "--split %s: give three numbers with commas between them, as 969,30,1", at);
    while (at += strspn(at, ", '\""), *at) {
        size_t length = strspn(at, "0123456789.");
        char number[32], *end;
        REQUIRE(count < 3 && length < sizeof(number), "--split %s: give at most three numbers, as 969,30,1",
                cfg->split);
        memcpy(number, at, length);
        number[length] = 0;
        cfg->split_weights[count] = strtod(number, &end);
        REQUIRE(!*end && isfinite(cfg->split_weights[count]),
                "--split %s: '%s' is not a number; give three, as 969,30,1", cfg->split, number);
        sum += cfg->split_weights[count++];
        at += length;
    }
    REQUIRE(sum > 0, "--split %s: at least one share must be above 0, as in 969,30,1", cfg->split);
    for (int i = 0; i < 3; i++) cfg->split_weights[i] /= sum;
    return 0;
}

static int rules_source(struct config *cfg, struct err *err) {
    static const int lists[] = {CONFIG_FLAG_data_path, CONFIG_FLAG_train_data_path,
                                CONFIG_FLAG_valid_data_path, CONFIG_FLAG_test_data_path};
    for (size_t i = 0; i < ARRAY_COUNT(lists); i++) {
        REQUIRE(((const struct config_texts *)flag_field(cfg, lists[i]))->count != 0,
                "%s names no data: give PREFIX, or WEIGHT PREFIX ..., or drop it",
                config_flag_name(lists[i]));
    }
    bool blend = config_is_set(cfg, data_path) || cfg->data_args_path;
    bool split_paths = config_is_set(cfg, train_data_path) || config_is_set(cfg, valid_data_path) ||
                       config_is_set(cfg, test_data_path);
    bool per_split = split_paths || cfg->per_split_data_args_path;
    REQUIRE(!config_is_set(cfg, data_path) || !cfg->data_args_path,
            "--data-path and --data-args-path exclude each other: drop one of them");
    REQUIRE(!split_paths || !cfg->per_split_data_args_path,
            "--train-data-path and its kind exclude --per-split-data-args-path: drop one of them");
    REQUIRE(
        cfg->mock_data + blend + per_split <= 1,
        "--mock-data, --data-path and --train-data-path (with its kind) exclude each other: keep one source");
    REQUIRE(cfg->mock_data + blend + per_split == 1 || rules_plans_only(cfg),
            "no data: give --data-path PREFIX or --train-data-path PREFIX, or --mock-data to train on "
            "made-up data "
            "(Megatron-LM would do that silently)");
    if (rules_data_args(cfg, err)) return -1;
    REQUIRE(!per_split || !cfg->split,
            "--split divides --data-path and has no effect with paths per split: drop it");
    if (!cfg->split) {
        cfg->split = "969, 30, 1";
        if (!per_split) config_derive(cfg, CONFIG_FLAG_split, "Megatron-LM's default");
        if (blend) config_note(cfg, "--split: not given, taken as 969, 30, 1 (as in Megatron-LM)");
    }
    if (config_is_set(cfg, dataloader_type)) return rules_split(cfg, err);
    cfg->dataloader_type = DATALOADER_TYPE_SINGLE;
    config_derive(cfg, CONFIG_FLAG_dataloader_type, "--data-path");
    return rules_split(cfg, err);
}

static int rules_tokenizer(struct config *cfg, struct err *err) {
    if (!config_is_set(cfg, tokenizer_type)) {
        const char *from = cfg->vocab_file || cfg->merge_file ? "--vocab-file"
                           : cfg->tokenizer_model             ? "--tokenizer-model"
                           : config_is_set(cfg, vocab_size)   ? "--vocab-size"
                                                              : "--mock-data";
        REQUIRE(cfg->vocab_file || cfg->merge_file || cfg->tokenizer_model ||
                    config_is_set(cfg, vocab_size) || cfg->mock_data,
                "the vocabulary is unknown: give --tokenizer-type with its files, or --vocab-size");
        cfg->tokenizer_type = cfg->vocab_file || cfg->merge_file ? TOKENIZER_TYPE_GPT2_BPE
                              : cfg->tokenizer_model             ? TOKENIZER_TYPE_HUGGING_FACE
                              : config_is_set(cfg, vocab_size)   ? TOKENIZER_TYPE_NULL
                                                                 : TOKENIZER_TYPE_BYTE;
        config_derive(cfg, CONFIG_FLAG_tokenizer_type, from);
    }
    int type = cfg->tokenizer_type;
    REQUIRE(type != TOKENIZER_TYPE_GPT2_BPE || (cfg->vocab_file && cfg->merge_file),
            "GPT2BPETokenizer needs --vocab-file and --merge-file: give both");
    REQUIRE(type != TOKENIZER_TYPE_HUGGING_FACE || cfg->tokenizer_model,
            "HuggingFaceTokenizer needs --tokenizer-model: give the tokenizer.json or its folder");
    REQUIRE(type != TOKENIZER_TYPE_NULL || config_is_set(cfg, vocab_size),
            "NullTokenizer needs --vocab-size: give it");
    REQUIRE(type == TOKENIZER_TYPE_GPT2_BPE || (!cfg->vocab_file && !cfg->merge_file),
            "--vocab-file and --merge-file belong to --tokenizer-type GPT2BPETokenizer: drop them or change "
            "the type");
    REQUIRE(type == TOKENIZER_TYPE_HUGGING_FACE || !cfg->tokenizer_model,
            "--tokenizer-model belongs to --tokenizer-type HuggingFaceTokenizer: drop it or change the type");
    REQUIRE(type == TOKENIZER_TYPE_NULL || (!GAVE(null_tokenizer_eod_id) && !GAVE(null_tokenizer_pad_id)),
            "--null-tokenizer-eod-id and --null-tokenizer-pad-id belong to --tokenizer-type NullTokenizer: "
            "drop them or "
            "change the type");
    REQUIRE(type != TOKENIZER_TYPE_NULL || !config_is_set(cfg, null_tokenizer_eod_id) ||
                cfg->null_tokenizer_eod_id < cfg->vocab_size,
            "--null-tokenizer-eod-id %lld is outside --vocab-size %lld: lower it",
            (long long)cfg->null_tokenizer_eod_id, (long long)cfg->vocab_size);
    return 0;
}

int rules_data(struct config *cfg, struct err *err) {
    return rules_source(cfg, err) || rules_tokenizer(cfg, err) ? -1 : 0;
}
