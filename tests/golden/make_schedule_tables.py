#!/usr/bin/env python3
"""Prints tests/golden/schedule_tables.h: learning rate, weight decay and batch size schedules as stated in
the headers of core/optim, written down a second time, in exact fractions where there is no root or cosine.

    python3 tests/golden/make_schedule_tables.py > tests/golden/schedule_tables.h
"""
import math
from fractions import Fraction as F


def lr(n, hi, lo, init, warm, decay, wsd, style, wsd_style):
    hi, lo, init, warm = F(hi), F(lo), F(init), F(warm)
    if warm > 0 and n <= warm:
        return float(init + (hi - init) * n / warm)
    if style == "constant":
        return float(hi)
    if n > decay:
        return float(lo)
    if style == "inverse-square-root":
        return max(float(lo), float(hi) * math.sqrt(max(warm, 1) / max(n, 1)))
    r = F(n - warm, 1) / (decay - warm)
    if style == "WSD":
        q = F(n - (decay - wsd), wsd)
        if q <= 0:
            c = 1
        else:
            c = {
                "linear": lambda: 1 - q,
                "cosine": lambda: math.cos(math.pi * q / 2) ** 2,
                "exponential": lambda: math.exp(math.log(2) * (1 - float(q))) - 1,
                "minus_sqrt": lambda: 1 - math.sqrt(q),
            }[wsd_style]()
    else:
        c = {"linear": lambda: 1 - r, "cosine": lambda: math.cos(math.pi * r / 2) ** 2}[style]()
    return float(lo) + float(c) * float(hi - lo)


def lr_rows():
    styles = [("constant", "exponential"), ("linear", "exponential"), ("cosine", "exponential"),
              ("inverse-square-root", "exponential")]
    styles += [("WSD", s) for s in ("exponential", "linear", "cosine", "minus_sqrt")]
    gbs, iters = 8, 100
    for style, wsd_style in styles:
        for warm_iters, fraction, lo, init in ((0, -1, "0", "0"), (10, -1, "1/100000", "1/1000000"), (0, F(1, 32), "1/10000", "0")):
            decay = iters * gbs
            warm = fraction * decay if fraction >= 0 else warm_iters * gbs
            for n in (0, 8, 24, 25, 79, 80, 81, 200, 400, 600, 601, 700, 799, 800, 801, 5000):
                value = lr(n, F(1, 1000), lo, init, warm, decay, 25 * gbs, style, wsd_style)
                yield style, wsd_style, float(F(lo)), float(F(init)), warm_iters, float(fraction), n, value


def wd_rows():
    for style, a, b in (("constant", F(1, 10), F(1, 10)), ("linear", F(1, 100), F(1, 10)), ("cosine", F(1, 100), F(1, 10))):
        for n in (0, 1, 200, 400, 799, 800, 801):
            r = F(n, 800)
            c = r if style == "linear" else math.sin(math.pi * r / 2) ** 2
            yield style, float(a), float(b), n, float(b) if n > 800 or style == "constant" else float(a) + float(c) * float(b - a)


def batch_rows():
    for start, increment, samples, final in ((4, 4, 100, 16), (16, 8, 1000, 64), (8, 8, 7, 32), (8, 8, 0, 8)):
        steps = (final - start) // increment
        for n in (0, 1, 6, 7, 8, 33, 34, 66, 67, 99, 100, 101, 166, 167, 500, 834, 999, 1000, 1001):
            if n > samples or steps == 0 or samples == 0:
                yield start, increment, samples, final, n, final
            else:
                yield start, increment, samples, final, n, start + increment * math.floor(F(n * steps, samples))


def table(kind, fields, rows):
    print("static const struct {\n    %s\n} %s[] = {" % (fields, kind))
    for row in rows:
        print("    {" + ", ".join('"%s"' % v if isinstance(v, str) else repr(v) for v in row) + "},")
    print("};\n")


print("/* clang-format off */\n/* Made by make_schedule_tables.py; do not edit. lr 1e-3, 100 iterations of 8 samples, WSD over 25 iterations;\n"
      " * weight decay over 800 samples. */\n#pragma once\n")
table("lr_table", "const char *style, *wsd_style; double min_lr, init_lr; int warmup_iters; double warmup_fraction; int samples; double rate;", lr_rows())
table("wd_table", "const char *style; double start, end; int samples; double decay;", wd_rows())
table("rampup_table", "int start, increment, ramp_samples, final, samples, size;", batch_rows())
