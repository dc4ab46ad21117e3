#!/usr/bin/env bash
# The files that are generated and kept in the repository: `write` makes them anew, `check` fails if
# what is kept differs from what would be made.
set -euo pipefail
cd "$(dirname "$0")/.."

# path and, after `|`, the command that prints its content
generated=()

mode=${1:?check or write}
status=0
made=$(mktemp)
trap 'rm -f "$made"' EXIT
for entry in "${generated[@]}"; do
  path=${entry%%|*} command=${entry#*|}
  $command > "$made"
  if [ "$mode" = write ]; then
    mkdir -p "$(dirname "$path")"
    cat "$made" > "$path"
  elif ! diff -u "$path" "$made"; then
    echo "$path is not what \`$command\` makes; run \`make fix\`" >&2
    status=1
  fi
done
exit $status
