#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# build_emulator.sh                    builds the CUDA emulator in .build/emulator
# build_emulator.sh OUTPUT SOURCE...   then compiles .cu and .cpp files against it into the shared library OUTPUT
# build_emulator.sh --cuda-include     prints the folder of the CUDA headers
# Prints nothing else. The headers are those that fetch_cuda.sh finds or fetches. Objects are kept by what the compiler
# reads, for the libraries that have a file in common; what no build used for a week is removed.
# FASTMMOE_EMULATOR_SANITIZE=address,undefined builds both with sanitizers. CXX is the compiler, g++ by default;
# after a change of it remove .build/emulator.
set -euo pipefail
repository=$(cd "$(dirname "$0")/.." && pwd)
sanitize=${FASTMMOE_EMULATOR_SANITIZE:-}
build=$repository/.build/emulator${sanitize:+-${sanitize//,/-}}
export CXX=${CXX:-g++}

fail() {
  echo "build_emulator.sh: $1" >&2
  exit 1
}

# Prints what the command said only if it failed.
quietly() {
  local log
  log=$("$@" 2>&1) || fail "failed: $*"$'\n'"$log"
}

build_archive() {
  for tool in cmake make "$CXX"; do
    command -v "$tool" >/dev/null || fail "$tool is not installed; install g++, make and cmake 3.22 or later"
  done
  mkdir -p "$build"
  exec 9>"$build/lock"
  flock 9
  quietly cmake -S "$repository/plugins/testing" -B "$build" -G "Unix Makefiles" \
    -DFASTMMOE_CUDA_INCLUDE="$include" -DFASTMMOE_SANITIZE="$sanitize"
  quietly cmake --build "$build" --parallel 2
  flock -u 9
}

include=$("$repository/scripts/fetch_cuda.sh" --headers "$repository/.build/cuda-headers")/include
if [ "${1:-}" = --cuda-include ]; then
  echo "$include"
  exit
fi
build_archive
[ $# -gt 0 ] || exit 0
[ $# -gt 1 ] || fail "no source for '$1'; usage: build_emulator.sh OUTPUT SOURCE..."
output=$1
shift
flags=(-std=c++17 -O2 -ftree-vectorize -fPIC -pthread -ffp-contract=off -Wall -Wextra -Wno-unknown-pragmas)
# A template used by two libraries must not share its __shared__ variables between them.
flags+=(-fvisibility=hidden -fno-gnu-unique)
# A local variable that is read before it is written holds no 0 by chance.
flags+=(-ftrivial-auto-var-init=pattern)
[ -z "$sanitize" ] || flags+=(-g "-fsanitize=$sanitize" -fno-sanitize-recover=undefined)
sources=() options=(-DFASTMMOE_EMULATOR -I"$repository/plugins" -isystem "$include")
for argument in "$@"; do
  case $argument in
    *.cu | *.cpp) sources+=("$argument") ;;
    *) options+=("$argument") ;;
  esac
done

# Prints the file of a source's object, made unless an equal one is there. Line numbers count for debuggers alone.
object_of() {
  local key object read=(-E)
  [ -n "$sanitize" ] || read+=(-P)
  key=$({ "$CXX" --version && echo "${flags[@]}" &&
    "$CXX" "${flags[@]}" "${options[@]}" "${read[@]}" -x c++ "$1"; } | sha256sum) || fail "failed: the compiler on $1"
  object=$build/objects/${key%% *}.o
  exec 8>"$object.lock"
  flock 8
  if [ ! -f "$object" ]; then
    quietly "$CXX" "${flags[@]}" "${options[@]}" -x c++ -c "$1" -o "$object.part"
    mv "$object.part" "$object"
  fi
  touch "$object"
  flock -u 8
  echo "$object"
}

mkdir -p "$build/objects"
objects=()
for source in "${sources[@]}"; do
  object=$(object_of "$source")
  objects+=("$object")
done
quietly "$CXX" "${flags[@]}" -shared "${objects[@]}" \
  -Wl,--whole-archive "$build/libfastmmoe_emulator.a" -Wl,--no-whole-archive -o "$output"
find "$build/objects" -type f -mtime +7 -delete
