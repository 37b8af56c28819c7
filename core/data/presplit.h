#pragma once
/* Cutting text into words before byte pair encoding, as the pre_tokenizer of a tokenizer.json says: a
 * sequence of stages, each a pattern whose matches (and the gaps between them) become pieces for the next
 * stage.
 *
 * Patterns were written for the Oniguruma engine and run here under PCRE2 with JIT. presplit_add translates
 * what the two read differently (white space, line anchors) and refuses by name what it cannot translate, so
 * a pattern that is accepted means the same. Without WITH_PCRE2 presplit_add is one clear error.
 *
 *     struct presplit *split = presplit_open();
 *     presplit_add(split, PRESPLIT_GPT2_PATTERN, &(struct presplit_rule){0}, "tokenizer.json", err);
 *     presplit_run(worker, text, length, on_piece, context, err); */
#include "core/base/check.h"
#include <stdbool.h>
#include <stddef.h>

/* What ByteLevel with use_regex does, and GPT-2's encoder. */
extern const char presplit_gpt2_pattern[];

struct presplit_rule {
    bool literal; /* the pattern is plain text */
    bool removed; /* matches are dropped (behavior "Removed"); otherwise they are pieces of their own */
    bool invert;  /* swaps matches and gaps */
};

enum { PRESPLIT_MOST_STAGES = 16 };
struct presplit;
struct presplit_worker;
/* Returns 0, or -1 to stop with err set. */
typedef int (*presplit_fn)(void *context, const char *piece, size_t length, struct err *err);

struct presplit *presplit_open(void);
void presplit_close(struct presplit *split); /* NULL is fine */
int presplit_add(struct presplit *split, const char *pattern, size_t length, const struct presplit_rule *rule,
                 const char *where, struct err *err);

struct presplit_worker *presplit_worker_open(const struct presplit *split);
void presplit_worker_close(struct presplit_worker *worker); /* NULL is fine */
/* text must be well-formed UTF-8. Pieces are never empty. */
int presplit_run(struct presplit_worker *worker, const char *text, size_t length, presplit_fn on_piece,
                 void *context, struct err *err);
