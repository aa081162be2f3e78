#!/usr/bin/env bash
# An evaluation in parts side by side on this machine with GNU parallel, and then joined: submit.sh without Slurm.
#
#     scripts/slurm/parallel.sh --shards 4 --model gpt2-large --toxicity rtp --prompts prompts.jsonl --out results
#
# Takes `irepair eval`'s flags and --shards N (or $SHARDS; 4). Each part gets an equal share of the cores. The first part
# that fails ends it; the same line with --resume goes on. The program is $IREPAIR (default: irepair on PATH).
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/flags.sh"
take_apart "$@"

cores=$(nproc)
threads=$((cores / parts))
export RAYON_NUM_THREADS=${RAYON_NUM_THREADS:-$((threads > 0 ? threads : 1))}
# A part is what a task of the array is.
parallel --quote --halt soon,fail=1 --line-buffer --tag --jobs "$parts" \
  env SLURM_ARRAY_TASK_ID={} SLURM_ARRAY_TASK_COUNT="$parts" bash "$here/eval-array.sbatch" "$dir" "${flags[@]}" \
  ::: $(seq 0 $((parts - 1)))
bash "$here/merge.sbatch" "$dir" "$whole"
