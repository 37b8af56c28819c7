#!/bin/bash
# I4 over parallel layouts: stop and resume in the same layout (another recompute setting, --async-save), a checkpoint carried
# through another layout, and one training that changes its layout every second iteration.
here=$(cd "$(dirname "$0")" && pwd)
. "$here/lib.sh"
command -v mpirun >/dev/null && "$PRETRAIN" --version | grep -q mpi=1 ||
    { echo "ok 1 - parallel layouts # SKIP built without MPI"; exit 0; }
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 PYTHONDONTWRITEBYTECODE=1
python3 -u "$here/resume_across_layouts.py" "$PRETRAIN" "$DIR" "${@:2}"
