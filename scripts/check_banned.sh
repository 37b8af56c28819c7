#!/bin/sh
# Functions that this code does not use, found as calls outside comments and strings. Each has a better way:
#   strcpy strcat sprintf vsprintf gets strtok   snprintf, struct str, memcpy
#   atoi atof                                    the config parser; strtol and strtod with their checks
#   rand srand                                   core/base/rng.h
#   alloca, VLA                                  fixed arrays, core/base/mem.h  (VLA: the compiler's -Wvla)
#   getenv                                       flags; where a launcher demands it, the one file allowed below
#   malloc calloc realloc free strdup ...        core/base/mem.h, which counts and can be made to fail
#   printf puts putchar perror                   core/base/log.h; fprintf to a FILE * that was handed in
#   cudaMalloc cudaFree                          the arena;  cudaDeviceSynchronize: profiling only
set -eu
cd "$(dirname "$0")/.."
# file or folder (ends in /), function, reason
allowed=$(
    cat <<'END'
core/base/mem.c  memory   the one place where host memory is taken
core/base/log.c  output   the logger
parallel/comm/launch.c  getenv  what launchers say about this process
kernels/cuda/device.cu  device-memory  the one place where device memory is taken
cmd/             output   a program prints
tests/parallel/comm_failure_test.c  getenv  whether it runs under mpirun
tests/           output   a test prints its TAP lines
tests/           memory   a test may own what it frees itself
END
)
files=$(git ls-files '*.c' '*.h' '*.cu' '*.cuh' '*.cc' 2>/dev/null || find . -path ./build -prune -o -path './.*' -prune -o \( -name '*.[ch]' -o -name '*.cu' -o -name '*.cuh' \) -print | sed 's|^\./||')
# shellcheck disable=SC2086
awk -v allowed="$allowed" '
    BEGIN {
        n = split("strcpy strcat sprintf vsprintf gets strtok", w, " ")
        for (i = 1; i <= n; i++) group[w[i]] = "text"
        n = split("atoi atol atoll atof", w, " ")
        for (i = 1; i <= n; i++) group[w[i]] = "number"
        n = split("rand srand random srandom drand48", w, " ")
        for (i = 1; i <= n; i++) group[w[i]] = "random"
        n = split("malloc calloc realloc reallocarray free strdup strndup aligned_alloc posix_memalign memalign valloc", w, " ")
        for (i = 1; i <= n; i++) group[w[i]] = "memory"
        n = split("printf vprintf puts putchar perror", w, " ")
        for (i = 1; i <= n; i++) group[w[i]] = "output"
        n = split("cudaMalloc cudaMallocAsync cudaMallocManaged cudaFree cudaFreeAsync", w, " ")
        for (i = 1; i <= n; i++) group[w[i]] = "device-memory"
        group["getenv"] = group["secure_getenv"] = "environment"
        group["cudaDeviceSynchronize"] = "device-sync"
        group["alloca"] = "stack"
        rows = split(allowed, line, "\n")
        for (i = 1; i <= rows; i++) {
            split(line[i], w, " ")
            path[i] = w[1]
            what[i] = w[2]
        }
    }
    function is_allowed(file, kind, name,    i) {
        for (i = 1; i <= rows; i++)
            if ((what[i] == kind || what[i] == name) &&
                (file == path[i] || (path[i] ~ /\/$/ && index(file, path[i]) == 1))) return 1
        return 0
    }
    # the line without comments, and with empty strings and characters; `inside` lasts over lines
    function code(text,    out, at) {
        out = ""
        while (text != "") {
            if (inside) {
                at = index(text, "*/")
                if (!at) return out
                text = substr(text, at + 2)
                inside = 0
                out = out " "
            } else if (match(text, /"([^"\\]|\\.)*"|'\''([^'\''\\]|\\.)*'\''|\/\*|\/\//)) {
                out = out substr(text, 1, RSTART - 1)
                at = substr(text, RSTART, 2)
                if (at == "//") return out
                if (at == "/*") inside = 1
                else out = out "\"\""
                text = substr(text, RSTART + RLENGTH)
            } else return out text
        }
        return out
    }
    FNR == 1 { inside = 0 }
    {
        text = code($0)
        while (match(text, /[A-Za-z_][A-Za-z_0-9]*[ \t]*\(/)) {
            before = RSTART > 1 ? substr(text, RSTART - 1, 1) : ""
            name = substr(text, RSTART, RLENGTH)
            sub(/[ \t]*\($/, "", name)
            text = substr(text, RSTART + RLENGTH)
            if (!(name in group) || before == "." || before == ">") continue # a member, not the function
            if (is_allowed(FILENAME, group[name], name)) continue
            printf "%s:%d: %s is not used here: see the list at the top of scripts/check_banned.sh\n", FILENAME, FNR, name
            failed = 1
        }
    }
    END { if (!failed) printf "check_banned: %d files call nothing that is banned\n", ARGC - 1; exit failed }
' $files
