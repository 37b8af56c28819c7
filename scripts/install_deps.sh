#!/bin/sh
# Installs what is missing to build (`install_deps.sh build`) or to build and run every test
# (`install_deps.sh test`, the default) on Debian or Ubuntu; elsewhere it says what to install by hand.
# Says what it installs and why; touches nothing, and needs no network, when nothing is missing.
# Exit status 0: everything that is needed is there (optional things may be missing, named in a line each).
set -u
what=${1:-test}
case $what in build | test) ;; *) echo "usage: $0 [build|test]" >&2; exit 2 ;; esac

packages= # what apt-get is asked for
need() { # package, required|optional, reason; call when it is missing
    packages="$packages $1"
    printf 'missing (%s): %-20s %s\n' "$2" "$1" "$3"
}
command_exists() { command -v "$1" >/dev/null 2>&1; }
header_exists() { # header, compiler flags
    echo "#include <$1>" | "${CC:-cc}" -E -x c ${2:-} - >/dev/null 2>&1
}
clang_runtime_exists() { # the library is named after the machine, or lies in a folder named after it
    dir=$(clang -print-resource-dir 2>/dev/null) && find "$dir/lib" -name 'libclang_rt.fuzzer*.a' 2>/dev/null | grep -q .
}
find_missing() {
    packages=
    command_exists gcc || need gcc required "compiles the program"
    header_exists stdlib.h || need libc6-dev required "headers of the C library"
    command_exists make || need make required "builds the program"
    header_exists pcre2.h -DPCRE2_CODE_UNIT_WIDTH=8 || need libpcre2-dev optional "split patterns of the BPE tokenizers"
    header_exists yaml.h || need libyaml-dev optional "--yaml-cfg"
    command_exists mpicc || need libopenmpi-dev optional "training on several ranks"
    command_exists mpirun || need openmpi-bin optional "training on several ranks"
    [ "$what" = test ] || return 0
    command_exists python3 || need python3 required "reads and checks output files in tests"
    command_exists clang || need clang optional "second compiler, fuzzers"
    command_exists clang-format || command_exists clang-format-14 || need clang-format optional "format check"
    if command_exists clang && ! clang_runtime_exists; then
        version=$(clang -dumpversion | cut -d. -f1)
        need "libclang-rt-$version-dev" optional "sanitizers and fuzzers of clang"
    fi
    command_exists chromium || command_exists chromium-browser || command_exists google-chrome ||
        need chromium optional "opens the pages of --memory-timeline in tests"
    if [ "$(id -u)" = 0 ]; then # its daemons run as root, so other users skip those tests
        command_exists slurmctld || need slurmctld optional "tests under a real Slurm (its controller)"
        command_exists slurmd || need slurmd optional "tests under a real Slurm (its node daemon)"
        command_exists srun || need slurm-client optional "tests under a real Slurm (sbatch, srun)"
        command_exists munged || need munge optional "tests under a real Slurm (its authentication)"
    fi
}

find_missing
if [ -z "$packages" ]; then
    echo "install_deps: nothing is missing"
    exit 0
fi

sudo=
if [ "$(id -u)" != 0 ]; then
    if command_exists sudo; then sudo=sudo; else sudo=none; fi
fi
if ! command_exists apt-get; then
    echo "install_deps: this system has no apt-get: install the above with its own package manager" >&2
elif [ "$sudo" = none ]; then
    echo "install_deps: not root and no sudo: ask an administrator to run: apt-get install$packages" >&2
else
    echo "installing:$packages"
    apt="$sudo env DEBIAN_FRONTEND=noninteractive apt-get -y -q -o DPkg::Lock::Timeout=300"
    log=$(mktemp)
    # the package lists may be old or absent: fetch them when the first attempt fails; then one by one, so
    # that a package this release does not have does not keep the others out
    if ! $apt install --no-install-recommends $packages >"$log" 2>&1; then
        $apt update >"$log" 2>&1
        if ! $apt install --no-install-recommends $packages >"$log" 2>&1; then
            for package in $packages; do
                $apt install --no-install-recommends "$package" >"$log" 2>&1 ||
                    { echo "could not install $package:"; grep -E '^(E|W):' "$log" | head -3; }
            done
        fi
    fi
    rm -f "$log"
fi

echo "install_deps: after installing:"
find_missing
if [ "$what" = test ] && command_exists clang && ! clang_runtime_exists; then # clang itself came just now
    version=$(clang -dumpversion | cut -d. -f1)
    if command_exists apt-get && [ "$sudo" != none ]; then
        echo "installing: libclang-rt-$version-dev"
        $sudo env DEBIAN_FRONTEND=noninteractive apt-get -y -q -o DPkg::Lock::Timeout=300 install \
            --no-install-recommends "libclang-rt-$version-dev" >/dev/null 2>&1 && find_missing
    fi
fi
[ -n "$packages" ] || echo "  nothing is missing"
for tool in gcc make; do
    command_exists $tool || { echo "install_deps: $tool is still missing and nothing can be built without it" >&2; exit 1; }
done
header_exists stdlib.h || { echo "install_deps: the C library's headers are still missing (libc6-dev)" >&2; exit 1; }
[ "$what" = build ] || command_exists python3 || { echo "install_deps: python3 is still missing and the tests need it" >&2; exit 1; }
exit 0
