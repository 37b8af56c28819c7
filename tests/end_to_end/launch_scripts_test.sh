#!/bin/bash
# The batch scripts as they are, without a Slurm: their flags are accepted for the ranks that they ask for, and train.sh refuses
# what cannot work before it starts anything.
repo=$(cd "$(dirname "$0")/../.." && pwd)
. "$(dirname "$0")/lib.sh"

# a stand-in for train.sh that prints the flags it was given, one a line
mkdir -p stand_in/scripts/slurm
printf 'printf "%%s\\n" "$@" --train-iters "$TRAIN_ITERS"\n' >stand_in/scripts/slurm/train.sh
ln -s "$repo/scripts/examples" stand_in/scripts/examples
for script in "$repo"/scripts/slurm/*.sbatch; do
    name=$(basename "$script")
    option() { sed -n "s/^#SBATCH --$1=\([0-9]*\).*/\1/p" "$script"; }
    world=$(($(option nodes) * $(option ntasks-per-node)))
    DATA_ARGS="--mock-data --vocab-size 50257" REPO=$PWD/stand_in bash "$script" >flags
    mapfile -t flags <flags
    is "$name: its flags are accepted for $world ranks" \
        "$(status_of timeout 200 "$PRETRAIN" "${flags[@]}" --dry-run --world-size "$world" --dry-run-json plan.json)" 0
    [ -s plan.json ] || sed 's/^/# /' err
    ok "$name: one task per GPU" test "$(option ntasks-per-node)" = "$(sed -n 's/^#SBATCH --gres=gpu:\([0-9]*\).*/\1/p' "$script")"
    contains "$name: it is signalled before the time limit and may be requeued" "$script" "#SBATCH --signal=TERM@300" "#SBATCH --requeue"
    rm -f plan.json
    is "$name: without the repository" "$(status_of env REPO=/nowhere bash "$script")" 2
    contains "$name: it says what to do" err "submit from the repository or set REPO"
done

train=$repo/scripts/slurm/train.sh
refuses() { # what, words..., --, command...
    local what=$1 words=()
    shift
    while [ "$1" != -- ]; do words+=("$1"); shift; done
    shift
    is "train.sh refuses $what" "$(status_of env -u SLURM_JOB_ID PATH=/usr/bin:/bin "$@")" 2
    contains "and says what to do" err "${words[@]}"
}
refuses "to run outside a job" sbatch -- bash "$train"
refuses "to run without a folder" SAVE "folder" -- SLURM_JOB_ID=1 bash "$train"
refuses "to run without an end" TRAIN_ITERS -- SLURM_JOB_ID=1 SAVE=s bash "$train"
refuses "a program that is not there" "make" PRETRAIN -- SLURM_JOB_ID=1 SAVE=s TRAIN_ITERS=1 PRETRAIN=/nowhere bash "$train"
refuses "an unknown launcher" "srun or mpirun" -- SLURM_JOB_ID=1 SAVE=s TRAIN_ITERS=1 PRETRAIN=/bin/true LAUNCHER=pdsh bash "$train"
