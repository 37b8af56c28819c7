#pragma once
/* Private to core/plan_auto*.c. */
#include "core/plan_auto.h"

struct auto_option {
    int kind, length;
    recompute_set set;
    struct compiled compiled;
    struct compiled_cost cost;
    double seconds; /* of all its lists */
};

/* What layers may do; the same for all stages. */
struct auto_table {
    int *kind_of;           /* per layer of the model */
    recompute_set *modules; /* per kind: those that its layers have */
    int num_kinds, longest;
    bool has_groups; /* options of several layers */
    struct auto_option *options;
    int num_options, capacity;
};
void auto_table_open(struct auto_table *t, const struct plan *const *bases, int stages);
void auto_table_close(struct auto_table *t);
double auto_cost_seconds(const struct compiled_cost *c);
