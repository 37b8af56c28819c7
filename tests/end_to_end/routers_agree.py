"""The runs of routers_agree_test.sh. Choices are drawn at random (--moe-router-force-load-balancing), so that they are a
function of the seed: every layout counts the same tokens to the last one, and must move the same biases by the same bits."""
import glob
import re
import struct
import sys

import layout_runs
from layout_runs import GRADIENT_BOUND, SCALAR_BOUND, Pool, Tap, layout_of, name, relative, relative_tensors

RATE = 0.01
layout_runs.MODELS["routers"] = layout_runs.MODELS["llama"] + f"""--num-experts 8 --moe-layer-freq [0]*2+[1]*6 --moe-router-topk 2
 --moe-ffn-hidden-size 32 --moe-router-score-function sigmoid --moe-router-enable-expert-bias --moe-router-bias-update-rate {RATE}
 --moe-aux-loss-coeff 0.02 --moe-z-loss-coeff 0.001 --moe-router-force-load-balancing""".split()
layout_runs.MODELS["choosing"] = layout_runs.MODELS["routers"][:-1]
TRAIN = "--train-iters 4 --lr-warmup-iters 2 --eval-iters 0".split()
SAVING = TRAIN + "--save SAVE --save-interval 2".split()
LAYOUTS = [
    layout_of(dp=2, model="routers"),
    layout_of(cp=2, model="routers"),
    layout_of(cp=2, dp=2, sharding="fsdp3", comm="all_gather", model="routers"),
    layout_of(pp=2, vpp=2, dp=2, schedule="interleaved", sharding="zero1", overlap=1, model="routers"),
    layout_of(pp=2, cp=2, schedule="zero-bubble", sharding="zero1", model="routers"),
    layout_of(pp=4, split="layout", model="routers"),
]
BALANCES = {"aux_loss": [], "seq_aux_loss": ["--moe-router-load-balancing-type", "seq_aux_loss"]}
FULL = "--recompute-granularity full --recompute-method uniform --recompute-num-layers 1".split()
LIMITED = "--moe-expert-capacity-factor 0.75 --moe-input-jitter-eps 0.1".split()


def biases(run, iteration):
    return {k: v.tobytes() for k, v in run.tensors(iteration, "model").items() if k.endswith(".expert_bias")}


def losses(run):
    """What the iteration lines say of the routers' losses."""
    return [float(x) for x in re.findall(r"(?:load_balancing_loss|z_loss): (\S+)", run.out)]


def gradients(run):
    return {k: v for k, v in run.tensors(2, "optimizer").items() if k.startswith("exp_avg.")}


def check_one(tap, run):
    got = biases(run, 4)
    tap.ok("one rank: runs", run.status == 0 and len(run.lines) == 4, run.error())
    tap.ok("one rank: a bias for each expert of each layer with experts", len(got) == 6 and all(len(v) == 32 for v in got.values()), list(got))
    steps = {round(x / RATE, 3) for k, v in run.tensors(4, "model").items() if k in got for x in v}
    tap.ok("one rank: four steps move a bias by the rate, or not, up or down each", steps <= set(range(-4, 5)) and len(steps) > 3, steps)
    optimizer = [k for k in run.tensors(4, "optimizer") if "expert_bias" in k]
    tap.ok("one rank: a bias has no moments", not optimizer, optimizer)


def check_layouts(tap, pool):
    ones = {k: pool.start(layout_of(model="routers"), SAVING + v) for k, v in BALANCES.items()}
    one_limited = pool.start(layout_of(model="routers"), TRAIN + LIMITED)
    jobs = [(x, k, pool.start(x, SAVING + BALANCES[k])) for i, x in enumerate(LAYOUTS) for k in [list(BALANCES)[i % 2]]]
    jobs += [(LAYOUTS[1], "seq_aux_loss", pool.start(LAYOUTS[1], SAVING + BALANCES["seq_aux_loss"]))]
    full = pool.start(LAYOUTS[3], TRAIN + FULL + BALANCES["seq_aux_loss"])
    limited = pool.start(LAYOUTS[5], TRAIN + LIMITED + FULL)
    check_one(tap, ones["aux_loss"].get())
    for layout, kind, job in jobs:
        run, one, title = job.get(), ones[kind].get(), f"{name(layout)} {kind}"
        tap.ok(f"{title}: runs", run.status == 0 and len(run.lines) == 4, f"exit {run.status}: {run.error()}")
        tap.ok(f"{title}: biases are the one-rank run's, bit for bit", biases(run, 4) == biases(one, 4) and biases(one, 4))
        worst = relative(run.scalars(), one.scalars())
        tap.ok(f"{title}: losses and gradient norms within {SCALAR_BOUND:.1e}", worst <= SCALAR_BOUND, worst)
        worst = relative(losses(run), losses(one))  # printed with seven digits
        tap.ok(f"{title}: the routers' losses are the one-rank run's", worst <= 2e-6 and len(losses(one)) >= 8, worst, losses(run), losses(one))
        worst, where = relative_tensors(gradients(run), gradients(one))
        tap.ok(f"{title}: gradients within {GRADIENT_BOUND:.1e}", worst <= GRADIENT_BOUND, worst, where)
    tap.ok(f"{name(LAYOUTS[3])}: full recompute counts no token twice", full.get().bits() == jobs[3][2].get().bits(), full.get().error())
    worst = relative(limited.get().scalars(), one_limited.get().scalars())
    tap.ok(f"{name(LAYOUTS[5])}: what a capacity drops and jitter are the one-rank run's", worst <= SCALAR_BOUND, worst, limited.get().error())
    differs = relative(one_limited.get().scalars(), ones["aux_loss"].get().scalars())
    tap.ok("one rank: a capacity and jitter change the run", differs > 1e-4, differs)
    return ones, jobs


def check_resume(tap, pool, one, jobs):
    """Two steps, then two in another layout: the biases of four."""
    for layout, kind, job in jobs[2:5:2]:
        job.get()
        run = pool.start(layout_of(dp=2, model="routers"), SAVING + BALANCES[kind] + ["--ckpt-step", "2"], load=job).get()
        same = pool.start(layout, SAVING + BALANCES[kind] + ["--ckpt-step", "2"], load=job).get()
        title = name(layout)
        tap.ok(f"{title}: resumed by dp2 the biases are those of the straight run", biases(run, 4) == biases(one.get(), 4), run.error())
        tap.ok(f"{title}: resumed in the same layout no bit differs", same.bits() == job.get().bits()[2:], same.error())


def check_rules(tap, pool, one):
    """float16 whose first step overflows: skipped, and the biases move all the same, as Megatron-LM's do."""
    half = pool.start(layout_of(model="routers", dtype="fp16"), "--train-iters 2 --eval-iters 0 --save SAVE --save-interval 2".split())
    still = [pool.start(layout_of(model="routers"), f"--train-iters 2 --lr 0 --min-lr 0 --weight-decay 0 --eval-iters 0 --moe-router-bias-update-rate {r}".split())
             for r in (0, RATE)]
    run = half.get()
    tap.ok("fp16: a step that is skipped moves the biases", run.lines and run.lines[0]["grad_norm"] is None and
           biases(run, 2) == biases(one.get(), 2), run.error())
    hashes = [[line["params_hash"] for line in job.get().lines] for job in still]
    tap.ok("the hash of the parameters tells a bias from another", hashes[0][0] == hashes[0][1] != hashes[1][1] and
           len({hashes[1][0], hashes[1][1]}) == 2, hashes)


def check_whole_batch(tap, pool):
    """The balance of the batch so far: two ranks with micro-batches of two sequences, or one rank with four; the same tokens
    join in every step. Here the routers choose, so nothing but their weights moves between the runs: learning rate 0."""
    flags = "--train-iters 2 --lr 0 --min-lr 0 --eval-iters 0 --save SAVE --save-interval 2 --hidden-dropout 0 --attention-dropout 0".split()
    flags += "--moe-router-load-balancing-type global_aux_loss --moe-aux-loss-coeff 0.5".split()
    one = pool.start(layout_of(model="choosing"), flags + "--micro-batch-size 4".split())
    jobs = [pool.start(x, flags) for x in (layout_of(dp=2, model="choosing"), layout_of(dp=2, cp=2, sharding="zero1", model="choosing"))]
    for job in jobs:
        run, title = job.get(), f"{name(job.layout)} global_aux_loss"
        worst = relative(losses(run), losses(one.get()))
        tap.ok(f"{title}: the loss is the one-rank run's", worst <= 2e-6 and len(losses(run)) == 4, worst, run.error(), losses(run))
        worst, where = relative_tensors(gradients(run), gradients(one.get()))
        tap.ok(f"{title}: gradients within {GRADIENT_BOUND:.1e}", worst <= GRADIENT_BOUND, worst, where)
        tap.ok(f"{title}: biases are the one-rank run's, bit for bit", biases(run, 2) == biases(one.get(), 2))


def check_expert_ranks(tap, pool, ones):
    """Experts on several ranks: the same counts, and the same drops as where each rank has all experts."""
    two, tensor = layout_of(dp=2, model="routers"), layout_of(tp=2, sp=1, dp=2, sharding="zero1", model="routers")
    split = "--expert-model-parallel-size 2 --moe-token-dispatcher-type".split()
    jobs = [(two, "aux_loss", split + ["alltoall"]), (tensor, "seq_aux_loss", split + ["allgather"] + BALANCES["seq_aux_loss"]),
            (layout_of(tp=2, sp=1, cp=2, model="routers"), "aux_loss", split + ["alltoall", "--expert-tensor-parallel-size", "1"])]
    jobs = [(layout, kind, flags, pool.start(layout, SAVING + flags)) for layout, kind, flags in jobs]
    drops = [pool.start(two, TRAIN + LIMITED + flags) for flags in ([], split + ["allgather"], split + ["alltoall"],
                                                                   split + ["alltoall", "--moe-pad-expert-input-to-capacity"] + FULL)]
    for layout, kind, flags, job in jobs:
        run, one, title = job.get(), ones[kind].get(), f"{name(layout)} {' '.join(flags)}"
        tap.ok(f"{title}: runs", run.status == 0 and len(run.lines) == 4, f"exit {run.status}: {run.error()}")
        tap.ok(f"{title}: biases are the one-rank run's, bit for bit", biases(run, 4) == biases(one, 4) and biases(one, 4))
        worst = max(relative(run.scalars(), one.scalars()), relative(losses(run), losses(one)) / 4)
        tap.ok(f"{title}: losses and gradient norms within {SCALAR_BOUND:.1e}", worst <= SCALAR_BOUND, worst)
        worst, where = relative_tensors(gradients(run), gradients(one))
        tap.ok(f"{title}: gradients within {GRADIENT_BOUND:.1e}", worst <= GRADIENT_BOUND, worst, where)
    for job in drops[1:]:
        worst = relative(job.get().scalars(), drops[0].get().scalars())
        tap.ok(f"{name(two)} {' '.join(job.flags[job.flags.index(split[0]):][:4])}: a capacity drops what it drops without",
               worst <= SCALAR_BOUND, worst, job.get().error())


def check_layers(tap, pool):
    """--moe-per-layer-logging: in an event file a float follows its tag, after one byte."""
    layout = layout_of(pp=2, model="routers")
    job = pool.start(layout, "--train-iters 2 --eval-iters 0 --moe-per-layer-logging --tensorboard-dir SAVE --tensorboard-log-interval 1".split())
    run, events = job.get(), b""
    for path in glob.glob(job.directory + "/save/events*"):
        with open(path, "rb") as file:
            events += file.read()

    def values(tag):
        return [struct.unpack("<f", x)[0] for x in re.findall(tag + rb"\x15(....)", events, re.S)]

    for loss in (b"load_balancing_loss", b"z_loss"):
        layers = [values(b"moe/" + loss + b"_layer_%d" % i) for i in range(8)]
        means = [sum(x) / 6 for x in zip(*layers[2:])]
        tap.ok(f"{name(layout)}: {loss.decode()} of each layer with experts; their mean is the step's", layers[:2] == [[], []] and
               len(means) == 2 and relative(values(rb"[^/]" + loss), means) < 1e-6, run.error(), layers, values(rb"[^/]" + loss))


def main():
    tap, pool = Tap(), Pool(sys.argv[1], sys.argv[2])
    ones, jobs = check_layouts(tap, pool)
    one = ones["aux_loss"]
    check_resume(tap, pool, one, jobs)
    check_rules(tap, pool, one)
    check_whole_batch(tap, pool)
    check_layers(tap, pool)
    check_expert_ranks(tap, pool, ones)
    return tap.failed


if __name__ == "__main__":
    sys.exit(1 if main() else 0)
