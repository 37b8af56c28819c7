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

/* Megatron-LM's numbers, which decide the epochs and so the order: train_samples, or train_iters times the
 * full global batch size even where a ramp-up takes less. */
static int64_t train_samples(const struct config *c) {
    if (config_is_set(c, train_samples)) return c->train_samples;
    int64_t samples = 0, full = c->train_iters * c->global_batch_size;
    if (c->batch_stage_count == 1) return full;
    for (int64_t i = 0; i < c->train_iters; i++) samples += config_batch_size_at(c, samples);
    return samples > full ? samples : full;
}

/* Every evaluation on the way, and one at the end. */
static int64_t evaluations(const struct config *c) {
    int64_t points = 1, skipped = 0;
    if (c->skip_train || !config_is_set(c, eval_interval)) return 1;
    points += c->train_iters / c->eval_interval;
    /* Megatron-LM counts one evaluation too few here when start_eval_at_iter is a multiple of the interval */
    if (config_is_set(c, start_eval_at_iter) && c->start_eval_at_iter > 0)
        skipped = (c->start_eval_at_iter - 1) / c->eval_interval;
    return points > skipped ? points - skipped : 1;
}

int data_options_from_config(const struct config *c, const struct tokenizer *tokenizer,
                             struct data_options *options, struct err *err) {
    int64_t own = tokenizer ? tokenizer_vocab_size(tokenizer) : c->vocab_size, vocab = own;
    int64_t evaluated = c->eval_iters * c->eval_global_batch_size;
    if (own < 1)
        return err_set(err,
                       "the vocabulary is unknown: give --tokenizer-type with its files, or --vocab-size");
    if (config_is_set(c, vocab_size) && c->vocab_size > vocab) vocab = c->vocab_size;
    *options = (struct data_options){
        .mock = c->mock_data,
        .data_path = words_of(&c->data_path),
        .split_path = {words_of(&c->train_data_path), words_of(&c->valid_data_path),
                       words_of(&c->test_data_path)},
        .path_file = c->data_args_path,
        .split_path_file = c->per_split_data_args_path,
        /* mock data is split evenly, as in Megatron-LM, unless the user says otherwise */
        .split = c->mock_data && !config_is_given(c, split) ? NULL : c->split,
        .seq_length = c->seq_length,
        .seed = c->seed,
        .num_samples = {c->skip_train ? 0 : train_samples(c), evaluations(c) * evaluated, evaluated},
        .mid_level_surplus = c->mid_level_dataset_surplus,
        .vocab_size = vocab + c->vocab_extra_ids,
        .mock_vocab_size = own,
        /* NullTokenizer stands for any data that is tokenized already */
        .tokenizer_hash =
            tokenizer && c->tokenizer_type != TOKENIZER_TYPE_NULL ? tokenizer_hash(tokenizer) : 0,
        .eod_id = tokenizer ? tokenizer_eod(tokenizer) : own - 1,
        .pad_id = tokenizer ? tokenizer_pad(tokenizer) : -1,
        .reset_position_ids = c->reset_position_ids,
        .eod_mask_loss = c->eod_mask_loss,
    };
    return 0;
}
