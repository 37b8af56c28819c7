#!/usr/bin/env python3
"""What communication ran beside what compute, from the Chrome traces of a run (one file per rank).

    overlap_of_traces.py TRACE...      a line per rank, group and kind, milliseconds per step:
                                       rank group kind calls in_flight forward backward weights exposed
    overlap_of_traces.py --row RANKS METRICS... -- TRACE...
                                       part of a line of a markdown table, over the steps of several runs of RANKS ranks: the
                                       least step time | time under way | time exposed | of which group and kind

`in_flight` is the time in which at least one request of this group and kind was under way, the next three are the parts of
it in which the rank computed ops of forward, of backward and recompute, or packed gathered weights; time in which it stood still for
any communication is no compute. `exposed` is the time in which it stood still for this group and kind. In a row each
step counts with the rank that was exposed longest, and the median over steps is given."""
import json
import statistics
import sys

COMMUNICATION, WAITING = 1, 2  # tracks
COMPUTE = ("forward",), ("backward", "recompute"), ("weights",)  # categories of each column


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
        for categories in COMPUTE:
            with_compute = intersection(flight, compute_of(spans, categories))
            beside.append(without(with_compute, waits) / steps)
        exposed = total(union(spans.get((WAITING,) + key[1:], []))) / steps
        yield (rank, key[1], key[2].replace(" ", "-"), len(spans[key]) / steps, total(flight) / steps, *beside, exposed)


def steps_of(path):
    """For each step: [time under way, {(group, kind): exposed}]; a step ends where its gradient norm begins."""
    with open(path, encoding="utf-8") as f:
        events = [e for e in json.load(f)["traceEvents"] if e["ph"] == "X"]
    ends = sorted(e["ts"] for e in events if e["name"] == "gradient_norm")
    steps = []
    for begin, end in zip(ends, ends[1:]):
        inside = [e for e in events if begin <= e["ts"] < end and e["tid"] in (COMMUNICATION, WAITING)]
        flight = total(union([(e["ts"], e["ts"] + e["dur"]) for e in inside if e["tid"] == COMMUNICATION]))
        exposed = {}
        for e in inside:
            if e["tid"] == WAITING:
                key = (e["cat"], e["name"])
                exposed[key] = exposed.get(key, 0) + e["dur"] / 1e3
        steps.append([flight, exposed])
    return steps


def row(ranks, metrics, traces):
    least = []
    for path in metrics:
        with open(path, encoding="utf-8") as f:
            least += [json.loads(line)["elapsed_ms"] for line in f][2:]
    worst = []
    for run in range(0, len(traces), ranks):
        for of_ranks in zip(*(steps_of(path) for path in traces[run : run + ranks])):
            worst.append(max(of_ranks, key=lambda step: sum(step[1].values())))
    keys = {key for step in worst for key in step[1]}
    parts = [(statistics.median(step[1].get(key, 0) for step in worst), key) for key in keys]
    where = ", ".join("%s %s %.1f" % (group, kind, ms) for ms, (group, kind) in sorted(parts, reverse=True) if ms >= 0.1)
    exposed = [sum(step[1].values()) for step in worst]
    print("%.0f | %.1f | %.1f (%.1f) | %s |" % (min(least), statistics.median(step[0] for step in worst),
                                            statistics.median(exposed), min(exposed), where))


def main(arguments):
    if arguments and arguments[0] == "--row":
        at = arguments.index("--")
        row(int(arguments[1]), arguments[2:at], arguments[at + 1 :])
        return
    for path in arguments:
        for r in rows(path):
            print("%d %s %s %.1f %.3f %.3f %.3f %.3f %.3f" % r)


main(sys.argv[1:])
