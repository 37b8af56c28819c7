#!/bin/sh
# Writes docs/flags.md from core/config/flags.def. Run it after changing a flag; a test compares the two.
set -eu
cd "$(dirname "$0")/.."
make -s "$@"
build/pretrain_gpt --help-markdown > docs/flags.md.new
mv docs/flags.md.new docs/flags.md
