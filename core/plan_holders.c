/* What holds most of the memory at the peak: categories of the fixed part, tensors that are kept then, by
 * name over all layers and micro-batches, and the work area. */
#include "core/base/mem.h"
#include "core/plan_timeline.h"
#include <stdlib.h>
#include <string.h>

struct holder {
    const char *name;
    size_t bytes;
    int count;
};

struct holders {
    struct holder *at;
    int count, capacity;
};

static int by_bytes(const void *a, const void *b) {
    const struct holder *x = a, *y = b;
    if (x->bytes != y->bytes) return x->bytes < y->bytes ? 1 : -1;
    return strcmp(x->name, y->name);
}

static void add_holder(struct holders *h, const char *name, size_t bytes) {
    int i = 0;
    if (!bytes) return;
    while (i < h->count && strcmp(h->at[i].name, name)) i++;
    if (i == h->capacity) {
        h->capacity = h->capacity ? 2 * h->capacity : 32;
        h->at = mem_realloc(h->at, (size_t)h->capacity * sizeof(*h->at), "largest holders");
    }
    if (i == h->count) h->at[h->count++] = (struct holder){name, 0, 0};
    h->at[i].bytes += bytes;
    h->at[i].count++;
}

/* Frames only: of the work area the plan knows the size at the peak. */
static void add_frames(struct holders *h, const struct plan *plan) {
    struct timeline t;
    struct timeline_alive *alive;
    timeline_open(&t, plan);
    int count = timeline_alive_in(&t, t.peak_run, &alive);
    for (int i = 0; i < count; i++) {
        const struct timeline_alive *a = &alive[i];
        const struct program *p = &plan->compiled[plan->segments[a->segment].compiled].program;
        if (a->is_work) continue;
        add_holder(h,
                   a->area.is_grad      ? "gradients held for weight gradients"
                   : a->area.tensor < 0 ? "inputs of layers and head"
                                        : p->tensors[a->area.tensor].name,
                   a->area.bytes);
    }
    mem_free(alive);
    timeline_close(&t);
}

void plan_print_holders(const struct plan *plan, int most, FILE *out) {
    struct holders h = {0};
    char size[32];
    for (int c = 0; c < CATEGORY_COUNT; c++)
        add_holder(&h,
                   c == CATEGORY_ACTIVATIONS ? "gradient of hidden states"
                                             : plan_category_name((enum plan_category)c),
                   plan->fixed_bytes[c]);
    add_frames(&h, plan);
    add_holder(&h, "work area", plan->peak_work_bytes);
    qsort(h.at, (size_t)h.count, sizeof(*h.at), by_bytes);
    fprintf(out, "largest holders at the peak:\n");
    for (int i = 0; i < h.count && i < most; i++) {
        fprintf(out, "  %12s  %s", str_format_bytes(size, sizeof(size), (double)h.at[i].bytes), h.at[i].name);
        if (h.at[i].count > 1) fprintf(out, ", %d of them", h.at[i].count);
        fputc('\n', out);
    }
    mem_free(h.at);
}
