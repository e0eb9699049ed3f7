#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# fetch_aarch64_python.sh: prints the path of a command that is Python 3.11 for aarch64, on an x86-64 machine: the one of
# Debian bookworm, run by the emulator qemu 10 of Debian trixie as on a Cortex-A76. Both go into .build/aarch64 unless
# they are there. Under qemu 7.2, which bookworm has, `import onnxruntime` ends in a segmentation fault.
set -euo pipefail
. "$(dirname "${BASH_SOURCE[0]}")/fetch_common.sh"
cd "$(dirname "$0")/.."
folder=$PWD/.build/aarch64
python=$folder/python3.11

if [ -x "$python" ]; then
  echo "$python"
  exit
fi

mkdir -p .build
tmp=$(mktemp -d "$folder.XXXXXX")
trap 'rm -rf "$tmp"' EXIT
scripts/fetch_debian_packages.sh trixie main "$tmp/emulator" qemu-user || fail "no package qemu-user"
libraries=(libc6 libgcc-s1 libstdc++6 zlib1g libbz2-1.0 libcrypt1 libexpat1 libffi8 liblzma5 libssl3 libuuid1)
packages=(python3.11-minimal libpython3.11-minimal libpython3.11-stdlib "${libraries[@]}")
scripts/fetch_debian_packages.sh bookworm main "$tmp/all/root" "${packages[@]/%/:arm64}" || fail "no Python for arm64"
mv "$tmp/emulator/usr/bin/qemu-aarch64" "$tmp/all/"
cat >"$tmp/all/python3.11" <<'COMMAND'
#!/bin/sh
folder=$(dirname "$0")
exec "$folder/qemu-aarch64" -cpu cortex-a76 -L "$folder/root" "$folder/root/usr/bin/python3.11" "$@"
COMMAND
chmod 755 "$tmp/all" "$tmp/all/python3.11"
"$tmp/all/python3.11" -c 'import ssl, uuid, ctypes, lzma, bz2, pyexpat' || fail "Python for arm64 does not run"
# A rename is atomic; a run beside this one may have been first.
mv -T "$tmp/all" "$folder" 2>/dev/null || [ -x "$python" ] || fail "cannot write $folder"
echo "$python"
