#include "core/data/datasets.h"
#include "core/base/log.h"
#include "core/base/mem.h"
#include "core/data/blend.h"
#include "core/data/dataset.h"
#include "core/data/mock.h"
#include "core/data/path_file.h"
#include "core/data/provenance.h"
#include "core/data/split.h"
#include <string.h>

/* ---- corpora ---- */

static void warn_of_other_tokenizer(const struct datasets *sets, const char *prefix) {
    struct provenance p;
    uint64_t own = sets->options.tokenizer_hash;
    if (!own || !provenance_read(prefix, &p) || p.tokenizer_hash == own) return;
    log_warn("%s: was made with another tokenizer (%s of %lld ids, see %s.info.json), so its ids may mean "
             "other text; give "
             "the tokenizer flags that preprocess_data had",
             prefix, p.tokenizer_type, (long long)p.vocab_size, prefix);
}

static int open_corpus(struct datasets *sets, const char *prefix, struct corpus **corpus_p, struct err *err) {
    for (struct corpus *c = sets->files; c; c = c->next)
        if (!strcmp(c->name, prefix)) {
            *corpus_p = c;
            return 0;
        }
    struct indexed *file;
    if (indexed_open(prefix, !sets->options.no_mmap, &file, err)) return -1;
    warn_of_other_tokenizer(sets, prefix);
    struct corpus *c = mem_zalloc(sizeof(*c), "corpus");
    c->name = mem_strdup(prefix, "corpus name");
    c->file = file;
    c->sequences = file->sequences;
    c->next = sets->files;
    sets->files = *corpus_p = c;
    return 0;
}

static struct corpus *open_mock(struct datasets *sets) {
    struct corpus *c = mem_zalloc(sizeof(*c), "corpus");
    c->name = mem_strdup("mock data", "corpus name");
    c->mock_lengths = mem_new_array(int32_t, MOCK_DOCUMENTS, "mock lengths");
    c->sequences = MOCK_DOCUMENTS;
    mock_lengths(c->mock_lengths);
    sets->files = c;
    return c;
}

/* ---- one split ---- */

static void close_dataset(struct dataset *d) {
    if (!d) return;
    for (int i = 0; i < d->num_parts; i++) gpt_index_free(&d->parts[i].index);
    mem_free(d->parts);
    mem_free(d->blend_part);
    mem_free(d->blend_sample);
    mem_free(d);
}

static struct dataset *new_dataset(const struct datasets *sets, enum data_split split, int parts) {
    struct dataset *d = mem_zalloc(sizeof(*d), "dataset");
    d->options = &sets->options;
    d->split = split;
    d->num_parts = parts;
    d->parts = mem_new_array(struct gpt_part, (size_t)parts, "dataset parts");
    return d;
}

static int build_part(const struct dataset *d, struct gpt_part *part, const struct corpus *c,
                      struct split_range range, int64_t demanded, struct err *err) {
    part->corpus = c;
    part->demanded = demanded;
    split_cut(range, c->sequences, &part->first, &part->end);
    struct gpt_index_request request = {
        .name = c->name,
        .split = data_split_name(d->split),
        .lengths = c->file ? (const void *)(c->file->idx + INDEXED_HEADER_BYTES) : c->mock_lengths,
        .first = part->first,
        .end = part->end,
        .seq_length = d->options->seq_length,
        .num_samples = demanded,
        .seed = (uint32_t)d->options->seed,
    };
    if (gpt_index_build(&request, &part->index, err)) return -1;
    if (!part->index.samples)
        return err_set(err,
                       "%s: the %s split has %lld tokens, fewer than one sample of %lld + 1; give more data "
                       "or lower --seq-length",
                       c->name, request.split, (long long)part->index.tokens_per_epoch,
                       (long long)request.seq_length);
    return 0;
}

/* Weighted: every dataset is built with a surplus; the blend takes ceil(size * weight) of each. */
static int blend_weighted(struct dataset *d, int64_t demanded, struct err *err) {
    int64_t *drawn = mem_new_array(int64_t, (size_t)d->num_parts, "blend draws");
    double *weights = mem_new_array(double, (size_t)d->num_parts, "blend weights");
    for (int i = 0; i < d->num_parts; i++) {
        weights[i] = d->parts[i].weight;
        d->length += blend_share(demanded, weights[i], 0);
    }
    blend_normalize(weights, d->num_parts); /* Megatron-LM normalises a second time here */
    d->blend_part = mem_new_array(uint16_t, (size_t)d->length, "blend datasets");
    d->blend_sample = mem_new_array(uint32_t, (size_t)d->length, "blend samples");
    blend_order(weights, d->num_parts, d->length, d->blend_part, d->blend_sample, drawn);
    int status = 0;
    for (int i = 0; i < d->num_parts && !status; i++)
        if (drawn[i] > d->parts[i].index.samples)
            status = err_set(err,
                             "%s: the %s blend draws %lld samples of it, but %lld were built; raise "
                             "--mid-level-dataset-surplus (now %g)",
                             d->parts[i].corpus->name, data_split_name(d->split), (long long)drawn[i],
                             (long long)d->parts[i].index.samples, d->options->mid_level_surplus);
    mem_free(drawn);
    mem_free(weights);
    return status;
}

/* Unweighted: one epoch of each, blended by length; all of it when no size is demanded. */
static void blend_by_length(struct dataset *d, int64_t demanded) {
    int64_t *lengths = mem_new_array(int64_t, (size_t)d->num_parts, "blend lengths");
    double *weights = mem_new_array(double, (size_t)d->num_parts, "blend weights");
    for (int i = 0; i < d->num_parts; i++) {
        lengths[i] = d->parts[i].index.samples;
        weights[i] = (double)lengths[i];
        d->length += lengths[i];
    }
    if (demanded >= 0 && demanded < d->length) d->length = demanded;
    d->blend_part = mem_new_array(uint16_t, (size_t)d->length, "blend datasets");
    d->blend_sample = mem_new_array(uint32_t, (size_t)d->length, "blend samples");
    blend_normalize(weights, d->num_parts);
    for (int i = 0; i < d->num_parts; i++) d->parts[i].weight = weights[i];
    if (demanded < 0)
        blend_order_exhaustive(lengths, d->num_parts, d->blend_part, d->blend_sample);
    else
        blend_order(weights, d->num_parts, d->length, d->blend_part, d->blend_sample, lengths);
    mem_free(lengths);
    mem_free(weights);
}

static int build_blend(struct datasets *sets, struct dataset *d, const struct blend *blend,
                       struct split_range range, int64_t demanded, struct err *err) {
    if (blend->weights && demanded < 0)
        return err_set(err,
                       "the %s split: a blend with weights needs a number of samples; leave the weights out, "
                       "or do not ask for exactly one epoch (--full-validation)",
                       data_split_name(d->split));
    if (blend->weights) {
        for (int i = 0; i < blend->count; i++) d->parts[i].weight = blend->weights[i];
        double *weights = mem_new_array(double, (size_t)blend->count, "blend weights");
        memcpy(weights, blend->weights, (size_t)blend->count * sizeof(*weights));
        blend_normalize(weights, blend->count);
        for (int i = 0; i < blend->count; i++) d->parts[i].weight = weights[i];
        mem_free(weights);
    }
    for (int i = 0; i < blend->count; i++) {
        struct corpus *c;
        int64_t share =
            blend->weights ? blend_share(demanded, d->parts[i].weight, d->options->mid_level_surplus) : -1;
        if (open_corpus(sets, blend->prefixes[i], &c, err)) return -1;
        if (build_part(d, &d->parts[i], c, range, share, err)) return -1;
    }
    if (blend->weights) return blend_weighted(d, demanded, err);
    blend_by_length(d, demanded);
    return 0;
}

static int build_single(struct datasets *sets, struct dataset *d, const char *prefix,
                        struct split_range range, int64_t demanded, struct err *err) {
    struct corpus *c = sets->files;
    if (prefix && open_corpus(sets, prefix, &c, err)) return -1;
    if (build_part(d, &d->parts[0], c, range, demanded, err)) return -1;
    d->parts[0].weight = 1;
    d->length = d->parts[0].index.samples;
    return 0;
}

/* ---- all splits ---- */

static int open_split(struct datasets *sets, enum data_split split, const struct data_words *words,
                      const char *flag, struct split_range range, bool shared, struct err *err) {
    int64_t demanded = sets->options.num_samples[split];
    struct blend blend = {0};
    if (!demanded || range.end <= range.begin) return 0;
    if (words && blend_parse(words->words, words->count, flag, &blend, err)) return -1;
    /* a shared blend of one path with a weight is blended; a split's own single path never is */
    bool single = !words || (blend.count == 1 && (!shared || !blend.weights));
    struct dataset *d = sets->split[split] = new_dataset(sets, split, words ? blend.count : 1);
    int status = single ? build_single(sets, d, words ? blend.prefixes[0] : NULL, range, demanded, err)
                        : build_blend(sets, d, &blend, range, demanded, err);
    blend_free(&blend);
    return status;
}

static int open_shared(struct datasets *sets, const struct data_options *o, struct err *err) {
    struct split_range ranges[DATA_SPLITS];
    if (o->mock) open_mock(sets);
    if (split_parse(o->split ? o->split : o->mock ? "1,1,1" : "969, 30, 1", ranges, err)) return -1;
    if (o->num_samples[DATA_TRAIN] && ranges[DATA_TRAIN].end <= ranges[DATA_TRAIN].begin)
        return err_set(err, "--split %s gives nothing to training; its first number must be above 0",
                       o->split);
    for (int i = 0; i < DATA_SPLITS; i++)
        if (open_split(sets, i, o->mock ? NULL : &o->data_path, "--data-path", ranges[i], true, err))
            return -1;
    return 0;
}

static int open_separate(struct datasets *sets, const struct data_options *o, struct err *err) {
    static const char *const flags[DATA_SPLITS] = {"--train-data-path", "--valid-data-path",
                                                   "--test-data-path"};
    if (o->num_samples[DATA_TRAIN] && !o->split_path[DATA_TRAIN].count)
        return err_set(err, "--train-data-path is missing; with a path per split, training needs its own");
    for (int i = 0; i < DATA_SPLITS; i++) {
        struct split_range whole = {0, o->split_path[i].count ? 1 : 0};
        if (open_split(sets, i, &o->split_path[i], flags[i], whole, false, err)) return -1;
    }
    return 0;
}

static int check_options(const struct data_options *o, struct err *err) {
    bool separate = false;
    for (int i = 0; i < DATA_SPLITS; i++) separate |= o->split_path[i].count > 0;
    if (o->seq_length < 1)
        return err_set(err, "--seq-length %lld: must be at least 1", (long long)o->seq_length);
    if (o->seed < 0 || o->seed > UINT32_MAX)
        return err_set(err, "--seed %lld: must lie between 0 and 4294967295", (long long)o->seed);
    if (o->mock + separate + (o->data_path.count > 0) > 1)
        return err_set(err,
                       "--mock-data, --data-path and --train-data-path (or valid, test) exclude each other; "
                       "give one of them");
    if (!o->mock && !separate && !o->data_path.count)
        return err_set(err, "no data: give --data-path PREFIX (made by preprocess_data) or --mock-data");
    if (o->mock && (o->eod_id < 0 || (!o->mock_vocab_size && !o->vocab_size)))
        return err_set(err, "--mock-data needs a vocabulary with an end of document; give --vocab-size or a "
                            "tokenizer");
    return 0;
}

/* Words that a file holds take the place of those on the command line. */
static int read_path_files(struct data_options *o, struct path_file *file, struct err *err) {
    if (o->path_file && o->split_path_file)
        return err_set(
            err, "--data-args-path and --per-split-data-args-path exclude each other; give one of them");
    if (o->path_file && o->data_path.count)
        return err_set(err, "--data-path and --data-args-path exclude each other; give one of them");
    for (int i = 0; i < DATA_SPLITS; i++)
        if (o->split_path_file && o->split_path[i].count)
            return err_set(
                err, "--%s-data-path and --per-split-data-args-path exclude each other; give one of them",
                data_split_name(i));
    if (o->path_file) {
        if (path_file_read(o->path_file, file, err)) return -1;
        o->data_path = file->words;
    }
    if (o->split_path_file) {
        if (path_file_read_splits(o->split_path_file, file, err)) return -1;
        memcpy(o->split_path, file->split_words, sizeof(o->split_path));
    }
    return 0;
}

static int open_all(struct datasets *sets, struct err *err) {
    const struct data_options *o = &sets->options;
    if (check_options(o, err)) return -1;
    return o->mock || o->data_path.count ? open_shared(sets, o, err) : open_separate(sets, o, err);
}

int datasets_open(const struct data_options *options, struct datasets **sets_p, struct err *err) {
    struct path_file file = {0};
    struct datasets *sets = mem_zalloc(sizeof(*sets), "datasets");
    struct data_options *o = &sets->options;
    *o = *options;
    if (!o->mock_vocab_size) o->mock_vocab_size = o->vocab_size;
    int status = read_path_files(o, &file, err) || open_all(sets, err) ? -1 : 0;
    path_file_free(&file);
    /* the words were the caller's, or the file's */
    o->data_path = (struct data_words){0};
    for (int i = 0; i < DATA_SPLITS; i++) o->split_path[i] = (struct data_words){0};
    o->split = o->path_file = o->split_path_file = NULL;
    if (status)
        datasets_close(sets);
    else
        *sets_p = sets;
    return status;
}

void datasets_close(struct datasets *sets) {
    if (!sets) return;
    for (int i = 0; i < DATA_SPLITS; i++) close_dataset(sets->split[i]);
    for (struct corpus *c = sets->files, *next; c; c = next) {
        next = c->next;
        indexed_close(c->file);
        mem_free(c->mock_lengths);
        mem_free(c->name);
        mem_free(c);
    }
    mem_free(sets);
}

void datasets_describe(const struct datasets *sets, struct str *out) {
    for (int i = 0; i < DATA_SPLITS; i++) {
        const struct dataset *d = sets->split[i];
        if (!d) {
            str_printf(out, "%s: no data\n", data_split_name(i));
            continue;
        }
        str_printf(out, "%s: %lld samples of %lld tokens from %d dataset%s\n", data_split_name(i),
                   (long long)d->length, (long long)d->options->seq_length, d->num_parts,
                   d->num_parts == 1 ? "" : "s");
        for (int p = 0; p < d->num_parts; p++) {
            const struct gpt_part *part = &d->parts[p];
            str_printf(out, "  %.6g %s: sequences %lld to %lld, %lld tokens, %lld epoch%s, %lld samples\n",
                       part->weight, part->corpus->name, (long long)part->first, (long long)part->end,
                       (long long)part->index.tokens_per_epoch, (long long)part->index.epochs,
                       part->index.epochs == 1 ? "" : "s", (long long)part->index.samples);
        }
    }
}
