#!/usr/bin/env bash
# Runs the suites of the packages named (all of them without arguments), each in an environment that
# holds only what that package itself declares: a forbidden import fails here and nowhere else.
# Two suites run at a time, each in one thread; what a suite printed is shown when it has ended.
# SKIP_LONG=1 leaves out the tests marked as long, which do not import anything that others do not.
set -euo pipefail
cd "$(dirname "$0")/.."

suite() { # suite NAME
    local options=(--isolated --frozen --package "$1") log result=0
    # The group that brings in the siblings for `train`; the package's own suite does without.
    if [ "$1" = esper-tamiyo ]; then
        options+=(--no-group runtime)
    fi
    local selected=()
    if [ "${SKIP_LONG:-}" = 1 ]; then
        selected=(-m "not long")
    fi
    log=$(mktemp)
    OMP_NUM_THREADS=1 uv run "${options[@]}" python -m pytest -q "${selected[@]}" "packages/$1" >"$log" 2>&1 || result=$?
    printf '\n--- %s, with its own dependencies only\n%s\n' "$1" "$(cat "$log")"
    rm -f "$log"
    return "$result"
}
export -f suite

names=("$@")
if [ ${#names[@]} -eq 0 ]; then
    for folder in packages/*/; do
        names+=("$(basename "$folder")")
    done
fi

uv lock --quiet
# From the end of the alphabet: the longest suite, that of esper-urza, must not be left for the end.
printf '%s\n' "${names[@]}" | sort -r | xargs -P 2 -I '{}' bash -c 'suite {}'
