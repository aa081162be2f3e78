#!/usr/bin/env bash
# A wheel that carries the binary, and a try of it in a fresh virtual environment.
#
#     scripts/make_wheel.sh [OUT]          OUT: dist
#
# Needs Python 3 with venv, and Rust. maturin is installed into an environment of its own. Fails if the wheel is larger than
# 25 MiB, if the installed program has another version than Cargo.toml, if it can't repair the demo, or if pip takes a wheel
# of another platform.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-dist}
mkdir -p "$out"
out=$(cd "$out" && pwd)

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
python3 -m venv "$scratch/build"
"$scratch/build/bin/pip" install -q 'maturin>=1.9,<2'
(cd scripts/wheel && "$scratch/build/bin/maturin" build --release --out "$out")
wheel=$(ls -t "$out"/irepair-*.whl | head -n 1)

size=$(stat -c %s "$wheel")
[ "$size" -le $((25 << 20)) ] || { echo "$wheel has $size bytes, more than 25 MiB" >&2; exit 1; }
python3 -m venv "$scratch/fresh"
"$scratch/fresh/bin/pip" install -q --no-index "$wheel"
# A wheel says in its name which platform it is for, and pip reads it there.
stranger=$scratch/$(basename "$wheel" | sed 's/-[^-]*\.whl$/-win_arm64.whl/')
cp "$wheel" "$stranger"
if refusal=$("$scratch/fresh/bin/pip" install --no-index --force-reinstall "$stranger" 2>&1); then
  echo "pip took a wheel for Windows on ARM" >&2
  exit 1
fi
grep -q 'not a supported wheel on this platform' <<< "$refusal" || { echo "pip said: $refusal" >&2; exit 1; }
program=$scratch/fresh/bin/irepair
version=$(sed -n 's/^version = "\(.*\)"$/\1/p' Cargo.toml | head -n 1)
[ "$("$program" --version)" = "irepair $version" ] || { echo "it says $("$program" --version)" >&2; exit 1; }
"$program" repair --max-steps 3 --out "$scratch/repaired" --fail-on nothing -q > /dev/null
[ -f "$scratch/repaired/model.safetensors" ] || { echo "it wrote no model" >&2; exit 1; }
# The least of ten, so that the first read of the file and other work do not count.
least=$(for _ in 1 2 3 4 5 6 7 8 9 10; do
  begun=$(date +%s%N)
  "$program" --help > /dev/null
  echo $((($(date +%s%N) - begun) / 1000000))
done | sort -n | head -n 1)
echo "$wheel: $((size >> 10)) KiB; installed, irepair $version, --help in $least ms, a repair of the demo"
