#!/usr/bin/env bash
# An evaluation as a Slurm job array, and a job that joins its parts when all are done.
#
#     scripts/slurm/submit.sh --shards 8 --model gpt2-large --toxicity rtp --prompts prompts.jsonl --out results
#
# Takes `irepair eval`'s flags and --shards N (or $SHARDS; 4). What Slurm must know is said with Slurm's own variables:
# SBATCH_PARTITION, SBATCH_ACCOUNT, SBATCH_TIMELIMIT, …, and CPUS_PER_TASK (1), which is also the number of threads. Output
# is results.parts/slurm-*.out; the joined results are in results, as one machine of the
# nodes' kind would have made them, byte for byte.
# After a failure: the same line with --resume. Prints the numbers of the two jobs. The program is $IREPAIR (default: irepair
# on PATH); all nodes must see it and the same folders.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/flags.sh"
take_apart "$@"

array=$(sbatch --parsable --array="0-$((parts - 1))" --cpus-per-task="${CPUS_PER_TASK:-1}" --output="$dir/slurm-%A_%a.out" \
  "$here/eval-array.sbatch" "$dir" "${flags[@]}")
merge=$(sbatch --parsable --dependency="afterok:${array%%;*}" --kill-on-invalid-dep=yes --output="$dir/slurm-%j-merge.out" \
  "$here/merge.sbatch" "$dir" "$whole")
echo "array ${array%%;*} ($parts parts in $dir), merge ${merge%%;*} (into $whole)"
