"""The runs of mtp_layouts_test.sh: multi-token prediction over layouts, by the checks of layouts_agree.py."""
import sys

import layout_runs
import resume_across_layouts
from layout_runs import Pool, Tap, layout_of
from layouts_agree import FULL, SAVING, SELECTIVE, TRAIN, check_row

MTP = ["--mtp-num-layers", "2", "--mtp-loss-scaling-factor", "0.3"]
layout_runs.MODELS.update({
    "mtp": layout_runs.MODELS["llama"] + MTP,  # its own output layer, fused loss
    "mtp-tied": "--position-embedding-type rope --make-vocab-size-divisible-by 20 --embedding-init-method-std 0.03".split() + MTP,
    "mtp-moe": layout_runs.MODELS["llama"] + MTP + """--num-experts 4 --moe-layer-freq [0]*6+[1]*2 --moe-ffn-hidden-size 48
 --moe-aux-loss-coeff 0.01""".split(),  # each stage routes the tokens of its micro-batches as one rank does
    "mtp-mla": layout_runs.MODELS["mla"] + MTP,
})
layout_runs.SPLITS["mtp", 2] = ["--pipeline-model-parallel-layout", "Ettttt|tttmmL"]
UNIFORM = FULL + "--recompute-method uniform --recompute-num-layers 1".split()
ROWS = [
    (layout_of(split="even", model="mtp", tp=2, sp=1, pp=2), SELECTIVE + ["core_attn", "layernorm", "mlp"]),
    (layout_of(split="even", model="mtp", pp=2, dp=2, schedule="zero-bubble", sharding="zero1", overlap=1), UNIFORM),
    (layout_of(split="even", model="mtp", pp=2, vpp=2, schedule="interleaved"), FULL + "--recompute-layer-ids 1 8".split()),
    (layout_of(split="even", model="mtp", cp=2, dp=2, sharding="fsdp3", overlap=1), UNIFORM),
    (layout_of(split="even", model="mtp-tied", tp=2, dp=2, sharding="fsdp2"), UNIFORM + ["--distribute-saved-activations"]),
    (layout_of(model="mtp-tied", pp=2, split="mtp"), FULL + "--recompute-method uniform --recompute-num-layers 3".split()),
    (layout_of(split="even", model="mtp-moe", pp=2, dp=2, sharding="fsdp2"), SELECTIVE + ["moe", "layernorm"]),
    (layout_of(split="even", model="mtp-mla", tp=2, sp=1), SELECTIVE + ["mla_up_proj", "layernorm"]),
]


def main():
    tap, pool = Tap(), Pool(*sys.argv[1:3])
    ones = {model: pool.start(layout_of(model=model), SAVING) for model in ("mtp", "mtp-tied", "mtp-moe", "mtp-mla")}
    rows = [(layout, {"none": pool.start(layout, SAVING), "again": pool.start(layout, TRAIN),
                      " ".join(setting[3:]): pool.start(layout, TRAIN + setting)}) for layout, setting in ROWS]
    legs = 2 * (2 + 2)
    straight = pool.start(layout_of(model="mtp"), f"--train-iters {legs} --lr-warmup-iters 1 --eval-iters 0 --save SAVE --save-interval 100".split())
    for model, job in ones.items():
        lines = job.get().lines
        tap.ok(f"one rank, {model}: runs, and every depth learns", len(lines) == 4 and all(
            lines[-1][key] < lines[0][key] for key in ("lm_loss", "mtp_1_loss", "mtp_2_loss")), job.get().error(), lines)
    for layout, jobs in rows:
        check_row(tap, pool, layout, jobs, ones[layout["model"]].get())
    resume_across_layouts.LAYOUTS = [layout_of(model="mtp"), layout_of(model="mtp", tp=2, sp=1),
                                     layout_of(model="mtp", pp=2, dp=2, sharding="zero1")]
    resume_across_layouts.cycle(tap, pool, "mtp", straight)
    return tap.failed


if __name__ == "__main__":
    sys.exit(1 if main() else 0)
