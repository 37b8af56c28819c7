#!/bin/sh
# The documents are true of the tree: every relative link of a Markdown page leads to a file, and every path
# of this repository that a page names in backquotes (`core/train/metrics.h`, `scripts/test.sh`) exists.
set -eu
cd "$(dirname "$0")/.."
pages=$(git ls-files '*.md' 2>/dev/null || find . -path ./build -prune -o -path './.*' -prune -o \( -name '*.md' \) -print | sed 's|^\./||')
[ -n "$pages" ] || { echo "check_docs: there are no documents"; exit 0; }
# shellcheck disable=SC2086
awk '
    # page, line number, kind (link or path), target
    {
        text = $0
        while (match(text, /\]\([^)# ]+/)) {
            target = substr(text, RSTART + 2, RLENGTH - 2)
            text = substr(text, RSTART + RLENGTH)
            if (target !~ /^(https?:|mailto:)/) print FILENAME, FNR, "link", target
        }
        text = $0
        while (match(text, /`(core|cmd|kernels|parallel|recompute|scripts|tests|docs)\/[A-Za-z0-9_.\/-]+`/)) {
            print FILENAME, FNR, "path", substr(text, RSTART + 1, RLENGTH - 2)
            text = substr(text, RSTART + RLENGTH)
        }
    }' $pages | {
    bad=0 count=0
    while read -r page line kind target; do
        count=$((count + 1))
        case $kind in link) file=$(dirname "$page")/$target ;; *) file=$target ;; esac
        [ -e "$file" ] && continue
        echo "$page:$line: $kind to $target, which does not exist"
        bad=1
    done
    [ $bad = 1 ] || echo "check_docs: $count links and paths lead somewhere"
    exit $bad
}
