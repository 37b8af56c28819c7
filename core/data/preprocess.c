#include "core/data/preprocess.h"
#include "core/base/json.h"
#include "core/base/mem.h"
#include "core/data/indexed_writer.h"
#include "core/data/provenance.h"
#include "core/data/utf8.h"
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>

enum { MOST_KEYS = 64, END_OF_DOCUMENT = -1, MOST_WORKERS = 256 };

struct job {
    const struct preprocess_options *o;
    const char *const *keys;
    int num_keys;
    struct tokenizer *tokenizer;
    struct indexed_writer *writer[MOST_KEYS];
    pthread_mutex_t read_lock, write_lock;
    pthread_cond_t turn;
    struct text_files files; /* under read_lock */
    uint64_t next_read;      /* under read_lock */
    uint64_t next_write;     /* under write_lock, as all below */
    struct preprocess_counts counts;
    bool failed;
    struct err *err;
};

/* What one key of one batch became. */
struct encoded {
    struct token_list ids;
    struct token_list lengths; /* tokens of each sequence; END_OF_DOCUMENT after each document */
};

struct worker {
    struct job *job;
    pthread_t thread;
    struct tokenizer_worker *tokenizer;
    struct text_batch batch;
    struct encoded encoded[MOST_KEYS];
    struct preprocess_counts counts; /* of this batch */
    struct str file, text;           /* scratch */
    struct err err;
};

/* ---- one document ---- */

static void push_length(struct encoded *e, size_t length) {
    token_list_reserve(&e->lengths, 1);
    e->lengths.data[e->lengths.count++] = (int32_t)length;
}

/* Well-formed UTF-8 view of text; repaired into w->text where it is not. */
static void repair(struct worker *w, const char **text, size_t *length) {
    if (utf8_check(*text, *length) == *length) return;
    str_clear(&w->text);
    w->counts.repaired += utf8_repair(*text, *length, &w->text);
    *text = w->text.data;
    *length = w->text.length;
}

static int encode_sequence(struct worker *w, struct encoded *e, const char *text, size_t length,
                           struct err *err) {
    size_t before = e->ids.count;
    if (tokenizer_encode(w->tokenizer, text, length, &e->ids, err)) return -1;
    size_t count = e->ids.count - before;
    if (count > INT32_MAX - 1) return err_set(err, "a document of %zu tokens is too long; split it", count);
    if (count) push_length(e, count);
    return 0;
}

static void end_document(struct worker *w, struct encoded *e, size_t first_id) {
    w->counts.documents++;
    if (e->ids.count == first_id) {
        w->counts.empty++;
    } else if (w->job->o->append_eod) {
        token_list_reserve(&e->ids, 1);
        e->ids.data[e->ids.count++] = (int32_t)tokenizer_eod(w->job->tokenizer);
        e->lengths.data[e->lengths.count - 1]++;
    }
    w->counts.tokens += e->ids.count - first_id;
    push_length(e, (size_t)END_OF_DOCUMENT);
}

/* ---- text files: one document each ---- */

static void unify_newlines(struct str *s) {
    char *to = s->data, *end = s->data + s->length;
    if (!s->length || !memchr(s->data, '\r', s->length)) return;
    for (const char *from = s->data; from < end; from++) {
        if (*from == '\r') {
            *to++ = '\n';
            if (from + 1 < end && from[1] == '\n') from++;
        } else {
            *to++ = *from;
        }
    }
    s->length = (size_t)(to - s->data);
}

static int encode_file(struct worker *w, const struct text_file *file) {
    bool skip;
    struct err why;
    struct encoded *e = &w->encoded[0];
    size_t first_id = e->ids.count;
    if (text_file_read(file, &w->file, &skip, &w->err)) return -1;
    w->counts.bytes += w->file.length;
    if (skip) {
        w->counts.skipped_files++;
        return 0;
    }
    unify_newlines(&w->file);
    const char *text = w->file.data ? w->file.data : "";
    size_t length = w->file.length;
    if (length >= 3 && !memcmp(text, "\xEF\xBB\xBF", 3)) text += 3, length -= 3;
    repair(w, &text, &length);
    if (encode_sequence(w, e, text, length, &why)) return err_set(&w->err, "%s: %s", file->path, why.text);
    end_document(w, e, first_id);
    return 0;
}

/* ---- JSON lines ---- */

/* The value is a text, or a list of texts that become one sequence each. */
static int encode_value(struct worker *w, struct encoded *e, const struct json_node *value, struct err *err) {
    size_t first_id = e->ids.count;
    if (value->kind == JSON_STRING) {
        if (encode_sequence(w, e, value->string, value->count, err)) return -1;
    } else if (value->kind == JSON_ARRAY) {
        for (size_t i = 0; i < value->count; i++) {
            const struct json_node *part = &value->items[i];
            if (part->kind != JSON_STRING) return err_set(err, "the list holds something that is no text");
            if (encode_sequence(w, e, part->string, part->count, err)) return -1;
        }
    } else {
        return err_set(err, "the value is neither a text nor a list of texts");
    }
    end_document(w, e, first_id);
    return 0;
}

struct mark {
    size_t ids, lengths;
};

/* Encodes all keys of a line or, on an error, none. */
static int encode_object(struct worker *w, const struct json_node *root, struct err *err) {
    struct mark mark[MOST_KEYS];
    struct preprocess_counts counts = w->counts;
    struct job *job = w->job;
    for (int k = 0; k < job->num_keys; k++)
        mark[k] = (struct mark){w->encoded[k].ids.count, w->encoded[k].lengths.count};
    for (int k = 0; k < job->num_keys; k++) {
        struct err why;
        const struct json_node *value = json_get(root, job->keys[k]);
        if (value && !encode_value(w, &w->encoded[k], value, &why)) continue;
        for (int i = 0; i < job->num_keys; i++) {
            w->encoded[i].ids.count = mark[i].ids;
            w->encoded[i].lengths.count = mark[i].lengths;
        }
        w->counts = counts;
        if (!value)
            return err_set(err, "has no key '%s'; name the key that holds the text with --json-keys",
                           job->keys[k]);
        return err_set(err, "key '%s': %s", job->keys[k], why.text);
    }
    return 0;
}

static int encode_line(struct worker *w, const char *line, size_t length, uint64_t number) {
    static const char blanks[] = {' ', '\t', '\r'};
    const char *path = w->job->files.files[w->batch.first].path;
    struct err why;
    if (number == 1 && length >= 3 && !memcmp(line, "\xEF\xBB\xBF", 3)) line += 3, length -= 3;
    while (length && memchr(blanks, line[length - 1], sizeof(blanks))) length--;
    while (length && memchr(blanks, *line, sizeof(blanks))) line++, length--;
    if (!length) return 0; /* a blank line is no document */
    repair(w, &line, &length);
    struct json *json = json_parse(line, length, "JSON", &why);
    int status = json ? encode_object(w, json_root(json), &why) : -1;
    json_free(json);
    if (!status) return 0;
    if (w->job->o->skip_bad_lines) {
        w->counts.skipped_lines++;
        return 0;
    }
    return err_set(&w->err, "%s: line %llu: %s (--skip-bad-lines leaves such lines out)", path,
                   (unsigned long long)number, why.text);
}

static int encode_batch(struct worker *w) {
    const struct text_batch *b = &w->batch;
    for (size_t i = 0; !b->jsonl && i < b->count; i++)
        if (encode_file(w, &w->job->files.files[b->first + i])) return -1;
    if (!b->jsonl) return 0;
    uint64_t number = b->first_line;
    for (size_t at = 0; at < b->lines.length; number++) {
        const char *p = b->lines.data + at, *newline = memchr(p, '\n', b->lines.length - at);
        size_t n = newline ? (size_t)(newline - p) : b->lines.length - at;
        if (encode_line(w, p, n, number)) return -1;
        at += n + 1;
    }
    w->counts.bytes += b->lines.length;
    return 0;
}

/* ---- threads ---- */

static int write_batch(struct job *job, const struct worker *w) {
    for (int k = 0; k < job->num_keys; k++) {
        const struct encoded *e = &w->encoded[k];
        const int32_t *ids = e->ids.data;
        for (size_t i = 0; i < e->lengths.count; i++) {
            int32_t length = e->lengths.data[i];
            if (length == END_OF_DOCUMENT) {
                indexed_writer_end_document(job->writer[k]);
                continue;
            }
            if (indexed_writer_sequence(job->writer[k], ids, length, job->err)) return -1;
            ids += length;
        }
    }
    struct preprocess_counts *c = &job->counts;
    c->documents += w->counts.documents;
    c->tokens += w->counts.tokens;
    c->empty += w->counts.empty;
    c->repaired += w->counts.repaired;
    c->skipped_lines += w->counts.skipped_lines;
    c->skipped_files += w->counts.skipped_files;
    c->bytes += w->counts.bytes;
    if (job->o->progress) job->o->progress(job->o->progress_context, c);
    return 0;
}

/* Waits for the batch's turn; the first failing batch decides the message, whatever the threads' speed. */
static bool hand_in(struct worker *w, int status) {
    struct job *job = w->job;
    pthread_mutex_lock(&job->write_lock);
    while (job->next_write != w->batch.number && !job->failed)
        pthread_cond_wait(&job->turn, &job->write_lock);
    if (!job->failed) {
        if (status) *job->err = w->err;
        if (status || write_batch(job, w)) job->failed = true;
        job->next_write++;
    }
    bool go_on = !job->failed;
    pthread_cond_broadcast(&job->turn);
    pthread_mutex_unlock(&job->write_lock);
    return go_on;
}

static void *worker_main(void *argument) {
    struct worker *w = argument;
    struct job *job = w->job;
    for (bool go_on = true; go_on;) {
        pthread_mutex_lock(&job->read_lock);
        int got = text_files_next(&job->files, &w->batch, &w->err);
        w->batch.number = job->next_read;
        if (got) job->next_read++;
        pthread_mutex_unlock(&job->read_lock);
        if (!got) break;
        w->counts = (struct preprocess_counts){0};
        for (int k = 0; k < job->num_keys; k++) w->encoded[k].ids.count = w->encoded[k].lengths.count = 0;
        go_on = hand_in(w, got < 0 ? -1 : encode_batch(w));
    }
    return NULL;
}

static void close_worker(struct worker *w) {
    tokenizer_worker_close(w->tokenizer);
    text_batch_free(&w->batch);
    for (int k = 0; k < MOST_KEYS; k++) {
        token_list_free(&w->encoded[k].ids);
        token_list_free(&w->encoded[k].lengths);
    }
    str_free(&w->file);
    str_free(&w->text);
}

static int run_workers(struct job *job) {
    cpu_set_t set;
    int count = job->o->workers, started = 0;
    if (count <= 0) count = sched_getaffinity(0, sizeof(set), &set) ? 1 : CPU_COUNT(&set);
    if (count > MOST_WORKERS) count = MOST_WORKERS;
    struct worker *workers = mem_new_array(struct worker, (size_t)count, "preprocessing threads");
    pthread_mutex_init(&job->read_lock, NULL);
    pthread_mutex_init(&job->write_lock, NULL);
    pthread_cond_init(&job->turn, NULL);
    for (; started < count; started++) {
        struct worker *w = &workers[started];
        w->job = job;
        w->tokenizer = tokenizer_worker_open(job->tokenizer);
        int code = pthread_create(&w->thread, NULL, worker_main, w);
        if (!code) continue;
        close_worker(w);
        if (started) break; /* fewer threads do the same work */
        job->failed = true;
        err_set(job->err, "cannot start a thread: %s; lower --workers", strerror(code));
        break;
    }
    for (int i = 0; i < started; i++) {
        pthread_join(workers[i].thread, NULL);
        close_worker(&workers[i]);
    }
    pthread_cond_destroy(&job->turn);
    pthread_mutex_destroy(&job->write_lock);
    pthread_mutex_destroy(&job->read_lock);
    mem_free(workers);
    return job->failed ? -1 : 0;
}

/* ---- the whole job ---- */

static int open_writers(struct job *job) {
    enum indexed_type type = indexed_writer_type(tokenizer_vocab_size(job->tokenizer));
    for (int k = 0; k < job->num_keys; k++) {
        struct str prefix = {0};
        str_printf(&prefix, "%s_%s_document", job->o->output_prefix, job->keys[k]);
        int status = indexed_writer_open(prefix.data, type, &job->writer[k], job->err);
        str_free(&prefix);
        if (status) return -1;
    }
    return 0;
}

static int open_job(struct job *job) {
    const struct preprocess_options *o = job->o;
    if (!o->num_inputs)
        return err_set(job->err, "--input is missing: the text files, folders or JSON lines to read");
    if (!o->output_prefix)
        return err_set(job->err, "--output-prefix is missing: the path of the output without suffix");
    if (job->num_keys > MOST_KEYS) return err_set(job->err, "--json-keys: at most %d keys", MOST_KEYS);
    job->tokenizer = tokenizer_open(&o->tokenizer, job->err);
    if (!job->tokenizer) return -1;
    if (o->append_eod && tokenizer_eod(job->tokenizer) < 0)
        return err_set(
            job->err,
            "--append-eod: the tokenizer names no end of document; put a tokenizer_config.json with "
            "its eos_token beside tokenizer.json");
    if (text_files_find(o->inputs, o->num_inputs, o->format, &job->files, job->err)) return -1;
    job->counts.bytes_total = job->files.bytes;
    for (size_t i = 0; i < job->files.count && job->num_keys > 1; i++)
        if (!job->files.files[i].jsonl)
            return err_set(job->err, "--json-keys: several keys, but %s is plain text, which has none",
                           job->files.files[i].path);
    return open_writers(job);
}

static int write_provenance(struct job *job, int key) {
    struct provenance p = {.vocab_size = tokenizer_vocab_size(job->tokenizer),
                           .tokenizer_hash = tokenizer_hash(job->tokenizer),
                           .append_eod = job->o->append_eod};
    struct str prefix = {0};
    snprintf(p.tokenizer_type, sizeof(p.tokenizer_type), "%s", tokenizer_type(job->tokenizer));
    str_printf(&prefix, "%s_%s_document", job->o->output_prefix, job->keys[key]);
    int status = provenance_write(prefix.data, &p, job->err);
    str_free(&prefix);
    return status;
}

static int finish(struct job *job) {
    job->counts.skipped_files += job->files.skipped;
    if (!job->counts.tokens)
        return err_set(job->err, "--input: %llu documents and no token in them; nothing is written",
                       (unsigned long long)job->counts.documents);
    for (int k = 0; k < job->num_keys; k++)
        if (write_provenance(job, k) || indexed_writer_finish(job->writer[k], job->err)) return -1;
    return 0;
}

int preprocess_run(const struct preprocess_options *o, struct preprocess_counts *counts, struct err *err) {
    static const char *const default_keys[] = {"text"};
    struct job *job = mem_zalloc(sizeof(*job), "preprocessing job");
    job->o = o;
    job->err = err;
    job->keys = o->num_keys ? o->json_keys : default_keys;
    job->num_keys = o->num_keys ? o->num_keys : 1;
    job->files.descriptor = -1;
    int status = open_job(job) || run_workers(job) || finish(job) ? -1 : 0;
    *counts = job->counts;
    for (int k = 0; k < job->num_keys && k < MOST_KEYS; k++) indexed_writer_close(job->writer[k]);
    text_files_free(&job->files);
    tokenizer_close(job->tokenizer);
    mem_free(job);
    return status;
}
