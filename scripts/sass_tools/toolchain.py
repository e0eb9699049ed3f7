# SPDX-License-Identifier: Apache-2.0
"""The programs that the report needs, and how they are run."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

from fastmmoe.runtime.errors import FastmmoeError

REPOSITORY = Path(__file__).resolve().parents[2]
PLUGINS = REPOSITORY / "plugins"
BUILD = REPOSITORY / ".build" / "sass_report"
DOWNLOADS = REPOSITORY / ".build" / "cuda_tools"

PACKAGES = ("nvidia-cuda-cuobjdump==13.*", "nvidia-cuda-nvdisasm==13.*")  # cuobjdump calls nvdisasm
DOWNLOADED_BIN = DOWNLOADS / "nvidia" / "cu13" / "bin"


class ReportError(FastmmoeError):
    """The report cannot be made, or would be wrong."""


def find_tool(name: str, advice: str) -> str:
    """The path of a program, or ReportError with the advice."""
    found = shutil.which(name)
    if found is None:
        raise ReportError(f"{name} is not installed: {advice}")
    return found


@functools.cache
def find_nvcc() -> str:
    """nvcc of $CUDA_HOME, else of $PATH, else the one that scripts/fetch_cuda.sh fetches into .build."""
    script, folder = REPOSITORY / "scripts" / "fetch_cuda.sh", REPOSITORY / ".build" / "cuda-13"
    toolkit, _ = run(["bash", script, folder])
    return str(Path(toolkit.strip()) / "bin" / "nvcc")


@functools.cache
def find_cuobjdump() -> str:
    """cuobjdump of $PATH, else the one that pip fetches from NVIDIA's packages into .build."""
    installed = shutil.which("cuobjdump")
    if installed and shutil.which("nvdisasm"):
        return installed
    if not DOWNLOADED_BIN.is_dir():
        _download()
    return str(DOWNLOADED_BIN / "cuobjdump")


def _download() -> None:
    DOWNLOADS.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=DOWNLOADS.parent) as name:
        folder = Path(name)
        pip = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--no-deps", "-d", name]
        run([*pip, *PACKAGES])
        for wheel in folder.glob("*.whl"):
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(folder / "unpacked")
        tools = folder / "unpacked" / DOWNLOADED_BIN.relative_to(DOWNLOADS)
        for tool in ("cuobjdump", "nvdisasm"):
            if not (tools / tool).is_file():
                raise ReportError(f"the packages {' and '.join(PACKAGES)} hold no {tool}: put it into $PATH")
            (tools / tool).chmod(0o755)
        shutil.copytree(folder / "unpacked", DOWNLOADS, dirs_exist_ok=True)


def run(command: Iterable[str | Path], *, text: str = "", environment: dict[str, str] | None = None) -> tuple[str, str]:
    """Run a program with `text` as its input; (stdout, stderr), or ReportError with what it said."""
    words = [str(word) for word in command]
    settings = os.environ | (environment or {})
    done = subprocess.run(words, input=text, capture_output=True, text=True, check=False, env=settings)
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise ReportError(f"{Path(words[0]).name} failed ({' '.join(words)}): {' / '.join(said[-5:])}")
    return done.stdout, done.stderr
