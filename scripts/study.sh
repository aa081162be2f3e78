#!/usr/bin/env bash
# The studies of data/studies: every method on the demo, and on a larger model given by path, with the same prompts, scorer and
# texts for all.
#
#     scripts/study.sh                                    the demo, about ten minutes on two cores
#     scripts/study.sh MODEL PAIRS PROMPTS TEXT... -- …   also MODEL, learning from PAIRS, judged on PROMPTS and on the
#                                                         perplexity of each TEXT; what follows -- goes to `compare`
#
# IREPAIR (target/release/irepair), SEEDS (1,2,3), OUT (compared), STEPS (400), EVERY (STEPS / 4: steps between the states
# that the trade-off shows) and DTYPE (f32) change it. Learning rates of scripts/study.toml. Interrupted, the same command
# goes on.
set -euo pipefail
cd "$(dirname "$0")/.."
irepair=${IREPAIR:-target/release/irepair}
seeds=${SEEDS:-1,2,3} out=${OUT:-compared} steps=${STEPS:-400}

compare() { # FOLDER, arguments
    local folder=$1
    shift
    local resume=()
    [ -e "$folder/plan.json" ] && resume=(--resume)
    "$irepair" compare --runs scripts/study.toml --seeds "$seeds" --max-steps "$steps" --dtype "${DTYPE:-f32}" \
        --checkpoint-steps "${EVERY:-$((steps / 4))}" --out "$folder" "${resume[@]}" "$@"
    "$irepair" report "$folder"
}

if [ $# -eq 0 ]; then
    compare "$out/demo"
    exit
fi
model=$1 pairs=$2 prompts=$3
shift 3
texts=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do
    texts+=(--ppl "$1")
    shift
done
[ $# -gt 0 ] && shift
compare "$out/$(basename "$model")" --model "$model" --data "$pairs" --eval-prompts "$prompts" "${texts[@]}" "$@"
