#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# build_kernels.sh OUTPUT ARCH        every CUDA kernel and its C entry point in one library for sm_ARCH, by nvcc
# build_kernels.sh OUTPUT emulator    the same sources against the CUDA emulator
# Prints nothing else. scripts/gpu_acceptance.py calls the library through ctypes. FASTMMOE_JOBS: files compiled at a
# time, one for each processor by default. The CUDA toolkit is the one that fetch_cuda.sh finds.
set -euo pipefail
cd "$(dirname "$0")/.."

fail() {
  echo "build_kernels.sh: $1" >&2
  exit 1
}

[ $# -eq 2 ] || fail "usage: build_kernels.sh OUTPUT ARCH|emulator"
output=$1 arch=$2
sources=(plugins/*/cuda/*.cu plugins/testing/kernels/entry.cpp)
mkdir -p "$(dirname "$output")"
if [ "$arch" = emulator ]; then
  exec scripts/build_emulator.sh "$output" "${sources[@]}"
fi

cuda=$(scripts/fetch_cuda.sh "$PWD/.build/cuda-13")
objects=$(mktemp -d)
trap 'rm -rf "$objects"' EXIT
options=(-std=c++17 -O3 "-arch=sm_$arch" -lineinfo -I plugins -Xcompiler -fPIC,-fvisibility=hidden)
compile() { "$cuda/bin/nvcc" "${options[@]}" -c "$1" -o "$objects/${1//\//_}.o"; }
running=()
for source in "${sources[@]}"; do
  compile "$source" &
  running+=($!)
  while [ "$(jobs -rp | wc -l)" -ge "${FASTMMOE_JOBS:-$(nproc)}" ]; do sleep 0.05; done
done
for job in "${running[@]}"; do wait "$job" || fail "nvcc failed: see above"; done
"$cuda/bin/nvcc" -shared "$objects"/*.o -o "$output"
