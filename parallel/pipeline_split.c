#include "parallel/pipeline_split.h"
#include "core/base/str.h"
#include <string.h>

/* ---- layout strings ---- */

enum { LAYOUT_MAX_SYMBOLS = 100000 };

#define LAYOUT "--pipeline-model-parallel-layout"

/* "*n" at *at: how often the last `length` symbols are wanted. */
static int repeat(struct str *out, size_t length, const char *layout, const char **at, struct err *err) {
    long n = 0;
    const char *digits = ++*at;
    while (**at >= '0' && **at <= '9' && n <= LAYOUT_MAX_SYMBOLS) n = n * 10 + *(*at)++ - '0';
    if (*at == digits || !n)
        return err_set(err, LAYOUT " '%s', character %d: '*' needs a number of at least 1 behind it", layout,
                       (int)(digits - layout));
    if (n * (long)length + (long)out->length > LAYOUT_MAX_SYMBOLS)
        return err_set(err, LAYOUT " '%s': more than %d symbols: lower the number at character %d", layout,
                       LAYOUT_MAX_SYMBOLS, (int)(digits - layout) + 1);
    for (long i = 0; i < (n - 1) * (long)length; i++) {
        char symbol = out->data[out->length - length];
        str_append(out, &symbol, 1);
    }
    return 0;
}

/* Writes the layout without repeats, commas and spaces: "Ettt|tt|L". */
static int expand(const char *layout, struct str *out, struct err *err) {
    bool in_group = false, has_item = false; /* an item is what a '*' can repeat */
    size_t group = 0, item = 0;              /* where the open group and the last item begin */
    for (const char *at = layout; *at;) {
        int place = (int)(at - layout) + 1;
        if (strchr("EtmL|", *at)) {
            item = out->length, has_item = true;
            str_append(out, at++, 1);
        } else if (*at == ',' || *at == ' ') {
            at++;
        } else if (*at == '(' && !in_group) {
            in_group = true, group = out->length, has_item = false, at++;
        } else if (*at == ')' && in_group) {
            in_group = false, item = group, has_item = out->length > group, at++;
            if (!has_item || *at != '*')
                return err_set(err, LAYOUT " '%s', character %d: write (..)*n with something in between",
                               layout, place);
        } else if (*at == '*' && has_item) {
            has_item = false;
            if (repeat(out, out->length - item, layout, &at, err)) return -1;
        } else if (*at == '*' || *at == '(' || *at == ')') {
            return err_set(err,
                           LAYOUT " '%s', character %d: '%c' is out of place: repeats are x*n and (..)*n, "
                                  "without parentheses inside parentheses",
                           layout, place, *at);
        } else {
            return err_set(err,
                           LAYOUT " '%s', character %d: '%c' is unknown: use E (embedding), t (layer), L "
                                  "(loss), | between stages, * ( ) and commas",
                           layout, place, *at);
        }
        if (out->length > LAYOUT_MAX_SYMBOLS)
            return err_set(err, LAYOUT ": more than %d symbols: shorten it", LAYOUT_MAX_SYMBOLS);
    }
    if (in_group) return err_set(err, LAYOUT " '%s': '(' is not closed: write (..)*n", layout);
    return 0;
}

static int count_symbol(const struct str *layout, char symbol) {
    int n = 0;
    for (size_t i = 0; i < layout->length; i++) n += layout->data[i] == symbol;
    return n;
}

int pipeline_layout_stages(const char *layout, struct err *err) {
    struct str symbols = {0};
    int status = expand(layout, &symbols, err);
    if (!status) status = count_symbol(&symbols, '|') + 1;
    str_free(&symbols);
    return status;
}

static int check_layout(const struct pipeline_split_options *o, const struct str *symbols, struct err *err) {
    int stages = count_symbol(symbols, '|') + 1, layers = count_symbol(symbols, 't');
    const char *s = symbols->data;
    if (count_symbol(symbols, 'm') != o->mtp_layers)
        return err_set(err,
                       LAYOUT " '%s' has %d layers of multi-token prediction (m), --mtp-num-layers gives %d: "
                              "change one of them",
                       o->layout, count_symbol(symbols, 'm'), o->mtp_layers);
    for (int i = 1; i <= o->mtp_layers; i++)
        if ((int)symbols->length <= i || s[symbols->length - 1 - (size_t)i] != 'm')
            return err_set(err,
                           LAYOUT
                           " '%s': multi-token prediction reads the embedding and the output layer and is "
                           "built on the last stage only: put every m right before the L",
                           o->layout);
    if (count_symbol(symbols, 'E') != 1 || s[0] != 'E')
        return err_set(err, LAYOUT " '%s': must begin with the embedding and have it once: put one E first",
                       o->layout);
    if (count_symbol(symbols, 'L') != 1 || s[symbols->length - 1] != 'L')
        return err_set(err, LAYOUT " '%s': must end with the loss and have it once: put one L last",
                       o->layout);
    if (layers != o->layers)
        return err_set(err, LAYOUT " '%s' has %d layers (t), --num-layers is %d: change one of them",
                       o->layout, layers, o->layers);
    if (stages % o->stages)
        return err_set(err,
                       LAYOUT " '%s' has %d stages, no multiple of --pipeline-model-parallel-size %d: add or "
                              "remove a |",
                       o->layout, stages, o->stages);
    if (stages != o->stages * o->chunks)
        return err_set(err,
                       LAYOUT " '%s' has %d stages, --pipeline-model-parallel-size %d * "
                              "--num-virtual-stages-per-pipeline-rank %d asks for %d: drop "
                              "--num-virtual-stages-per-pipeline-rank",
                       o->layout, stages, o->stages, o->chunks, o->stages * o->chunks);
    return 0;
}

static int split_by_layout(const struct pipeline_split_options *o, struct pipeline_chunk *out,
                           struct err *err) {
    if (o->first_layers || o->last_layers || o->account_embedding || o->account_loss)
        return err_set(err,
                       LAYOUT " excludes --decoder-first-pipeline-num-layers, "
                              "--decoder-last-pipeline-num-layers, --account-for-embedding-in-pipeline-split "
                              "and --account-for-loss-in-pipeline-split: drop it or them");
    struct str symbols = {0};
    int status = expand(o->layout, &symbols, err);
    if (!status && !symbols.length) status = err_set(err, LAYOUT " is empty: give E, t and L, or drop it");
    if (!status) status = check_layout(o, &symbols, err);
    for (size_t i = 0, at = 0; !status && i < symbols.length; i++) {
        at += symbols.data[i] == '|';
        out[at].num_layers += symbols.data[i] == 't';
    }
    str_free(&symbols);
    return status;
}

/* ---- by numbers ---- */

/* --num-layers, and the embedding and the loss where they count as layers, for messages. */
static const char *counted(const struct pipeline_split_options *o) {
    if (o->account_embedding && o->account_loss) return " and embedding and loss as one each";
    return o->account_embedding ? " and the embedding as one" : o->account_loss ? " and the loss as one" : "";
}

static int split_evenly(const struct pipeline_split_options *o, struct pipeline_chunk *out, struct err *err) {
    int all = o->layers + o->account_embedding + o->account_loss, places = o->stages * o->chunks;
    /* every place has at least one of `all`, so taking the embedding and the loss away leaves no less than 0
     */
    if (all % o->stages)
        return err_set(
            err,
            "--num-layers %d%s: does not divide over --pipeline-model-parallel-size %d: change one of "
            "them, or give --decoder-first-pipeline-num-layers, --decoder-last-pipeline-num-layers "
            "or " LAYOUT,
            o->layers, counted(o), o->stages);
    if (all % places)
        return err_set(
            err,
            "--num-layers %d%s: the %d of each of --pipeline-model-parallel-size %d stages do not "
            "divide over --num-virtual-stages-per-pipeline-rank %d: change one of them, or give " LAYOUT,
            o->layers, counted(o), all / o->stages, o->stages, o->chunks);
    for (int i = 0; i < places; i++) out[i].num_layers = all / places;
    out[0].num_layers -= o->account_embedding;
    out[places - 1].num_layers -= o->account_loss;
    return 0;
}

/* The stages between the first and the last that are given by number. */
static int middle_layers(const struct pipeline_split_options *o, int *per_stage_p, struct err *err) {
    int layers = o->layers - o->first_layers - o->last_layers;
    int stages = o->stages - (o->first_layers > 0) - (o->last_layers > 0);
    if (stages < 0)
        return err_set(
            err,
            "--decoder-first-pipeline-num-layers and --decoder-last-pipeline-num-layers are for two "
            "stages, --pipeline-model-parallel-size is %d: drop one of them",
            o->stages);
    if (layers < 0 || (layers == 0) != (stages == 0) || (stages && layers % stages))
        return err_set(
            err,
            "--num-layers %d without --decoder-first-pipeline-num-layers %d and "
            "--decoder-last-pipeline-num-layers %d leaves %d layers for %d stages: make them divide "
            "evenly",
            o->layers, o->first_layers, o->last_layers, layers, stages);
    *per_stage_p = stages ? layers / stages : 0;
    return 0;
}

static int check_chunks(const char *what, int layers, int chunks, struct err *err) {
    if (layers % chunks == 0) return 0;
    return err_set(
        err,
        "%s %d does not divide over --num-virtual-stages-per-pipeline-rank %d: make it a multiple, "
        "or give " LAYOUT,
        what, layers, chunks);
}

static int split_unevenly(const struct pipeline_split_options *o, struct pipeline_chunk *out,
                          struct err *err) {
    int middle = 0;
    if (o->account_embedding || o->account_loss)
        return err_set(err,
                       "--account-for-embedding-in-pipeline-split and --account-for-loss-in-pipeline-split "
                       "exclude --decoder-first-pipeline-num-layers and --decoder-last-pipeline-num-layers: "
                       "drop one kind");
    if (o->first_layers < 0 || o->last_layers < 0)
        return err_set(err, "--decoder-first-pipeline-num-layers and --decoder-last-pipeline-num-layers must "
                            "be at least 1: raise them or drop them");
    if (middle_layers(o, &middle, err)) return -1;
    if (check_chunks("--decoder-first-pipeline-num-layers", o->first_layers, o->chunks, err)) return -1;
    if (check_chunks("--decoder-last-pipeline-num-layers", o->last_layers, o->chunks, err)) return -1;
    if (check_chunks("the number of layers of a stage in the middle,", middle, o->chunks, err)) return -1;
    for (int i = 0; i < o->stages * o->chunks; i++) {
        int stage = i % o->stages, layers = middle;
        if (stage == 0 && o->first_layers)
            layers = o->first_layers;
        else if (stage == o->stages - 1 && o->last_layers)
            layers = o->last_layers;
        out[i].num_layers = layers / o->chunks;
    }
    return 0;
}

int pipeline_split(const struct pipeline_split_options *options, struct pipeline_chunk *out,
                   struct err *err) {
    const struct pipeline_split_options *o = options;
    int places = o->stages * o->chunks, layer = 0, status;
    CHECK(o->layers >= 1 && o->stages >= 1 && o->chunks >= 1, "%d layers, %d stages, %d chunks", o->layers,
          o->stages, o->chunks);
    memset(out, 0, (size_t)places * sizeof(*out));
    if (o->layout)
        status = split_by_layout(o, out, err);
    else if (o->first_layers || o->last_layers)
        status = split_unevenly(o, out, err);
    else
        status = split_evenly(o, out, err);
    if (status) return -1;
    for (int i = 0; i < places; i++) {
        out[i].first_layer = layer;
        layer += out[i].num_layers;
    }
    CHECK(layer == o->layers, "the pipeline holds %d layers of %d", layer, o->layers);
    out[0].embedding = true;
    out[places - 1].head = true;
    return 0;
}
