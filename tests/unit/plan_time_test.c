/* Predicted times: hardware files, the roofline, and the step against sums written out here. */
#include "core/plan_time.h"
#include "core/base/mem.h"
#include "tests/tiny_model.h"

static struct hardware rates(const char *text) {
    struct hardware hw = {0};
    struct err err;
    EXPECT(!hardware_parse(text, "test", &hw, &err), "%s", err.text);
    return hw;
}

#define PLAIN "matrix_flops_bf16: 2e12\nmatrix_flops_fp32: 1e12\nmemory_bandwidth: 1e10\n"

TEST(a_file_gives_back_what_was_written) {
    for (int i = 0; hardware_name(i); i++) {
        struct hardware hw, again;
        struct str text = {0};
        struct err err;
        char line[256];
        EXPECT(!hardware_find(hardware_name(i), &hw), "%s is a profile", hardware_name(i));
        FILE *f = tmpfile();
        hardware_write(&hw, f);
        rewind(f);
        while (fgets(line, sizeof(line), f)) str_puts(&text, line);
        fclose(f);
        EXPECT(!hardware_parse(text.data, "file", &again, &err), "%s", err.text);
        EXPECT_STR(again.name, hw.name);
#define REQUIRED(field, key, help) EXPECT_NEAR(again.field / (hw.field + 1e-30), hw.field > 0 ? 1 : 0, 1e-3);
#define OPTIONAL(field, key, help) REQUIRED(field, key, help)
#include "core/plan_hardware.def"
#undef REQUIRED
#undef OPTIONAL
        str_free(&text);
    }
}

TEST(what_is_no_hardware_file_is_refused_with_its_line) {
    static const struct {
        const char *text, *says;
    } cases[] = {
        {"", "matrix_flops_bf16 is missing"},
        {"matrix_flops_bf16: 1e12\nmatrix_flops_fp32: 1e12\n", "memory_bandwidth is missing"},
        {PLAIN "speed: 3\n", "line 4: speed is no key"},
        {PLAIN "call_seconds: fast\n", "line 4: call_seconds: 'fast' is no number"},
        {PLAIN "call_seconds: -1\n", "line 4: call_seconds"},
        {PLAIN "call_seconds: inf\n", "line 4: call_seconds"},
        {PLAIN "call_seconds: 1 2\n", "line 4: call_seconds"},
        {"matrix_flops_bf16: 0\n", "line 1: matrix_flops_bf16"},
        {PLAIN "call_seconds\n", "line 4: expected \"key: number\""},
    };
    for (size_t i = 0; i < ARRAY_COUNT(cases); i++) {
        struct hardware hw;
        struct err err = {0};
        EXPECT(hardware_parse(cases[i].text, "node.yaml", &hw, &err) == -1, "case %zu is taken", i);
        EXPECT_CONTAINS(err.text, cases[i].says);
        EXPECT_CONTAINS(err.text, "node.yaml");
    }
    struct hardware hw;
    struct err err;
    EXPECT(hardware_open("h1000", &hw, &err) == -1, "a profile that does not exist");
    EXPECT_CONTAINS(err.text, "h100, h200");
}

TEST(a_kernel_takes_the_longer_of_arithmetic_and_traffic) {
    struct hardware hw =
        rates(PLAIN "bandwidth_norm: 5e9\ncall_seconds: 1e-6\nlink_bandwidth_intra_node: 1e9\n"
                    "link_bandwidth_inter_node: 1e8\nranks_per_node: 4\nlink_seconds: 1e-5\n");
    struct kernel_cost c = {.flops = 2e9, .gemm_flops = 1e9, .bytes = 1e6};
    EXPECT_NEAR(hardware_kernel_seconds(&hw, KERNEL_gemm, c, 1, DTYPE_F32, false), 1e-3 + 1e-6, 1e-12);
    EXPECT_NEAR(hardware_kernel_seconds(&hw, KERNEL_gemm, c, 3, DTYPE_BF16, false), 5e-4 + 3e-6, 1e-12);
    c.bytes = 1e8;
    EXPECT_NEAR(hardware_kernel_seconds(&hw, KERNEL_gemm, c, 1, DTYPE_F32, false), 1e-2 + 1e-6, 1e-12);
    c.gemm_flops = 0;
    EXPECT_NEAR(hardware_kernel_seconds(&hw, KERNEL_norm_forward, c, 1, DTYPE_F32, false), 2e-2 + 1e-6,
                1e-12);
    EXPECT_NEAR(hardware_message_seconds(&hw, 1e6, 2, 4), 1e-3 + 2e-5, 1e-12);
    EXPECT_NEAR(hardware_message_seconds(&hw, 1e6, 2, 5), 1e-2 + 2e-5, 1e-12);
}

static struct plan_request request_of(struct model m, const struct hardware *hw) {
    struct plan_request r = tiny_request(m, (struct recompute_policy){.granularity = RECOMPUTE_NONE});
    r.hardware = hw;
    return r;
}

/* One rank, one chunk: a step is its micro-batches one after the other, then the update. */
TEST(a_step_of_one_rank_is_the_sum_of_its_lists) {
    struct hardware hw = rates(PLAIN);
    struct plan_request request = request_of(tiny_gpt(), &hw);
    request.recompute = (struct recompute_policy){
        .granularity = RECOMPUTE_FULL, .method = RECOMPUTE_UNIFORM, .num_layers = 1};
    struct plan plan;
    struct stage_time time;
    double seconds = 0, rerun = 0;
    plan_build(&request, &plan);
    plan_time_stage(&plan, &time);
    struct step_time step = plan_time_step(&plan, &time);
    for (int i = 0; i < plan.num_segments; i++) {
        const struct compiled_cost *c = &plan.costs[plan.segments[i].compiled];
        EXPECT(c->forward_seconds > 0 && c->backward_seconds > 0, "segment %d takes no time", i);
        seconds += c->forward_seconds + c->rerun_seconds + c->backward_seconds;
        rerun += c->rerun_seconds;
    }
    EXPECT(rerun > 0 && rerun < seconds / 2, "recompute takes %g of %g s", rerun, seconds);
    EXPECT_NEAR(step.schedule / (3 * seconds), 1, 1e-9);
    EXPECT_NEAR(step.rerun / (3 * rerun), 1, 1e-9);
    EXPECT_NEAR(step.bubble, 0, 1e-9);
    /* master, two moments and gradient read, the first three written, and the gradient once for the norm */
    EXPECT_NEAR(step.optimizer / (32e-10 * (double)plan.num_parameters), 1, 0.05);
    EXPECT_NEAR(step.seconds / (step.schedule + step.optimizer), 1, 1e-9);
    stage_time_free(&time);
    plan_free(&plan);
}

/* Without a constant per call, twice the rates are half the time. */
TEST(a_machine_twice_as_fast_takes_half_the_time) {
    struct hardware one = rates(PLAIN), two = rates("matrix_flops_bf16: 4e12\nmatrix_flops_fp32: 2e12\n"
                                                    "memory_bandwidth: 2e10\n");
    const struct hardware *machines[] = {&one, &two};
    double seconds[2];
    for (int i = 0; i < 2; i++) {
        struct plan_request request = request_of(tiny_llama(), machines[i]);
        struct plan plan;
        struct stage_time time;
        plan_build(&request, &plan);
        plan_time_stage(&plan, &time);
        seconds[i] = plan_time_step(&plan, &time).seconds;
        stage_time_free(&time);
        plan_free(&plan);
    }
    EXPECT_NEAR(seconds[0] / seconds[1], 2, 1e-9);
}

/* Forward 1 and backward 2 units in every stage: (micro-batches + stages - 1) * 3 units, as everyone's bubble
 * formula says; and the same numbers as the simulation in units. */
TEST(the_schedule_in_seconds_is_the_schedule_in_units) {
    for (int k = 0; schedule_at(k); k++)
        for (int stages = 2; stages <= 4; stages++) {
            const struct schedule *s = schedule_at(k);
            struct schedule_shape shape = {.stages = stages, .chunks = 1, .micro_batches = 8};
            if (s->refuses(&shape)) shape.chunks = 2;
            if (s->refuses(&shape)) continue;
            double forward[8], backward[8], weight[8];
            for (int i = 0; i < 8; i++)
                forward[i] = 0.5, backward[i] = s->splits_backward ? 0.5 : 1, weight[i] = 0.5;
            struct schedule_times times = {forward, backward, weight, 0};
            struct schedule_report units, seconds;
            schedule_simulate(s, &shape, &units);
            double length = schedule_simulate_times(s, &shape, &times, &seconds);
            EXPECT_NEAR(length, 0.5 * units.length, 1e-9);
            EXPECT_NEAR(seconds.bubble, units.bubble, 1e-9);
            if (!strcmp(s->name, "1f1b")) EXPECT_NEAR(length, 1.5 * (8 + stages - 1), 1e-9);
            for (int i = 0; i < stages * shape.chunks; i++) { /* any longer action: never a shorter step */
                backward[i] += 0.25;
                double longer = schedule_simulate_times(s, &shape, &times, &seconds);
                EXPECT(longer >= length - 1e-9, "%s: %g after %g", s->name, longer, length);
                length = longer;
            }
            times.message = 0.1;
            EXPECT(schedule_simulate_times(s, &shape, &times, &seconds) > length, "%s: messages cost nothing",
                   s->name);
        }
}

/* Gradients of P elements over n ranks: 2 (n - 1) / n of 4 P bytes are sent. */
TEST(gradients_that_are_not_overlapped_cost_their_ring) {
    struct hardware hw = rates(PLAIN "link_bandwidth_intra_node: 1e8\n");
    struct plan_request request = request_of(tiny_llama(), &hw);
    request.layout.data = 4;
    struct plan plan;
    struct stage_time time;
    plan_build(&request, &plan);
    plan_time_stage(&plan, &time);
    double elements = 0;
    for (int i = 0; i < plan.num_buckets; i++) elements += (double)plan.buckets[i].elements;
    EXPECT_NEAR(time.exposed_reduce / (2 * 0.75 * 4 * elements / 1e8), 1, 1e-9);
    EXPECT_NEAR(time.exposed_gather, 0, 1e-12);
    stage_time_free(&time);
    plan_free(&plan);
}

/* A sum over tensor-parallel ranks works beside the weight gradient: a slow link is seen, a fast one is not.
 */
TEST(messages_of_a_list_hide_behind_its_kernels) {
    double seconds[3];
    static const char *const links[] = {"1e15", "1e8", "1e7"};
    for (int i = 0; i < 3; i++) {
        char text[200];
        snprintf(text, sizeof(text), PLAIN "link_bandwidth_intra_node: %s\n", links[i]);
        struct hardware hw = rates(text);
        struct plan_request request = request_of(tiny_llama(), &hw);
        request.model.tp = 2;
        request.model.sequence_parallel = true;
        struct plan plan;
        plan_build(&request, &plan);
        const struct compiled_cost *c = &plan.costs[plan.segments[1].compiled];
        seconds[i] = c->forward_seconds + c->backward_seconds;
        double alone = c->message_bytes / (i == 1 ? 1e8 : 1e7);
        if (i)
            EXPECT(seconds[i] > seconds[0] && seconds[i] < seconds[0] + alone,
                   "with messages of %g s: %g s, without %g s", alone, seconds[i], seconds[0]);
        plan_free(&plan);
    }
    EXPECT(seconds[2] > seconds[1], "a slower link is not slower");
}

RUN_TESTS(CASE(a_file_gives_back_what_was_written), CASE(what_is_no_hardware_file_is_refused_with_its_line),
          CASE(a_kernel_takes_the_longer_of_arithmetic_and_traffic),
          CASE(a_step_of_one_rank_is_the_sum_of_its_lists), CASE(a_machine_twice_as_fast_takes_half_the_time),
          CASE(the_schedule_in_seconds_is_the_schedule_in_units),
          CASE(gradients_that_are_not_overlapped_cost_their_ring),
          CASE(messages_of_a_list_hide_behind_its_kernels))
