"""The runs of layouts_agree_experts_test.sh. A choice between experts that rounding could change would make layouts differ, so
tokens go to all experts (model "all": what the probabilities' gradients need) or to experts drawn at random, a function of the
token's place (model "drawn": uneven loads). `room` is how many times balanced load a rank takes at a time: below 1 there are
always further rounds."""
import sys

import layout_runs
from layout_runs import Pool, Tap, flags, layout_of, name, world
from layouts_agree import FULL, SAVING, SELECTIVE, TRAIN, check_gradients, check_scalars

layout_runs.MODELS["drawn"] = """--num-layers 4 --global-batch-size 8 --num-experts 8 --moe-router-topk 2 --moe-layer-freq [0]+[1]*3 --moe-ffn-hidden-size 48
 --moe-shared-expert-intermediate-size 32 --moe-shared-expert-gate --position-embedding-type rope --normalization RMSNorm --swiglu
 --disable-bias-linear --untie-embeddings-and-output-weights --moe-aux-loss-coeff 0.01 --moe-z-loss-coeff 0.001
 --moe-router-force-load-balancing""".split()
layout_runs.MODELS["all"] = [x for x in layout_runs.MODELS["drawn"] if x != "--moe-router-force-load-balancing"] + ["--moe-router-topk", "8"]

A2A, GATHER = {"dispatch": "alltoall"}, {"dispatch": "allgather"}
TABLE = [layout_of(**x) for x in (
    {"model": "drawn", "dp": 2, "ep": 2, "etp": 1, "room": 0.2, **GATHER},
    {"model": "all", "dp": 4, "ep": 4, "etp": 1, "room": 0.3, "sharding": "zero1", **A2A},
    {"model": "all", "tp": 2, "sp": 1, "ep": 1, "etp": 2, "room": 0.5, **A2A},
    {"model": "drawn", "tp": 2, "sp": 1, "ep": 2, "etp": 1, "room": 0.4, **A2A},
    {"model": "all", "tp": 2, "sp": 1, "ep": 1, "etp": 1, **GATHER},
    {"model": "drawn", "tp": 2, "sp": 1, "dp": 2, "ep": 2, "etp": 2, "room": 0.2, "sharding": "zero1", "overlap": 1, **A2A},
    {"model": "all", "tp": 2, "sp": 1, "dp": 2, "ep": 2, "etp": 2, "sharding": "fsdp2", **GATHER},
    {"model": "drawn", "cp": 2, "dp": 2, "ep": 4, "etp": 1, "room": 0.3, **A2A},
    {"model": "all", "cp": 2, "ep": 1, "etp": 2, "comm": "all_gather", **GATHER},
    {"model": "drawn", "pp": 2, "dp": 2, "ep": 2, "etp": 1, "room": 0.1, "schedule": "zero-bubble", "sharding": "zero1", **A2A},
    {"model": "all", "pp": 2, "vpp": 2, "dp": 2, "ep": 1, "etp": 2, "room": 0.6, "schedule": "interleaved", **GATHER},
    {"model": "drawn", "dp": 4, "ep": 2, "etp": 1, "room": 0.4, "sharding": "fsdp3", "overlap": 1, **A2A},
    {"model": "drawn", "pp": 2, "tp": 2, "sp": 1, "dp": 2, "ep": 2, "etp": 2, "room": 0.3, "schedule": "1f1b", **A2A},
    {"model": "all", "tp": 2, "sp": 1, "dp": 2, "ep": 2, "etp": 2, "room": 0.5, "dtype": "bf16", **GATHER},
)]
RECOMPUTE = {
    "moe": SELECTIVE + ["moe"],
    "moe_act": SELECTIVE + ["moe_act"],
    "parts": SELECTIVE + ["moe_act", "shared_experts", "layernorm", "core_attn"],
    "moe layernorm": SELECTIVE + ["moe", "layernorm"],
    "op": "--recompute-granularity op".split(),
    "op gemm": "--recompute-granularity op --recompute-save-ops gemm".split(),
    "uniform 2": FULL + "--recompute-method uniform --recompute-num-layers 2".split(),
}


def check_row(tap, pool, layout, setting, base, run, one):
    title = name(layout)
    if not tap.ok(f"{title}: runs", base.get().status == 0 and len(base.get().lines) == 4, f"exit {base.get().status}: {base.get().error()}",
                  " ".join(flags(layout))):
        return
    hashes = [x.lines[0]["params_hash"] for x in (base.get(), one)]
    tap.ok(f"{title}: I3 initial weights are the one-rank run's, bit for bit", hashes[0] == hashes[1], hashes)
    check_scalars(tap, layout, base.get(), one)
    check_gradients(tap, layout, base.get(), one)
    bits = [x.get().bits() for x in (base, run)]
    tap.ok(f"{title}: I1 and I7 a second run, with recompute {setting}, has the same bits", bits[0] == bits[1],
           f"exit {run.get().status}: {run.get().error()}", *[f"{a}\n# {b}" for a, b in zip(*bits) if a != b][:3])
    differ = []
    for job in (base, run):
        planned, measured = pool.plan(job)[0], job.get().peaks()
        if planned != measured or len(planned) != world(layout):
            differ.append(f"planned {planned}, measured {measured}")
    tap.ok(f"{title}: I2 the planned peak of each rank is the measured one", not differ, *differ)


def main():
    program, directory = sys.argv[1:3]
    tap, pool = Tap(), Pool(program, directory)
    kinds = {(x["model"], x.get("dtype", "fp32")) for x in TABLE}
    ones = {kind: pool.start(layout_of(model=kind[0], **({} if kind[1] == "fp32" else {"dtype": kind[1]})), SAVING) for kind in sorted(kinds)}
    started = []
    for i, layout in enumerate(TABLE):
        setting = list(RECOMPUTE)[i % len(RECOMPUTE)]
        started.append((setting, pool.start(layout, SAVING), pool.start(layout, TRAIN + RECOMPUTE[setting])))
    for kind, job in ones.items():
        tap.ok(f"one rank, {' '.join(kind)}: runs", job.get().status == 0 and len(job.get().lines) == 4, job.get().error())
    for layout, (setting, base, run) in zip(TABLE, started):
        check_row(tap, pool, layout, setting, base, run, ones[layout["model"], layout.get("dtype", "fp32")].get())
    return tap.failed


if __name__ == "__main__":
    sys.exit(1 if main() else 0)
