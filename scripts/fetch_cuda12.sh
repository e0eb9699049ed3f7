#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# fetch_cuda12.sh DIR: prints the folder of a CUDA 12 toolkit, whose programs a Jetson with JetPack 6 runs: $CUDA_HOME,
# else DIR, into which go nvcc 12.4 of Debian's suite trixie (non-free) and the headers of the same release from pip, as
# pip has no nvcc before CUDA 13.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/fetch_common.sh"
cd "$(dirname "$0")/.."
dir=${1:?usage: fetch_cuda12.sh DIR}

remedy="set CUDA_HOME to a CUDA 12 toolkit, 12.4 to 12.6"

if [ -n "${CUDA_HOME:-}" ]; then
  release=$("$CUDA_HOME/bin/nvcc" --version 2>/dev/null | sed -n 's/.* release \([0-9.]*\),.*/\1/p') || true
  [[ $release == 12.* ]] || fail "CUDA_HOME is '$CUDA_HOME' of release '$release'"
  (cd "$CUDA_HOME" && pwd)
  exit
fi
if [ -x "$dir/bin/nvcc" ]; then
  echo "$dir"
  exit
fi

mkdir -p "$(dirname "$dir")"
tmp=$(mktemp -d "$dir.XXXXXX")
trap 'rm -rf "$tmp"' EXIT
scripts/fetch_debian_packages.sh trixie non-free "$tmp/package" nvidia-cuda-toolkit ||
  fail "no package nvidia-cuda-toolkit"
log=$("$python" -m pip install --disable-pip-version-check --no-deps --target "$tmp/pip" \
  'nvidia-cuda-runtime-cu12==12.4.*' 'nvidia-cuda-nvcc-cu12==12.4.*' 'nvidia-cuda-cccl-cu12==12.4.*' 2>&1) ||
  fail "pip cannot install the headers of CUDA 12.4: $(tail -n 1 <<<"$log")"

# Debian and pip spread over several folders what nvcc expects in one.
debian=$tmp/package/usr/lib/nvidia-cuda-toolkit toolkit=$tmp/toolkit
mkdir -p "$toolkit/bin" "$toolkit/nvvm/bin"
cp "$tmp/package/usr/bin"/{cudafe++,fatbinary,ptxas} "$debian/bin/nvcc" "$toolkit/bin/"
cp "$debian/bin/cicc" "$toolkit/nvvm/bin/"
cp -r "$debian/libdevice" "$toolkit/nvvm/"
cp -r --no-target-directory "$tmp/pip/nvidia/cuda_runtime/include" "$toolkit/include"
cp -r --no-target-directory "$tmp/pip/nvidia/cuda_nvcc/include" "$toolkit/include"
cp -r --no-target-directory "$tmp/pip/nvidia/cuda_cccl/include" "$toolkit/include"
cat >"$toolkit/bin/nvcc.profile" <<'PROFILE'
TOP = $(_HERE_)/..
CICC_PATH = $(TOP)/nvvm/bin
NVVMIR_LIBRARY_DIR = $(TOP)/nvvm/libdevice
PATH += $(CICC_PATH):$(_HERE_):
INCLUDES += "-I$(TOP)/include" $(_SPACE_)
PROFILE
# A rename is atomic; a run beside this one may have been first.
mv -T "$toolkit" "$dir" 2>/dev/null || [ -x "$dir/bin/nvcc" ] || fail "cannot write $dir"
echo "$dir"
