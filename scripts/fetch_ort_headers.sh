#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Put ONNX Runtime's C and C++ headers (API 21) into DIR/include/onnxruntime. Nothing is done where they are already.
# They come from the Debian package libonnxruntime-dev of the suite trixie.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/fetch_common.sh"

dir=${1:?usage: fetch_ort_headers.sh DIR}
target=$dir/include/onnxruntime
header=onnxruntime_cxx_api.h
[ -f "$target/$header" ] && exit 0

remedy="set FASTMMOE_ORT_INCLUDE to a folder with $header (API 21 or later)"

mkdir -p "$dir/include"
tmp=$(mktemp -d "$dir/.fetch.XXXXXX")
trap 'rm -rf "$tmp"' EXIT
"$(dirname "$0")/fetch_debian_packages.sh" trixie main "$tmp/package" libonnxruntime-dev ||
  fail "no package libonnxruntime-dev"
[ -f "$tmp/package/usr/include/onnxruntime/$header" ] || fail "libonnxruntime-dev holds no include/onnxruntime/$header"
# A rename is atomic; a run beside this one may have been first.
mv -T "$tmp/package/usr/include/onnxruntime" "$target" 2>/dev/null || [ -f "$target/$header" ] ||
  fail "cannot write $target"
