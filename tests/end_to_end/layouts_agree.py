"""The matrix of layouts_agree_test.sh: a covering set of layouts, and I1, I2, I3 and I7 for each."""
import itertools
import subprocess
import sys

import layout_runs
from layout_runs import (ROUNDING, SCALAR_BOUND, GRADIENT_BOUND, Pool, Tap, flags, layout_of, name, relative, relative_tensors, world)

AXES = {
    "tp": (1, 2, 4), "sp": (0, 1), "pp": (1, 2, 4), "vpp": (1, 2), "dp": (1, 2), "cp": (1, 2),
    "sharding": ("none", "zero1", "fsdp1", "fsdp2", "fsdp3"), "schedule": ("1f1b", "interleaved", "zero-bubble"),
    "model": ("gpt", "llama", "mla"),
}
# Attached to the rows of the table after it is made, by the same method, so that they add no rows.
MORE_AXES = {
    "split": ("even", "first-last", "layout"), "comm": ("p2p", "all_gather", "a2a"), "order": ("dp-pp", "pp-dp"),
    "overlap": (0, 1),
}
MAX_WORLD = 8


def legal(x):
    """Whether the program takes this layout, from the manual; and whether it means anything by itself."""
    if x["sp"] and x["tp"] == 1:
        return False  # accepted, with a line that nothing is split
    if (x["schedule"] == "interleaved") != (x["vpp"] > 1) or (x["vpp"] > 1 and x["pp"] == 1):
        return False
    if x["schedule"] == "zero-bubble" and x["pp"] == 1:
        return False
    if x["sharding"].startswith("fsdp") and x["schedule"] != "1f1b":
        return False
    if x["sharding"] != "none" and x["dp"] * x["cp"] == 1:
        return False  # accepted, with a line that nothing is split
    return True


def legal_more(x):
    if x["split"] == "first-last" and x["pp"] == 1:
        return False
    if x["split"] == "layout" and x["pp"] == 1:
        return False
    if x["comm"] != "p2p" and x["cp"] == 1:
        return False
    if x["comm"] == "a2a":  # heads of a rank are split over context-parallel ranks
        groups = 2 if x["model"] == "llama" else 8
        if groups % x["tp"] or groups // x["tp"] % x["cp"]:
            return False
    if x["order"] == "pp-dp" and world(x) == 1:
        return False
    return not x["overlap"] or x["dp"] * x["cp"] > 1


def pairs(x, axes):
    return {((a, x[a]), (b, x[b])) for a, b in itertools.combinations(axes, 2)}


def combinations(axes, base, condition):
    for values in itertools.product(*axes.values()):
        x = {**base, **dict(zip(axes, values))}
        if condition(x):
            yield x


def choose(candidates, axes, needed):
    """Greedy: the candidate that covers most of what is needed for what it costs to run."""
    chosen, needed = [], set(needed)
    covers = [(x, pairs(x, axes)) for x in sorted(candidates, key=world)]
    while needed:
        x, covered = max(covers, key=lambda c: len(c[1] & needed) / (world(c[0]) + 4))
        if not covered & needed:
            break
        chosen.append(x)
        needed -= covered
    return chosen


def make_table():
    candidates = [x for x in combinations(AXES, {}, legal) if 1 < world(x) <= MAX_WORLD]
    needed = set().union(*(pairs(x, AXES) for x in candidates))
    rows, table, all_axes = choose(candidates, AXES, needed), [], {**AXES, **MORE_AXES}
    for i in reversed(range(len(rows))):  # as many of both models as the pairs allow
        other = {**rows[i], "model": "llama"}
        rest = set().union(*(pairs(x, AXES) for x in rows[:i] + rows[i + 1:]), pairs(other, AXES))
        if rest >= needed and sum(x["model"] == "llama" for x in rows) < len(rows) // 2:
            rows[i] = other
    seen = set()
    for row in rows:
        x = max(combinations(MORE_AXES, row, legal_more), key=lambda x: len(pairs(x, all_axes) - seen))
        seen |= pairs(x, all_axes)
        table.append(x)
    return table, needed


# 16-bit numbers, for the paths that round or send other numbers than float32's; fp16's first scale overflows, on all ranks.
HALF = [layout_of(split="even", **x) for x in (
    {"dtype": "bf16", "tp": 2, "sp": 1, "pp": 2, "dp": 2, "sharding": "zero1", "overlap": 1, "model": "llama"},
    {"dtype": "bf16", "pp": 4, "vpp": 2, "schedule": "interleaved", "model": "gpt"},
    {"dtype": "bf16", "cp": 2, "dp": 2, "sharding": "fsdp3", "overlap": 1, "model": "llama"},
    {"dtype": "bf16", "tp": 4, "cp": 2, "comm": "all_gather", "model": "gpt"},
    {"dtype": "bf16", "cp": 2, "dp": 2, "sharding": "zero1", "model": "mla"},
    {"dtype": "fp16", "tp": 2, "dp": 2, "sharding": "fsdp2", "model": "llama"},
    {"dtype": "fp16", "pp": 2, "dp": 2, "schedule": "zero-bubble", "sharding": "zero1", "model": "gpt"},
)]

# Recompute settings: flags, and the layouts that can run them.
FULL = ["--recompute-granularity", "full"]
SELECTIVE = ["--recompute-granularity", "selective", "--recompute-modules"]
RECOMPUTE = {
    "core_attn": (lambda x: ["--recompute-activations"], lambda x: True),
    "modules": (lambda x: SELECTIVE + ["core_attn", "mlp", "layernorm", "mlp_act"], lambda x: True),
    "mla_up_proj": (lambda x: SELECTIVE + ["mla_up_proj", "core_attn"], lambda x: x["model"] == "mla"),
    "mlp_act": (lambda x: SELECTIVE + ["mlp_act", "layernorm"], lambda x: True),
    "uniform 1": (lambda x: FULL + "--recompute-method uniform --recompute-num-layers 1".split(), lambda x: True),
    "op": (lambda x: "--recompute-granularity op".split(), lambda x: True),
    "op gemm": (lambda x: "--recompute-granularity op --recompute-save-ops gemm".split(), lambda x: True),
    "uniform 2": (lambda x: FULL + "--recompute-method uniform --recompute-num-layers 2".split(), lambda x: True),
    "block 1": (lambda x: FULL + "--recompute-method block --recompute-num-layers 1".split(), lambda x: True),
    "layer ids": (lambda x: FULL + "--recompute-layer-ids 0 3 6".split(), lambda x: True),
    "per stage": (lambda x: FULL + "--recompute-method block --recompute-num-layers-per-stage".split()
                  + ["1", "0", "2", "1"][:x["pp"]], lambda x: x["pp"] > 1),
    "distributed": (lambda x: FULL + "--recompute-method uniform --recompute-num-layers 1".split()
                    + ["--distribute-saved-activations"], lambda x: x["tp"] > 1 and not x["sp"]),
}


def rotate(table):
    """For each row its settings, such that each setting meets each value of each axis that it can meet."""
    def met(x, setting):
        return {(setting, axis, x[axis]) for axis in AXES}

    needed = {m for x in table for s, (_, can) in RECOMPUTE.items() if can(x) for m in met(x, s)}
    left, chosen = set(needed), [[] for _ in table]
    while left:
        row, setting = max(((i, s) for i, x in enumerate(table) for s, (_, can) in RECOMPUTE.items() if can(x) and s not in chosen[i]),
                           key=lambda c: len(met(table[c[0]], c[1]) & left) - 0.1 * len(chosen[c[0]]))
        chosen[row].append(setting)
        left -= met(table[row], setting)
    return chosen


def check_table(tap, program, table, needed):
    """The table against a count of its own: every pair that some legal layout has, is in a row."""
    covered = set()
    for x in table:
        for a in AXES:
            for b in AXES:
                covered.add((a, x[a], b, x[b]))
    missing = []
    for x in combinations(AXES, {}, legal):
        if 1 < world(x) <= MAX_WORLD:
            missing += [(a, x[a], b, x[b]) for a in AXES for b in AXES if (a, x[a], b, x[b]) not in covered]
    tap.ok(f"{len(table)} layouts hold all {len(needed)} legal pairs of values of {len(AXES)} axes", not missing, sorted(set(map(str, missing))))
    more = {**AXES, **MORE_AXES}
    for axis, values in MORE_AXES.items():
        rows = {x[axis] for x in table}
        tap.ok(f"each kind of {axis} is in the table", rows == set(values), rows)
    wrong = []
    for x in combinations(AXES, {}, lambda x: 1 < world(x) <= MAX_WORLD):
        if (x["sp"] and x["tp"] == 1) or (x["sharding"] != "none" and x["dp"] * x["cp"] == 1):
            continue  # taken, and nothing to split
        if x["pp"] == 1 and x["schedule"] == "1f1b" and x["vpp"] == 1:
            continue  # no flag of the pipeline is given
        if x["model"] != "gpt" and legal(x):
            continue
        arguments = layout_runs.BASE + layout_runs.MODELS[x["model"]] + flags(x)
        if x["pp"] == 1:
            arguments += ["--pipeline-schedule", x["schedule"]]
        status = subprocess.run([program] + arguments + ["--train-iters", "1", "--world-size", str(world(x)), "--dry-run", "--metrics-file",
                                                         "none"],
                                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode
        if status != (0 if legal(x) else 2):
            wrong.append(f"{name(x)}: exit {status}")
    tap.ok("the program takes what the table calls legal and refuses the rest", not wrong, *wrong[:10])


# Learning rate 0 in the first iteration: its weights are the initial ones, its exp_avg is 0.1 * gradient (times the
# clipping factor, which a wrong norm would change, and the norm is compared by itself).
TRAIN = "--train-iters 4 --lr-warmup-iters 2 --eval-iters 1 --eval-interval 2 --log-num-zeros-in-grad --log-params-norm".split()
# 500, 520 or 560 rows of the embedding, by the number of tensor-parallel ranks
layout_runs.MODELS["gpt"] = ["--make-vocab-size-divisible-by", "20"]
SAVING = TRAIN + "--save SAVE --save-interval 1".split()


def check_scalars(tap, layout, run, one):
    bound = SCALAR_BOUND * ROUNDING[layout.get("dtype", "fp32")] / GRADIENT_BOUND
    worst = relative(run.scalars(), one.scalars())
    return tap.ok(f"{name(layout)}: I3 losses and gradient norms are the one-rank run's within {bound:.1e}", worst <= bound,
                  f"off by {worst:.2e}, exit {run.status}: {run.error()}",
                  f"{[(l['lm_loss'], l['grad_norm']) for l in run.lines]}", f"{[(l['lm_loss'], l['grad_norm']) for l in one.lines]}")


def check_statistics(tap, layout, run, one):
    """What --log-params-norm prints, with 3 digits, and --log-num-zeros-in-grad: a gradient that is zero in theory, as that of a
    bias of keys, is zero by chance, but a row of the vocabulary is 64 elements."""
    norms = max([abs(a - b) for a, b in zip(run.norms, one.norms)], default=1)
    zeros = max([abs(a - b) for a, b in zip(run.zeros, one.zeros)], default=64)
    tap.ok(f"{name(layout)}: I3 the norm of the weights and the number of zero gradients do not depend on the layout",
           len(run.norms) == len(one.norms) and norms < 0.002 and zeros < 64, run.norms, one.norms, run.zeros, one.zeros)


def check_gradients(tap, layout, run, one):
    """exp_avg after the first iteration that was not skipped."""
    bound, title = ROUNDING[layout.get("dtype", "fp32")] * (4 if "dtype" in layout else 1), name(layout)
    iteration = next((line["iteration"] for line in one.lines if line["grad_norm"] is not None), 0)
    gradients = [{k: v for k, v in x.tensors(iteration, "optimizer").items() if k.startswith("exp_avg.")} for x in (run, one)]
    worst, where = relative_tensors(*gradients)
    tap.ok(f"{title}: I3 every parameter's gradient is the one-rank run's within {bound:.1e}", worst <= bound, f"off by {worst:.2e} in {where}")
    if "-v" in sys.argv:
        print(f"# scalars {relative(run.scalars(), one.scalars()):.2e} gradients {worst:.2e} {where} {run.seconds:.1f} s")


def check_row(tap, pool, layout, jobs, one):
    base = jobs["none"].get()
    title = name(layout)
    if not tap.ok(f"{title}: runs", base.status == 0 and len(base.lines) == 4, f"exit {base.status}: {base.error()}", " ".join(flags(layout))):
        for job in jobs.values():
            job.get()
        return
    hashes = [run.lines[0]["params_hash"] for run in (base, one)]
    tap.ok(f"{title}: I3 initial weights are the one-rank run's, bit for bit", hashes[0] == hashes[1], hashes)
    check_scalars(tap, layout, base, one)
    check_gradients(tap, layout, base, one)
    if "dtype" not in layout:
        check_statistics(tap, layout, base, one)
    for setting, job in jobs.items():
        run = job.get()
        if setting not in ("none", "again"):
            tap.ok(f"{title}: I1 recompute {setting} changes no bit", run.bits() == base.bits() and len(run.lines) == 4,
                   f"exit {run.status}: {run.error()}", *[f"{b}\n# {a}" for a, b in zip(base.bits(), run.bits()) if a != b][:3])
    again = jobs["again"].get()
    tap.ok(f"{title}: I7 two runs are bit-equal", again.bits() == base.bits(), again.bits(), base.bits())
    differ, order = [], []
    for setting, job in jobs.items():
        planned, in_flight = pool.plan(job)
        measured = job.get().peaks()
        if planned != measured or not planned or len(planned) != world(layout):
            differ.append(f"recompute {setting}: planned {planned}, measured {measured}")
        if in_flight and max(in_flight) != in_flight[0]:
            order.append(f"recompute {setting}: {in_flight}")
    tap.ok(f"{title}: I2 the planned peak of each rank is the measured one, for {len(jobs)} settings", not differ, *differ)
    if layout["pp"] > 1 and layout["split"] == "even" and layout["schedule"] == "1f1b":
        tap.ok(f"{title}: I2 stage 0 holds the most micro-batches", not order, *order)


def main():
    program, directory = sys.argv[1:3]
    only = {word for word in sys.argv[3:] if word[0] != "-"} 
    without = {word[1:] for word in sys.argv[3:] if word[0] == "-"}
    tap, pool = Tap(), Pool(program, directory)
    table, needed = make_table()
    if not only:
        check_table(tap, program, table, needed)
    settings = rotate(table)
    ones = {model: pool.start(layout_of(model=model), SAVING) for model in AXES["model"]}
    halves = {(x["model"], x["dtype"]): pool.start(layout_of(model=x["model"], dtype=x["dtype"]), SAVING) for x in HALF}
    still = {model: pool.start(layout_of(model=model), "--train-iters 1 --lr 0 --min-lr 0 --weight-decay 0 --eval-iters 0".split()) for model in ones}
    for model in ones:
        one, first = ones[model].get(), still[model].get()
        tap.ok(f"one rank, {model}: runs", one.status == 0 and len(one.lines) == 4, one.error())
        tap.ok(f"one rank, {model}: the first iteration leaves the initial weights",
               [x.lines[0]["params_hash"] for x in (one, first)][0] == first.lines[0]["params_hash"] != one.lines[1]["params_hash"])
    for kind, job in halves.items():
        norms = [line["grad_norm"] for line in job.get().lines]
        tap.ok(f"one rank, {' '.join(kind)}: runs{', and overflows at first' if 'fp16' in kind else ''}",
               len(norms) == 4 and (norms[0] is None) == ("fp16" in kind) and any(norms), norms, job.get().error())
    ones = {**ones, **halves}
    table, settings = table + HALF, settings + [[[s for s in RECOMPUTE if RECOMPUTE[s][1](x)][i]] for i, x in enumerate(HALF)]
    rows = [(x, s) for x, s in zip(table, settings) if only <= set(name(x).split()) and not without & set(name(x).split())]
    started = []
    for layout, chosen in rows:
        jobs = {"none": pool.start(layout, SAVING), "again": pool.start(layout, TRAIN)}
        for setting in chosen:
            jobs[setting] = pool.start(layout, TRAIN + RECOMPUTE[setting][0](layout))
        started.append(jobs)
    for (layout, _), jobs in zip(rows, started):
        one = ones[(layout["model"], layout["dtype"]) if "dtype" in layout else layout["model"]]
        check_row(tap, pool, layout, jobs, one.get())
    return tap.failed


if __name__ == "__main__":
    sys.exit(1 if main() else 0)
