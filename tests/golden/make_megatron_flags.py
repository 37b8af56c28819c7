#!/usr/bin/env python3
"""Writes tests/golden/megatron_flags.h from a table of Megatron-LM's flags.

Usage: make_megatron_flags.py FLAGS.tsv > tests/golden/megatron_flags.h

The table has the columns group, flags, dest, kind, nargs, default, choices; it was dumped from Megatron-LM's own
argument parser (commit d98e8a64, 2026-08-22).
"""
import json
import sys

rows = [line.rstrip("\n").split("\t") for line in open(sys.argv[1])][1:]
print("/* Megatron-LM's flags: names, destination, kind, default, choices. Made by make_megatron_flags.py. */")
print("static const struct megatron_flag {")
print("    const char *names, *dest, *kind, *def, *choices;")
print("} megatron_flags[] = {")
for _, names, dest, kind, _, default, choices in rows:
    print("    {%s}," % ", ".join(json.dumps(x) for x in (names, dest, kind, default.strip("'"), choices)))
print("};")
