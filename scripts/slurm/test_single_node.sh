#!/usr/bin/env bash
# Tests submit.sh and parallel.sh on this machine: a Slurm of one node, the embedded demo, three parts.
#
#     IREPAIR=target/release/irepair scripts/slurm/test_single_node.sh
#
# METHODS, SEEDS, STEPS and SCALES change the comparison (irepair-min,dapt,irepair+kl with seeds 1,2 and 60 steps, and half of
# each change; SCALES= measures no such parts); ONLY=compare leaves all else out.
#
# As root on Debian or Ubuntu (a container will do): installs slurm-wlm, munge and parallel if they are missing, starts
# munged, slurmctld and slurmd with a configuration, key and folders of its own (nothing under /etc is read or changed), and
# stops them in the end. Passes if the joined rows and results are those of an unsharded run, byte for byte, also after a
# task was killed and started again by Slurm; the same for parallel.sh; and if the parts of `generate --shard` and `score
# --shard` one after another are the whole.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
demo=$here/../../data/demo
IREPAIR=$(realpath "$(command -v "${IREPAIR:-irepair}")")
export IREPAIR

if ! command -v slurmctld slurmd sbatch munged parallel > /dev/null; then
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends slurm-wlm munge parallel > /dev/null
fi

scratch=$(mktemp -d)
# munged wants folders that others can enter and not write.
chmod 755 "$scratch"
daemons=()
stop() {
  for daemon in "${daemons[@]}"; do kill "$daemon" 2> /dev/null || true; done
  for daemon in "${daemons[@]}"; do wait "$daemon" 2> /dev/null || true; done
  rm -rf "$scratch"
}
trap stop EXIT

passed=0
pass() {
  passed=$((passed + 1))
  echo "test_single_node: passed: $*"
}
fail() {
  echo "test_single_node: FAILED: $*" >&2
  tail -n 20 "$scratch"/*.log "$scratch"/slurm/*.parts/slurm-* >&2 2> /dev/null || true
  exit 1
}
wait_for() { # SECONDS WHAT COMMAND…
  local left=$1 what=$2
  shift 2
  until "$@" > /dev/null 2>&1; do
    left=$((left - 1))
    [ "$left" -gt 0 ] || fail "$what did not come about"
    sleep 1
  done
}

finished() { # JOB
  ! squeue -h -j "$1" -o %i 2> /dev/null | grep -q .
}
jobs_of() { grep -oE '(array|merge) [0-9]+' | cut -d ' ' -f 2; }

# The cluster: one node of two processors, whatever this machine has.
mkdir "$scratch/slurm" "$scratch/spool" "$scratch/state" "$scratch/munge"
head -c 1024 /dev/urandom > "$scratch/munge/key"
chmod 400 "$scratch/munge/key"
host=$(hostname -s)
cat > "$scratch/slurm.conf" <<CONF
ClusterName=test
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$scratch/munge/socket
CredType=cred/munge
SlurmctldPort=16817
SlurmdPort=16818
StateSaveLocation=$scratch/state
SlurmdSpoolDir=$scratch/spool
SlurmctldPidFile=$scratch/slurmctld.pid
SlurmdPidFile=$scratch/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
ReturnToService=2
MinJobAge=600
NodeName=$host NodeAddr=127.0.0.1 CPUs=$(nproc) State=UNKNOWN
PartitionName=all Nodes=$host Default=YES MaxTime=INFINITE OverSubscribe=FORCE:4 State=UP
CONF
export SLURM_CONF=$scratch/slurm.conf
munged --foreground --force --key-file="$scratch/munge/key" --socket="$scratch/munge/socket" --pid-file="$scratch/munge/pid" \
  --log-file="$scratch/munge/log" --seed-file="$scratch/munge/seed" > "$scratch/munged.log" 2>&1 &
daemons+=($!)
wait_for 20 "munge's socket" test -S "$scratch/munge/socket"
slurmctld -D > "$scratch/slurmctld.log" 2>&1 &
daemons+=($!)
slurmd -D > "$scratch/slurmd.log" 2>&1 &
daemons+=($!)
wait_for 60 "an idle node" bash -c 'sinfo -h -o %T | grep -q idle'
echo "test_single_node: $(sinfo --version), node $(sinfo -h -o '%n %T %c CPUs')"

if [ "${ONLY-}" != compare ]; then
# What is measured: two models, every kind of task, units that don't divide by three.
"$IREPAIR" repair --max-steps 3 --fail-on nothing --out "$scratch/repaired" -q > /dev/null
head -n 100 "$demo/clean.txt" | grep -E '(\S+ ){4}' > "$scratch/passages.txt"
measured=(--model demo --model "$scratch/repaired" --toxicity rtp --prompts "$demo/prompts.jsonl" --limit 40 --samples 7 --seed 5
  --ppl "$demo/clean.txt" --lambada "$scratch/passages.txt" --kl demo --normal "$scratch/passages.txt" -q)
"$IREPAIR" eval "${measured[@]}" --out "$scratch/whole" > /dev/null

same() { # FOLDER WHAT
  diff -r -I "\"run_id\":" "$scratch/whole" "$1" || fail "$2: not the unsharded results"
  pass "$2: $(cat "$1"/*.jsonl | wc -l) rows and the results are the unsharded ones, byte for byte"
}
# 1. The array and its merge.
mapfile -t jobs < <("$here/submit.sh" --shards 3 "${measured[@]}" --out "$scratch/slurm/joined" | jobs_of)
[ "${#jobs[@]}" = 2 ] || fail "submit.sh said no two jobs"
wait_for 300 "the end of the merge" finished "${jobs[1]}"
same "$scratch/slurm/joined" "job array"

# 2. A task is requeued in the middle of its work.
slow=("${measured[@]}" --samples 200 --limit 60)
"$IREPAIR" eval "${slow[@]}" --out "$scratch/slow" > /dev/null
mapfile -t jobs < <("$here/submit.sh" --shards 2 "${slow[@]}" --out "$scratch/slurm/requeued" | jobs_of)
begun() { [ "$(cat "$scratch/slurm/requeued.parts/0-of-2/work"/*.jsonl | wc -l)" -gt 3 ]; }
wait_for 120 "work under way" begun
kept=$(cat "$scratch/slurm/requeued.parts/0-of-2/work"/*.jsonl | wc -l)
scontrol requeue "${jobs[0]}_0"
wait_for 30 "the requeue" bash -c "scontrol show job ${jobs[0]}_0 | grep -q Restarts=1"
# Slurm holds a requeued job back for a while.
wait_for 400 "the end of the merge" finished "${jobs[1]}"
diff -r -I "\"run_id\":" "$scratch/slow" "$scratch/slurm/requeued" || fail "requeued: not the unsharded results"
pass "requeued with $kept lines of work done: the unsharded results, byte for byte"

# 3. A part that fails: no merge; --resume makes up for it.
refused() { ! "$@" > /dev/null 2>&1; }
refused "$here/submit.sh" --shards 3 "${measured[@]}" --out "$scratch/slurm/joined" || fail "submit.sh replaced results"
mapfile -t jobs < <(IREPAIR=false "$here/submit.sh" --shards 3 "${measured[@]}" --out "$scratch/slurm/failed" | jobs_of)
wait_for 120 "the end of the merge" finished "${jobs[1]}"
[ ! -e "$scratch/slurm/failed" ] || fail "failed parts were joined"
mapfile -t jobs < <("$here/submit.sh" --resume --shards 3 "${measured[@]}" --out "$scratch/slurm/failed" | jobs_of)
wait_for 300 "the end of the merge" finished "${jobs[1]}"
same "$scratch/slurm/failed" "--resume after failed tasks"

# 4. GNU parallel; then with a part taken away and one left unfinished.
"$here/parallel.sh" --shards 3 "${measured[@]}" --out "$scratch/parallel" > /dev/null
same "$scratch/parallel" "GNU parallel"
rm -r "$scratch/parallel" "$scratch/parallel.parts/1-of-3"
"$here/parallel.sh" --shards 3 "${measured[@]}" --resume --out "$scratch/parallel" > "$scratch/parallel.log"
grep -q 'part 2/3 is done' "$scratch/parallel.log" || fail "a finished part was done again"
same "$scratch/parallel" "GNU parallel with --resume"

# 5. Files of generate and score.
for i in whole 0/3 1/3 2/3; do
  shard=() name=$i
  if [ "$i" != whole ]; then shard=(--shard "$i") name=part${i%/3}; fi
  "$IREPAIR" generate --prompts "$demo/prompts.jsonl" --samples 5 --scorer lexicon "${shard[@]}" --out "$scratch/texts-$name" -q > /dev/null
  "$IREPAIR" generate --unconditional 300 --scorer lexicon --keep-below 0.3 "${shard[@]}" --out "$scratch/free-$name" -q > /dev/null
  "$IREPAIR" score "$demo/pairs.jsonl" "${shard[@]}" --out "$scratch/scored-$name" -q > /dev/null
done
for kind in texts free scored; do
  cat "$scratch/$kind"-part[0-2] | cmp - "$scratch/$kind-whole" || fail "$kind: the parts are not the whole"
  pass "$kind: three parts one after another are the whole, $(wc -l < "$scratch/$kind-whole") rows"
done

fi

# 6. A comparison: as a job array one of whose tasks is requeued, by GNU parallel, and alone.
steps=${STEPS:-60}
rows=(--methods "${METHODS:-irepair-min,dapt,irepair+kl}" --seeds "${SEEDS:-1,2}" --max-steps "$steps"
  --eval-steps $((steps / 2)) --normal-texts 32 --valid-size 8 --limit 60 -q)
scales=${SCALES-0.5}
[ -z "$scales" ] || rows+=(--scales "$scales")
"$IREPAIR" compare "${rows[@]}" --out "$scratch/compared" > /dev/null
# What does not depend on the machine: figures, gaps and names, without times, memory and places.
figures() {
  python3 - "$1/compare.json" <<'PYTHON'
import json, sys
def strip(v):
    if isinstance(v, dict):
        return {k: strip(x) for k, x in v.items() if k not in ("seconds", "step_seconds", "peak_rss_mib", "dir", "run_id", "sheets")}
    return [strip(x) for x in v] if isinstance(v, list) else v
print(json.dumps(strip(json.load(open(sys.argv[1]))), indent=1))
PYTHON
}
figures "$scratch/compared" > "$scratch/compared.figures"
# The base, and each method with each seed.
tasks=$((1 + $(tr ',' '\n' <<< "${rows[1]}" | wc -l) * $(tr ',' '\n' <<< "${rows[3]}" | wc -l)))
agree() { # FOLDER WHAT
  figures "$1" | cmp - "$scratch/compared.figures" || fail "$2: not the figures of one command"
  cmp "$1/figure2.csv" "$scratch/compared/figure2.csv" || fail "$2: other sensitivities"
  [ -z "$scales" ] || cmp "$1/scales.svg" "$scratch/compared/scales.svg" || fail "$2: another picture"
  pass "$2: $tasks tasks come to what one command makes, byte for byte without times, memory and places"
}
mapfile -t jobs < <("$here/compare.sh" "${rows[@]}" --out "$scratch/slurm-compared" | jobs_of)
[ "${#jobs[@]}" = 2 ] || fail "compare.sh said no two jobs"
wait_for 240 "a run under way" bash -c "compgen -G '$scratch/slurm-compared/runs/*.partial'"
index=$(squeue -h -t RUNNING -j "${jobs[0]}" -o %K | sort -n | tail -n 1)
scontrol requeue "${jobs[0]}_$index"
wait_for $((600 + 60 * tasks)) "the end of the merge" finished "${jobs[1]}"
agree "$scratch/slurm-compared" "job array"
"$here/compare.sh" --parallel 2 "${rows[@]}" --out "$scratch/parallel-compared" > /dev/null 2> "$scratch/parallel.log"
agree "$scratch/parallel-compared" "GNU parallel"
echo "$passed passed, 0 failed"
