#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# fetch_tensorrt_lean.sh VERSION             TensorRT's lean runtime and its Python module, for the Python that runs pip
# fetch_tensorrt_lean.sh VERSION aarch64     the runtime for Jetson
# Prints the folder, .build/tensorrt_lean/VERSION-MACHINE, into which pip puts them unless they are there.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/fetch_common.sh"
cd "$(dirname "$0")/.."
version=${1:?usage: fetch_tensorrt_lean.sh VERSION [aarch64]}
machine=${2:-$(uname -m)}
folder=$PWD/.build/tensorrt_lean/$version-$machine

packages=("tensorrt-lean-cu13-libs==$version")
options=(--disable-pip-version-check --no-deps)
if [ "$machine" = "$(uname -m)" ]; then
  packages+=("tensorrt-lean-cu13-bindings==$version")
else
  options+=(--only-binary=:all: --platform "manylinux_2_35_$machine" --platform "manylinux_2_28_$machine")
fi
if [ ! -d "$folder" ]; then
  mkdir -p .build/tensorrt_lean
  tmp=$(mktemp -d "$folder.XXXXXX")
  trap 'rm -rf "$tmp"' EXIT
  log=$("$python" -m pip install "${options[@]}" --target "$tmp" "${packages[@]}" 2>&1) ||
    fail "pip cannot install ${packages[*]}: $(tail -n 1 <<<"$log")"
  # A rename is atomic; a run beside this one may have been first.
  mv -T "$tmp" "$folder" 2>/dev/null || [ -d "$folder" ] || fail "cannot write $folder"
fi
echo "$folder"
