#pragma once
/* Translation of an Oniguruma (Ruby syntax) pattern into one that PCRE2 reads the same way, for the
 * constructs that tokenizers use. Pure text; anything not known to be equal is refused by name. */
#include "core/base/check.h"
#include "core/base/str.h"

int pattern_translate(const char *pattern, size_t length, const char *where, struct str *out,
                      struct err *err);
