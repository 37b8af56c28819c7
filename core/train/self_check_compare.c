/* Every element that a rank holds against the same element of the one-rank run. */
#include "core/base/mem.h"
#include "core/train/self_check.h"
#include <math.h>
#include <string.h>

static const float *values_of(const struct executor *e, const struct plan_param *p,
                              enum self_check_tensor what) {
    return executor_at(e, what == SELF_CHECK_GRADIENTS ? p->held_grad : p->master);
}

static int find_param(const struct plan *plan, const char *name) {
    for (int i = 0; i < plan->num_params; i++)
        if (!strcmp(plan->params[i].name, name)) return i;
    return -1;
}

/* Rows that pad the vocabulary do not exist in the reference: their gradient is zero, their weight anything.
 */
struct stretch {
    const float *mine, *reference;
    int64_t count, known; /* the first `known` exist in the reference */
};

static double largest_difference(const struct stretch *s, enum self_check_tensor what) {
    double largest = 0;
    for (int64_t i = 0; i < s->count; i++) {
        if (i >= s->known && what == SELF_CHECK_WEIGHTS) break;
        double difference = fabs((double)s->mine[i] - (i < s->known ? (double)s->reference[i] : 0));
        if (!(difference <= largest)) largest = isfinite(difference) ? difference : INFINITY;
    }
    return largest;
}

/* Updates the difference and takes the counted elements off what is missing. */
static void compare_param(const struct executor *layout, const struct plan_param *p,
                          const struct executor *reference, const struct plan_param *truth,
                          enum self_check_tensor what, struct self_check_entry *entry) {
    const float *mine = values_of(layout, p, what), *theirs = values_of(reference, truth, what);
    for (int64_t done = 0, count; done < p->held_count; done += count) {
        int64_t global = update_global_element(p, p->held_begin + done, &count);
        if (count > p->held_count - done) count = p->held_count - done;
        int64_t known = truth->count - global;
        if (known < 0) known = 0;
        if (known > count) known = count;
        struct stretch s = {mine + done, known ? theirs + global : NULL, count, known};
        entry->difference = fmax(entry->difference, largest_difference(&s, what));
        int64_t counted = p->counted - done;
        if (counted > known) counted = known;
        if (counted > 0) entry->missing -= (double)counted;
    }
}

static double largest_magnitude(const float *x, int64_t n) {
    double largest = 0;
    for (int64_t i = 0; i < n; i++) {
        if (!isfinite(x[i])) return INFINITY;
        largest = fmax(largest, fabs((double)x[i]));
    }
    return largest;
}

/* Difference: the largest of all ranks. Missing: what is left after every rank has taken off its own. */
static void put_together(struct self_check_entry *entries, int count, struct comm *world) {
    double *differences = mem_new_array(double, 2 * (size_t)count, "self-check"),
           *counted = differences + count;
    for (int i = 0; i < count; i++) {
        differences[i] = entries[i].difference;
        counted[i] = entries[i].missing;
    }
    if (world) {
        comm_all_reduce(world, differences, count, COMM_F64, COMM_MAX);
        comm_all_reduce(world, counted, count, COMM_F64, COMM_SUM);
    }
    for (int i = 0; i < count; i++) {
        entries[i].difference = differences[i];
        entries[i].missing = counted[i];
    }
    mem_free(differences);
}

int self_check_compare(const struct executor *layout, const struct executor *reference, struct comm *world,
                       enum self_check_tensor what, struct self_check_entry *entries) {
    const struct plan *plan = layout->plan, *truth = reference->plan;
    double largest = 0;
    int worst = 0;
    for (int i = 0; i < truth->num_params; i++) {
        struct self_check_entry *e = &entries[i];
        const struct plan_param *p = &truth->params[i];
        e->name = p->name;
        e->difference = e->missing = 0;
        e->magnitude = largest_magnitude(values_of(reference, p, what), p->count);
        largest = fmax(largest, e->magnitude);
    }
    for (int i = 0; i < plan->num_params; i++) {
        const struct plan_param *p = &plan->params[i];
        int k = find_param(truth, p->name);
        CHECK(k >= 0, "%s is a parameter of this layout and not of one rank", p->name);
        compare_param(layout, p, reference, &truth->params[k], what, &entries[k]);
    }
    put_together(entries, truth->num_params, world);
    for (int i = 0; i < truth->num_params; i++) {
        struct self_check_entry *e = &entries[i];
        double scale = fmax(fmax(e->magnitude, SELF_CHECK_FLOOR * largest), 1e-30);
        e->missing += (double)truth->params[i].count;
        e->relative = isfinite(scale) ? e->difference / scale : INFINITY;
        if (e->missing != 0) e->relative = INFINITY;
        if (e->relative > entries[worst].relative) worst = i;
    }
    return worst;
}
