#pragma once
/* Checking, repairing and normalising UTF-8 text. Pure functions; the caller owns all memory. */
#include "core/base/str.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Byte offset of the first ill-formed sequence, or length when there is none. */
size_t utf8_check(const char *text, size_t length);
/* Appends text with every ill-formed part (a maximal subpart, as the Unicode standard recommends and Python's
 * errors="replace" does) as one U+FFFD; returns the number of replacements. */
size_t utf8_repair(const char *text, size_t length, struct str *out);
/* Decodes the code point at *p of well-formed text and moves *p behind it. */
uint32_t utf8_next(const char **p);
/* Unicode White_Space. */
bool utf8_is_space(uint32_t code_point);

/* True when well-formed text is surely in normalisation form C (false: perhaps not). */
bool utf8_is_nfc(const char *text, size_t length);
/* Appends well-formed text in normalisation form C (Unicode Standard Annex 15). */
void utf8_to_nfc(const char *text, size_t length, struct str *out);
