/* The timeline as JSON, for core/plan_timeline.html, which unrolls it; that file's script says what it reads.
 */
#include "core/base/json.h"
#include "core/plan_timeline.h"
#include <limits.h>
#include <stdio.h>

static void key_size(struct str *out, const char *key, size_t value) {
    json_key(out, key);
    json_unsigned(out, value);
}

static void key_int(struct str *out, const char *key, int64_t value) {
    json_key(out, key);
    json_integer(out, value);
}

/* [name, module, layer of the segment, bytes, "bf16 12 x 2 x 32"] */
static void write_tensors(const struct program *p, struct str *out) {
    json_key(out, "tensors");
    json_begin_array(out);
    for (int i = 0; i < p->num_tensors; i++) {
        const struct tensor_info *t = &p->tensors[i];
        char shape[96];
        int n = snprintf(shape, sizeof(shape), "%s", dtype_name(t->dtype));
        for (int d = 0; d < t->num_dims && n < (int)sizeof(shape); d++)
            n += snprintf(shape + n, sizeof(shape) - (size_t)n, "%s%lld", d ? " x " : " ",
                          (long long)t->dims[d]);
        json_begin_array(out);
        json_string(out, t->name);
        json_string(out, timeline_module(p, i));
        json_integer(out, t->producer < 0 ? 0 : p->ops[t->producer].layer);
        json_unsigned(out, t->bytes);
        json_string(out, shape);
        json_end_array(out);
    }
    json_end_array(out);
}

/* Rows of tensor, gradient?, offset, bytes, first, last. */
static void write_areas(const char *key, const struct timeline_areas *areas, struct str *out) {
    json_key(out, key);
    json_begin_array(out);
    for (int i = 0; i < areas->count; i++) {
        const struct timeline_area *a = &areas->at[i];
        json_integer(out, a->tensor);
        json_integer(out, a->is_grad);
        json_unsigned(out, a->offset);
        json_unsigned(out, a->bytes);
        json_integer(out, a->first);
        json_integer(out, a->last == INT_MAX ? -1 : a->last);
    }
    json_end_array(out);
}

/* Rows of kind, op. */
static void write_code(const struct code *c, struct str *out) {
    json_begin_array(out);
    for (int i = 0; i < c->num_instrs; i++) {
        json_integer(out, c->at[i].kind);
        json_integer(out, c->at[i].op);
    }
    json_end_array(out);
}

static void write_lists(const struct compiled *c, const struct timeline_lists *l, struct str *out) {
    const struct code *codes[TIMELINE_LISTS] = {&c->forward, &c->backward, &c->weight};
    json_begin_object(out);
    write_tensors(&c->program, out);
    json_key(out, "ops");
    json_begin_array(out);
    for (int i = 0; i < c->program.num_ops; i++) json_string(out, c->program.ops[i].name);
    json_end_array(out);
    json_key(out, "code");
    json_begin_array(out);
    for (int k = 0; k < TIMELINE_LISTS; k++) write_code(codes[k], out);
    json_end_array(out);
    write_areas("keep", &l->keep, out);
    write_areas("hold", &l->hold, out);
    write_areas("forward", &l->work[ACTION_FORWARD], out);
    write_areas("backward", &l->work[ACTION_BACKWARD], out);
    json_key(out, "work");
    json_begin_array(out);
    for (int k = 0; k < TIMELINE_LISTS; k++)
        json_unsigned(out, k == ACTION_WEIGHT ? 0 : codes[k]->work_bytes);
    json_end_array(out);
    key_int(out, "output", l->output_first);
    json_end_object(out);
}

/* [kind, compiled, first layer, layers, first of its chunk?, input, frame, end, hold] */
static void write_segments(const struct plan *plan, struct str *out) {
    json_key(out, "segments");
    json_begin_array(out);
    for (int i = 0; i < plan->num_segments; i++) {
        const struct plan_segment *s = &plan->segments[i];
        json_begin_array(out);
        json_integer(out, s->kind);
        json_integer(out, s->compiled);
        json_integer(out, s->first_layer);
        json_integer(out, s->num_layers);
        json_integer(out, plan->chunks[s->chunk].first_segment == i);
        json_unsigned(out, s->input_offset);
        json_unsigned(out, s->frame_offset);
        json_unsigned(out, s->end_offset);
        json_unsigned(out, s->hold_offset);
        json_end_array(out);
    }
    json_end_array(out);
}

/* Names of the fixed parts that are not weights, gradients or optimizer state of one parameter. */
static void write_fixed(const struct plan *plan, struct str *out) {
    json_key(out, "fixed");
    json_begin_array(out);
    for (int c = 0; c < CATEGORY_COUNT; c++) {
        if (!plan->fixed_bytes[c]) continue;
        json_begin_array(out);
        json_string(out, c == CATEGORY_ACTIVATIONS ? "hidden gradient" : plan_category_name(c));
        json_unsigned(out, plan->fixed_bytes[c]);
        json_end_array(out);
    }
    json_end_array(out);
}

/* Actions that compute, as rows of kind, chunk, micro-batch, slot, runs; and what each run and frame adds. */
static void write_step(const struct timeline *t, struct str *out) {
    const struct plan *plan = t->plan;
    json_key(out, "actions");
    json_begin_array(out);
    for (int i = 0; i < t->list->count; i++) {
        const struct action *a = &t->list->actions[i];
        if (a->kind > ACTION_WEIGHT) continue;
        json_integer(out, a->kind);
        json_integer(out, a->chunk);
        json_integer(out, a->micro_batch);
        json_integer(out, frames_slot(plan, a));
    }
    json_end_array(out);
    json_key(out, "chunks"); /* first segment, segments */
    json_begin_array(out);
    for (int i = 0; i < plan->num_chunks; i++) {
        json_integer(out, plan->chunks[i].first_segment);
        json_integer(out, plan->chunks[i].num_segments);
    }
    json_end_array(out);
    json_key(out, "work_at");
    json_begin_array(out);
    for (int i = 0; i < t->num_runs; i++) json_unsigned(out, t->runs[i].work - plan->activations);
    json_end_array(out);
    json_key(out, "frames"); /* birth, held, death */
    json_begin_array(out);
    for (int i = 0; i < t->num_frames; i++) {
        json_integer(out, t->frames[i].birth);
        json_integer(out, t->frames[i].held);
        json_integer(out, t->frames[i].death);
    }
    json_end_array(out);
    json_key(out, "slots");
    json_begin_array(out);
    for (int i = 0; i < plan->num_slots; i++) json_unsigned(out, plan->slot_base[i]);
    json_end_array(out);
}

void timeline_write_json(const struct timeline *t, const size_t *measured, struct str *out) {
    const struct plan *plan = t->plan;
    size_t highest = 0;
    json_begin_object(out);
    key_int(out, "stage", plan->request.layout.stage);
    key_size(out, "peak", plan->arena_bytes);
    key_size(out, "activations", plan->activations);
    key_int(out, "instructions", t->num_instrs);
    key_int(out, "peak_run", t->peak_run);
    json_key(out, "forward_only");
    json_bool(out, t->list == plan_eval_actions(plan));
    write_fixed(plan, out);
    json_key(out, "lists");
    json_begin_array(out);
    for (int i = 0; i < plan->num_compiled; i++) write_lists(&plan->compiled[i], &t->lists[i], out);
    json_end_array(out);
    write_segments(plan, out);
    write_step(t, out);
    json_key(out, "measured"); /* per run, relative to the activations; null: this is the plan alone */
    if (!measured) json_null(out);
    if (measured) {
        json_begin_array(out);
        for (int i = 0; i < t->num_runs; i++) {
            if (measured[i] > highest) highest = measured[i];
            json_integer(out, (int64_t)measured[i] - (int64_t)plan->activations);
        }
        json_end_array(out);
        key_size(out, "measured_peak", highest);
    }
    json_end_object(out);
}
