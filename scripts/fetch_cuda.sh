#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# fetch_cuda.sh DIR             prints the folder of a CUDA toolkit: $CUDA_HOME, else that of nvcc in $PATH, else
#                               /usr/local/cuda, else DIR, into which pip puts CUDA 13.0
# fetch_cuda.sh --headers DIR   the same where include/ is enough
# fetch_cuda.sh --aarch64 TOOLKIT DIR
#                               prints the CUDA runtime library for aarch64 of TOOLKIT's release: TOOLKIT's own, else
#                               from DIR, into which pip puts it; static from CUDA 13 on, shared before
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/fetch_common.sh"

# fetch FILE TARGET SUBFOLDER ARGUMENT...: pip installs into a folder of its own, of which SUBFOLDER, which must hold
# FILE, becomes TARGET.
fetch() {
  local file=$1 target=$2 folder=$3 log
  shift 3
  mkdir -p "$(dirname "$target")"
  tmp=$(mktemp -d "$target.XXXXXX")
  trap 'rm -rf "$tmp"' EXIT
  log=$("$python" -m pip install --disable-pip-version-check --no-deps --target "$tmp" "$@" 2>&1) ||
    fail "pip cannot install $*: $(tail -n 1 <<<"$log"); set CUDA_HOME to a CUDA toolkit"
  [ -f "$tmp/$folder/$file" ] || fail "the packages $* hold no $folder/$file; set CUDA_HOME to a CUDA toolkit"
  # A rename is atomic; a run beside this one may have been first.
  mv -T "$tmp/$folder" "$target" 2>/dev/null || [ -f "$target/$file" ] || fail "cannot write $target"
}

# nvcc may be a link or a script, so it is asked where its toolkit is.
toolkit_of_nvcc() {
  command -v nvcc >/dev/null || return 0
  nvcc --dryrun -x cu -c /dev/null 2>&1 | sed -n 's/^#\$ TOP=//p'
}

is_toolkit() { [ -f "$1/include/cuda_runtime.h" ] && { [ "$headers_only" = yes ] || [ -x "$1/bin/nvcc" ]; }; }

find_toolkit() {
  local home needs="include/cuda_runtime.h" file=include/cuda_runtime.h
  local packages=('nvidia-cuda-runtime==13.0.*' 'nvidia-cuda-crt==13.0.*' 'nvidia-cuda-cccl==13.0.*')
  if [ "$headers_only" = no ]; then
    needs+=" and bin/nvcc"
    file=bin/nvcc
    packages+=('nvidia-cuda-nvcc==13.0.*' 'nvidia-nvvm==13.0.*')
  fi
  if [ -n "${CUDA_HOME:-}" ]; then
    is_toolkit "$CUDA_HOME" || fail "CUDA_HOME is '$CUDA_HOME', expected a CUDA toolkit with $needs"
    (cd "$CUDA_HOME" && pwd)
    return
  fi
  for home in "$(toolkit_of_nvcc)" /usr/local/cuda; do
    if [ -n "$home" ] && is_toolkit "$home"; then
      (cd "$home" && pwd)
      return
    fi
  done
  is_toolkit "$1" || fetch "$file" "$1" nvidia/cu13 "${packages[@]}"
  echo "$1"
}

find_aarch64_runtime() {
  local target release package folder=nvidia/cu13/lib file=libcudart_static.a
  for target in aarch64-linux sbsa-linux; do
    if [ -f "$1/targets/$target/lib/$file" ]; then
      echo "$1/targets/$target/lib/$file"
      return
    fi
  done
  release=$("$1/bin/nvcc" --version | sed -n 's/.* release \([0-9]*\.[0-9]*\),.*/\1/p')
  package="nvidia-cuda-runtime==$release.*"
  if [ "${release%.*}" -lt 13 ]; then
    package="nvidia-cuda-runtime-cu${release%.*}==$release.*" folder=nvidia/cuda_runtime/lib
    file=libcudart.so.${release%.*}
  fi
  [ -f "$2/$release/$file" ] ||
    fetch "$file" "$2/$release" "$folder" --platform manylinux2014_aarch64 --only-binary=:all: "$package"
  echo "$2/$release/$file"
}

usage="usage: fetch_cuda.sh [--headers] DIR, or fetch_cuda.sh --aarch64 TOOLKIT DIR"
headers_only=no
case ${1:-} in
  --aarch64) find_aarch64_runtime "${2:?$usage}" "${3:?$usage}" ;;
  --headers) headers_only=yes && find_toolkit "${2:?$usage}" ;;
  *) find_toolkit "${1:?$usage}" ;;
esac
