#!/bin/bash
# The batch script, both launchers, signals, requeue and refusals on a real Slurm on this machine.
repo=$(cd "$(dirname "$0")/../.." && pwd)
. "$(dirname "$0")/lib.sh"
. "$repo/tests/end_to_end/slurm_local.sh"
why=$(slurm_local_missing)
[ -z "$why" ] && [[ $("$PRETRAIN" --version) != *mpi=1* ]] && why="this binary was built without MPI"
if [ -n "$why" ]; then
    echo "ok 1 - training under Slurm # SKIP $why"
    exit 0
fi
trap 'slurm_local_stop; rm -rf "$DIR"' EXIT
if ! slurm_local_start "$DIR/slurm"; then
    echo "not ok 1 - a private Slurm starts"
    slurm_local_log "$DIR/slurm"
    exit 1
fi
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 # for mpirun in containers

# the 8B script on two ranks: each line of it that a small machine cannot hold is set from outside
export PRETRAIN REPO=$repo
export MODEL_ARGS="--num-layers 2 --hidden-size 64 --num-attention-heads 4 --group-query-attention --num-query-groups 2
 --seq-length 64 --max-position-embeddings 64 --position-embedding-type rope --normalization RMSNorm --swiglu
 --disable-bias-linear --untie-embeddings-and-output-weights --bf16"
export PARALLEL_ARGS="--tensor-model-parallel-size 2 --sequence-parallel"
export TRAIN_ARGS="--micro-batch-size 2 --global-batch-size 32 --lr 1e-3 --eval-iters 0 --log-interval 1"
export DATA_ARGS="--mock-data --vocab-size 512"
resources=(--nodes=1 --ntasks-per-node=2 --cpus-per-task=1 --gres=none --oversubscribe)
submit() { # name, iterations, [VARIABLE=VALUE]... [options of sbatch]...: prints the job's number
    local name=$1 iterations=$2
    shift 2
    local -a variables=(SAVE="$DIR/$name" TRAIN_ITERS="$iterations")
    while [[ ${1:-} == [A-Z]*=* ]]; do variables+=("$1"); shift; done
    env "${variables[@]}" EXTRA_ARGS="--log-params-hash --metrics-file $DIR/$name.jsonl" \
        sbatch --parsable --time=10 --output="$DIR/$name.log" "${resources[@]}" "$@" "$repo/scripts/slurm/pretrain_llama_8b.sbatch"
}
state() { scontrol -o show job "$1" | sed -n 's/.* JobState=\([A-Z]*\).*/\1/p'; }
exit_code() { scontrol -o show job "$1" | sed -n 's/.* ExitCode=\([0-9:]*\).*/\1/p'; }
ended() { [[ $(state "$1") =~ ^(COMPLETED|FAILED|CANCELLED|TIMEOUT|NODE_FAIL)$ ]] && [ -z "$(squeue -h -j "$1" 2>/dev/null)" ]; }
finish() { # job, name: waits for its end, shows the log of a job that does not end
    slurm_local_until 120 ended "$1" || { echo "# job $2 is $(state "$1")"; tail -n 20 "$DIR/$2.log" | sed 's/^/# /'; }
}
trains() { slurm_local_until 60 test -s "$DIR/$1.jsonl"; }
processes_of() { # name: of its ranks
    local process command
    for process in /proc/[0-9]*; do
        { read -r command <"$process/comm"; } 2>/dev/null && [ "$command" = pretrain_gpt ] || continue
        grep -qszxF "SAVE=$DIR/$1" "$process/environ" && echo "${process#/proc/}"
    done
}
# the program for jobs that are interrupted: in its first start each rank stands still after the first iterations, so that
# however fast it trains, it cannot be done before the signal comes
cat >"$DIR/held.sh" <<EOF
#!/bin/bash
if [ "\${SLURM_RESTART_COUNT:-0}" = 0 ]; then
    ( ( until [ -s "\$SAVE.jsonl" ]; do sleep 0.01; done; kill -STOP \$\$; echo \$\$ >>"\$SAVE.held" ) >/dev/null 2>&1 & )
fi
exec "$PRETRAIN" "\$@"
EOF
chmod +x "$DIR/held.sh"
held() { [ "$(wc -l <"$DIR/$1.held")" = 2 ]; } 2>/dev/null
interrupt() { # job, name: TERM to its step in the middle
    slurm_local_until 60 held "$2" || echo "# the ranks of job $2 were not held"
    scancel --signal=TERM "$1"
    slurm_local_until 30 grep -qE "STEP .* CANCELLED|Forwarding signal" "$DIR/$2.log"
    sleep 0.5
    xargs kill -CONT <"$DIR/$2.held"
}
requeued() { slurm_local_until 60 grep -q requeueing "$DIR/$2.log" || { echo "# job $2 is $(state "$1")"; return 1; }; } # job, name
results() { sed 's/.*"iteration":\([0-9]*\),.*"lm_loss":\([^,]*\),.*"params_hash":"\([^"]*\)".*/\1 \2 \3/' "$1"; }

# ---- a job whose time limit comes: it runs beside all the others ----
limited=$(submit limited 1000000 REQUEUE=0 --time=2 --signal=TERM@75)

# ---- one run without interruption, and the same with each launcher, interrupted ----
straight=$(submit straight 400)
finish "$straight" straight
is "sbatch of the 8B script, scaled down by variables, trains with srun --mpi=pmix" "$(state "$straight") $(exit_code "$straight")" "COMPLETED 0:0"
is "to the last iteration" "$(value straight.jsonl iteration)" 400
contains "and says so" straight.log "train.sh: done, iteration 400"

interrupted=$(submit srun 400 PRETRAIN="$DIR/held.sh")
interrupt "$interrupted" srun
ok "a job that TERM stopped early requeues itself" requeued "$interrupted" srun
saved=$(cat srun/latest_checkpointed_iteration.txt)
ok "after a save in the middle of training" test "$saved" -gt 0 -a "$saved" -lt 400
finish "$interrupted" srun
is "it ends well" "$(state "$interrupted") $(exit_code "$interrupted")" "COMPLETED 0:0"
contains "it resumed by itself" srun.log "saved at iteration $saved of 400; requeueing" "restart 1" "from iteration $saved of 400"
is "and loss and parameters are those of the run without interruption, in every iteration" "$(results srun.jsonl | md5sum)" "$(results straight.jsonl | md5sum)"

interrupted=$(submit mpirun 400 LAUNCHER=mpirun PRETRAIN="$DIR/held.sh")
interrupt "$interrupted" mpirun
ok "the same with mpirun: TERM reaches its ranks, the job requeues itself" requeued "$interrupted" mpirun
finish "$interrupted" mpirun
is "it ends well" "$(state "$interrupted") $(exit_code "$interrupted")" "COMPLETED 0:0"
is "with the same numbers" "$(results mpirun.jsonl | md5sum)" "$(results straight.jsonl | md5sum)"

# ---- a job that its user cancels is saved and stays away ----
cancelled=$(submit cancelled 1000000)
trains cancelled
scancel "$cancelled"
finish "$cancelled" cancelled
is "scancel ends the job for good" "$(state "$cancelled")" CANCELLED
contains "after a save" cancelled.log "cancelled, saved at iteration"
is "of its last iteration" "$(cat cancelled/latest_checkpointed_iteration.txt)" "$(value cancelled.jsonl iteration)"

# ---- failures are not requeued ----
bad=$(submit bad 10 TRAIN_ARGS="$TRAIN_ARGS --no-such-flag")
finish "$bad" bad
is "bad flags end the job with the program's status" "$(state "$bad") $(exit_code "$bad")" "FAILED 2:0"
contains "and its message" bad.log "--no-such-flag" "training failed with status 2"

# ---- a rank that is killed takes the step and the job down ----
killed=$(submit killed 1000000 SAVE_INTERVAL=5)
slurm_local_until 60 test -s killed/latest_checkpointed_iteration.txt
kill -KILL "$(processes_of killed | tail -n 1)"
begin=$SECONDS
finish "$killed" killed
is "kill -9 of one rank ends the job" "$(state "$killed")" FAILED
ok "within KillWait, 12 s here, and what a busy machine adds" test $((SECONDS - begin)) -le 40
contains "and it is not requeued" killed.log "training failed with status" "the last checkpoint is of iteration"

# ---- srun without PMI: N processes that would each be rank 0 of 1 ----
# shellcheck disable=SC2086
is "plain srun is refused with status 2" "$(status_of timeout 60 srun -n 2 --oversubscribe "$PRETRAIN" $SMALL)" 2
contains "and the command that works is named" err "srun --mpi=pmix"
# shellcheck disable=SC2086
is "one task of plain srun is one rank" "$(status_of timeout 60 srun -n 1 --oversubscribe "$PRETRAIN" $SMALL)" 0
# shellcheck disable=SC2086
is "srun --mpi=pmix works without a batch script" "$(status_of timeout 60 srun -n 2 --oversubscribe --mpi=pmix "$PRETRAIN" $SMALL)" 0

# ---- the time limit ----
finish "$limited" limited
is "before the time limit Slurm's signal makes all ranks save and leave" "$(state "$limited") $(exit_code "$limited")" "COMPLETED 0:0"
contains "train.sh would have requeued" limited.log "of 1000000; REQUEUE=0"
is "the last iteration is saved" "$(cat limited/latest_checkpointed_iteration.txt)" "$(value limited.jsonl iteration)"
