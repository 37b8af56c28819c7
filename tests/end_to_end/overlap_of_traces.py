#!/usr/bin/env python3
"""What communication ran beside what compute, from the Chrome traces of one run (one file per rank).

    overlap_of_traces.py TRACE...              a line per rank, group and kind, milliseconds per step:
                                               rank group kind calls in_flight forward backward exposed
    overlap_of_traces.py --exposed TRACE...    a line per group and kind: group kind milliseconds per step, of the rank
                                               that waited longest; the first line is the total, of one rank too

`in_flight` is the time in which at least one request of this group and kind was under way, `forward` and `backward` are
the parts of it in which the rank computed ops of forward, or of backward and recompute; time in which it stood still for
any communication is no compute. `exposed` is the time in which it stood still for this group and kind."""
import json
import sys

COMMUNICATION, WAITING = 1, 2  # tracks
FORWARD, BACKWARD = ("forward",), ("backward", "recompute")


def union(spans):
    out = []
    for begin, end in sorted(spans):
        if out and begin <= out[-1][1]:
            out[-1][1] = max(out[-1][1], end)
        else:
            out.append([begin, end])
    return out


def intersection(a, b):
    out, i, j = [], 0, 0
    while i < len(a) and j < len(b):
        begin, end = max(a[i][0], b[j][0]), min(a[i][1], b[j][1])
        if begin < end:
            out.append([begin, end])
        if a[i][1] < b[j][1]:
            i += 1
        else:
            j += 1
    return out


def total(spans):
    return sum(end - begin for begin, end in spans) / 1e3


def without(a, b):
    return total(a) - total(intersection(a, b))


def read(path):
    with open(path, encoding="utf-8") as f:
        events = [e for e in json.load(f)["traceEvents"] if e["ph"] == "X"]
    steps = sum(e["name"] == "gradient_norm" for e in events) or 1
    spans = {}
    for e in events:
        key = ("compute", e.get("cat")) if e["tid"] == 0 else (e["tid"], e["cat"], e["name"])
        spans.setdefault(key, []).append((e["ts"], e["ts"] + e["dur"]))
    return events[0]["pid"], steps, spans


def compute_of(spans, categories):
    return union([s for c in categories for s in spans.get(("compute", c), [])])


def rows(path):
    rank, steps, spans = read(path)
    waits = union([s for key, list_ in spans.items() if key[0] == WAITING for s in list_])
    for key in sorted(k for k in spans if k[0] == COMMUNICATION):
        flight = union(spans[key])
        beside = []
        for categories in (FORWARD, BACKWARD):
            with_compute = intersection(flight, compute_of(spans, categories))
            beside.append(without(with_compute, waits) / steps)
        exposed = total(union(spans.get((WAITING,) + key[1:], []))) / steps
        yield (rank, key[1], key[2].replace(" ", "-"), len(spans[key]) / steps, total(flight) / steps, *beside, exposed)


def main(arguments):
    if arguments and arguments[0] == "--exposed":
        worst, totals = {}, []
        for path in arguments[1:]:
            of_rank = list(rows(path))
            totals.append(sum(r[7] for r in of_rank))
            for r in of_rank:
                worst[r[1:3]] = max(worst.get(r[1:3], 0), r[7])
        print("all all %.3f" % max(totals))
        for (group, kind), value in sorted(worst.items(), key=lambda item: -item[1]):
            print("%s %s %.3f" % (group, kind, value))
        return
    for path in arguments:
        for r in rows(path):
            print("%d %s %s %.1f %.3f %.3f %.3f %.3f" % r)


main(sys.argv[1:])
