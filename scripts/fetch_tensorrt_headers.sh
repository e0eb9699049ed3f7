#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# fetch_tensorrt_headers.sh DIR: prints a folder with NvInfer.h of TensorRT 10 or later: $FASTMMOE_TENSORRT_INCLUDE,
# else that of JetPack and of NVIDIA's system packages, else DIR, into which pip puts the headers of 10.14.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/fetch_common.sh"
cd "$(dirname "$0")/.."
# The package kernel-lens carries TensorRT's headers.
package=kernel-lens==2.0.1
dir=${1:?usage: fetch_tensorrt_headers.sh DIR}

remedy="set FASTMMOE_TENSORRT_INCLUDE to a folder with NvInfer.h of TensorRT 10"

# TensorRT 10 brought the class that plugins derive from.
is_usable() { [ -f "$1/NvInfer.h" ] && grep -qsw IPluginV3OneBuild "$1"/NvInferRuntime*.h; }

if [ -n "${FASTMMOE_TENSORRT_INCLUDE:-}" ]; then
  is_usable "$FASTMMOE_TENSORRT_INCLUDE" ||
    fail "FASTMMOE_TENSORRT_INCLUDE is '$FASTMMOE_TENSORRT_INCLUDE', which has no NvInfer.h of TensorRT 10 or later"
  echo "$FASTMMOE_TENSORRT_INCLUDE"
  exit
fi
for folder in /usr/include/aarch64-linux-gnu /usr/include/x86_64-linux-gnu "$dir"; do
  if is_usable "$folder"; then
    echo "$folder"
    exit
  fi
done

mkdir -p "$(dirname "$dir")"
tmp=$(mktemp -d "$dir.XXXXXX")
trap 'rm -rf "$tmp"' EXIT
log=$("$python" -m pip install --disable-pip-version-check --no-deps --target "$tmp" "$package" 2>&1) ||
  fail "pip cannot install $package: $(tail -n 1 <<<"$log")"
is_usable "$tmp/kernel_lens/include/tensorrt" || fail "$package has no headers of TensorRT 10"
# A rename is atomic; a run beside this one may have been first.
mv -T "$tmp/kernel_lens/include/tensorrt" "$dir" 2>/dev/null || is_usable "$dir" || fail "cannot write $dir"
echo "$dir"
