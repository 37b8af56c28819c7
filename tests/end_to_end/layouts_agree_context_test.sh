#!/bin/bash
# The other half of layouts_agree_test.sh: layouts with context parallelism.
exec bash "$(dirname "$0")/layouts_agree_test.sh" "${1:-${B:-build}}" cp2
