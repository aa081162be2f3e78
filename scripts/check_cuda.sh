#!/usr/bin/env bash
# Checks the `cuda` feature on a machine without CUDA and without a GPU.
#
#     scripts/check_cuda.sh            type-check everything that only a CUDA build compiles
#     scripts/check_cuda.sh --link     then also link `irepair` and start it without a GPU (Linux; needs gcc)
#
# Proves: our Rust code and candle's fit together with the feature on; the whole program links; a CUDA build that finds no
#         driver, or a driver without a GPU, says so and takes the CPU.
# Proves not: that a kernel (candle's or ours) compiles or computes anything right. Unless a real nvcc is on PATH no .cu file
#         is even read, and --link never reads one. That takes a machine with CUDA.
#
# NEVER SHIP A BUILD FROM HERE: in place of the kernels there are empty PTX files and functions that trap. Such builds stay in
# folders of their own, since cargo would take their kernels for real ones: $CARGO_TARGET_DIR/cuda, by default target/cuda.
# Heeds CUDA_COMPUTE_CAP (80) and CARGO_BUILD_JOBS (1). Exit code: 0 if all held, else not 0.
set -euo pipefail
cd "$(dirname "$0")/.."

link=
case "${1-}" in
  "") ;;
  --link) link=yes ;;
  *) echo "usage: scripts/check_cuda.sh [--link]" >&2; exit 2 ;;
esac

target=${CARGO_TARGET_DIR:-$PWD/target}
export CUDA_COMPUTE_CAP=${CUDA_COMPUTE_CAP:-80} CARGO_BUILD_JOBS=${CARGO_BUILD_JOBS:-1}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

fail() { echo "check_cuda: FAILED: $*" >&2; exit 1; }
# Beside other work: lowest priority. --locked: a check changes no file of the repository. Nothing here is to be fast, so the
# packages aren't optimized as Cargo.toml wants it (which goes for build scripts and macros, too).
polite() { nice -n 19 cargo "$@" --locked --config 'profile.dev.package."*".opt-level=0'; }

# The stand-in gives the build scripts of cudarc and candle-kernels what they ask an nvcc for, and compiles nothing: a version,
# one .ptx a kernel file, and a libmoe.a with the names that candle-kernels declares.
mkdir "$scratch/bin"
cat > "$scratch/bin/nvcc" <<'NVCC'
#!/usr/bin/env bash
set -euo pipefail
if [[ " $* " == *" --version "* ]]; then
  # cudarc reads the release off the fourth line.
  printf 'nvcc: stand-in, compiles nothing\n-\n-\nCuda compilation tools, release 13.0, V13.0.0\n'
  exit
fi
out= dir= kind=object source=
while [ $# -gt 0 ]; do
  case "$1" in
    -o) out=$2; shift ;;
    --output-directory) dir=$2; shift ;;
    --ptx) kind=ptx ;;
    --lib) kind=library ;;
    *.cu) source=$1 ;;
  esac
  shift
done
case $kind in
  ptx) echo "// stand-in, no code" > "$dir/$(basename "$source" .cu).ptx" ;;
  object) : > "$out" ;;
  library)
    grep -ohE 'pub fn [A-Za-z0-9_]+' "$CARGO_MANIFEST_DIR/src/ffi.rs" | sort -u |
      awk '{ print "void " $3 "(void) { __builtin_trap(); }" }' > "$out.c"
    gcc -fPIC -c "$out.c" -o "$out.o"
    ar crs "$out" "$out.o" ;;
esac
NVCC
chmod +x "$scratch/bin/nvcc"
with_stand_in() ( # ARGUMENTS OF CARGO; candle-kernels prefers $NVCC
  unset NVCC
  PATH=$scratch/bin:$PATH CARGO_TARGET_DIR=$target/cuda polite "$@"
)

# 1. Type-check library, program and tests. With the stand-in: Rust only. With a real nvcc: candle's kernels are compiled too
# (minutes), for CUDA_COMPUTE_CAP; whether they run is still unknown.
SECONDS=0
if nvcc=$(command -v nvcc); then
  echo "check_cuda: type check with the real nvcc, $nvcc ($(nvcc --version | grep -o 'release.*' || echo 'version unknown'))"
  CARGO_TARGET_DIR=$target/cuda-nvcc polite check --features cuda --all-targets
else
  echo "check_cuda: type check with a stand-in for nvcc: no kernel is compiled"
  with_stand_in check --features cuda --all-targets
fi
echo "check_cuda: type check passed, $SECONDS s"
[ -n "$link" ] || exit 0

# 2. Link, always with the stand-in (real kernels would want a real libcudart). An ordinary CUDA build is linked to NVIDIA's
# libraries and without a driver dies before main; this one opens them when it needs them, so that it can start here.
# Library names are satisfied by stubs with every function that cudarc declares; each says CUDA_ERROR_NO_DEVICE (100).
SECONDS=0
cudarc=$(cargo metadata --locked --format-version 1 --features cuda |
  grep -oE '"manifest_path":"[^"]*/cudarc(-[0-9][^/"]*)?/Cargo\.toml"' | cut -d '"' -f 4 | xargs -n 1 dirname | sort -u)
[ "$(wc -l <<< "$cudarc")" = 1 ] && [ -d "$cudarc/src" ] || fail "need one source folder of cudarc, have: ${cudarc:-none}"
mkdir "$scratch/stubs"
stub() { # LIBRARY FILE
  grep -ohE 'pub unsafe fn (cu|nvrtc)[A-Za-z0-9_]+' "$cudarc/src/$2" | sort -u |
    awk '{ print "int " $4 "(void) { return 100; }" }' > "$scratch/stubs/$1.c" || fail "no functions in cudarc's $2"
  gcc -shared -fPIC -fno-builtin -o "$scratch/stubs/lib$1.so" "$scratch/stubs/$1.c"
}
stub cuda driver/sys/mod.rs
stub nvrtc nvrtc/sys/mod.rs
stub curand curand/sys/mod.rs
stub cublas cublas/sys/mod.rs
stub cublasLt cublaslt/sys/mod.rs
gcc -shared -fPIC -o "$scratch/stubs/libcudart.so" -x c /dev/null # candle-kernels names it; our libmoe.a calls nothing of it

# cudarc's build script refuses dynamic-loading beside the dynamic-linking that candle asks for. With --target, RUSTFLAGS
# reach the crates but not the build scripts, and cudarc's code takes the former.
host=$(rustc -vV | sed -n 's/^host: //p')
LIBRARY_PATH=$scratch/stubs RUSTFLAGS='--cfg feature="dynamic-loading"' CARGO_PROFILE_DEV_DEBUG=0 \
  with_stand_in build --bin irepair --features cuda --target "$host"
program=$target/cuda/$host/debug/irepair
echo "check_cuda: linked, $SECONDS s"

# 3. Start it: once as this machine is, once with a driver that knows no GPU. CUDA_VISIBLE_DEVICES hides a GPU if there is one.
# Proves that the search for a GPU fails softly, nothing about finding one.
doctor() { # WHAT LD_LIBRARY_PATH
  local facts fact
  facts=$(CUDA_VISIBLE_DEVICES=-1 LD_LIBRARY_PATH=$2 "$program" doctor --json) || fail "$1: irepair doctor: exit code $?"
  for fact in '"features":["cuda"' '"device":"Cpu"' '"device_why":"no usable GPU'; do
    grep -qF "$fact" <<< "$facts" || fail "$1: no $fact in $facts"
  done
  echo "check_cuda: $1: $(grep -oE 'no usable GPU([^"\\]|\\")*' <<< "$facts" | head -n 1)"
}
doctor "driver as installed" ""
doctor "driver without a GPU" "$scratch/stubs"
echo "check_cuda: all passed; do not ship $program"
