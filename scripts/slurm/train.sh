#!/bin/bash
# One run of a training job inside a Slurm allocation; the .sbatch files end in it, its arguments are flags of pretrain_gpt.
#
# It starts the training with --save and --load on one folder, so that every start resumes by itself, and then decides:
#
#     training ended well, TRAIN_ITERS reached      exit 0
#     it saved and left before that (time limit)    requeue this job; exit 0
#     the same, but without one new iteration       exit 1: it would be requeued for ever
#     training failed (status 1, 2, 3, a signal)    exit with that status
#     the job was cancelled                         exit 0 after the save; never requeued
#
# 300 s before the time limit (--signal=TERM@300) Slurm sends TERM to every task of srun, and the program saves and leaves;
# `scancel --signal=TERM JOB` does the same at any time. mpirun's ranks are no tasks of Slurm, and TERM would make mpirun kill
# them: a small step beside it takes the signal for this script, which sends mpirun USR1; mpirun passes that to all ranks.
#
# Variables: SAVE (folder), TRAIN_ITERS; optional SAVE_INTERVAL, REPO, PRETRAIN (the program), LAUNCHER (srun or mpirun),
# LAUNCHER_ARGS, REQUEUE=0 (exit 0 where it would requeue).
set -u
fail() { echo "train.sh: $*" >&2; exit 2; }
[ -n "${SLURM_JOB_ID:-}" ] || fail "not inside a Slurm job: submit a script that ends in it with sbatch"
[ -n "${SAVE:-}" ] || fail "SAVE is not set: name the folder for checkpoints"
[ -n "${TRAIN_ITERS:-}" ] || fail "TRAIN_ITERS is not set: give the number of iterations of the whole training"
REPO=${REPO:-${SLURM_SUBMIT_DIR:-.}}
PRETRAIN=${PRETRAIN:-$REPO/build/pretrain_gpt}
[ -x "$PRETRAIN" ] || fail "no program at $PRETRAIN: run make in $REPO, or set PRETRAIN"
mkdir -p "$SAVE" || fail "cannot make the folder $SAVE: set SAVE to one that all nodes can write"

case ${LAUNCHER:=srun} in
srun) start=(srun --mpi=pmix --kill-on-bad-exit=1) signal=SIGTERM
    # sbatch's --cpus-per-task does not reach srun by itself since Slurm 22.05
    [ -z "${SLURM_CPUS_PER_TASK:-}" ] || start+=("--cpus-per-task=$SLURM_CPUS_PER_TASK") ;;
mpirun) start=(mpirun) signal=SIGUSR1 ;;
*) fail "LAUNCHER is $LAUNCHER: it can be srun or mpirun" ;;
esac
# shellcheck disable=SC2206 # many words
start+=(${LAUNCHER_ARGS:-})

iteration() { # of the newest checkpoint
    local n
    n=$(cat "$SAVE/latest_checkpointed_iteration.txt" 2>/dev/null)
    echo "${n:-0}"
}
job_runs() { scontrol show job "$SLURM_JOB_ID" 2>/dev/null | grep -q 'JobState=RUNNING'; }

first=$(iteration)
echo "train.sh: job $SLURM_JOB_ID, restart ${SLURM_RESTART_COUNT:-0}, ${SLURM_NTASKS:-?} tasks on ${SLURM_JOB_NODELIST:-?}," \
    "from iteration $first of $TRAIN_ITERS, $(date '+%F %T')"

training=
watcher=
# TERM to this shell (--signal=B:TERM@300, or the small step of mpirun) is passed on; when the job is being cancelled or
# requeued, Slurm signals the steps itself
pass_on() {
    job_runs || return
    if [ "$LAUNCHER" = srun ]; then scancel --signal=TERM "$SLURM_JOB_ID"; elif [ -n "$training" ]; then kill -USR1 "$training"; fi
}
trap pass_on TERM
if [ "$LAUNCHER" = mpirun ]; then
    # shellcheck disable=SC2016 # $1 is of the inner shell
    exec {ready}< <(exec env -u SLURM_NTASKS_PER_NODE srun --overlap --mpi=none --nodes=1 --ntasks=1 --cpus-per-task=1 \
        --nodelist="$SLURMD_NODENAME" bash -c 'trap "kill -TERM $1" TERM; echo ready
            while kill -0 "$1" 2>/dev/null; do sleep 1 & wait $!; done' watcher $$ 2>/dev/null)
    watcher=$!
    read -r -t 60 _ <&"$ready" || echo "train.sh: the step that takes signals for mpirun does not start: no save at the time limit" >&2
fi

# in the background, because bash runs no trap while it waits for a command in front
"${start[@]}" "$PRETRAIN" "$@" --train-iters "$TRAIN_ITERS" --save "$SAVE" --load "$SAVE" \
    --save-interval "${SAVE_INTERVAL:-500}" --exit-signal-handler --exit-signal $signal </dev/null &
training=$!
while kill -0 $training 2>/dev/null; do wait $training; done # a trap ends the wait early
wait $training
status=$?
[ -z "$watcher" ] || { kill "$watcher" && wait "$watcher"; } 2>/dev/null

last=$(iteration)
if [ $status != 0 ]; then
    echo "train.sh: training failed with status $status; the last checkpoint is of iteration $last" >&2
    exit $status
fi
if [ "$last" -ge "$TRAIN_ITERS" ]; then
    echo "train.sh: done, iteration $last"
    exit 0
fi
if ! job_runs; then
    echo "train.sh: cancelled, saved at iteration $last of $TRAIN_ITERS"
    exit 0
fi
if [ "${REQUEUE:-1}" = 0 ]; then
    echo "train.sh: saved at iteration $last of $TRAIN_ITERS; REQUEUE=0: submit again to go on"
    exit 0
fi
if [ "$last" -le "$first" ]; then
    echo "train.sh: stopped without one new iteration since $first: not requeued; give the job more time (--time)" >&2
    exit 1
fi
echo "train.sh: saved at iteration $last of $TRAIN_ITERS; requeueing"
trap '' TERM # of the requeue itself
scontrol requeue "$SLURM_JOB_ID" || { echo "train.sh: this Slurm refused the requeue: submit again to go on" >&2; exit 1; }
