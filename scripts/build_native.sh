#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Build plugins/lib/libfastmmoe_ort.so. Prints nothing where it is up to date, one line where it was built.
# FASTMMOE_ORT_INCLUDE: folder with onnxruntime_cxx_api.h; without it the headers are fetched.
set -euo pipefail
cd "$(dirname "$0")/.."

build=.build/native
library=plugins/lib/libfastmmoe_ort.so
start=$SECONDS

for tool in cmake make c++; do
  command -v "$tool" >/dev/null || {
    echo "build_native.sh: $tool is not installed; install g++, make and cmake 3.22 or later" >&2
    exit 1
  }
done

# Prints what the command said only if it failed.
quietly() {
  "$@" >"$build/log" 2>&1 || {
    cat "$build/log" >&2
    echo "build_native.sh: failed: $*" >&2
    exit 1
  }
}

mkdir -p "$build"
quietly cmake -S plugins -B "$build" -G "Unix Makefiles" -DFASTMMOE_ORT_INCLUDE="${FASTMMOE_ORT_INCLUDE:-}"
quietly cmake --build "$build" --parallel 2
cmp -s "$build/libfastmmoe_ort.so" "$library" && exit 0
quietly cmake --install "$build"
echo "built $library in $((SECONDS - start)) s"
