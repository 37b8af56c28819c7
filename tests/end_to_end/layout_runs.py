"""Runs of tiny models over several ranks, for the tests of invariants I1 to I7 over parallel layouts.

A layout is a dict of AXES; flags() turns it into the program's flags. Jobs run a few at a time (Pool). What a run
says is taken from its metrics file, from its validation lines and from its checkpoints, which this file reads by
itself (safetensors: 8 bytes of length, a JSON header, then the numbers)."""
import array
import glob
import json
import math
import os
import re
import struct
import subprocess
import threading
import time

# Bound of everything that another layout may change in float32: the order of sums. A sum of n terms in another order
# differs by a random walk of n roundings of 2^-24 each, sqrt(n) * 2^-24 of its size; n is at most the 512 tokens of a batch
# (a weight's gradient), the 512 rows of the vocabulary or the 256 columns of the MLP. One pass goes through about 10 such sums
# per layer, forward and back 20, in 8 layers: 160 sums in series, whose errors add as a random walk too. In all
# sqrt(512 * 160) * 2^-24 = 1.7e-5 of the largest element of a gradient. A loss is a mean over the 512 tokens of a batch, a norm
# one over many more elements; their errors are independent, so the mean has those of one over sqrt(512): 7.5e-7.
GRADIENT_BOUND = math.sqrt(512 * 160) * 2.0**-24
SCALAR_BOUND = GRADIENT_BOUND / math.sqrt(512)
# With 16-bit numbers sums are still float32, but each of the 160 results is rounded to 8 or 11 bits, and messages too. The
# softmax's backward subtracts nearly equal ones of them: four times as much for gradients.
ROUNDING = {"fp32": GRADIENT_BOUND, "bf16": math.sqrt(160) * 2.0**-8, "fp16": math.sqrt(160) * 2.0**-11}

BASE = """--num-layers 8 --hidden-size 64 --num-attention-heads 8 --seq-length 32 --max-position-embeddings 32
 --micro-batch-size 2 --global-batch-size 16 --lr 1e-3 --lr-decay-iters 20 --mock-data
 --vocab-size 500 --log-interval 1 --log-params-hash --cpu-threads 1
 --hidden-dropout 0.1 --attention-dropout 0.1""".split()
PADDED_FROM = 500 * 64  # elements of an embedding without padding
MODELS = {
    "gpt": ["--make-vocab-size-divisible-by", "128"],
    "llama": """--position-embedding-type rope --normalization RMSNorm --swiglu --disable-bias-linear
 --group-query-attention --num-query-groups 2 --untie-embeddings-and-output-weights --qk-layernorm
 --cross-entropy-loss-fusion --cross-entropy-fusion-impl linear""".split(),
    "mla": """--multi-latent-attention --q-lora-rank 20 --kv-lora-rank 24 --qk-head-dim 6 --qk-pos-emb-head-dim 4 --v-head-dim 10
 --rotary-scaling-factor 40 --mscale 1 --mscale-all-dim 0.5 --position-embedding-type rope --normalization RMSNorm --swiglu
 --disable-bias-linear --untie-embeddings-and-output-weights --qk-layernorm""".split(),
}
# Two layers of eight have experts. In "moe_all" every token goes to all of them: no rounding can change a choice.
MODELS["moe"] = """--num-experts 8 --moe-router-topk 2 --moe-ffn-hidden-size 48 --moe-layer-freq 4 --moe-aux-loss-coeff 0.01
 --moe-shared-expert-intermediate-size 32 --position-embedding-type rope --normalization RMSNorm --swiglu --disable-bias-linear
 --untie-embeddings-and-output-weights""".split()
MODELS["moe_all"] = MODELS["moe"] + ["--moe-router-topk", "8"]
DTYPE = {"fp32": [], "bf16": ["--bf16"], "fp16": ["--fp16", "--initial-loss-scale", "16777216", "--hysteresis", "1"]}
SHARDING = {
    "none": [],
    "zero1": ["--use-distributed-optimizer"],
    "fsdp1": ["--use-megatron-fsdp", "--data-parallel-sharding-strategy", "optim"],
    "fsdp2": ["--use-megatron-fsdp", "--data-parallel-sharding-strategy", "optim_grads"],
    "fsdp3": ["--use-megatron-fsdp", "--data-parallel-sharding-strategy", "optim_grads_params"],
}
# Layers per stage, 8 in all; the last kind gives a chunk the loss alone and one the embedding alone.
SPLITS = {
    ("first-last", 2): ["--decoder-first-pipeline-num-layers", "2", "--decoder-last-pipeline-num-layers", "6"],
    ("first-last", 4): ["--decoder-first-pipeline-num-layers", "2", "--decoder-last-pipeline-num-layers", "2"],
    ("layout", 2, 1): ["--pipeline-model-parallel-layout", "Ettt|tttttL"],
    ("layout", 4, 1): ["--pipeline-model-parallel-layout", "Et|tt|ttt|ttL"],
    ("layout", 2, 2): ["--pipeline-model-parallel-layout", "Et|ttt|ttt|tL"],
    ("layout", 4, 2): ["--pipeline-model-parallel-layout", "E|tt|t|t|t|tt|t|L"],
}


def world(layout):
    return layout["tp"] * layout["pp"] * layout["dp"] * layout["cp"]


def flags(layout):
    out = []

    def add(name, size):
        if size != 1:
            out.extend([name, str(size)])

    add("--tensor-model-parallel-size", layout["tp"])
    add("--pipeline-model-parallel-size", layout["pp"])
    add("--context-parallel-size", layout["cp"])
    add("--expert-model-parallel-size", layout.get("ep", 1))
    if "etp" in layout:
        out += ["--expert-tensor-parallel-size", str(layout["etp"])]
    if "dispatch" in layout:
        out += ["--moe-token-dispatcher-type", layout["dispatch"]]
    if layout.get("room"):
        out += ["--moe-expert-rank-capacity-factor", str(layout["room"])]
    if layout["sp"]:
        out.append("--sequence-parallel")
    if layout["vpp"] > 1 and layout.get("split") != "layout":
        add("--num-virtual-stages-per-pipeline-rank", layout["vpp"])
    if layout["pp"] > 1:
        out.extend(["--pipeline-schedule", layout["schedule"]])
    out += SHARDING[layout["sharding"]] + DTYPE[layout.get("dtype", "fp32")]
    split = layout.get("split", "even")
    if split == "layout":
        out += SPLITS["layout", layout["pp"], layout["vpp"]]
    elif split != "even":
        out += SPLITS[split, layout["pp"]]
    if layout.get("comm", "p2p") != "p2p":
        out += ["--cp-comm-type", layout["comm"]]
    if layout.get("order", "dp-pp") != "dp-pp":
        out.append("--use-tp-pp-dp-mapping")
    if layout.get("overlap"):
        out += ["--overlap-grad-reduce", "--ddp-bucket-size", "30000"]
        if layout["sharding"] != "none":
            out.append("--overlap-param-gather")
    return out


def name(layout):
    words = [f"{axis}{layout[axis]}" for axis in ("tp", "pp", "cp", "dp") if layout[axis] > 1] or ["one rank"]
    words += [f"{axis}{layout[axis]}" for axis in ("ep", "etp") if axis in layout]
    if "dispatch" in layout:
        words.append(layout["dispatch"])
    if layout.get("room"):
        words.append(f"room{layout['room']}")
    if layout["sp"]:
        words.append("sp")
    if layout["vpp"] > 1:
        words.append(f"vpp{layout['vpp']}")
    if layout["pp"] > 1:
        words.append(layout["schedule"])
    words += [layout[axis] for axis in ("sharding", "split", "comm", "order", "model", "dtype") if axis in layout
              and layout[axis] not in ("none", "even", "p2p", "dp-pp", "fp32")]
    if layout.get("overlap"):
        words.append("overlap")
    return " ".join(words)


ONE = {"tp": 1, "sp": 0, "pp": 1, "vpp": 1, "dp": 1, "cp": 1, "sharding": "none", "schedule": "1f1b"}


def layout_of(**axes):
    return {**ONE, **axes}


def compared(line):
    """Keys of a line's losses and norm."""
    return ["lm_loss", "grad_norm"] + sorted(key for key in line if key.startswith("mtp_"))


class Run:
    """One run: its exit status, its metrics line by line, its validation losses."""

    def __init__(self, directory, status, seconds):
        self.directory, self.status, self.seconds = directory, status, seconds
        self.lines, self.validation = [], []
        if os.path.exists(directory + "/metrics"):
            with open(directory + "/metrics") as file:
                self.lines = [json.loads(line) for line in file]
        with open(directory + "/out", errors="replace") as file:
            self.out = file.read()
        self.validation = [float(x) for x in re.findall(r"validation loss at .*?lm loss value: (\S+)", self.out)]
        self.zeros = [int(x) for x in re.findall(r"num zeros: (\d+)", self.out)]
        self.norms = [float(x) for x in re.findall(r"params norm: (\S+)", self.out)]

    def error(self):
        lines = [line for line in self.out.splitlines() if "error" in line.lower() or "CHECK" in line]
        return (lines or self.out.splitlines() or ["no output"])[-1][:300]

    def bits(self):
        """All that must be equal bit for bit between two runs of one layout."""
        return [tuple(line[key] for key in ("iteration", "params_hash", *compared(line))) for line in self.lines] + self.validation

    def scalars(self):
        """None: the gradient norm of an iteration whose gradients overflow in float16."""
        return [line[key] for line in self.lines for key in compared(line)] + self.validation

    def peaks(self):
        if not self.lines:
            return []
        last = self.lines[-1]
        return last.get("peak_allocated_bytes_by_rank", [last["peak_allocated_bytes"]])

    def tensors(self, iteration, kind):
        """{name: array of float32} of the safetensors files of that kind (model, optimizer)."""
        found = {}
        for path in sorted(glob.glob(f"{self.directory}/save/iter_{iteration:07d}/{kind}-*.safetensors")):
            with open(path, "rb") as file:
                header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
                data = file.read()
            for tensor, entry in header.items():
                if tensor == "__metadata__":
                    continue
                begin, end = entry["data_offsets"]
                values = array.array("f")
                values.frombytes(data[begin:end])
                found[tensor] = values
        return found


class Pool:
    """Starts runs in the background, at most so many ranks at once."""

    def __init__(self, program, directory, ranks_at_once=4):
        self.program, self.directory = program, directory
        self.capacity, self.free = ranks_at_once, ranks_at_once
        self.changed, self.queue = threading.Condition(), []
        self.number = 0

    def command(self, ranks, arguments):
        launcher = ["mpirun", "--oversubscribe", "--bind-to", "none", "-np", str(ranks)] if ranks > 1 else []
        return launcher + [self.program] + arguments

    def execute(self, job, ranks, arguments, seconds):
        weight = min(ranks, self.capacity)
        with self.changed:  # in the order in which they were started
            self.changed.wait_for(lambda: self.queue[0] is job and self.free >= weight)
            self.free -= weight
            self.queue.pop(0)
            self.changed.notify_all()
        begin = time.time()
        with open(job.directory + "/out", "w") as out:
            try:
                status = subprocess.run(["timeout", "-k", "5", str(seconds)] + self.command(ranks, arguments), stdout=out,
                                        stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL).returncode
            except OSError as problem:
                out.write(str(problem))
                status = -1
        with self.changed:
            self.free += weight
            self.changed.notify_all()
        job.result = Run(job.directory, status, time.time() - begin)

    def start(self, layout, extra, load=None, seconds=100):
        """extra: further flags; SAVE there stands for a folder of this run's own, which load (another job) names."""
        job = Job()
        self.number += 1
        job.layout, job.directory = layout, f"{self.directory}/run{self.number}"
        os.mkdir(job.directory)
        job.flags = BASE + MODELS[layout.get("model", "gpt")] + flags(layout)
        job.flags += [x.replace("SAVE", job.directory + "/save") for x in extra]
        job.flags += ["--metrics-file", job.directory + "/metrics"]
        if load:
            job.flags += ["--load", load.directory + "/save"]
        with self.changed:
            self.queue.append(job)
        job.thread = threading.Thread(target=self.execute, args=(job, world(layout), job.flags, seconds))
        job.thread.start()
        return job

    def plan(self, job):
        """Peaks and micro-batches in flight of each rank, as the dry run of the same flags prints them."""
        path = job.directory + "/plan.json"
        status = subprocess.run([self.program] + job.flags + ["--world-size", str(world(job.layout)), "--dry-run-json", path],
                                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL).returncode
        if status:
            return [], []
        with open(path) as file:
            ranks = json.load(file)["ranks"]
        return [rank["peak_allocated_bytes"] for rank in ranks], [rank["micro_batches_in_flight"] for rank in ranks]


class Job:
    def get(self):
        self.thread.join()
        return self.result


def relative(values, expected):
    """The largest relative difference; infinite when a value is missing or not finite."""
    if len(values) != len(expected) or not expected or [x is None for x in values] != [x is None for x in expected]:
        return math.inf
    values, expected = ([x for x in of if x is not None] for of in (values, expected))
    if not all(map(math.isfinite, values)):
        return math.inf
    return max(abs(a - b) / abs(b) for a, b in zip(values, expected))


def relative_tensors(tensors, expected):
    """The largest difference of an element, relative to the largest element of its tensor, and the tensor's name."""
    if tensors.keys() != expected.keys() or not expected:
        return math.inf, "another set of tensors"
    worst, where = 0.0, "all equal"
    for tensor, values in expected.items():
        size = max(map(abs, values))
        got = tensors[tensor]
        if not all(map(math.isfinite, got)):
            return math.inf, tensor
        if len(got) != len(values):  # rows that pad the vocabulary come last, and have no gradients
            shared = min(len(got), len(values))
            if shared < PADDED_FROM or any(got[shared:]) or any(values[shared:]):
                return math.inf, tensor
            got, values = got[:shared], values[:shared]
        if not size > 0:
            return math.inf, f"{tensor} is zero on one rank"
        difference = max(abs(a - b) for a, b in zip(got, values)) / size
        if difference > worst:
            worst, where = difference, tensor
    return worst, where


class Tap:
    def __init__(self):
        self.number = self.failed = 0

    def ok(self, what, good, *details):
        self.number += 1
        print(f"{'ok' if good else 'not ok'} {self.number} - {what}")
        if not good:
            self.failed += 1
            for detail in details:
                print(f"# {detail}")
        return good

    def skip(self, what, why):
        self.number += 1
        print(f"ok {self.number} - {what} # SKIP {why}")
