#!/bin/bash
# I1, I2, I3 and I7 with experts split over ranks: EP x ETP x TP + SP x CP x PP x DP x sharding x dispatcher, with and without
# rounds beyond the rows that a rank takes at a time. The table is in layouts_agree_experts.py.
here=$(cd "$(dirname "$0")" && pwd)
. "$here/lib.sh"
command -v mpirun >/dev/null && "$PRETRAIN" --version | grep -q mpi=1 ||
    { echo "ok 1 - layouts of experts # SKIP built without MPI"; exit 0; }
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 PYTHONDONTWRITEBYTECODE=1
python3 -u "$here/layouts_agree_experts.py" "$PRETRAIN" "$DIR" "${@:2}"
