#!/usr/bin/env bash
# A release for this machine's platform: the stripped binary, its licenses, the wheel, and checksums of all.
#
#     scripts/release.sh [OUT]             OUT: dist
#
# Built --locked, so with the very crates of Cargo.lock. Needs Rust and Python 3 with venv.
set -euo pipefail
cd "$(dirname "$0")/.."
out=${1:-dist}
mkdir -p "$out"
version=$(sed -n 's/^version = "\(.*\)"$/\1/p' Cargo.toml | head -n 1)
platform=$(rustc -vV | sed -n 's/^host: //p')
name=irepair-$version-$platform

cargo build --release --locked
scripts/make_wheel.sh "$out"
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
mkdir "$scratch/$name"
cp "${CARGO_TARGET_DIR:-target}/release/irepair" README.md LICENSE-APACHE LICENSE-MIT "$scratch/$name"
strip "$scratch/$name/irepair"
python3 scripts/make_licenses.py > "$scratch/$name/LICENSES-OF-CRATES.txt"
# The same input gives the same archive.
tar --sort=name --owner=0 --group=0 --numeric-owner --mtime="@$(git log -1 --format=%ct)" -C "$scratch" -cf - "$name" |
  gzip -9n > "$out/$name.tar.gz"
(cd "$out" && sha256sum "$name.tar.gz" irepair-*.whl > SHA256SUMS && sha256sum -c SHA256SUMS)
