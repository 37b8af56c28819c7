/* The search against every choice there is, tried one by one with the formulas written out. */
#include "recompute/solve.h"
#include "tests/test.h"

enum { MAX_LAYERS = 6, MAX_OPTIONS = 9, INSTANCES = 1200 };

struct instance {
    struct solve_layer layers[MAX_LAYERS];
    struct solve_option options[MAX_OPTIONS];
    struct solve_problem problem;
};

static uint32_t draw(uint32_t *state, uint32_t below) {
    *state = *state * 1664525u + 1013904223u;
    return (*state >> 8) % below;
}

static void make_instance(struct instance *x, uint32_t seed) {
    uint32_t r = seed * 2654435761u + 17;
    int kinds = 1 + (int)draw(&r, 2), n = 1 + (int)draw(&r, MAX_LAYERS),
        extra = (int)draw(&r, MAX_OPTIONS - 2);
    int64_t weight = 1;
    *x = (struct instance){0};
    for (int i = 0; i < n; i++) {
        bool first = i == 0 || !draw(&r, 4);
        if (first) weight = 1 + draw(&r, 4);
        x->layers[i] = (struct solve_layer){(int)draw(&r, (uint32_t)kinds), first, weight};
    }
    for (int o = 0; o < kinds + extra; o++) { /* the first `kinds` make sure that every layer has one */
        bool base = o < kinds;
        x->options[o] =
            (struct solve_option){base ? o : (int)draw(&r, (uint32_t)kinds), base ? 1 : 1 + (int)draw(&r, 3),
                                  draw(&r, 40), draw(&r, 30), draw(&r, 50) * 0.25};
    }
    x->problem = (struct solve_problem){
        x->layers, n, x->options, kinds + extra, draw(&r, 2) == 0, draw(&r, 20), draw(&r, 60), draw(&r, 30)};
}

/* The best seconds within a budget over all choices, by trying them; -1 when none fits. */
struct trial {
    const struct solve_problem *p;
    int64_t budget;
    double best;
};

static int64_t larger(int64_t a, int64_t b) {
    return a > b ? a : b;
}

static void try_from(struct trial *t, int layer, int64_t prefix, int64_t peak, int64_t work, double seconds) {
    const struct solve_problem *p = t->p;
    if (layer == p->num_layers) {
        int64_t bytes = p->flat ? prefix + work : larger(peak, p->below + prefix + p->above);
        if (bytes <= t->budget && (t->best < 0 || seconds < t->best)) t->best = seconds;
        return;
    }
    for (int o = 0; o < p->num_options; o++) {
        const struct solve_option *option = &p->options[o];
        bool fits = layer + option->length <= p->num_layers;
        for (int i = 0; fits && i < option->length; i++)
            fits = p->layers[layer + i].kind == option->kind && !(i > 0 && p->layers[layer + i].first);
        if (!fits) continue;
        int64_t kept = prefix + option->kept * (p->flat ? p->layers[layer].weight : 1);
        try_from(t, layer + option->length, kept, larger(peak, p->below + kept + option->work),
                 larger(work, option->work), seconds + option->seconds);
    }
}

static double best_of_all(const struct solve_problem *p, int64_t budget) {
    struct trial t = {p, budget, -1};
    try_from(&t, 0, 0, 0, p->work, 0);
    return t.best;
}

/* The front's answer, with its choice checked: bytes and seconds must be what the choice gives. */
static double best_of_front(const struct solve_problem *p, const struct solve_front *f, int64_t budget) {
    double best = -1;
    for (int i = 0; i < f->count; i++) {
        if (f->points[i].bytes > budget) continue;
        double seconds = 0;
        for (int layer = 0; layer < p->num_layers; layer++)
            if (f->points[i].choice[layer] >= 0) seconds += p->options[f->points[i].choice[layer]].seconds;
        EXPECT_NEAR(seconds, f->points[i].seconds, 1e-9);
        if (best < 0 || seconds < best) best = seconds;
    }
    return best;
}

TEST(the_search_finds_what_trying_everything_finds) {
    for (uint32_t k = 0; k < INSTANCES; k++) {
        struct instance x;
        struct solve_front front;
        make_instance(&x, k);
        solve_open(&x.problem, &front);
        EXPECT(front.count > 0, "instance %u", k);
        for (int64_t budget = 0; budget < 600; budget += 1 + (int64_t)(k % 7)) {
            double all = best_of_all(&x.problem, budget), got = best_of_front(&x.problem, &front, budget);
            EXPECT(fabs(all - got) < 1e-9, "instance %u, budget %lld: %g, tried %g", k, (long long)budget,
                   got, all);
        }
        for (int i = 1; i < front.count; i++) {
            EXPECT(front.points[i].bytes > front.points[i - 1].bytes, "instance %u", k);
            EXPECT(front.points[i].seconds < front.points[i - 1].seconds, "instance %u", k);
        }
        solve_close(&front);
    }
}

RUN_TESTS(CASE(the_search_finds_what_trying_everything_finds))
