/* Which rows and columns of a weight a tensor-parallel rank holds; which experts, and which part of each. */
#include "core/base/check.h"
#include "core/model/ops.h"

struct param_shard shard_rows(const struct model *m, int64_t rows, int64_t cols) {
    struct param_shard s = {.full = {rows, cols}};
    int64_t tp = model_tp(m);
    if (tp == 1) return s;
    s.num_runs = 1;
    s.runs[0].first = rows / tp * m->tp_rank;
    s.runs[0].count = rows / tp;
    return s;
}

struct param_shard shard_gated_rows(const struct model *m, int64_t half, int64_t cols) {
    struct param_shard s = {.full = {2 * half, cols}};
    int64_t tp = model_tp(m);
    if (tp == 1) return s;
    s.num_runs = 2;
    for (int i = 0; i < 2; i++) {
        s.runs[i].first = i * half + half / tp * m->tp_rank;
        s.runs[i].count = half / tp;
    }
    return s;
}

/* Rows of a group: its query heads, the key head, the value head. With fewer groups than ranks a rank holds
 * some of a group's query heads, and its key and value head together with the other ranks of that group. */
struct param_shard shard_qkv_rows(const struct model *m, int64_t cols) {
    int64_t tp = model_tp(m), d = m->head_dim, per_group = (m->heads / m->groups + 2) * d;
    struct param_shard s = {.full = {m->groups * per_group, cols}};
    if (tp == 1) return s;
    if (m->groups >= tp) {
        s.num_runs = 1;
        s.runs[0].count = m->groups / tp * per_group;
        s.runs[0].first = s.runs[0].count * m->tp_rank;
        return s;
    }
    int64_t ranks = tp / m->groups, group = m->tp_rank / ranks, queries = m->heads / tp * d;
    s.num_runs = 2;
    s.runs[0].first = group * per_group + m->tp_rank % ranks * queries;
    s.runs[0].count = queries;
    s.runs[1].first = group * per_group + m->heads / m->groups * d;
    s.runs[1].count = 2 * d;
    s.shared_from_row = queries;
    return s;
}

struct param_shard shard_cols(const struct model *m, int64_t rows, int64_t cols) {
    struct param_shard s = {.full = {rows, cols}};
    int64_t tp = model_tp(m);
    if (tp == 1) return s;
    s.num_runs = 1;
    s.runs[0].count = rows;
    s.first_col = cols / tp * m->tp_rank;
    return s;
}

/* ---- experts: one matrix after the other ---- */

static struct param_shard shard_experts(const struct model *m, int64_t rows, int64_t cols) {
    return (struct param_shard){.full = {m->moe.experts * rows, cols},
                                .full_groups = (int)m->moe.experts,
                                .first_group = (int)model_experts(m) * m->ep_rank};
}

struct param_shard shard_expert_rows(const struct model *m, int parts, int64_t part, int64_t cols) {
    struct param_shard s = shard_experts(m, parts * part, cols);
    int64_t etp = model_etp(m);
    CHECK(parts <= PARAM_MAX_RUNS, "%d parts of an expert", parts);
    if (etp == 1) return s;
    s.num_runs = parts;
    for (int i = 0; i < parts; i++) {
        s.runs[i].first = i * part + part / etp * m->etp_rank;
        s.runs[i].count = part / etp;
    }
    return s;
}

struct param_shard shard_expert_cols(const struct model *m, int64_t rows, int64_t cols) {
    struct param_shard s = shard_experts(m, rows, cols);
    s.first_col = cols / model_etp(m) * m->etp_rank;
    return s;
}
