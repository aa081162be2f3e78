#!/usr/bin/env bash
# Tries a CUDA build on a machine with an NVIDIA GPU: its tests, then its speed and memory beside PyTorch's.
#
#     cargo build --release --features cuda && cargo test --release --features cuda --no-run
#     scripts/check_gpu.sh            the tests, then all measurements: under five minutes on an H200 if all is built
#     scripts/check_gpu.sh tests      the tests alone
#     scripts/check_gpu.sh bench      the measurements alone
#
# Measured: an iteration of irepair+kl, 4 × 64 tokens, random weights, in f32, TF32 and bf16. Memory is what the card had in
# use at most, less what it had before, sampled ten times a second: nobody else may use it meanwhile. PyTorch's TF32 is what
# TORCH_ALLOW_TF32_CUBLAS_OVERRIDE=1 makes of its f32.
# PYTHON names an interpreter with torch and transformers; without one irepair is measured alone. CONFIGS names other shapes.
set -euo pipefail
cd "$(dirname "$0")/.."

what=${1:-all}
case $what in
  all | tests | bench) ;;
  *) echo "usage: scripts/check_gpu.sh [tests|bench]" >&2; exit 2 ;;
esac
irepair=${CARGO_TARGET_DIR:-target}/release/irepair
python=${PYTHON:-}
configs=${CONFIGS:-gpt2 gpt2-large smollm2-135m llama-1b}
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader

if [ "$what" != bench ]; then
  IREPAIR_DEVICE=cuda cargo test --release --features cuda -- kernels:: parity:: exact::
fi
[ "$what" != tests ] || exit 0

scratch=$(mktemp -d)
sampler=
trap '[ -z "$sampler" ] || kill "$sampler"; rm -rf "$scratch"' EXIT

used() { nvidia-smi --id=0 --query-gpu=memory.used --format=csv,noheader,nounits "$@"; }

measure() { # CONFIG WHO DTYPE COMMAND...; one line of the table
  local config=$1 who=$2 dtype=$3 before
  shift 3
  before=$(used)
  used --loop-ms=100 > "$scratch/used" &
  sampler=$!
  if "$@" > "$scratch/out" 2> "$scratch/err"; then
    kill "$sampler"; wait "$sampler" 2> /dev/null || true; sampler=
    seconds=$(tail -n 1 "$scratch/out" | grep -oE '"median_s": *[0-9.e-]+' | grep -oE '[0-9.e-]+$')
    most=$(sort -n "$scratch/used" | tail -n 1)
    printf '| %s | %s | %s | %s s | %s MiB |\n' "$config" "$who" "$dtype" "$seconds" "$((most - before))"
  else
    kill "$sampler"; wait "$sampler" 2> /dev/null || true; sampler=
    printf '| %s | %s | %s | failed: %s | |\n' "$config" "$who" "$dtype" "$(tail -n 1 "$scratch/err")"
  fi
}

printf '| config | program | products | iteration | memory of the card |\n|---|---|---|---|---|\n'
for config in $configs; do
  shape=(--config "$config" --batch 4 --tokens 64 --iterations 5 --device cuda)
  for dtype in f32 tf32 bf16; do
    measure "$config" irepair "$dtype" "$irepair" bench --method irepair+kl --dtype "$dtype" "${shape[@]}"
  done
  # What a matrix kept in bf16 saves of the conversion in each product.
  measure "$config" "irepair, weights in bf16" bf16 "$irepair" bench --method irepair+kl --dtype bf16 --weights-dtype bf16 "${shape[@]}"
  [ -n "$python" ] || continue
  reference=("$python" scripts/irepair_ref.py bench --irepair "$irepair" --method irepair-kl "${shape[@]}")
  measure "$config" PyTorch f32 "${reference[@]}"
  measure "$config" PyTorch tf32 env TORCH_ALLOW_TF32_CUBLAS_OVERRIDE=1 "${reference[@]}"
  measure "$config" PyTorch bf16 "${reference[@]}" --bf16
done
