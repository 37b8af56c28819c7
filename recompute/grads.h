#pragma once
/* Private to recompute/: where gradients live while the backward list runs.
 *
 * Tensors whose gradients may share storage form a class. An op that passes its output's gradient on
 * unchanged (a residual addition) puts its input in the output's class when no later write to one member can
 * destroy a value that another member still has to read. So the gradient of the residual stream stays in one
 * buffer through a whole layer: the boundary buffer, which holds the gradient of the segment's output at the
 * start and of its input at the end. */
#include "core/tensor/layout.h"
#include "core/tensor/program.h"

struct grad_classes {
    int *class_of;  /* per tensor; -1: has no gradient, or it lives in another tensor's storage */
    int *last_read; /* per tensor: instruction of its producer's backward; INT_MAX for the segment's input */
    size_t *offset; /* per class, after layout */
    int *first, *last;  /* per class: live range; first is INT_MAX for an empty class */
    int boundary_class; /* class that lives in the boundary buffer, -1 if none */
};

void grads_share(struct grad_classes *g, const struct program *p, const struct code *c);
int grads_ranges(struct grad_classes *g, const struct program *p, struct layout_block *blocks);
/* Writes grad_place and grad_tensor of the code, and frees g. */
void grads_finish(struct grad_classes *g, const struct program *p, struct code *c);
