"""The oracle of topology_test.sh. Megatron-LM's order of ranks: a string of axes, the leftmost varies fastest, so rank r has the
coordinate r // (product of the sizes before an axis) % size on that axis. A group of some axes is the ranks that agree on all others.
Reads what --print-topology printed; arguments: tp cp pp world mapping("dp-pp" or "pp-dp")."""
import re
import sys

tp, cp, pp, world = map(int, sys.argv[1:5])
sizes = {"tp": tp, "cp": cp, "dp": world // (tp * cp * pp), "pp": pp}
order = ["tp", "cp"] + sys.argv[5].split("-")


def coordinates(rank):
    at = {}
    for axis in order:
        at[axis], rank = rank % sizes[axis], rank // sizes[axis]
    return at


def groups(axes, keep=lambda at: True):
    found = {}
    for rank in range(world):
        at = coordinates(rank)
        if keep(at):
            found.setdefault(tuple(at[axis] for axis in order if axis not in axes), []).append(rank)
    return sorted(group for group in found.values() if len(group) > 1)


expected = {
    "world": groups(order),
    "tensor-parallel": groups(["tp"]),
    "context-parallel": groups(["cp"]),
    "data-parallel": groups(["dp"]),
    "data-context-parallel": groups(["dp", "cp"]),
    "tensor-context-parallel": groups(["tp", "cp"]),
    "tensor-data-context-parallel": groups(["tp", "dp", "cp"]),
    "model-parallel": groups(["tp", "pp"]),
    "pipeline-parallel": groups(["pp"]),
    "embedding": groups(["pp"], lambda at: at["pp"] in (0, pp - 1)) if pp > 1 else [],
    "optimizer-shard": groups(["dp", "cp"]),
}
printed, head = {}, sys.stdin.readline()
for line in sys.stdin:
    kind, rest = line.split(":")
    printed[kind] = sorted(sorted(map(int, group.split())) for group in re.findall(r"\[([0-9 ]*)\]", rest))
wrong = [kind for kind in {**expected, **printed} if expected.get(kind, []) != printed.get(kind, [])]
for kind in wrong:
    print(f"# {kind}: printed {printed.get(kind)}, expected {expected.get(kind)}")
said = f"tensor {tp} * context {cp} * data {sizes['dp']} * pipeline {pp}, in the order tp-cp-ep-{sys.argv[5]}"
if said not in head:
    print(f"# {head}")
sys.exit(bool(wrong) or said not in head)
