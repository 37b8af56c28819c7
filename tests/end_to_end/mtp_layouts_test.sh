#!/bin/bash
# I1, I2, I3, I4 and I7 for multi-token prediction: depths on the last stage with a copy of the embedding there, over tensor,
# sequence, context and data parallelism, ZeRO, every schedule; and resumed across layouts. The runs are in mtp_layouts.py.
here=$(cd "$(dirname "$0")" && pwd)
. "$here/lib.sh"
command -v mpirun >/dev/null && "$PRETRAIN" --version | grep -q mpi=1 ||
    { echo "ok 1 - multi-token prediction over layouts # SKIP built without MPI"; exit 0; }
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 PYTHONDONTWRITEBYTECODE=1
python3 -u "$here/mtp_layouts.py" "$PRETRAIN" "$DIR" "${@:2}"
