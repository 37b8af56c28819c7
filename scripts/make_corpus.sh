#!/bin/bash
# Makes a training corpus from text that this machine has (headers, licences, documentation, scripts), without a download:
# FOLDER/corpus.jsonl and, tokenized as bytes, FOLDER/corpus_text_document.{bin,idx}.
#     scripts/make_corpus.sh FOLDER
# What is there already is kept, so a corpus.jsonl of your own can be put there before. Needs build/preprocess_data, or
# PREPROCESS set to that program. The same on every run on the same machine; seconds the first time.
set -eu
[ $# = 1 ] || { echo "usage: $0 FOLDER" >&2; exit 2; }
mkdir -p "$1"
dir=$(cd "$1" && pwd)
cd "$(dirname "$0")/.."
PREPROCESS=${PREPROCESS:-${BUILD:-build}/preprocess_data}

# Text files of printable ASCII, one JSON line each, at most 24 MB of JSON; at most 6 MB from each place, so that none fills the
# corpus alone.
gather() {
    local place
    for place in /usr/share/common-licenses /usr/share/doc /usr/include /usr/share/perl /usr/share/perl5 /usr/lib/*/perl-base \
        /usr/lib/*/perl /usr/lib/python3* /usr/lib/gcc /usr/share/vim /usr/share/gcc /usr/share/awk "$PWD"; do
        [ -d "$place" ] || continue
        find "$place" \( -path "$PWD/build" -o -path "$PWD/.git" -o -name unicore \) -prune -o -type f -readable -size -300k \
            \( -name '*.h' -o -name '*.pm' -o -name '*.pl' -o -name '*.py' -o -name '*.txt' -o -name '*.md' -o -name 'README*' -o -name copyright \
            -o -name 'NEWS*' -o -name 'FAQ*' -o -name '*.html' -o -name '*.vim' -o -name '*.awk' -o -path '/usr/share/common-licenses/*' \) -print0 2>/dev/null |
            LC_ALL=C sort -z | shuf -z --random-source=<(yes) | LC_ALL=C xargs -0 -r grep -L "[^ -~$(printf '\t')]" 2>/dev/null |
            LC_ALL=C awk -v limit=6000000 '
                function escape(text) {
                    gsub(/\\/, "&&", text)
                    gsub(/"/, "\\\"", text)
                    gsub(/\t/, "\\t", text)
                    return text
                }
                {
                    path = $0
                    lines = ""
                    while ((getline line < path) > 0) lines = lines escape(line) "\\n"
                    close(path)
                    if (length(lines) < 200) next
                    printf "{\"text\": \"%s\"}\n", lines
                    bytes += length(lines)
                    if (bytes > limit) exit
                }'
    done | head -c 24000000 | sed '$ { /"}$/!d }'
}

if [ ! -s "$dir/corpus.jsonl" ]; then
    # each run writes files of its own and moves them, so that two runs at once do no harm
    gather >"$dir/corpus.$$"
    # the documents in a fixed shuffled order, so that validation sees all kinds of text
    awk 'BEGIN { x = 12345 } { x = (x * 1103515245 + 12345) % 2147483648; printf "%010d\t%s\n", x, $0 }' "$dir/corpus.$$" |
        sort -s -k1,1n | cut -f2- >"$dir/corpus.$$.jsonl"
    mv "$dir/corpus.$$.jsonl" "$dir/corpus.jsonl"
    rm -f "$dir/corpus.$$" "$dir"/corpus_text_document.*
fi
bytes=$(wc -c <"$dir/corpus.jsonl")
echo "$(wc -l <"$dir/corpus.jsonl") documents, $((bytes / 1000000)).$((bytes % 1000000 / 100000)) MB: $1/corpus.jsonl"
[ "$bytes" -gt 5000000 ] || echo "this machine has little text: the loss will not fall as far"
if [ "$bytes" -le 100000 ]; then
    echo "too little text for a corpus: put JSON lines like {\"text\": \"...\"} into $1/corpus.jsonl and run this again" >&2
    exit 1
fi
[ -s "$dir/corpus_text_document.idx" ] ||
    "$PREPROCESS" --input "$dir/corpus.jsonl" --json-keys text --output-prefix "$dir/corpus" --tokenizer-type ByteTokenizer --append-eod --workers 2
