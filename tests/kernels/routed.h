#pragma once
/* One call of the router's kernels and all that they write. */
#include "tests/kernels/compare.h"

struct routed {
    struct router_shape s;
    float *logits, *probs, *dprobs, *dlogits;
    int32_t *experts, *offsets, *row_of_slot, *slot_of_row, *counts;
    int64_t *tokens;
    double balance, z;
};

static inline struct routed routed_new(struct router_shape s) {
    size_t n = (size_t)(s.tokens * s.experts), slots = (size_t)(s.tokens * s.topk);
    struct routed r = {.s = s};
    r.logits = mem_new_array(float, n + 1, "test");
    r.dlogits = mem_new_array(float, n + 1, "test");
    r.probs = mem_new_array(float, slots + 1, "test");
    r.dprobs = mem_new_array(float, slots + 1, "test");
    r.experts = mem_new_array(int32_t, slots + 1, "test");
    r.row_of_slot = mem_new_array(int32_t, slots + 1, "test");
    r.slot_of_row = mem_new_array(int32_t, (size_t)router_rows(&s) + 1, "test");
    r.offsets = mem_new_array(int32_t, (size_t)s.experts + 1, "test");
    r.tokens = mem_new_array(int64_t, (size_t)s.experts, "test");
    r.counts = mem_new_array(int32_t, (size_t)(s.count_sets * s.experts), "test");
    return r;
}

static inline void routed_free(struct routed *r) {
    void *all[] = {r->logits,  r->probs,       r->dprobs,      r->dlogits, r->experts,
                   r->offsets, r->row_of_slot, r->slot_of_row, r->counts,  r->tokens};
    for (size_t i = 0; i < ARRAY_COUNT(all); i++) mem_free(all[i]);
}

static inline void route(const struct kernels *k, struct threads *team, struct routed *r, const float *bias) {
    r->balance = r->z = 0;
    memset(r->tokens, 0, (size_t)r->s.experts * sizeof(*r->tokens));
    RUN_ON(team, k, route_forward, .probs = r->probs, .experts = r->experts, .offsets = r->offsets,
           .row_of_slot = r->row_of_slot, .slot_of_row = r->slot_of_row, .counts = r->counts,
           .tokens = r->tokens, .logits = r->logits, .bias = bias, .shape = r->s);
    RUN_ON(team, k, route_losses, .balance_sum = &r->balance, .z_sum = &r->z, .logits = r->logits,
           .counts = r->counts, .shape = r->s);
    RUN_ON(team, k, route_backward, .dlogits = r->dlogits, .dprobs = r->dprobs, .logits = r->logits,
           .experts = r->experts, .row_of_slot = r->row_of_slot, .counts = r->counts, .shape = r->s,
           .balance_scale = 0.7f, .z_scale = 0.3f);
}

static inline void fill(float *x, int64_t n, uint32_t seed, double range) {
    struct tensor t = tensor_random(DTYPE_F32, n, false, seed, -range, range);
    memcpy(x, t.data, (size_t)n * sizeof(float));
    tensor_free(&t);
}

/* Offsets count, rows and slots are inverse but for dropped slots and empty rows, rows of an expert rise by
 * token, and no expert has more than it may. */
static inline void expect_permutation(const struct routed *r, const char *what) {
    int64_t slots = r->s.tokens * r->s.topk, rows = router_rows(&r->s), placed = 0;
    EXPECT(r->offsets[0] == 0 &&
               (r->s.capacity ? r->offsets[r->s.experts] <= rows : r->offsets[r->s.experts] == slots),
           "%s: offsets end at %d", what, r->offsets[r->s.experts]);
    for (int64_t e = 0; e < r->s.experts; e++) {
        int32_t last = -1, count = r->offsets[e + 1] - r->offsets[e];
        EXPECT(!r->s.capacity || (r->s.pads ? count == r->s.capacity : count <= r->s.capacity),
               "%s: expert %lld has %d rows", what, (long long)e, count);
        for (int32_t row = r->offsets[e]; row < r->offsets[e + 1]; row++) {
            int32_t slot = r->slot_of_row[row];
            if (r->s.pads && slot == -1) continue;
            EXPECT(slot >= 0 && slot < slots && r->experts[slot] == e && r->row_of_slot[slot] == row,
                   "%s: row %d of expert %lld", what, row, (long long)e);
            EXPECT(slot / r->s.topk > last, "%s: rows of an expert are not in order of tokens", what);
            last = (int32_t)(slot / r->s.topk);
            placed++;
        }
    }
    for (int64_t row = r->offsets[r->s.experts]; row < rows; row++)
        EXPECT(r->slot_of_row[row] == -1, "%s: row %lld is nobody's and says %d", what, (long long)row,
               r->slot_of_row[row]);
    for (int64_t slot = 0; slot < slots; slot++) {
        placed -= r->row_of_slot[slot] >= 0;
        EXPECT(r->row_of_slot[slot] >= 0 || (r->row_of_slot[slot] == -1 && r->probs[slot] == 0),
               "%s: dropped slot %lld", what, (long long)slot);
    }
    EXPECT(placed == 0, "%s: slots and rows do not match", what);
    for (int64_t t = 0; t < r->s.tokens; t++)
        for (int64_t i = 0; i < r->s.topk; i++)
            for (int64_t j = 0; j < i; j++)
                EXPECT(r->experts[t * r->s.topk + i] != r->experts[t * r->s.topk + j], "%s: token %lld twice",
                       what, (long long)t);
}

static inline double worst(const float *got, const double *want, const float *other, int64_t n) {
    double off = 0;
    for (int64_t i = 0; i < n; i++) {
        double d = fabs((double)got[i] - (want ? want[i] : (double)other[i]));
        if (!(d <= off)) off = d;
    }
    return off;
}
