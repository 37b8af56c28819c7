#!/bin/bash
# I1, I2, I3 and I7 over parallel layouts: TP x SP x PP x VPP x DP x CP x sharding x schedule, up to 8 ranks. The table
# and the properties are in layouts_agree.py. This half holds the rows without context parallelism; words after the build tree
# choose others: "tp2 cp2" the rows with both, "-pp4" those without.
here=$(cd "$(dirname "$0")" && pwd)
. "$here/lib.sh"
command -v mpirun >/dev/null && "$PRETRAIN" --version | grep -q mpi=1 ||
    { echo "ok 1 - parallel layouts # SKIP built without MPI"; exit 0; }
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 PYTHONDONTWRITEBYTECODE=1
words=("${@:2}")
[ ${#words[@]} -gt 0 ] || words=(-cp2)
python3 -u "$here/layouts_agree.py" "$PRETRAIN" "$DIR" "${words[@]}"
