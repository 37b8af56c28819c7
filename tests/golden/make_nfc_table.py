#!/usr/bin/env python3
"""Writes core/data/nfc_table.h: canonical decompositions, compositions and combining classes.

The facts are those of Python's unicodedata. Run: python3 tests/golden/make_nfc_table.py > core/data/nfc_table.h
"""
import unicodedata as u

LAST = 0x110000


def hangul(c):
    return 0xAC00 <= c < 0xAC00 + 11172


def main():
    points = [c for c in range(LAST) if not 0xD800 <= c < 0xE000]
    decomposed, classes, unsure = [], [], []
    for c in points:
        d = u.decomposition(chr(c))
        if d and not d.startswith("<") and not hangul(c):
            parts = [int(x, 16) for x in d.split()]
            pair = parts + [0] * (2 - len(parts))
            composes = len(parts) == 2 and u.normalize("NFC", chr(pair[0]) + chr(pair[1])) == chr(c)
            decomposed.append((c, pair[0], pair[1], int(composes)))
        ccc = u.combining(chr(c))
        if ccc:
            if classes and classes[-1][1] == c - 1 and classes[-1][2] == ccc:
                classes[-1][1] = c
            else:
                classes.append([c, c, ccc])
    seconds = {b for _, _, b, composes in decomposed if composes}
    for c in points:
        # a text without such code points is in form C already
        if u.normalize("NFC", chr(c)) != chr(c) or u.combining(chr(c)) or c in seconds or 0x1161 <= c < 0x1176 or 0x11A8 <= c < 0x11C3:
            if unsure and unsure[-1][1] == c - 1:
                unsure[-1][1] = c
            else:
                unsure.append([c, c])
    print(f"#pragma once\n/* Made by tests/golden/make_nfc_table.py from Unicode {u.unidata_version}; do not edit. Sorted by the first column. */")
    print("#include <stdint.h>\n")
    print("/* rows of four: code point, first part, second part (0: none), 1 when the two compose again */")
    print("static const uint32_t nfc_parts[] = {" + ",".join("%d,%d,%d,%d" % t for t in decomposed) + "};")
    print("/* rows of three: first, last, canonical combining class */")
    print("static const uint32_t nfc_classes[] = {" + ",".join("%d,%d,%d" % tuple(t) for t in classes) + "};")
    print("/* rows of two: first, last code point that normalisation may touch */")
    print("static const uint32_t nfc_unsure[] = {" + ",".join("%d,%d" % tuple(t) for t in unsure) + "};")


main()
