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
include=${FASTMMOE_ORT_INCLUDE:-}
if [ -z "$include" ]; then
  scripts/fetch_ort_headers.sh .build/ort_headers
  include=$PWD/.build/ort_headers/include/onnxruntime
fi
if [ ! -f "$include/onnxruntime_cxx_api.h" ]; then
  echo "build_native.sh: FASTMMOE_ORT_INCLUDE is '$include', expected a folder with onnxruntime_cxx_api.h" >&2
  exit 1
fi

# Prints what the command said only if it failed.
quietly() {
  "$@" >"$build/log" 2>&1 || {
    cat "$build/log" >&2
    echo "build_native.sh: failed: $*" >&2
    exit 1
  }
}

mkdir -p "$build"
quietly cmake -S plugins -B "$build" -G "Unix Makefiles" -DFASTMMOE_ORT_INCLUDE="$include"
quietly cmake --build "$build" --parallel 2
cmp -s "$build/libfastmmoe_ort.so" "$library" && exit 0
quietly cmake --install "$build"
echo "built $library in $((SECONDS - start)) s"
