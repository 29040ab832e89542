#!/usr/bin/env bash
# Runs the suites of the packages named (all of them without arguments), each in an environment that
# holds only what that package itself declares: a forbidden import fails here and nowhere else.
set -euo pipefail
cd "$(dirname "$0")/.."

names=("$@")
if [ ${#names[@]} -eq 0 ]; then
    for folder in packages/*/; do
        names+=("$(basename "$folder")")
    done
fi

for name in "${names[@]}"; do
    options=(--isolated --package "$name")
    # The group that brings in the siblings for `train`; the package's own suite does without.
    if [ "$name" = esper-tamiyo ]; then
        options+=(--no-group runtime)
    fi
    printf '\n--- %s, with its own dependencies only\n' "$name"
    uv run "${options[@]}" python -m pytest -q "packages/$name"
done
