# SPDX-License-Identifier: Apache-2.0
"""The folder that a run needs on the machine, and how large it is."""

from __future__ import annotations

import lzma
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from fastmmoe.runtime.errors import FastmmoeError
from gpu_acceptance_tools.fat_binaries import NoFatBinary, keep_architecture
from gpu_acceptance_tools.work import REPOSITORY, SITE

MOST_BYTES = 64 << 20
SOURCES = (
    *("fastmmoe/", "runtime/", "exporter/", "plugins/", "tests/support/", "tests/__init__.py", "pyproject.toml"),
    *("scripts/gpu_acceptance", "scripts/build_kernels.sh", "scripts/fetch_c", "scripts/sass_tools/"),
    *("scripts/benchmark_tools/", "scripts/markers.py", "scripts/published_models.py"),
)
LEFT_OUT = ("exporter/demo_model/",)
LIBRARY = Path("plugins/lib/libfastmmoe_ort_cuda.so")
BUNDLES = Path(".build/gpu_acceptance/bundles")
PROVIDER = Path(".build/gpu_acceptance/provider")
PACKAGES = ("msgspec",)
PLATFORMS = ("manylinux2014_x86_64", "manylinux_2_17_x86_64", "manylinux_2_28_x86_64")
ARCH = 90
"""That of the machine: H100 and H200."""
SHARED = "libonnxruntime_providers_shared.so"


class PackError(FastmmoeError):
    """The folder cannot be made."""


def files_of(run: int) -> list[Path]:
    """Paths in the repository that a run needs; those of the second that a build makes as well."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    names = [name for name in listed.stdout.split("\0") if name]
    files = [Path(name) for name in sorted(set(names)) if name.startswith(SOURCES) and not name.startswith(LEFT_OUT)]
    files += _made(SITE.relative_to(REPOSITORY))
    return files if run == 1 else [*files, LIBRARY, *_made(BUNDLES), *_made(PROVIDER)]


def _made(*folders: Path) -> Iterator[Path]:
    for folder in folders:
        for path in sorted((REPOSITORY / folder).rglob("*")):
            if path.is_file():
                yield path.relative_to(REPOSITORY)


def make(run: int, folder: Path, provider: Path | None, python: str | None = None) -> int:
    """Write the folder, and say how large it is: 0, or 1 where it is more than MOST_BYTES.

    Args:
        provider: libonnxruntime_providers_cuda.so of the machine's ONNX Runtime for its GPU, which has
            libonnxruntime_providers_shared.so beside it; None: the machine has it, or goes without.
        python: the machine's version, "3.12", for the packages that it lacks; None: it has them.
    Raises:
        PackError: the folder is not empty, or a file that is built is missing.
    """
    if folder.exists() and any(folder.iterdir()):
        raise PackError(f"{folder} is not empty; give a new folder")
    if run == 2:
        _check_library()
        from gpu_acceptance_tools.bundles import make_bundles

        make_bundles(REPOSITORY / BUNDLES, is_rehearsal=False)
        _take_provider(provider)
    _take_packages(python)
    files = files_of(run)
    for file in files:
        target = folder / file
        target.parent.mkdir(parents=True, exist_ok=True)
        # The package's links lead to folders beside them.
        shutil.copy2(REPOSITORY / file, target, follow_symlinks=False)
    size = sum((folder / file).lstat().st_size for file in files)
    print(f"{folder}: {len(files)} files, {size / (1 << 20):.1f} MiB of at most {MOST_BYTES >> 20}")
    return int(size > MOST_BYTES)


def _check_library() -> None:
    """Our operators for ONNX Runtime's CUDA provider are there, with code for the machine's GPU."""
    command = f"build it: bash scripts/build_plugins.sh --archs {ARCH}"
    if not (REPOSITORY / LIBRARY).is_file():
        raise PackError(f"{LIBRARY} is missing; {command}")
    try:
        keep_architecture(REPOSITORY / LIBRARY, ARCH)
    except NoFatBinary as error:
        raise PackError(f"{error}; {command}") from error


def _take_packages(python: str | None) -> None:
    """Unpack wheels for another Python on x86-64."""
    shutil.rmtree(SITE, ignore_errors=True)
    if python is None:
        return
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "-d", scratch]
        command += ["--python-version", python, "--implementation", "cp"]
        command += [word for platform in PLATFORMS for word in ("--platform", platform)]
        done = subprocess.run([*command, *PACKAGES], capture_output=True, text=True, check=False)
        if done.returncode:
            raise PackError(f"pip cannot download {', '.join(PACKAGES)} for Python {python}: {done.stderr.strip()}")
        for wheel in Path(scratch).glob("*.whl"):
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(SITE)


def _take_provider(provider: Path | None) -> None:
    target = REPOSITORY / PROVIDER
    shutil.rmtree(target, ignore_errors=True)
    if provider is None:
        return
    for file in (provider, provider.with_name(SHARED)):
        if not file.is_file():
            raise PackError(f"{file} is missing; ONNX Runtime's GPU package has it in onnxruntime/capi")
    target.mkdir(parents=True)
    shutil.copy2(provider.with_name(SHARED), target)
    # With the code of one GPU it is a quarter of its size.
    whole = keep_architecture(provider, ARCH)
    (target / f"{provider.name}.xz").write_bytes(lzma.compress(whole, preset=3))
