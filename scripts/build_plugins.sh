#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# build_plugins.sh [--archs LIST]              libfastmmoe_trt.so and libfastmmoe_ort_cuda.so for this machine; on an
#                                              aarch64 machine both go into the folder aarch64
# build_plugins.sh --aarch64 [--archs LIST]    aarch64/libfastmmoe_trt.so for JetPack 7, on an x86-64 machine
# build_plugins.sh --jetpack6 [--archs LIST]   jetpack6/libfastmmoe_trt.so likewise, with CUDA 12
# The libraries go into plugins/lib. Prints nothing where they are up to date, one line where one was built.
# LIST names compute capabilities, 80,87 for example; by default all ten that nvcc knows, for aarch64 only 87.
# CUDA comes from where fetch_cuda.sh (with --jetpack6 fetch_cuda12.sh) finds it, TensorRT's headers from where
# fetch_tensorrt_headers.sh does. FASTMMOE_ORT_INCLUDE: as in build_native.sh; on an aarch64 machine
# libfastmmoe_ort_cuda.so is only built where it is set. FASTMMOE_JOBS: files compiled at a time, 2 by default.
set -euo pipefail
cd "$(dirname "$0")/.."
start=$SECONDS
cross_compiler=aarch64-linux-gnu-g++-12

fail() {
  echo "build_plugins.sh: $1" >&2
  exit 1
}

# Prints what the command said only if it failed.
quietly() {
  "$@" >"$build/log" 2>&1 || {
    cat "$build/log" >&2
    fail "failed: $*"
  }
}

platform=native archs=
while [ $# -gt 0 ]; do
  case $1 in
    --archs)
      [ -n "${2:-}" ] || fail "--archs needs a list, 80,87 for example"
      archs=$2 && shift
      ;;
    --aarch64 | --jetpack6) platform=${1#--} ;;
    *) fail "unknown argument '$1'; usage: build_plugins.sh [--aarch64 | --jetpack6] [--archs LIST]" ;;
  esac
  shift
done
for tool in cmake make c++; do
  command -v "$tool" >/dev/null || fail "$tool is not installed; install g++, make and cmake 3.22 or later"
done

cuda=$(case $platform in
  jetpack6) scripts/fetch_cuda12.sh "$PWD/.build/cuda-12" ;;
  *) scripts/fetch_cuda.sh "$PWD/.build/cuda-13" ;;
esac)
[ "$platform" != aarch64 ] || grep -q 'define CUDART_VERSION *1[3-9]' "$cuda/include/cuda_runtime_api.h" ||
  fail "$cuda is older than CUDA 13, which JetPack 7 has; for JetPack 6 use --jetpack6"
tensorrt=$(scripts/fetch_tensorrt_headers.sh "$PWD/.build/tensorrt_headers")
settings=(-DFASTMMOE_CUDA_HOME="$cuda" -DFASTMMOE_TENSORRT_INCLUDE="$tensorrt")

# Of the ten architectures those that this nvcc knows, in their order.
known_archs() {
  local listed arch known=()
  listed=$("$cuda/bin/nvcc" --list-gpu-arch)
  for arch in 80 86 87 89 90 100 103 110 120 121; do
    if grep -qx "compute_$arch" <<<"$listed"; then known+=("$arch"); fi
  done
  (IFS=, && echo "${known[*]}")
}

libraries=(fastmmoe_trt)
if [ "$platform" = native ]; then
  folder=plugins/lib
  ort=${FASTMMOE_ORT_INCLUDE:-}
  if [ "$(uname -m)" = aarch64 ]; then
    folder=plugins/lib/aarch64
    archs=${archs:-87}
  else
    archs=${archs:-$(known_archs)}
    if [ -z "$ort" ]; then
      scripts/fetch_ort_headers.sh .build/ort_headers
      ort=$PWD/.build/ort_headers/include/onnxruntime
    fi
  fi
  [ -z "$ort" ] || libraries+=(fastmmoe_ort_cuda)
  settings+=(-DFASTMMOE_ORT_INCLUDE="$ort")
else
  folder=plugins/lib/$platform
  archs=${archs:-87}
  command -v "$cross_compiler" >/dev/null || fail "$cross_compiler is not installed; install g++-12-aarch64-linux-gnu"
  runtime=$(scripts/fetch_cuda.sh --aarch64 "$cuda" "$PWD/.build/cuda-aarch64")
  settings+=(-DFASTMMOE_CUDART="$runtime" -DCMAKE_TOOLCHAIN_FILE="$PWD/plugins/cmake/aarch64.cmake")
fi

build=.build/plugins-$platform
mkdir -p "$build" "$folder"
exec 9>"$build/lock"
flock 9
quietly cmake -S plugins -B "$build" -G "Unix Makefiles" -DFASTMMOE_CUDA_ARCHS="${archs//,/;}" "${settings[@]}"
quietly cmake --build "$build" --parallel "${FASTMMOE_JOBS:-2}" --target fastmmoe_cuda
built=()
for library in "${libraries[@]}"; do
  file=lib$library.so
  cmp -s "$build/$file" "$folder/$file" && continue
  # A rename leaves programs that have the old library loaded alone.
  install -m 755 "$build/$file" "$folder/.$file.$$"
  mv "$folder/.$file.$$" "$folder/$file"
  built+=("$folder/$file")
done
[ ${#built[@]} -eq 0 ] || echo "built ${built[*]} for ${archs//;/,} in $((SECONDS - start)) s"
