/* Fronts of (bytes, seconds) from the last layer to the first. In the stack formula the bytes of a suffix
 * that starts with option o are kept_o + max(work_o, bytes of the rest); in the flat one they are weight *
 * kept_o + those of the rest, for one upper limit of the work at a time. Both grow with the bytes of the
 * rest, so a rest that is beaten in bytes and seconds is never part of a better whole. */
#include "recompute/solve.h"
#include "core/base/check.h"
#include "core/base/mem.h"
#include <string.h>

struct state {
    int64_t bytes;
    double seconds;
    int option, next; /* state of the list after the option */
};

struct list {
    struct state *at;
    int count;
};

struct search {
    const struct solve_problem *problem;
    bool *useful;            /* per option */
    int64_t limit;           /* flat: options with more work are left out */
    struct list *lists;      /* per layer, and one after the last */
    struct state *merged[2]; /* scratch */
};

/* ---- options ---- */

static bool beats(const struct solve_option *a, const struct solve_option *b) {
    return a->kind == b->kind && a->length == b->length && a->kept <= b->kept && a->work <= b->work &&
           a->seconds <= b->seconds;
}

/* Of equal options the first stays. */
static void find_useful(const struct solve_problem *p, bool *useful) {
    for (int i = 0; i < p->num_options; i++) {
        useful[i] = true;
        for (int k = 0; k < p->num_options && useful[i]; k++)
            if (k != i && beats(&p->options[k], &p->options[i]) &&
                (k < i || !beats(&p->options[i], &p->options[k])))
                useful[i] = false;
    }
}

static bool covers(const struct solve_problem *p, const struct solve_option *o, int layer) {
    if (layer + o->length > p->num_layers) return false;
    for (int i = 0; i < o->length; i++)
        if (p->layers[layer + i].kind != o->kind || (i && p->layers[layer + i].first)) return false;
    return true;
}

/* ---- lists ---- */

static int64_t bytes_with(const struct solve_problem *p, int layer, const struct solve_option *o,
                          int64_t rest) {
    if (p->flat) return p->layers[layer].weight * o->kept + rest;
    return o->kept + (o->work > rest ? o->work : rest);
}

/* Appends unless the state before it is as good. States come by rising bytes. */
static int append(struct state *list, int count, struct state s) {
    if (count && list[count - 1].seconds <= s.seconds) return count;
    if (count && list[count - 1].bytes == s.bytes) count--;
    list[count] = s;
    return count + 1;
}

/* Merges `from` (sorted) and option o before every state of `rest` into `to`. */
static int merge(const struct search *s, int layer, int o, const struct state *from, int count,
                 const struct list *rest, struct state *to) {
    const struct solve_problem *p = s->problem;
    const struct solve_option *option = &p->options[o];
    int written = 0, i = 0, k = 0;
    while (i < count || k < rest->count) {
        struct state next = {0};
        if (k < rest->count)
            next = (struct state){bytes_with(p, layer, option, rest->at[k].bytes),
                                  rest->at[k].seconds + option->seconds, o, k};
        bool old = k == rest->count ||
                   (i < count && (from[i].bytes < next.bytes ||
                                  (from[i].bytes == next.bytes && from[i].seconds <= next.seconds)));
        written = append(to, written, old ? from[i++] : next);
        if (!old) k++;
    }
    return written;
}

/* The fastest of each stretch of bytes, and the smallest. */
static int thin(struct state *list, int count) {
    if (count <= SOLVE_MAX_POINTS) return count;
    int64_t first = list[0].bytes, range = list[count - 1].bytes - first;
    int kept = 1;
    for (int i = 1; i < count; i++) {
        double cell = (double)(SOLVE_MAX_POINTS - 1) / (double)range;
        bool last = i == count - 1 || (int64_t)((double)(list[i + 1].bytes - first) * cell) >
                                          (int64_t)((double)(list[i].bytes - first) * cell);
        if (last) list[kept++] = list[i];
    }
    return kept;
}

/* A merge can be as long as all that went into it, so scratch has room for one thinned list per option. */
static void fill_layer(struct search *s, int layer) {
    const struct solve_problem *p = s->problem;
    int count = 0, side = 0;
    for (int o = 0; o < p->num_options; o++) {
        const struct solve_option *option = &p->options[o];
        if (!s->useful[o] || !covers(p, option, layer) || (p->flat && option->work > s->limit)) continue;
        count =
            merge(s, layer, o, s->merged[side], count, &s->lists[layer + option->length], s->merged[!side]);
        side = !side;
    }
    count = thin(s->merged[side], count);
    struct list *list = &s->lists[layer];
    list->count = count;
    list->at = mem_alloc(mem_array_bytes((size_t)count, sizeof(struct state)), "recompute search");
    if (count) memcpy(list->at, s->merged[side], (size_t)count * sizeof(struct state));
}

/* ---- the whole ---- */

static void read_choice(const struct search *s, int point, int *choice) {
    int n = s->problem->num_layers;
    memset(choice, 0xff, (size_t)n * sizeof(int)); /* -1 */
    for (int layer = 0; layer < n;) {
        const struct state *state = &s->lists[layer].at[point];
        choice[layer] = state->option;
        layer += s->problem->options[state->option].length;
        point = state->next;
    }
}

/* Merges the first layer's list into the front; total bytes are the list's plus `extra`. */
static void add_points(const struct search *s, int64_t extra, struct solve_front *front) {
    int n = s->problem->num_layers, most = front->count + s->lists[0].count, written = 0, i = 0, k = 0;
    struct solve_front out = {mem_new_array(struct solve_point, (size_t)most + 1, "recompute search"), 0,
                              mem_new_array(int, (size_t)most *(size_t)n + 1, "recompute search")};
    while (i < front->count || k < s->lists[0].count) {
        const struct state *state = &s->lists[0].at[k];
        bool old =
            k == s->lists[0].count || (i < front->count && (front->points[i].bytes < state->bytes + extra ||
                                                            (front->points[i].bytes == state->bytes + extra &&
                                                             front->points[i].seconds <= state->seconds)));
        struct solve_point next = {0};
        if (old)
            next = front->points[i++];
        else
            next = (struct solve_point){state->bytes + extra, state->seconds, NULL};
        int at = k;
        k += !old;
        if (written && out.points[written - 1].seconds <= next.seconds) continue;
        if (written && out.points[written - 1].bytes == next.bytes) written--;
        int *choice = out.choices + (size_t)written * (size_t)n;
        if (old)
            memcpy(choice, next.choice, (size_t)n * sizeof(int));
        else
            read_choice(s, at, choice);
        next.choice = choice;
        out.points[written++] = next;
    }
    solve_close(front);
    *front = out;
    front->count = written;
}

static void search_once(struct search *s, int64_t extra, struct solve_front *front) {
    const struct solve_problem *p = s->problem;
    struct state end = {.bytes = p->flat ? 0 : p->above};
    s->lists[p->num_layers] = (struct list){&end, 1};
    for (int layer = p->num_layers - 1; layer >= 0; layer--) fill_layer(s, layer);
    add_points(s, extra, front);
    for (int layer = 0; layer < p->num_layers; layer++) mem_free(s->lists[layer].at);
}

/* The next limit of the work above `limit`: a useful option's, or -1. */
static int64_t next_limit(const struct search *s, int64_t limit) {
    int64_t next = -1;
    for (int o = 0; o < s->problem->num_options; o++) {
        int64_t work = s->problem->options[o].work;
        if (s->useful[o] && work > limit && (next < 0 || work < next)) next = work;
    }
    return next;
}

void solve_open(const struct solve_problem *p, struct solve_front *out) {
    size_t n = (size_t)p->num_options, scratch = (n + 1) * (SOLVE_MAX_POINTS + 1);
    struct search s = {.problem = p, .limit = p->work};
    *out = (struct solve_front){0};
    s.useful = mem_new_array(bool, n, "recompute search");
    s.lists = mem_new_array(struct list, (size_t)p->num_layers + 1, "recompute search");
    for (int i = 0; i < 2; i++) s.merged[i] = mem_new_array(struct state, scratch, "recompute search");
    find_useful(p, s.useful);
    if (!p->flat)
        search_once(&s, p->below, out);
    else
        for (; s.limit >= 0; s.limit = next_limit(&s, s.limit)) search_once(&s, s.limit, out);
    mem_free(s.useful);
    mem_free(s.lists);
    mem_free(s.merged[0]);
    mem_free(s.merged[1]);
}

void solve_close(struct solve_front *front) {
    mem_free(front->points);
    mem_free(front->choices);
    *front = (struct solve_front){0};
}
