#include "core/data/dataset.h"
#include "core/data/mock.h"
#include <stdio.h>

const char *data_split_name(enum data_split split) {
    static const char *const names[DATA_SPLITS] = {"train", "valid", "test"};
    return names[split];
}

int64_t dataset_length(const struct dataset *d) {
    return d->length;
}

const struct data_options *dataset_options(const struct dataset *d) {
    return d->options;
}

int64_t corpus_length(const struct corpus *c, int64_t sequence) {
    return c->file ? indexed_length(c->file, sequence) : c->mock_lengths[sequence];
}

static const struct gpt_part *find_part(const struct dataset *d, int64_t k, int64_t *sample_p) {
    CHECK(k >= 0 && k < d->length, "sample %lld of %lld", (long long)k, (long long)d->length);
    *sample_p = d->blend_part ? (int64_t)d->blend_sample[k] : k;
    return &d->parts[d->blend_part ? d->blend_part[k] : 0];
}

const char *dataset_origin(const struct dataset *d, int64_t k, int64_t *sample_p) {
    return find_part(d, k, sample_p)->corpus->name;
}

/* Names document and place of the first bad id among tokens [first, first + count) of a sequence. */
static int report_bad_id(const struct dataset *d, const struct corpus *c, int64_t sequence, int64_t first,
                         const int32_t *tokens, int64_t count, struct err *err) {
    int64_t i = 0, before = 0, document = sequence, vocab = d->options->vocab_size;
    while (i < count && tokens[i] >= 0 && tokens[i] < vocab) i++;
    CHECK(i < count, "no bad id among %lld tokens", (long long)count);
    if (!c->file)
        return err_set(err, "mock data: id %d is outside the vocabulary of %lld ids; raise --vocab-size",
                       tokens[i], (long long)vocab);
    document = indexed_find_document(c->file, sequence);
    for (int64_t s = indexed_document(c->file, document); s < sequence; s++)
        before += indexed_length(c->file, s);
    return err_set(err,
                   "%s.bin: byte %lld: document %lld, token %lld: id %d is outside the vocabulary of %lld "
                   "ids; the data was made with another tokenizer, or --vocab-size is too small",
                   c->name,
                   (long long)(indexed_offset(c->file, sequence) + (first + i) * c->file->element_bytes),
                   (long long)document, (long long)(before + first + i), tokens[i], (long long)vocab);
}

static int read_tokens(const struct dataset *d, const struct corpus *c, int64_t sequence, int64_t first,
                       int64_t count, int32_t *tokens, struct err *err) {
    const struct data_options *o = d->options;
    if (c->file) {
        if (indexed_read(c->file, sequence, first, count, tokens, err)) return -1;
    } else {
        mock_read(c->mock_lengths[sequence], first, count, o->mock_vocab_size, o->eod_id, tokens);
    }
    if (!o->vocab_size) return 0;
    uint32_t limit = (uint32_t)o->vocab_size; /* a negative id is a large unsigned one */
    int bad = 0;
    for (int64_t i = 0; i < count; i++) bad |= (uint32_t)tokens[i] >= limit;
    return bad ? report_bad_id(d, c, sequence, first, tokens, count, err) : 0;
}

int dataset_sample(const struct dataset *d, int64_t k, int32_t *tokens, struct err *err) {
    int64_t sample, need = d->options->seq_length + 1;
    const struct gpt_part *part = find_part(d, k, &sample);
    const struct corpus *c = part->corpus;
    const struct gpt_index *x = &part->index;
    if (c->file && indexed_check(c->file, err)) return -1;
    uint32_t row = x->shuffle[sample];
    int64_t offset = x->start_offset[row];
    for (int64_t position = x->start_position[row]; need > 0; position++, offset = 0) {
        int64_t sequence = x->documents[position], have = corpus_length(c, sequence) - offset;
        if (have > need) have = need;
        if (read_tokens(d, c, sequence, offset, have, tokens, err)) return -1;
        tokens += have, need -= have;
    }
    return 0;
}
