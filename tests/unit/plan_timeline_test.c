/* The timeline of a step is true: areas never overlap, never exceed the plan, reach its peak exactly, are
 * where a real step has its bytes, and nothing that a step needs is missing from it. */
#include "core/plan_timeline.h"
#include "core/base/json.h"
#include "tests/tiny_model.h"

static uint32_t dice_state = 88172645u;
static uint32_t dice(uint32_t sides) { /* xorshift: the same configurations on every run */
    dice_state ^= dice_state << 13, dice_state ^= dice_state >> 17, dice_state ^= dice_state << 5;
    return dice_state % sides;
}

static struct plan_request random_request(void) {
    struct model (*const models[])(void) = {tiny_gpt, tiny_llama, tiny_moe, tiny_mla, tiny_mtp};
    struct model m = models[dice(5)]();
    m.layers = 1 + dice(4);
    m.dtype = (enum dtype)dice(3);
    m.flash = dice(2);
    m.fused_loss = dice(2);
    m.micro_batch = 1 + dice(2);
    struct recompute_policy p = {.granularity = (enum recompute_granularity)dice(3),
                                 .method = (enum recompute_method)dice(3),
                                 .num_layers = 1 + (int)dice((uint32_t)m.layers),
                                 .modules = dice(RECOMPUTE_BIT(MODULE_COUNT))};
    p.modules &= ~RECOMPUTE_BIT(MODULE_layer);
    if (!dice(4)) p.modules = RECOMPUTE_OPS | RECOMPUTE_SAVE(dice(8));
    return tiny_request(m, p);
}

/* No two areas share a byte at one instruction. */
static void expect_no_overlap(const struct timeline_alive *a, int count, int run) {
    for (int i = 0; i < count; i++)
        for (int k = 0; k < i; k++) {
            const struct timeline_area *x = &a[i].area, *y = &a[k].area;
            bool same_time = x->first <= y->last && y->first <= x->last;
            bool same_place = x->offset < y->offset + y->bytes && y->offset < x->offset + x->bytes;
            EXPECT(!same_time || !same_place,
                   "run %d: areas %d (tensor %d) and %d (tensor %d) overlap at byte %zu", run, i, x->tensor,
                   k, y->tensor, x->offset);
        }
}

/* Checks every instruction of every run; returns the highest byte that is ever alive. */
static size_t expect_consistent(const struct plan *plan, const struct timeline *t) {
    size_t highest = 0;
    for (int run = 0; run < t->num_runs; run++) {
        struct timeline_alive *alive;
        int count = timeline_alive_in(t, run, &alive), instrs = timeline_code(t, run)->num_instrs;
        expect_no_overlap(alive, count, run);
        for (int i = 0; i < instrs; i++) {
            size_t sum = plan->activations;
            for (int k = 0; k < count; k++) {
                const struct timeline_area *a = &alive[k].area;
                if (i < a->first || i > a->last) continue;
                sum += a->bytes;
                EXPECT(a->offset >= plan->activations, "run %d: an area lies in the fixed part", run);
                if (a->offset + a->bytes > highest) highest = a->offset + a->bytes;
            }
            EXPECT(sum <= plan->arena_bytes, "run %d, instruction %d: %zu bytes are alive of %zu", run, i,
                   sum, plan->arena_bytes);
        }
        mem_free(alive);
    }
    return highest;
}

/* Bytes from `begin` on that are alive when a run ends. */
static size_t alive_at_end(const struct timeline *t, int run, size_t begin, size_t bytes) {
    struct timeline_alive *alive;
    int count = timeline_alive_in(t, run, &alive), last = timeline_code(t, run)->num_instrs - 1;
    size_t sum = 0;
    for (int k = 0; k < count; k++) {
        const struct timeline_area *a = &alive[k].area;
        if (a->last == last && a->offset >= begin && a->offset + a->bytes <= begin + bytes) sum += a->bytes;
    }
    mem_free(alive);
    return sum;
}

/* A forward leaves the next segment's input; a backward without weight gradients all that those will read. */
static void expect_results(const struct plan *plan, const struct timeline *t) {
    for (int run = 0; run < t->num_runs; run++) {
        const struct action *a = &t->list->actions[t->runs[run].action];
        int segment = t->runs[run].segment;
        const struct plan_segment *s = &plan->segments[segment];
        const struct plan_chunk *chunk = &plan->chunks[s->chunk];
        size_t slot = timeline_slot(t, run), held = plan->compiled[s->compiled].weight.work_bytes;
        if (a->kind == ACTION_FORWARD && segment + 1 < chunk->first_segment + chunk->num_segments)
            EXPECT_EQ(alive_at_end(t, run, slot + s[1].input_offset, s[1].frame_offset - s[1].input_offset),
                      plan_hidden_bytes(plan));
        if (a->kind == ACTION_BACKWARD) EXPECT_EQ(alive_at_end(t, run, slot + s->hold_offset, held), held);
    }
}

TEST(areas_never_overlap_and_reach_the_planned_peak_exactly) {
    for (int i = 0; i < 60; i++) {
        struct plan_request request = random_request();
        struct plan plan;
        struct timeline t;
        plan_build(&request, &plan);
        timeline_open(&t, &plan);
        size_t highest = expect_consistent(&plan, &t);
        expect_results(&plan, &t);
        EXPECT(highest == plan.arena_bytes, "configuration %d: the highest byte is %zu, the peak %zu", i,
               highest, plan.arena_bytes);
        timeline_close(&t);
        plan_free(&plan);
    }
}

TEST(every_stage_of_every_schedule_reaches_its_peak) {
    static const struct {
        const char *schedule;
        int stages, chunks;
    } cases[] = {
        {"1f1b", 2, 1}, {"1f1b", 4, 1}, {"interleaved", 2, 2}, {"zero-bubble", 2, 1}, {"zero-bubble", 4, 1}};
    for (size_t c = 0; c < ARRAY_COUNT(cases); c++) {
        int parts = cases[c].stages * cases[c].chunks;
        struct pipeline_chunk split[8];
        for (int i = 0; i < parts; i++) split[i] = (struct pipeline_chunk){2 * i, 2, i == 0, i == parts - 1};
        for (int stage = 0; stage < cases[c].stages; stage++) {
            struct model m = tiny_llama();
            m.layers = 2 * parts, m.fused_loss = false;
            struct recompute_policy policy = {.granularity = RECOMPUTE_SELECTIVE,
                                              .modules = RECOMPUTE_BIT(MODULE_core_attn) |
                                                         RECOMPUTE_BIT(MODULE_layernorm)};
            struct plan_request request = tiny_request(m, policy);
            request.micro_batches = 8;
            request.layout = (struct plan_layout){.stages = cases[c].stages,
                                                  .stage = stage,
                                                  .chunks = cases[c].chunks,
                                                  .split = split,
                                                  .schedule = schedule_find(cases[c].schedule)};
            struct plan plan;
            struct timeline t;
            plan_build(&request, &plan);
            timeline_open(&t, &plan);
            size_t highest = expect_consistent(&plan, &t);
            expect_results(&plan, &t);
            EXPECT(highest == plan.arena_bytes, "%s, stage %d of %d: the highest byte is %zu, the peak %zu",
                   cases[c].schedule, stage, cases[c].stages, highest, plan.arena_bytes);
            timeline_close(&t);
            plan_free(&plan);
        }
    }
}

/* ---- against real steps ---- */

/* Overwrites every byte of the activations that is not alive when run `next` begins. */
static void spoil_what_is_free(struct tiny *tiny, const struct timeline *t, int next) {
    size_t begin = tiny->plan.activations, n = tiny->plan.arena_bytes - begin;
    struct timeline_alive *alive;
    bool *is_alive = mem_new_array(bool, n, "test");
    int count = timeline_alive_in(t, next, &alive);
    for (int k = 0; k < count; k++)
        if (alive[k].area.first == 0 && !alive[k].is_work)
            memset(is_alive + (alive[k].area.offset - begin), true, alive[k].area.bytes);
    for (size_t i = 0; i < n; i++)
        if (!is_alive[i]) tiny->arena.base[begin + i] = (char)0xFF;
    mem_free(is_alive);
    mem_free(alive);
}

/* tiny_step, action by action. */
static void step(struct tiny *tiny, const struct timeline *t, bool spoil) {
    const struct model *m = &tiny->plan.request.model;
    size_t n = (size_t)(m->seq * m->micro_batch);
    int32_t *tokens = mem_new_array(int32_t, 3 * n, "test"), *labels = tokens + n, *positions = labels + n;
    float *mask = mem_new_array(float, n, "test");
    struct micro_batch micro = {.tokens = tokens,
                                .labels = labels,
                                .positions = positions,
                                .loss_mask = mask,
                                .loss_grad_scale = 0.01f,
                                .training = true,
                                .aux_grad_scale = 0.5f,
                                .mtp_grad_scale = {0.002f}};
    executor_begin_step(&tiny->executor, 1);
    int run = 0;
    for (int i = 0; i < t->list->count; i++) {
        while (run < t->num_runs && t->runs[run].action < i) run++;
        if (spoil && run < t->num_runs) spoil_what_is_free(tiny, t, run);
        micro.index = t->list->actions[i].micro_batch;
        tiny_fill(m, micro.index, tokens, labels, positions, mask);
        executor_run(&tiny->executor, &t->list->actions[i], &micro);
    }
    mem_free(tokens);
    mem_free(mask);
}

TEST(a_step_needs_no_byte_that_the_timeline_calls_free) {
    for (int i = 0; i < 40; i++) {
        struct plan_request request = random_request();
        struct timeline t;
        struct tiny tiny;
        float *grads[2];
        double loss[2];
        for (int spoil = 0; spoil < 2; spoil++) {
            tiny_open(&tiny, &request);
            timeline_open(&t, &tiny.plan);
            step(&tiny, &t, spoil);
            grads[spoil] = tiny_grads(&tiny);
            loss[spoil] = tiny.executor.loss_sum;
            if (spoil) {
                size_t bytes = (size_t)tiny.plan.num_parameters * sizeof(float);
                EXPECT(tiny_all_finite(grads[0], tiny.plan.num_parameters), "configuration %d: not finite",
                       i);
                EXPECT(loss[0] == loss[1] && !memcmp(grads[0], grads[1], bytes),
                       "configuration %d: something alive was called free", i);
            }
            timeline_close(&t);
            tiny_close(&tiny);
        }
        mem_free(grads[0]);
        mem_free(grads[1]);
    }
}

TEST(a_step_takes_the_bytes_that_each_run_shows) {
    for (int i = 0; i < 40; i++) {
        struct plan_request request = random_request();
        struct timeline t;
        struct tiny tiny;
        tiny_open(&tiny, &request);
        timeline_open(&t, &tiny.plan);
        tiny.executor.run_ends = mem_new_array(size_t, (size_t)t.num_runs, "test");
        step(&tiny, &t, false);
        EXPECT_EQ(tiny.executor.num_run_ends, t.num_runs);
        size_t peak = 0;
        for (int run = 0; run < t.num_runs; run++) {
            struct timeline_alive *alive;
            size_t end = 0, work = 0, measured = tiny.executor.run_ends[run];
            int count = timeline_alive_in(&t, run, &alive);
            for (int k = 0; k < count; k++) {
                size_t *end_p = alive[k].is_work ? &work : &end;
                size_t area_end = alive[k].area.offset + alive[k].area.bytes;
                if (area_end > *end_p) *end_p = area_end;
            }
            EXPECT(work ? measured == work : measured <= end || measured == tiny.plan.activations,
                   "configuration %d, run %d: measured %zu, frames end at %zu, work at %zu", i, run, measured,
                   end, work);
            if (measured > peak) peak = measured;
            mem_free(alive);
        }
        EXPECT_EQ(peak, tiny.plan.arena_bytes);
        mem_free(tiny.executor.run_ends);
        timeline_close(&t);
        tiny_close(&tiny);
    }
}

/* ---- JSON ---- */

static int64_t number(const struct json_node *node, const char *key) {
    const struct json_node *value = json_get(node, key);
    return value ? value->integer : -1;
}

TEST(json_has_every_run_frame_and_measured_end) {
    struct plan_request request = tiny_request(tiny_moe(), (struct recompute_policy){0});
    struct plan plan;
    struct timeline t;
    struct err err;
    plan_build(&request, &plan);
    timeline_open(&t, &plan);
    size_t *measured = mem_new_array(size_t, (size_t)t.num_runs, "test");
    for (int i = 0; i < t.num_runs; i++) measured[i] = plan.activations + (size_t)i;
    for (int real = 0; real < 2; real++) {
        struct str text = {0};
        timeline_write_json(&t, real ? measured : NULL, &text);
        struct json *json = json_parse(text.data, text.length, "timeline", &err);
        EXPECT(json != NULL, "%s", err.text);
        if (!json) return;
        const struct json_node *root = json_root(json);
        EXPECT_EQ(number(root, "peak"), plan.arena_bytes);
        EXPECT_EQ(number(root, "activations"), plan.activations);
        EXPECT_EQ(number(root, "instructions"), t.num_instrs);
        EXPECT_EQ(json_get(root, "work_at")->count, t.num_runs);
        EXPECT_EQ(json_get(root, "frames")->count, 3 * t.num_frames);
        EXPECT_EQ(json_get(root, "actions")->count, 4 * 6); /* forward and backward of 3 micro-batches */
        int64_t fixed = 0;
        const struct json_node *list = json_get(root, "fixed");
        for (size_t i = 0; i < list->count; i++) fixed += list->items[i].items[1].integer;
        EXPECT_EQ(fixed, plan.activations);
        EXPECT_EQ(number(root, "measured_peak"), real ? (int64_t)measured[t.num_runs - 1] : -1);
        json_free(json);
        str_free(&text);
    }
    mem_free(measured);
    timeline_close(&t);
    plan_free(&plan);
}

RUN_TESTS(CASE(areas_never_overlap_and_reach_the_planned_peak_exactly),
          CASE(every_stage_of_every_schedule_reaches_its_peak),
          CASE(a_step_needs_no_byte_that_the_timeline_calls_free),
          CASE(a_step_takes_the_bytes_that_each_run_shows), CASE(json_has_every_run_frame_and_measured_end))
