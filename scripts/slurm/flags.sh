# Sourced by submit.sh and parallel.sh: takes `irepair eval`'s flags apart into what each part and the merge are told.
#
# Sets parts (how many), whole (the folder of the whole), dir (the folder of the parts) and flags (what every part is
# given). The parts lie in WHOLE.parts/I-of-N. Nothing that exists is touched without --overwrite; --resume keeps parts
# that are done and goes on with those that are not.

usage() {
  sed -n '2,/^set /p' "$0" | sed '$d; s/^# \{0,1\}//' >&2
  exit 2
}

fail() {
  echo "$(basename "$0"): $*" >&2
  exit 2
}

take_apart() { # ARGUMENTS
  parts=${SHARDS:-4} whole= flags=()
  local overwrite= resume= argument
  while [ $# -gt 0 ]; do
    argument=$1
    shift
    case $argument in
      -h | --help) usage ;;
      --shards) parts=${1-}; shift || usage ;;
      --shards=*) parts=${argument#*=} ;;
      -o | --out | --output | --output-dir | --output-path) whole=${1-}; shift || usage ;;
      --out=* | --output=* | --output-dir=* | --output-path=*) whole=${argument#*=} ;;
      --overwrite) overwrite=yes ;;
      --resume) resume=yes ;;
      --shard | --shard=* | --merge | --merge=*) fail "$argument: shards are made and joined here; say how many with --shards N" ;;
      *) flags+=("$argument") ;;
    esac
  done
  [[ $parts =~ ^[1-9][0-9]*$ ]] || fail "--shards ${parts:-(nothing)}: give a number, 1 or more"
  [ -n "$whole" ] || fail "--out DIR is missing: say where the joined results go"
  whole=${whole%/} dir=${whole%/}.parts
  if [ -e "$whole" ] && { [ -z "$overwrite" ] || ! [ -f "$whole/results.json" ]; }; then
    fail "$whole exists; choose another --out, or replace an evaluation with --overwrite"
  fi
  if [ -n "$overwrite" ]; then
    rm -rf "$whole"
    local part
    for part in "$dir"/*-of-*/; do
      if [ -d "$part/work" ] || [ -f "$part/results.json" ]; then rm -r "$part"; fi
    done
  fi
  if [ -z "$resume" ] && compgen -G "$dir/*-of-*" > /dev/null; then
    fail "parts are in $dir; go on with --resume, or start again with --overwrite"
  fi
  if [ -n "$(find "$dir" -mindepth 1 -maxdepth 1 -name '*-of-*' ! -name "*-of-$parts" -print -quit 2> /dev/null)" ]; then
    fail "$dir has parts of another number than $parts; give that one, or start again with --overwrite"
  fi
  mkdir -p "$dir"
}
