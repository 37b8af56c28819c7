"""The runs of resume_across_layouts_test.sh: I4 for one layout, and across layouts."""
import glob
import math
import os
import sys

from layout_runs import GRADIENT_BOUND, SCALAR_BOUND, Pool, Tap, compared, layout_of, name, relative, relative_tensors

LAYOUTS = [
    layout_of(model="llama"),
    layout_of(model="llama", tp=2, sp=1, pp=2, dp=2, sharding="zero1", overlap=1),
    layout_of(model="gpt", pp=4, vpp=2, schedule="interleaved", split="layout"),
    layout_of(model="llama", dp=2, cp=2, sharding="fsdp3", overlap=1),
    layout_of(model="gpt", tp=4, sp=1),
    layout_of(model="llama", pp=2, dp=2, schedule="zero-bubble", sharding="zero1", order="pp-dp"),
    layout_of(model="gpt", tp=2, cp=2, sharding="fsdp2", comm="all_gather"),
    layout_of(model="llama", pp=2, dp=2, sharding="fsdp1", split="first-last"),
    layout_of(model="gpt", tp=4, dp=2),
]
EXPERTS = [
    layout_of(model="moe", dp=4, ep=2, sharding="fsdp3", overlap=1),
    layout_of(model="moe", tp=2, sp=1, dp=2, ep=2, etp=2, sharding="zero1", overlap=1),
    layout_of(model="moe", tp=2, sp=1, dp=2, ep=2, etp=1, sharding="fsdp2"),
    layout_of(model="moe", pp=2, dp=2, ep=2, sharding="zero1"),
]
RECOMPUTE = [
    "--recompute-granularity full --recompute-method uniform --recompute-num-layers 1",
    "--recompute-granularity full --recompute-method block --recompute-num-layers 1",
    "--recompute-granularity selective --recompute-modules core_attn mlp layernorm",
]
ITERATIONS, STOP = 6, 3
LEG = 2  # iterations of each layout of the cycle


def words(text):
    return text.split()


def files(job, iteration):
    """{name: bytes} of the tensors of a checkpoint."""
    found = {}
    for path in glob.glob(f"{job.directory}/save/iter_{iteration:07d}/*.safetensors"):
        with open(path, "rb") as file:
            found[os.path.basename(path)] = file.read()
    return found


def of(layout, model):
    return {**layout, "model": model}


def same_layout(tap, pool):
    """Straight, and with a stop in the middle: the second part has another recompute setting and no other difference."""
    train = words(f"--train-iters {ITERATIONS} --lr-warmup-iters 1 --eval-iters 0")
    started = []
    for i, layout in enumerate(LAYOUTS[1:] + EXPERTS):
        save = words("--save SAVE --save-interval 100") + ["--async-save"] * (i % 2)
        straight = pool.start(layout, train + save)
        first = pool.start(layout, train + save + ["--exit-interval", str(STOP)])
        started.append((i, layout, save, straight, first))
    for i, layout, save, straight, first in started:
        title = name(layout) + (" --async-save" if i % 2 else "")
        whole, part = straight.get(), first.get()
        resumed = pool.start(layout, train + save + words(RECOMPUTE[i % len(RECOMPUTE)]), load=first).get()
        tap.ok(f"{title}: stops and resumes", not (whole.status or part.status or resumed.status) and len(part.lines) == STOP,
               *[f"exit {run.status}: {run.error()}" for run in (whole, part, resumed)])
        tap.ok(f"{title}: I4 {STOP} iterations, save, stop, resume with another recompute setting == {ITERATIONS} straight, bit for bit",
               len(whole.lines) == ITERATIONS and part.bits() + resumed.bits() == whole.bits(), part.bits(), resumed.bits(), whole.bits())
        if "moe" in layout["model"]:
            measured, planned = whole.peaks(), pool.plan(straight)[0]
            tap.ok(f"{title}: I2 planned peak of every rank == measured", measured and measured == planned, measured, planned)
        got = [files(job, ITERATIONS) for job in (first, straight)]
        end = files(straight, ITERATIONS)
        resumed_files = {os.path.basename(p): open(p, "rb").read() for p in glob.glob(f"{resumed.directory}/save/iter_{ITERATIONS:07d}/*.safetensors")}
        tap.ok(f"{title}: I4 weights and moments at the end too", len(end) == 2 and resumed_files == end, sorted(resumed_files), sorted(end), len(got))


def unchanged(tap, pool, ones):
    """A checkpoint of one rank, loaded and saved again by another layout, is the same byte for byte."""
    started = []
    for i, layout in enumerate(LAYOUTS[1:] + EXPERTS):
        one = ones[layout["model"]]
        flags = words(f"--train-iters {LEG} --eval-iters 0 --save SAVE --save-interval 100")
        job = pool.start(layout, flags + ["--async-save"] * ((i + 1) % 2), load=one[1])
        started.append((layout, job, one[1]))
    for layout, job, one in started:
        run = job.get()
        before, after = files(one, LEG), files(job, LEG)
        tap.ok(f"one rank -> {name(layout)}: I4 loaded and saved again, no byte of weights and moments differs",
               len(before) == 2 and before == after, f"exit {run.status}: {run.error()}", sorted(before), sorted(after))


def legs_of(model):
    through = EXPERTS if "moe" in model else LAYOUTS[1:]
    return [of(layout, model) for layout in [LAYOUTS[0]] + through + [LAYOUTS[0]]]


def cycle(tap, pool, model, straight):
    """One model through all layouts, LEG iterations in each, and back to one rank."""
    one = straight.get()
    legs = legs_of(model)
    job, got = None, []
    for i, layout in enumerate(legs):
        flags = words(f"--train-iters {len(legs) * LEG} --exit-interval {LEG} --lr-warmup-iters 1 --eval-iters 0 --save SAVE --save-interval 100")
        job = pool.start(layout, flags + ["--async-save"] * (i % 2), load=job)
        run = job.get()
        lines = slice(i * LEG, (i + 1) * LEG)
        expected = [line[key] for line in one.lines[lines] for key in compared(line)]
        worst = relative(run.scalars(), expected)
        # iterations add up their errors, as a random walk: each starts from weights that those before it moved
        bound = SCALAR_BOUND * math.sqrt((i + 1) * LEG)
        tap.ok(f"{model}: I4 iterations {i * LEG + 1} to {(i + 1) * LEG} in {name(layout)}, resumed from the layout before, "
               f"are the one-rank run's within {bound:.1e}", worst <= bound and len(run.lines) == LEG,
               f"off by {worst:.2e}, exit {run.status}: {run.error()}", run.scalars(), expected)
        if run.status or len(run.lines) != LEG:
            return
        got.append(f"{worst:.1e}")
    end = len(legs) * LEG
    moments = [{k: v for k, v in run.tensors(end, "optimizer").items()} for run in (run, one)]
    worst, where = relative_tensors(*moments)
    bound = GRADIENT_BOUND * math.sqrt(end)
    tap.ok(f"{model}: I4 after {len(legs)} layouts the moments of every parameter are the one-rank run's within {bound:.1e}", worst <= bound,
           f"off by {worst:.2e} in {where}")
    if "-v" in sys.argv:
        print(f"# {model}: {got}, moments {worst:.2e} {where}")


def main():
    tap, pool = Tap(), Pool(*sys.argv[1:3])
    straight, ones = {}, {}
    for model in ("gpt", "llama", "moe", "moe_all"):
        flags = words(f"--train-iters {len(legs_of(model)) * LEG} --lr-warmup-iters 1 --eval-iters 0 --save SAVE --save-interval 100")
        straight[model] = pool.start(layout_of(model=model), flags)
        ones[model] = (None, pool.start(layout_of(model=model), flags + ["--exit-interval", str(LEG)]))
    for model in ones:
        tap.ok(f"{model} trains on one rank", straight[model].get().status == 0 and ones[model][1].get().status == 0, straight[model].get().error())
    same_layout(tap, pool)
    unchanged(tap, pool, ones)
    for model in ("gpt", "llama", "moe_all"):
        cycle(tap, pool, model, straight[model])
    return tap.failed


if __name__ == "__main__":
    sys.exit(1 if main() else 0)
