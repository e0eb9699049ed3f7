# SPDX-License-Identifier: Apache-2.0
"""Measure and check what a base installation costs: its size, its start-up times, what it imports.

    python scripts/measure_footprint.py [--export-venv PYTHON] [--resolve]

Installs this repository with the extra cpu alone into a new temporary environment. Prints one line per value with its
limit; exit code 1 where a limit is passed.
"""

from __future__ import annotations

import argparse
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]

LIMIT_SIZE_MB = 160.0
LIMIT_IMPORT_S = 0.3
LIMIT_HELP_S = 0.5
REPEATS = 5

NOT_COUNTED = ("onnxruntime", "pip", "setuptools")
UNWANTED = ("torch", "transformers", "huggingface_hub")

# JetPack 6: Python 3.10 on aarch64 with glibc 2.35, so every one of these tags may be installed there.
EDGE_PYTHON = "310"
EDGE_PLATFORMS = (*(f"manylinux_2_{minor}_aarch64" for minor in range(35, 16, -1)), "manylinux2014_aarch64")

IMPORT_ALL = """
import importlib, pkgutil, sys
import fastmmoe.runtime
for module in pkgutil.walk_packages(fastmmoe.runtime.__path__, "fastmmoe.runtime."):
    importlib.import_module(module.name)
print(" ".join(name for name in sys.argv[1:] if name in sys.modules))
"""

# Of the base installation and the extra cpu.
REQUIREMENTS = """
from importlib.metadata import requires
parts = [text.partition(";") for text in requires("fastmmoe")]
print("\\n".join(name.strip() for name, _, marker in parts if not marker or "'cpu'" in marker.replace('"', "'")))
"""


def run(command: list[str]) -> str:
    """Run a command and return its output; on failure print what it said and leave with exit code 1."""
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tempfile.gettempdir())
    if result.returncode != 0:
        sys.exit(f"{' '.join(command)} failed with exit code {result.returncode}:\n{result.stderr.strip()[-2000:]}")
    return result.stdout


def say(name: str, value: float, limit: float, unit: str) -> bool:
    """Print one measured value; True where it is within its limit."""
    good = value <= limit
    print(f"{name:36} {value:8.2f} {unit:2}   limit {limit:g} {unit}   {'ok' if good else 'TOO MUCH'}", flush=True)
    return good


def create_base_install(directory: Path) -> Path:
    """Make an environment with this repository, its base dependencies and ONNX Runtime; return its python."""
    run([sys.executable, "-m", "venv", str(directory / "venv")])
    python = directory / "venv" / "bin" / "python"
    run([str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", f"{REPOSITORY}[cpu]"])
    return python


def installed_mb(python: Path) -> dict[str, float]:
    """Size on disk in MB of each folder and file of site-packages, without byte code."""
    site = Path(run([str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]).strip())
    sizes = {}
    for entry in site.iterdir():
        files = entry.rglob("*") if entry.is_dir() else iter([entry])
        sizes[entry.name] = sum(f.stat().st_size for f in files if f.is_file() and f.suffix != ".pyc") / 1e6
    return sizes


def check_size(python: Path) -> bool:
    """Compare the size of everything but onnxruntime, which the platform chooses, and the installers."""
    sizes = installed_mb(python)
    counted = {name: mb for name, mb in sizes.items() if re.split(r"[-.]", name)[0].lower() not in NOT_COUNTED}
    largest = sorted(counted.items(), key=lambda item: -item[1])[:6]
    print("largest: " + ", ".join(f"{name} {mb:.1f} MB" for name, mb in largest))
    return say("size without onnxruntime and pip", sum(counted.values()), LIMIT_SIZE_MB, "MB")


def seconds(command: list[str]) -> float:
    """Median wall time of a command over REPEATS runs, after one that fills the caches."""
    run(command)
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        run(command)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def time_checks(python: Path) -> Iterator[bool]:
    """Start-up of the package and of the command of a base installation."""
    command = str(python.with_name("fastmmoe"))
    bare = seconds([str(python), "-c", ""])
    imported = seconds([str(python), "-c", "import fastmmoe"])
    yield say("import fastmmoe", max(imported - bare, 0.0), LIMIT_IMPORT_S, "s")
    yield say("fastmmoe --help", seconds([command, "--help"]), LIMIT_HELP_S, "s")
    yield say("fastmmoe run --help", seconds([command, "run", "--help"]), LIMIT_HELP_S, "s")


def check_imports(python: Path) -> bool:
    """Import every module of the runtime and see that none of UNWANTED came with it."""
    loaded = run([str(python), "-c", IMPORT_ALL, *UNWANTED]).split()
    print(f"imported by fastmmoe.runtime: {', '.join(loaded) or 'none'} of {', '.join(UNWANTED)}", flush=True)
    return not loaded


def check_wheels(python: Path, directory: Path) -> bool:
    """Download each base dependency, and its own, as the wheels a JetPack 6 device would take."""
    requirements = run([str(python), "-c", REQUIREMENTS]).split()
    platforms = [argument for platform in EDGE_PLATFORMS for argument in ("--platform", platform)]
    options = ["--quiet", "--disable-pip-version-check", "--only-binary=:all:", "--python-version", EDGE_PYTHON]
    good = True
    for requirement in requirements:
        command = [str(python), "-m", "pip", "download", *options, *platforms, "--dest", str(directory), requirement]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        good = good and result.returncode == 0
        outcome = "wheels found" if result.returncode == 0 else result.stderr.strip().split("\n")[-1]
        print(f"aarch64, Python 3.10: {requirement}: {outcome}", flush=True)
    return good


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure and check what a base installation costs.")
    parser.add_argument(
        "--export-venv", type=Path, metavar="PYTHON", help="also time fastmmoe-export beside this python"
    )
    parser.add_argument("--resolve", action="store_true", help="also look for the wheels of an aarch64 device")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fastmmoe-footprint-") as directory:
        python = create_base_install(Path(directory))
        checks = [check_size(python), check_imports(python), *time_checks(python)]
        if arguments.export_venv:
            command = [str(arguments.export_venv.absolute().with_name("fastmmoe-export")), "--help"]
            checks.append(say("fastmmoe-export --help", seconds(command), LIMIT_HELP_S, "s"))
        if arguments.resolve:
            checks.append(check_wheels(python, Path(directory) / "wheels"))
    return 0 if all(checks) else 1


if __name__ == "__main__":
    sys.exit(main())
