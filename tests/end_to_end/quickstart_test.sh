#!/bin/bash
# scripts/quickstart.sh, with a few seconds of training, does what it promises; and its picture is drawn from
# the table's numbers.
B=${1:-${B:-build}}
root=$(cd "$(dirname "$0")/../.." && pwd)
cd "$root" || exit 1
. tests/end_to_end/lib.sh
cd "$root" || exit 1

# the compiler and the parent of the build tree under test, so that nothing is compiled again
case ${B##*/} in *-clang*) compiler=clang ;; *-gcc*) compiler=gcc ;; *) compiler=cc ;; esac
CC=$compiler QUICKSTART_DIR=$DIR/q BUILD=$(dirname "$B") bash scripts/quickstart.sh 2 >"$DIR/out" 2>&1
status=$?
[ $status = 0 ] || tail -n 20 "$DIR/out" | sed 's/^/# /'
is "quickstart_ends_well" $status 0
last=$(tail -n 1 "$DIR/q/train.jsonl" | sed 's/.*"lm_loss":\([^,]*\).*/\1/')
first=$(head -n 1 "$DIR/q/train.jsonl" | sed 's/.*"lm_loss":\([^,]*\).*/\1/')
ok "its_training_loss_falls_by_more_than_one" awk -v a="$first" -v b="$last" 'BEGIN { exit !(a - b > 1) }'
contains "it_shows_progress_validation_and_the_comparison" "$DIR/out" 'train loss' 'validation loss' 'no recompute' '--recompute-activations' \
    'full, uniform, 1 layer' 'equal to the last bit'
is "three_settings_end_with_the_same_weights" "$(for name in none selective full; do value "$DIR/q/$name.jsonl" params_hash; done | sort -u | wc -l)" 1
for name in none selective full; do value "$DIR/q/$name.jsonl" peak_activation_bytes; done >"$DIR/bytes"
ok "each_setting_needs_less_memory_than_the_one_before" sort -c -r -n -u "$DIR/bytes"
ok "its_corpus_is_json_lines_with_the_files_own_text" python3 -c '
import json, sys
documents = {json.loads(line)["text"] for line in open(sys.argv[1], encoding="ascii")}
licences = [text for text in documents if "WARRANTY" in text]
sys.exit(not (len(documents) > 50 and licences))' "$DIR/q/corpus.jsonl"

picture() { # the picture as numbers: bars and words
    python3 -c '
import sys, xml.etree.ElementTree as tree
for e in tree.parse(sys.argv[1]).iter():
    if e.tag.endswith("}rect") and e.get("x"): print("bar", e.get("width"))
    if e.tag.endswith("}text"): print(e.text)' "$1"
}
ok "its_picture_is_well_formed" picture "$DIR/q/recompute.svg" >"$DIR/words"
grep -E '^(not )?ok' "$DIR/words"
printf 'a <title> & more\nfirst\t1048576\t4194304\t100\n<second>\t0\t2097152\t50\na note\n' >"$DIR/t.tsv"
scripts/plot_recompute.sh "$DIR/t.tsv" >"$DIR/t.svg"
# 420 wide for the largest peak, 200 for the fastest
is "bars_are_proportional" "$(picture "$DIR/t.svg" | grep bar | tr '\n' ' ')" "bar 315.0 bar 105.0 bar 200.0 bar 210.0 bar 0.0 bar 100.0 "
is "titles_labels_and_notes_are_escaped" "$(picture "$DIR/t.svg" | grep -cxE 'a <title> & more|<second>|a note')" 3
is "an_empty_table_is_refused" "$(status_of scripts/plot_recompute.sh /dev/null)" 1
