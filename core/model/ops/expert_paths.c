/* Which rows travel between which ranks, from the counts of all sources; and the two exchanges. */
#include "core/model/ops/expert.h"
#include "core/base/check.h"

static int64_t least(int64_t a, int64_t b) {
    return a < b ? a : b;
}

static int64_t round_up(int64_t n) {
    return (n + 15) / 16 * 16;
}

struct expert_group expert_group_of(const struct model *m) {
    struct moe_attributes a = moe_attributes_of(m);
    const struct router_shape *s = &a.shape;
    struct expert_group g = {.ranks = (int)model_expert_ranks(m),
                             .ep = (int)model_ep(m),
                             .ep_rank = m->ep_rank,
                             .etp = (int)model_etp(m),
                             .experts = model_experts(m),
                             .rows = moe_rows(s),
                             .hidden = m->hidden,
                             .dtype = m->dtype};
    double factor = m->moe.rank_capacity > 0 ? (double)m->moe.rank_capacity : 1.25;
    int64_t worst = s->tokens * least(s->topk, g.experts);
    if (s->capacity && (s->pads || worst > g.experts * s->capacity)) worst = g.experts * s->capacity;
    worst *= g.ranks;
    g.rank = g.ep_rank * g.etp + m->etp_rank;
    g.balanced = g.rows * g.etp;
    double bound = factor * (double)g.balanced;
    g.first_rows = bound < (double)worst ? least(worst, round_up((int64_t)bound)) : worst;
    if (g.first_rows < 16) g.first_rows = least(worst, 16);
    g.more_rows = least(worst - g.first_rows, round_up((g.first_rows + 3) / 4));
    return g;
}

static int32_t count_of(const struct expert_group *g, const int32_t *counts, int source, int64_t expert) {
    return counts[source * (g->experts * g->ep) + expert];
}

int64_t expert_windows(const struct expert_group *g, const int32_t *counts) {
    int64_t most = 0;
    for (int owner = 0; owner < g->ep; owner++) {
        int64_t rows = 0;
        for (int source = 0; source < g->ranks; source++)
            for (int64_t e = 0; e < g->experts; e++)
                rows += count_of(g, counts, source, owner * g->experts + e);
        if (rows > most) most = rows;
    }
    if (most <= g->first_rows) return 1;
    CHECK(g->more_rows > 0, "%lld rows for an expert-parallel rank, which can get %lld at most",
          (long long)most, (long long)g->first_rows);
    return 1 + (most - g->first_rows + g->more_rows - 1) / g->more_rows;
}

/* The part of rows [begin, begin + count) that lies in the window. */
static struct comm_piece clip(int64_t begin, int64_t count, struct expert_window w) {
    int64_t first = begin > w.begin ? begin : w.begin, last = least(begin + count, w.begin + w.count);
    return (struct comm_piece){first - begin, last > first ? last - first : 0};
}

void expert_window_rows(const struct expert_group *g, const int32_t *counts, struct expert_window w,
                        int32_t *offsets, int32_t *index) {
    int64_t at = 0, rows = 0;
    for (int64_t e = 0; e < g->experts; e++) {
        offsets[e] = (int32_t)rows;
        for (int source = 0; source < g->ranks; source++) {
            int64_t count = count_of(g, counts, source, g->ep_rank * g->experts + e);
            rows += clip(at, count, w).count;
            at += count;
        }
    }
    offsets[g->experts] = (int32_t)rows;
    for (int64_t i = 0; i < w.count; i++) index[i] = i < rows ? (int32_t)i : -1;
}

void expert_paths_carve(struct expert_paths *x, const struct expert_group *g, uintptr_t *at, bool collects) {
    int64_t pieces = g->ranks * g->experts;
    x->out = expert_carve(at, pieces, sizeof(*x->out));
    x->in = expert_carve(at, pieces, sizeof(*x->in));
    if (!collects || g->etp == 1) return;
    x->parts = expert_carve(at, pieces, sizeof(*x->parts));
    x->sums = expert_carve(at, g->etp * g->rows * g->hidden, dtype_bytes(g->dtype));
    x->index = expert_carve(at, g->etp * g->rows, sizeof(*x->index));
}

void expert_paths_fill(const struct expert_paths *x, const struct expert_group *g, const int32_t *counts,
                       struct expert_window w) {
    int64_t row = 0; /* of this source */
    for (int owner = 0; owner < g->ep; owner++) {
        int64_t at = 0; /* of the owner */
        for (int64_t e = 0; e < g->experts; e++)
            for (int source = 0; source < g->ranks; source++) {
                int64_t count = count_of(g, counts, source, owner * g->experts + e);
                struct comm_piece piece = clip(at, count, w);
                if (owner == g->ep_rank)
                    x->in[source * g->experts + e] =
                        (struct comm_piece){piece.count ? at + piece.offset - w.begin : 0, piece.count};
                for (int part = 0; part < g->etp && source == g->rank; part++) {
                    int64_t to = (owner * g->etp + part) * g->experts + e;
                    x->out[to] = (struct comm_piece){row + piece.offset, piece.count};
                    if (x->parts)
                        x->parts[to] = (struct comm_piece){part * g->rows + row + piece.offset, piece.count};
                }
                if (source == g->rank) row += count;
                at += count;
            }
    }
    for (int64_t i = 0; x->index && i < g->rows * g->etp; i++)
        x->index[i] = (int32_t)(i % g->etp * g->rows + i / g->etp);
}

/* ---- exchanges ---- */

static void count_exchange(struct run *r, const struct expert_group *g, int64_t width, enum dtype dtype) {
    comm_all_to_all(r->comms.expert, NULL, NULL, g->rows / g->ep * width, comm_dtype_of(dtype));
}

void expert_send(struct run *r, const struct expert_group *g, const struct expert_paths *x, void *window,
                 const void *rows, int64_t width, enum dtype dtype) {
    if (run_is_meta(r))
        count_exchange(r, g, width, dtype);
    else
        comm_exchange(r->comms.expert, window, x->in, rows, x->out, g->experts, width, comm_dtype_of(dtype));
}

static void sum_parts(struct run *r, const struct expert_group *g, const struct expert_paths *x, void *rows,
                      struct comm_piece piece, int64_t width, enum dtype dtype) {
    KERNEL_CALL(combine_rows, r->stream, .y = dtype_at(rows, dtype, piece.offset * width), .x = x->sums,
                .index = x->index + piece.offset * g->etp, .rows = piece.count, .cols = width, .fan = g->etp,
                .dtype = dtype);
}

void expert_collect(struct run *r, const struct expert_group *g, const struct expert_paths *x, void *rows,
                    const void *window, int64_t width, enum dtype dtype) {
    if (run_is_meta(r)) {
        count_exchange(r, g, width, dtype);
        if (g->etp > 1) sum_parts(r, g, x, rows, (struct comm_piece){0, g->rows}, width, dtype);
        return;
    }
    comm_exchange(r->comms.expert, g->etp > 1 ? x->sums : rows, g->etp > 1 ? x->parts : x->out, window, x->in,
                  g->experts, width, comm_dtype_of(dtype));
    for (int64_t i = 0; g->etp > 1 && i < g->ranks * g->experts; i++) {
        bool first_part = i / g->experts % g->etp == 0;
        if (first_part && x->out[i].count) sum_parts(r, g, x, rows, x->out[i], width, dtype);
    }
}
