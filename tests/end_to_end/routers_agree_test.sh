#!/bin/bash
# What routers carry from step to step (expert biases, counts over ranks) over parallel layouts, recompute settings,
# checkpoints and skipped steps.
here=$(cd "$(dirname "$0")" && pwd)
. "$here/lib.sh"
command -v mpirun >/dev/null && "$PRETRAIN" --version | grep -q mpi=1 ||
    { echo "ok 1 - parallel layouts # SKIP built without MPI"; exit 0; }
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 PYTHONDONTWRITEBYTECODE=1
python3 -u "$here/routers_agree.py" "$PRETRAIN" "$DIR" "${@:2}"
