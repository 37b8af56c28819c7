#include "core/plan_holders.h"
#include "core/base/json.h"
#include "core/base/mem.h"
#include "core/base/str.h"
#include "core/plan_timeline.h"
#include <stdlib.h>
#include <string.h>

static int by_bytes(const void *a, const void *b) {
    const struct plan_holder *x = a, *y = b;
    if (x->bytes != y->bytes) return x->bytes < y->bytes ? 1 : -1;
    return strcmp(x->tensor, y->tensor);
}

/* The instruction of the peak's run at which the highest work tensor begins: there the peak is reached. */
static int peak_instruction(const struct timeline *t, const struct timeline_alive *alive, int count) {
    for (int i = 0; i < count; i++)
        if (alive[i].area.offset + alive[i].area.bytes == t->plan->arena_bytes && alive[i].is_work)
            return alive[i].area.first;
    return timeline_code(t, t->peak_run)->num_instrs - 1;
}

static struct plan_holder holder_of(const struct plan *plan, const struct timeline_alive *a) {
    const struct program *p = &plan->compiled[plan->segments[a->segment].compiled].program;
    struct plan_holder h = {.category = "layer input", .module = "", .tensor = "", .count = 1};
    h.bytes = a->area.bytes;
    if (a->area.tensor < 0) return h;
    h.category = a->area.is_grad ? "gradient" : a->is_work ? "work" : "kept";
    h.module = timeline_module(p, a->area.tensor);
    h.tensor = p->tensors[a->area.tensor].name;
    return h;
}

static void add(struct plan_holder *holders, int *count, struct plan_holder h) {
    for (int i = 0; i < *count; i++) {
        struct plan_holder *o = &holders[i];
        if (strcmp(o->category, h.category) || strcmp(o->module, h.module) || strcmp(o->tensor, h.tensor))
            continue;
        o->bytes += h.bytes;
        o->count += h.count;
        return;
    }
    holders[(*count)++] = h;
}

int plan_holders(const struct plan *plan, struct plan_holder **holders_p) {
    struct timeline t;
    struct timeline_alive *alive;
    timeline_open(&t, plan);
    int areas = timeline_alive_in(&t, t.peak_run, &alive), count = 0;
    int at = peak_instruction(&t, alive, areas);
    struct plan_holder *holders =
        mem_new_array(struct plan_holder, (size_t)(areas + CATEGORY_COUNT), "holders of memory");
    for (int c = 0; c < CATEGORY_COUNT; c++)
        if (plan->fixed_bytes[c])
            add(holders, &count,
                (struct plan_holder){c == CATEGORY_ACTIVATIONS ? "hidden gradient"
                                                               : plan_category_name((enum plan_category)c),
                                     "", "", plan->fixed_bytes[c], 1});
    for (int i = 0; i < areas; i++)
        if (alive[i].area.first <= at && at <= alive[i].area.last)
            add(holders, &count, holder_of(plan, &alive[i]));
    qsort(holders, (size_t)count, sizeof(*holders), by_bytes);
    mem_free(alive);
    timeline_close(&t);
    *holders_p = holders;
    return count;
}

void plan_print_holder_rows(const struct plan_holder *holders, int count, int most, FILE *out) {
    char size[32], name[96];
    if (count > most) count = most;
    fprintf(out, "the %d largest holders at the peak:\n", count);
    for (int i = 0; i < count; i++) {
        const struct plan_holder *h = &holders[i];
        snprintf(name, sizeof(name), "%s%s%s%s%s", h->category, *h->module ? " " : "", h->module,
                 *h->tensor ? " " : "", h->tensor);
        fprintf(out, "  %-44s %16zu bytes  %12s", name, h->bytes,
                str_format_bytes(size, sizeof(size), (double)h->bytes));
        if (h->count > 1) fprintf(out, "  in %d tensors", h->count);
        fputc('\n', out);
    }
}

void plan_print_holders(const struct plan *plan, int most, FILE *out) {
    struct plan_holder *holders;
    int count = plan_holders(plan, &holders);
    plan_print_holder_rows(holders, count, most, out);
    mem_free(holders);
}

void plan_write_holders_json(const struct plan_holder *holders, int count, int most, struct str *out) {
    json_begin_array(out);
    for (int i = 0; i < count && i < most; i++) {
        const struct plan_holder *h = &holders[i];
        json_begin_object(out);
        json_key(out, "category");
        json_string(out, h->category);
        json_key(out, "module");
        json_string(out, h->module);
        json_key(out, "tensor");
        json_string(out, h->tensor);
        json_key(out, "bytes");
        json_unsigned(out, h->bytes);
        json_key(out, "tensors");
        json_integer(out, h->count);
        json_end_object(out);
    }
    json_end_array(out);
}
