#!/bin/bash
# --memory-timeline: the page is one file that needs nothing else, of the plan or of a real run, and a real
# browser draws it (headless Chromium; those tests are skipped where there is none).
examples=$(cd "$(dirname "$0")/../../scripts/examples" && pwd)
here=$(cd "$(dirname "$0")" && pwd)
. "$(dirname "$0")/lib.sh"

SMALL=${SMALL/--num-layers 3/--num-layers 4}
plan() { status_of "$PRETRAIN" $SMALL --dry-run "$@"; } # shellcheck disable=SC2086
# shellcheck disable=SC2086
is "the page of a plan, two stages" "$(plan --world-size 2 --pipeline-model-parallel-size 2 --memory-timeline plan.html)" 0
contains "says that nothing was run" plan.html '"from":"From the plan (--dry-run): nothing was run."'
is "refers to nothing outside" "$(grep -ciE '(src|href)=|https?:|@import|url\(' plan.html)" 0
ok "is small" test "$(wc -c <plan.html)" -lt 100000
is "one stage" "$(plan --world-size 2 --pipeline-model-parallel-size 2 --memory-timeline one.html --memory-timeline-stages 1)" 0
is "is on its page alone" "$(grep -o '"stage":[0-9]*' one.html)" '"stage":1'
is "a stage that is not there" "$(plan --memory-timeline x.html --memory-timeline-stages 1)" 2
contains "names the stages" err "the stages are 0 to 0"
is "stages of no page" "$(plan --memory-timeline-stages 0)" 2
is "a page that cannot be written" "$(plan --memory-timeline no/folder/x.html)" 2
contains "names the file" err "--memory-timeline no/folder/x.html"
is "no page with --self-check" "$(status_of "$PRETRAIN" $SMALL --self-check --memory-timeline x.html)" 2
PRETRAIN=$PRETRAIN status_of "$examples/gpt3_175b.sh" --dry-run --memory-timeline large.html >/dev/null
ok "96 layers in 8 stages with 192 micro-batches fit in 5 MB" test "$(wc -c <large.html)" -lt 5000000

# a real run of one rank and of two
is "a real run" "$(status_of "$PRETRAIN" $SMALL --recompute-activations --memory-timeline run.html --metrics-file m)" 0
contains "says so" run.html '"from":"From a real run: iteration 1.'
peak() { sed -n 's/.*"'"$1"'":\([0-9]*\).*/\1/p' "$2" | head -n 1; }
is "its measured peak is the planned one" "$(peak measured_peak run.html)" "$(value m peak_allocated_bytes)"
pages=(plan run)
if command -v mpirun >/dev/null && "$PRETRAIN" --version | grep -q mpi=1; then
    launch job 2 $SMALL --pipeline-model-parallel-size 2 --memory-timeline job.html
    await "$launched" 120
    is "a real run of two stages" "$ended" 0
    pages+=(job)
fi

# ---- in a browser ----
for name in chromium chromium-browser google-chrome; do
    command -v $name >/dev/null && browser=$name && break
done
browse() { # arguments...: a browser without a window
    timeout 120 "$browser" --headless --no-sandbox --disable-gpu --hide-scrollbars --no-first-run --disable-background-networking --disable-extensions --disable-dev-shm-usage --user-data-dir="$DIR/profile" \
        --window-size=1280,1000 "$@" 2>browser.err </dev/null
}
echo '<p id="probe">' >probe.html
if [ -z "${browser:-}" ] || ! browse --dump-dom "file://$DIR/probe.html" | grep -q 'id="probe"'; then
    number=$((number + 1))
    echo "ok $number - pages in a browser # SKIP no chromium that works here: apt-get install chromium"
    exit 0
fi
for page in "${pages[@]}"; do
    browse --dump-dom "file://$DIR/$page.html" >"$page.dom"
    root=$(grep -o '<html [^>]*>' "$page.dom")
    is "$page: the script ran to its end" "$(echo "$root" | grep -c 'data-drawn="[1-9][0-9]*"')" 1
    is "$page: without an error" "$(echo "$root" | grep -c data-error)" 0
    [ $page = run ] && [ ${#pages[@]} = 3 ] && continue # the picture of two stages shows as much
    browse --screenshot=picture.png "file://$DIR/$page.html"
    # shellcheck disable=SC2046
    colours=$(python3 "$here/png_colours.py" picture.png $(echo "$root" | sed 's/.*data-plot="\([0-9,]*\)".*/\1/; s/,/ /g') 100)
    ok "$page: the chart has many colours ($colours)" test "${colours:-0}" -ge 20
    contains "$page: the peak is described" "$page.dom" "The peak is at instruction" "alive at the peak"
done
is "two stages side by side" "$(grep -o 'class="stage"' plan.dom | wc -l)" 2
is "every stage's measured peak equals its planned one" "$(grep -o 'bytes): equal' "${pages[-1]}.dom" | wc -l)" $((${#pages[@]} - 1))

# pointing at a place: the first kept tensor of layer 0, at the last instruction of the first forward
read -r place name bytes < <(python3 - plan.html <<'END'
import json, sys
text = open(sys.argv[1]).read().split('<script id="data" type="application/json">')[1].split("</script>")[0]
stage = json.loads(text)["stages"][0]
first, count = stage["chunks"][:2]
layer = next(s for s in stage["segments"][first : first + count] if s[0] == 1)
instructions = sum(len(stage["lists"][s[1]]["code"][0]) // 2 for s in stage["segments"][first : first + count])
tensor, _, offset = stage["lists"][layer[1]]["keep"][:3]
name, _, _, size, _ = stage["lists"][layer[1]]["tensors"][tensor]
print(f"0,{instructions - 1},{stage['activations'] + stage['slots'][0] + layer[6] + offset + 1}", name, size)
END
)
browse --dump-dom "file://$DIR/plan.html#at=$place" | sed -n '/id="tip"/,/<\/div>/p' >tip
contains "pointing at a tensor shows what it is" tip "$name" "layer 0, micro-batch 0" "($bytes bytes)" "alive in instructions" "module"
browse --dump-dom "file://$DIR/plan.html#at=0,5,64" | sed -n '/id="tip"/,/<\/div>/p' >tip
contains "and at the fixed part its category" tip "weights (fixed)"
