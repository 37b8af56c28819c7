#pragma once
/* Recompute: from a recorded program and a set of selected modules to homes, a forward list and a backward
 * list.
 *
 * Recompute only moves a tensor's home from KEEP to WORK and inserts the re-runs that bring it back:
 *  - a NORMAL module drops every tensor that is read only inside it; an OUTPUT module drops its results as
 * well;
 *  - backward asks for what it needs: while its list is written, an op whose input is not at home has the
 * producer re-run first, recursively; what no backward reads is never re-run;
 *  - an output whose producer is re-run anyway for the sake of another output is not kept either (fused
 * attention: the log-sum-exp is dropped, so the attention output comes back with it and need not be stored).
 *  - a pinned tensor is kept in any case, so its producer is never re-run: routing is decided once.
 *  - op-level selection drops every result of a layer's ops that are not of a kept class.
 * Ops know nothing of this, and the arithmetic is the same, so results are equal bit for bit. */
#include "core/tensor/program.h"

enum recompute_module {
#define MODULE(name, mode, help) MODULE_##name,
#include "recompute/modules.def"
#undef MODULE
    MODULE_COUNT
};

struct recompute_module_info {
    const char *name, *help;
    bool discards_output;
    bool is_internal; /* not a name that users may give */
};
const struct recompute_module_info *recompute_module_info(int module);
/* Index of the module, or -1 when users may not name it. */
int recompute_module_find(const char *name);

/* Which modules a segment recomputes: a bit per module. */
typedef uint32_t recompute_set;
#define RECOMPUTE_BIT(module) (1u << (module))

/* Op-level selection, in the same set: with RECOMPUTE_OPS every op of a layer is re-run unless it is of a
 * class whose results are kept. RECOMPUTE_SAVE(OP_GEMM) is the bit that keeps a class
 * (core/tensor/program.h). */
#define RECOMPUTE_OPS           (1u << 31)
#define RECOMPUTE_SAVE(classes) ((recompute_set)(classes) << 28)
#define RECOMPUTE_OP_BITS       (RECOMPUTE_OPS | RECOMPUTE_SAVE(7))
/* The bit that keeps this class of ops: gemm, attention or communication; 0: no such class. */
recompute_set recompute_save_find(const char *name);

/* A program with its lists. `frame_bytes` counts the KEEP tensors, each aligned. `weight` is empty unless the
 * schedule splits backward; its work area (work_bytes) is the hold area, which lives from the backward of a
 * micro-batch to its weight gradients. */
struct compiled {
    struct program program;
    recompute_set selected;
    struct code forward, backward, weight;
    size_t frame_bytes;
};

/* Chooses homes and writes the lists. `split`: gradients of parameters go to a list of their own. Takes over
 * `program` (it is zeroed); the result is owned by the caller. */
void recompute_compile(struct program *program, recompute_set selected, bool split, struct compiled *out);
void recompute_free(struct compiled *c);

/* Sets reads[t] for every tensor t that backward of some op reads; reads has num_tensors entries, false
 * before. */
void recompute_backward_reads(const struct program *p, bool *reads);
