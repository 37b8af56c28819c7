#include "recompute/planned.h"
#include "core/base/mem.h"
#include <errno.h>
#include <stdio.h>
#include <string.h>

/* ---- writing ---- */

static void write_set(const struct recompute_group *g, struct str *out) {
    if (g->num_layers > 1) {
        str_puts(out, "group");
        return;
    }
    if (!g->selected) str_puts(out, "none");
    for (int m = 0, shown = 0; m < MODULE_COUNT; m++)
        if (g->selected >> m & 1) str_printf(out, "%s%s", shown++ ? " " : "", recompute_module_info(m)->name);
}

/* Groups that make one line: equal neighbours of one layer, or one group of several. */
static int stretch(const struct recompute_group *groups, int count) {
    int n = 1;
    while (groups[0].num_layers == 1 && n < count && groups[n].num_layers == 1 &&
           groups[n].selected == groups[0].selected)
        n++;
    return n;
}

static void write_stretches(const struct recompute_group *groups, int count, int first_layer,
                            const char *before, const char *between, struct str *out) {
    for (int i = 0, layer = first_layer; i < count;) {
        int n = stretch(groups + i, count - i), layers = n == 1 ? groups[i].num_layers : n;
        str_puts(out, i ? between : before);
        if (layers == 1)
            str_printf(out, "%d: ", layer);
        else
            str_printf(out, "%d-%d: ", layer, layer + layers - 1);
        write_set(&groups[i], out);
        layer += layers;
        i += n;
    }
}

void recompute_planned_write(const struct recompute_group *groups, int count, struct str *out) {
    int layers = 0;
    for (int i = 0; i < count; i++) layers += groups[i].num_layers;
    str_printf(out, "# what each layer recomputes; for --recompute-plan\nnum_layers: %d\nlayers:", layers);
    write_stretches(groups, count, 0, "\n  ", "\n  ", out);
}

void recompute_planned_describe(const struct recompute_group *groups, int count, int first_layer,
                                struct str *out) {
    write_stretches(groups, count, first_layer, "", ", ", out);
}

/* ---- reading ---- */

struct reader {
    const char *name;
    int line, num_layers, next_layer, count;
    bool in_layers, seen_count;
    struct recompute_group *groups;
    struct err *err;
};

/* A whole number of at most six digits at *text; -1 when there is none. */
static int read_number(const char **text) {
    int value = 0, digits = 0;
    while (**text >= '0' && **text <= '9' && digits < 7) value = 10 * value + (*(*text)++ - '0'), digits++;
    return digits && digits < 7 ? value : -1;
}

static int read_set(struct reader *r, const char *words, recompute_set *selected_p, bool *group_p) {
    *selected_p = 0;
    *group_p = false;
    if (!strcmp(words, "none")) return 0;
    if (!strcmp(words, "layer") || !strcmp(words, "group")) {
        *selected_p = RECOMPUTE_BIT(MODULE_layer);
        *group_p = words[0] == 'g';
        return 0;
    }
    while (*words) {
        char word[40];
        size_t length = strcspn(words, " ");
        if (length >= sizeof(word)) length = sizeof(word) - 1;
        memcpy(word, words, length);
        word[length] = 0;
        int module = recompute_module_find(word);
        if (module < 0)
            return err_set(r->err,
                           "%s, line %d: '%s' is no recompute module; write none, layer, group or names of "
                           "--recompute-modules",
                           r->name, r->line, word);
        *selected_p |= RECOMPUTE_BIT(module);
        words += length;
        words += strspn(words, " ");
    }
    return *selected_p ? 0
                       : err_set(r->err, "%s, line %d: nothing stands behind the layers; write none", r->name,
                                 r->line);
}

static int read_stretch(struct reader *r, const char *text) {
    int first = read_number(&text), last = first;
    recompute_set selected;
    bool group;
    if (*text == '-') text++, last = read_number(&text);
    if (first < 0 || last < first || *text != ':')
        return err_set(r->err, "%s, line %d: expected \"first-last: modules\"", r->name, r->line);
    if (first != r->next_layer || last >= r->num_layers)
        return err_set(r->err, "%s, line %d: layers %d to %d do not continue at layer %d of %d", r->name,
                       r->line, first, last, r->next_layer, r->num_layers);
    text++;
    if (read_set(r, text + strspn(text, " "), &selected, &group)) return -1;
    if (group)
        r->groups[r->count++] = (struct recompute_group){last - first + 1, selected};
    else
        for (int i = first; i <= last; i++) r->groups[r->count++] = (struct recompute_group){1, selected};
    r->next_layer = last + 1;
    return 0;
}

static int read_line(struct reader *r, const char *line, size_t length) {
    char text[400];
    const char *hash = memchr(line, '#', length);
    if (hash) length = (size_t)(hash - line);
    while (length && strchr(" \t\r", line[length - 1])) length--;
    while (length && *line == ' ') line++, length--;
    if (!length || (length == 3 && !memcmp(line, "---", 3))) return 0;
    if (length >= sizeof(text) || memchr(line, 0, length))
        return err_set(r->err, "%s, line %d: too long", r->name, r->line);
    memcpy(text, line, length);
    text[length] = 0;
    if (r->in_layers) return read_stretch(r, text);
    if (!strcmp(text, "layers:")) {
        r->in_layers = true;
        return 0;
    }
    const char *value = text + strlen("num_layers:");
    if (strncmp(text, "num_layers:", strlen("num_layers:")))
        return err_set(r->err, "%s, line %d: expected num_layers: or layers:", r->name, r->line);
    value += strspn(value, " ");
    int layers = read_number(&value);
    if (layers != r->num_layers || *value)
        return err_set(r->err, "%s, line %d: the plan is for another number of layers than --num-layers %d",
                       r->name, r->line, r->num_layers);
    r->seen_count = true;
    return 0;
}

int recompute_planned_parse(const char *text, const char *name, int num_layers,
                            struct recompute_group **groups_p, int *count_p, struct err *err) {
    struct reader r = {.name = name, .num_layers = num_layers, .err = err};
    int status = 0;
    r.groups = mem_new_array(struct recompute_group, (size_t)num_layers + 1, "recompute plan");
    for (r.line = 1; *text && !status; r.line++) {
        size_t length = strcspn(text, "\n");
        status = read_line(&r, text, length);
        text += length + (text[length] == '\n');
    }
    if (!status && (!r.seen_count || r.next_layer != num_layers))
        status = err_set(err, "%s: no recompute plan for all %d layers; --recompute-plan-out writes one",
                         name, num_layers);
    if (status) {
        mem_free(r.groups);
        return -1;
    }
    *groups_p = r.groups;
    *count_p = r.count;
    return 0;
}

int recompute_planned_read(const char *path, int num_layers, struct recompute_group **groups_p, int *count_p,
                           struct err *err) {
    struct str text = {0};
    char block[4096];
    size_t got;
    FILE *f = fopen(path, "r");
    if (!f) return err_set(err, "--recompute-plan %s: %s", path, strerror(errno));
    while ((got = fread(block, 1, sizeof(block), f)) > 0 && text.length < (1u << 24))
        str_append(&text, block, got);
    bool failed = ferror(f) || got > 0;
    fclose(f);
    int status = failed ? err_set(err, "--recompute-plan %s: cannot be read", path)
                        : recompute_planned_parse(text.data ? text.data : "", path, num_layers, groups_p,
                                                  count_p, err);
    str_free(&text);
    return status;
}
