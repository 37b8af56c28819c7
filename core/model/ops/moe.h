#pragma once
/* What the ops of a mixture of experts share: the router's shape, and where the parts of the pinned dispatch
 * tensor lie.
 */
#include "core/model/model.h"

struct moe_attributes {
    struct router_shape shape;
    float balance_coeff, z_coeff;
    bool balance_globally;
    int64_t hidden;
};

struct moe_attributes moe_attributes_of(const struct model *m);

/* The dispatch tensor: offsets, padded to an even line, rows of slots, slots of rows. */
static inline int64_t moe_offsets_space(const struct router_shape *s) {
    return (s->experts + 1 + 15) / 16 * 16;
}
static inline int64_t moe_slots(const struct router_shape *s) {
    return s->tokens * s->topk;
}
/* Rows of the permuted tensors: fewer than slots where a capacity drops some, more where it pads. */
static inline int64_t moe_rows(const struct router_shape *s) {
    return router_rows(s);
}
static inline int64_t moe_dispatch_entries(const struct router_shape *s) {
    return moe_offsets_space(s) + moe_slots(s) + moe_rows(s);
}
static inline int32_t *moe_row_of_slot(int32_t *dispatch, const struct router_shape *s) {
    return dispatch + moe_offsets_space(s);
}
static inline int32_t *moe_slot_of_row(int32_t *dispatch, const struct router_shape *s) {
    return dispatch + moe_offsets_space(s) + moe_slots(s);
}
