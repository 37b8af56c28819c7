#include "core/data/options.h"
#include "core/config/config.h"

static const char *tokenizer_name(int type) {
    switch (type) {
    case TOKENIZER_TYPE_GPT2_BPE:
        return "GPT2BPETokenizer";
    case TOKENIZER_TYPE_HUGGING_FACE:
        return "HuggingFaceTokenizer";
    case TOKENIZER_TYPE_NULL:
        return "NullTokenizer";
    default:
        return "ByteTokenizer";
    }
}

int tokenizer_open_from_config(const struct config *config, struct tokenizer **tokenizer_p, struct err *err) {
    struct tokenizer_options options = {
        .type = tokenizer_name(config->tokenizer_type),
        .vocab_file = config->vocab_file,
        .merge_file = config->merge_file,
        .model = config->tokenizer_model,
        .vocab_size = config_is_set(config, vocab_size) ? config->vocab_size : 0,
        .null_eod_id = config_is_set(config, null_tokenizer_eod_id) ? config->null_tokenizer_eod_id : -1,
        .null_pad_id = config->null_tokenizer_pad_id,
    };
    *tokenizer_p = tokenizer_open(&options, err);
    return *tokenizer_p ? 0 : -1;
}

static struct data_words words_of(const struct config_texts *texts) {
    return texts->count > 0 ? (struct data_words){texts->items, (int)texts->count} : (struct data_words){0};
}

/* Samples that the flags demand: training to the end of the schedule, and every evaluation on the way. */
static int64_t train_samples(const struct config *c) {
    int64_t samples = 0;
    for (int64_t i = 0; i < c->train_iters; i++) samples += config_batch_size_at(c, samples);
    return samples;
}

static void demand_samples(const struct config *c, struct data_options *options) {
    int64_t evaluations = 0, evaluated = c->eval_iters * c->eval_global_batch_size;
    if (config_is_set(c, eval_interval)) evaluations = c->train_iters / c->eval_interval;
    options->num_samples[DATA_TRAIN] = c->skip_train ? 0 : train_samples(c);
    options->num_samples[DATA_VALID] = (evaluations + 1) * evaluated; /* and one at the end */
    options->num_samples[DATA_TEST] = evaluated;
}

int data_options_from_config(const struct config *config, const struct tokenizer *tokenizer,
                             struct data_options *options, struct err *err) {
    (void)err;
    *options = (struct data_options){
        .mock = config->mock_data,
        .data_path = words_of(&config->data_path),
        .split_path = {words_of(&config->train_data_path), words_of(&config->valid_data_path),
                       words_of(&config->test_data_path)},
        .split = config->split,
        .seq_length = config->seq_length,
        .seed = config->seed,
        .mid_level_surplus = config->mid_level_dataset_surplus,
        .mock_vocab_size = tokenizer ? tokenizer_vocab_size(tokenizer) : config->vocab_size,
        .eod_id = tokenizer ? tokenizer_eod(tokenizer) : -1,
        .pad_id = tokenizer ? tokenizer_pad(tokenizer) : -1,
        .reset_position_ids = config->reset_position_ids,
        .eod_mask_loss = config->eod_mask_loss,
    };
    demand_samples(config, options);
    return 0;
}
