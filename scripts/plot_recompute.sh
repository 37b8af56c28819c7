#!/bin/sh
# Draws a recompute comparison as a picture: `plot_recompute.sh TABLE.tsv > picture.svg`, with nothing but awk.
# The table's first line is its title; then one line per setting, tab separated:
#     label  activation bytes  peak bytes  tokens per second
# A later line without tabs is a note below the picture.
# Grey is what the weights, gradients and optimizer need, colour is what the activations add.
set -eu
[ $# = 1 ] || { echo "usage: $0 TABLE.tsv > picture.svg" >&2; exit 2; }
awk -F '\t' '
    function escape(text) {
        gsub(/&/, "\\&amp;", text)
        gsub(/</, "\\&lt;", text)
        gsub(/>/, "\\&gt;", text)
        return text
    }
    function text(x, y, anchor, size, colour, weight, words) {
        printf "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\" font-size=\"%d\" font-weight=\"%s\" fill=\"%s\">%s</text>\n", x, y, anchor, size, weight, colour, escape(words)
    }
    function bar(x, y, width, colour) {
        printf "<rect x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"26\" rx=\"2\" fill=\"%s\"/>\n", x, y, width, colour
    }
    function mib(bytes) { return sprintf("%.1f MiB", bytes / 1048576) }
    NR == 1 { title = $0; next }
    NF == 1 { note = $0 }
    NF >= 4 {
        n++
        label[n] = $1; activation[n] = $2; peak[n] = $3; rate[n] = $4
        if (peak[n] > most) most = peak[n]
        if (rate[n] > fastest) fastest = rate[n]
    }
    END {
        if (!n) { print "plot_recompute: the table is empty" > "/dev/stderr"; exit 1 }
        left = 250; wide = 420; right = left + wide + 190; fast = 200
        width = right + fast + 110; height = 120 + n * 56
        split("#4878a8 #6aa84f #c27ba0 #e69138 #8e7cc3 #76a5af", colour, " ")
        printf "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%d\" viewBox=\"0 0 %d %d\" font-family=\"DejaVu Sans, Helvetica, Arial, sans-serif\">\n", width, height, width, height
        print "<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>"
        text(24, 34, "start", 17, "#222222", "bold", title)
        text(left, 72, "start", 13, "#555555", "bold", "peak memory (grey: weights, gradients, optimizer; colour: activations)")
        text(right, 72, "start", 13, "#555555", "bold", "tokens per second")
        for (i = 1; i <= n; i++) {
            y = 88 + (i - 1) * 56
            text(left - 14, y + 18, "end", 14, "#222222", "normal", label[i])
            scale = wide / (most ? most : 1)
            bar(left, y, (peak[i] - activation[i]) * scale, "#c9ccd1")
            bar(left + (peak[i] - activation[i]) * scale, y, activation[i] * scale, colour[(i - 1) % 6 + 1])
            text(left + peak[i] * scale + 8, y + 12, "start", 12, "#222222", "normal", mib(peak[i]))
            text(left + peak[i] * scale + 8, y + 26, "start", 11, "#777777", "normal", "activations " mib(activation[i]))
            bar(right, y, rate[i] * fast / (fastest ? fastest : 1), colour[(i - 1) % 6 + 1])
            text(right + rate[i] * fast / (fastest ? fastest : 1) + 8, y + 18, "start", 12, "#222222", "normal", sprintf("%.0f", rate[i]))
        }
        if (note != "") text(24, height - 14, "start", 11, "#777777", "normal", note)
        print "</svg>"
    }' "$1"
