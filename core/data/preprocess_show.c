#include "core/data/preprocess_flags.h"
#include <time.h>

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

void preprocess_show_begin(struct preprocess_show *s, FILE *out, bool terminal, int64_t log_interval) {
    *s = (struct preprocess_show){.out = out, .terminal = terminal, .log_interval = log_interval};
    s->started = s->shown = now();
    s->next_line = (uint64_t)log_interval;
}

static void show_bar(const struct preprocess_show *s, const struct preprocess_counts *c, double elapsed) {
    enum { WIDTH = 30 };
    double part = c->bytes_total ? (double)c->bytes / (double)c->bytes_total : 1;
    if (part > 1) part = 1;
    double left = part > 0 ? elapsed * (1 - part) / part : 0;
    char bar[WIDTH + 1];
    for (int i = 0; i < WIDTH; i++) bar[i] = i < (int)(part * WIDTH) ? '#' : '.';
    bar[WIDTH] = 0;
    fprintf(s->out, "\r[%s] %3.0f%%  %llu documents  %.1f MB/s  %d:%02d left ", bar, 100 * part,
            (unsigned long long)c->documents, (double)c->bytes / 1e6 / elapsed, (int)left / 60,
            (int)left % 60);
    fflush(s->out);
}

void preprocess_show_progress(void *context, const struct preprocess_counts *c) {
    struct preprocess_show *s = context;
    double t = now(), elapsed = t - s->started + 1e-9;
    if (s->terminal) {
        if (t - s->shown < 0.1) return;
        s->shown = t;
        show_bar(s, c, elapsed);
    } else if (s->log_interval && c->documents >= s->next_line) {
        while (s->next_line <= c->documents) s->next_line += (uint64_t)s->log_interval;
        fprintf(s->out, "Processed %llu documents (%.1f docs/s, %.2f MB/s).\n",
                (unsigned long long)c->documents, (double)c->documents / elapsed,
                (double)c->bytes / elapsed / 1048576);
    }
}

static void show_count(FILE *out, uint64_t count, const char *what) {
    if (count) fprintf(out, "  %llu %s\n", (unsigned long long)count, what);
}

void preprocess_show_end(const struct preprocess_show *s, const struct preprocess_flags *f,
                         const struct preprocess_counts *c) {
    double elapsed = now() - s->started + 1e-9;
    const struct preprocess_options *o = &f->options;
    if (s->terminal) fprintf(s->out, "\r%79s\r", "");
    fprintf(s->out, "%llu documents, %llu tokens from %.1f MB in %.1f s (%.1f MB/s)\n",
            (unsigned long long)c->documents, (unsigned long long)c->tokens, (double)c->bytes / 1e6, elapsed,
            (double)c->bytes / 1e6 / elapsed);
    show_count(s->out, c->empty, "documents without tokens");
    show_count(s->out, c->repaired, "places that were not UTF-8, replaced by U+FFFD");
    show_count(s->out, c->skipped_lines, "bad JSON lines left out");
    show_count(s->out, c->skipped_files, "files that are no text left out");
    for (int k = 0; k < (o->num_keys ? o->num_keys : 1); k++)
        fprintf(s->out, "wrote %s_%s_document.bin and .idx\n", o->output_prefix,
                o->num_keys ? o->json_keys[k] : "text");
}
