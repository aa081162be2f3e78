#!/usr/bin/env bash
# Runs fuzz targets, so many seconds each, and says how often each was run and what crashed it.
#
#     tests/fuzz/run.sh SECONDS [TARGET...]
#
# What is found on the way stays in FOUND (a temporary folder without it): corpora, and crashes as
# FOUND/TARGET-crash-*.
set -euo pipefail
cd "$(dirname "$0")/../.."
seconds=$1
shift
found=${FOUND:-$(mktemp -d)}
targets=("$@")
[ $# -gt 0 ] || mapfile -t targets < <(ls tests/fuzz/corpus)
cargo fuzz build --fuzz-dir tests/fuzz --sanitizer none
program=$(rustc -vV | sed -n 's/^host: //p')/release
program=${CARGO_TARGET_DIR:-tests/fuzz/target}/$program

for target in "${targets[@]}"; do
    mkdir -p "$found/$target"
    runs=0 ended=0 until=$((SECONDS + seconds))
    while [ $SECONDS -lt $until ]; do
        log=$found/$target.log
        # The wall ends the process with 3. Anything else but 0 leaves a crash file.
        "$program/$target" "$found/$target" "tests/fuzz/corpus/$target" -max_total_time=$((until - SECONDS)) \
            -max_len=65536 -rss_limit_mb=6000 -print_final_stats=1 -verbosity=1 \
            -artifact_prefix="$found/$target-" >"$log" 2>&1 || ended=$((ended + 1))
        # Where the process ended early, the last pulse that it told of.
        last=$(grep -oE '^(#[0-9]+|stat::number_of_executed_units: +[0-9]+)' "$log" | tail -n 1 | grep -oE '[0-9]+' || echo 0)
        runs=$((runs + last))
    done
    crashes=$(find "$found" -maxdepth 1 -name "$target-*" | wc -l)
    echo "$target: $runs executions, $ended early ends, $crashes crashes"
done
echo "found: $found"
