# shellcheck shell=bash
# A private Slurm on this one machine for tests; source it.
#
#     slurm_local_missing         prints why no Slurm can run here; prints nothing when one can
#     slurm_local_start FOLDER    munged, slurmctld and slurmd, each with all its files below FOLDER; sets SLURM_CONF
#     slurm_local_stop            ends every job and the three daemons; harmless when nothing was started
#     slurm_local_log FOLDER      the last lines of each daemon's log, as TAP comments
#
# Nothing outside FOLDER is read or written: no /etc/slurm, no system munge; ports are free ones, so that several may
# run side by side. The node has 8 processors whatever the machine has. Times are short: jobs start within a
# second or two, a step that is ended gets KILL 12 s after TERM (KillWait), and a requeued job starts again after 6 s
# (cred_expire, of which 5 is the least; a real site waits 120 s).

slurm_local_missing() {
    local tool
    [ "$(id -u)" = 0 ] || { echo "slurmd and slurmctld need root"; return; }
    for tool in munged slurmctld slurmd sbatch srun scancel scontrol squeue; do
        command -v $tool >/dev/null || { echo "$tool is not installed (Debian: slurmctld slurmd slurm-client munge)"; return; }
    done
}

slurm_local_ports() { # prints N free TCP ports
    python3 - "$1" <<'EOF'
import socket, sys
held = [socket.socket() for _ in range(int(sys.argv[1]))]
for s in held: s.bind(("", 0))
print(*[s.getsockname()[1] for s in held])
EOF
}

slurm_local_start() {
    local at=$1 host ports
    host=$(hostname -s)
    ports=$(slurm_local_ports 2) || return 1
    mkdir -p "$at"/munge "$at"/state "$at"/spool || return 1
    chmod 755 "$at" "$at"/munge # mktemp -d gives 700, in which munge clients cannot reach the socket
    head -c 1024 /dev/urandom >"$at/munge/key" && chmod 400 "$at/munge/key"
    cat >"$at/slurm.conf" <<EOF
ClusterName=one_machine
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket=$at/munge/socket,cred_expire=5
SlurmctldPort=${ports% *}
SlurmdPort=${ports#* }
StateSaveLocation=$at/state
SlurmdSpoolDir=$at/spool
SlurmctldPidFile=$at/slurmctld.pid
SlurmdPidFile=$at/slurmd.pid
SlurmctldLogFile=$at/slurmctld.log
SlurmdLogFile=$at/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SchedulerType=sched/builtin
SchedulerParameters=sched_interval=1,batch_sched_delay=0,sched_min_interval=100000
ReturnToService=2
KillWait=12
MinJobAge=3600
BatchStartTimeout=60
MessageTimeout=60
UnkillableStepTimeout=60
SlurmctldTimeout=300
SlurmdTimeout=300
InactiveLimit=0
JobRequeue=1
NodeName=$host NodeAddr=127.0.0.1 CPUs=8 RealMemory=4096
PartitionName=all Nodes=$host Default=YES MaxTime=INFINITE State=UP
EOF
    export SLURM_CONF=$at/slurm.conf
    slurm_local_at=$at
    # --force: everything runs as root, so that a folder of mktemp -d, which others cannot enter, will do
    munged --foreground --force --key-file="$at/munge/key" --socket="$at/munge/socket" --pid-file="$at/munge/pid" \
        --log-file="$at/munge/log" --seed-file="$at/munge/seed" --num-threads=2 >"$at/munge/out" 2>&1 &
    slurm_local_pids=$!
    slurm_local_until 30 test -S "$at/munge/socket" || return 1
    slurmctld -D -c >"$at/slurmctld.out" 2>&1 &
    slurm_local_pids="$slurm_local_pids $!"
    slurmd -D -N "$host" >"$at/slurmd.out" 2>&1 &
    slurm_local_pids="$slurm_local_pids $!"
    slurm_local_until 60 slurm_local_idle
}
slurm_local_idle() { [ "$(sinfo -h -o %T 2>/dev/null)" = idle ]; }
slurm_local_until() { # seconds, command...: until it succeeds; fails after that time
    local end=$((SECONDS + $1))
    shift
    until "$@"; do
        [ $SECONDS -lt $end ] || return 1
        sleep 0.2
    done
}

slurm_local_stop() {
    [ -n "${slurm_local_pids:-}" ] || return 0
    if [ -e "$slurm_local_at/slurmctld.pid" ]; then
        timeout 20 scancel --quiet --full --signal=KILL --state=running 2>/dev/null
        timeout 20 scancel --quiet --user=root 2>/dev/null
        slurm_local_until 15 slurm_local_idle
    fi
    # slurmd last but one and munged last: the others need them to end in order
    local pid reversed=
    for pid in $slurm_local_pids; do reversed="$pid $reversed"; done
    for pid in $reversed; do kill "$pid" 2>/dev/null; done
    for pid in $reversed; do
        slurm_local_until 10 slurm_local_gone "$pid" || kill -KILL "$pid" 2>/dev/null
        wait "$pid" 2>/dev/null
    done
    # what a step left behind: its slurmstepd has the folder of this Slurm in its environment or its files
    grep -lsF "$slurm_local_at/slurm.conf" /proc/[0-9]*/environ 2>/dev/null | cut -d/ -f3 | while read -r pid; do
        [ "$pid" = $$ ] || [ "$pid" = "$BASHPID" ] || kill -KILL "$pid" 2>/dev/null
    done
    slurm_local_pids=
}
slurm_local_gone() { ! kill -0 "$1" 2>/dev/null; }

slurm_local_log() {
    tail -n 15 "$1"/*.log "$1"/*.out "$1"/munge/out "$1"/munge/log 2>/dev/null | sed 's/^/# /'
}
