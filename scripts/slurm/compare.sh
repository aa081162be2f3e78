#!/usr/bin/env bash
# A comparison as a Slurm job array, and a job that puts its tasks together when all have ended; with --parallel N as N
# tasks at a time on this machine, by GNU parallel.
#
#     scripts/slurm/compare.sh --model gpt2-large --data pairs.jsonl --methods dapt,dpo,irepair+kl --seeds 1,2,3 --out compared
#     scripts/slurm/compare.sh --parallel 4 --model …
#
# Takes `irepair compare`'s flags. What Slurm must know is said with its own variables (SBATCH_PARTITION, SBATCH_ACCOUNT,
# SBATCH_TIMELIMIT, …) and CPUS_PER_TASK (1), which is also the number of threads. Output of the tasks is in OUT/slurm. A
# task that is killed and requeued goes on; the same line again goes on, too: what is done is left as it is. A run that
# fails is a failed row of the tables. The program is $IREPAIR (default: irepair on PATH); all nodes must see it and the
# same folders.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
irepair=${IREPAIR:-irepair}

jobs=
if [ "${1-}" = --parallel ]; then
  jobs=${2:?--parallel N}
  [[ "$jobs" =~ ^[1-9][0-9]*$ ]] || { echo "compare.sh: --parallel $jobs: expected a number of 1 or more" >&2; exit 2; }
  shift 2
fi
[ $# -gt 0 ] || { sed -n '2,/^set /p' "$0" | sed '$d; s/^# \{0,1\}//' >&2; exit 2; }
plan=$("$irepair" compare "$@" --plan --json)
# {"out":"…","tasks":N,"titles":[…]}
tasks=$(sed -n 's/^{.*","tasks":\([0-9]*\),.*$/\1/p' <<< "$plan")
out=$(sed -n 's/^{"out":"\(.*\)","tasks":.*$/\1/p' <<< "$plan")
[ -n "$tasks" ] && [ -n "$out" ] || { echo "compare.sh: no plan: $plan" >&2; exit 1; }
last=$((tasks - 1))

if [ -n "$jobs" ]; then
  threads=$(($(nproc) / jobs))
  export RAYON_NUM_THREADS=${RAYON_NUM_THREADS:-$((threads > 0 ? threads : 1))}
  # A failed task is told by the merge.
  parallel --quote --line-buffer --tag --jobs "$jobs" "$irepair" compare "$@" --task {} ::: $(seq 0 "$last") || true
  exec "$irepair" compare "$@" --merge
fi
mkdir -p "$out/slurm"
array=$(sbatch --parsable --array="0-$last" --cpus-per-task="${CPUS_PER_TASK:-1}" --output="$out/slurm/%A_%a.out" \
  "$here/compare-array.sbatch" "$@")
merge=$(sbatch --parsable --dependency="afterany:${array%%;*}" --output="$out/slurm/%j-merge.out" \
  "$here/compare-merge.sbatch" "$@")
echo "array ${array%%;*} ($tasks tasks in $out), merge ${merge%%;*}"
