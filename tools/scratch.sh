#!/bin/sh
# Run a command with a temporary folder of its own and remove the folder afterwards:
#   sh tools/scratch.sh pytest
# Tests and notebooks leave runs, figures and caches there: several gigabytes a day of work.
TMPDIR=$(mktemp -d) || exit
export TMPDIR
trap 'rm -rf "$TMPDIR"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
"$@"
