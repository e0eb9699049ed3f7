# SPDX-License-Identifier: Apache-2.0
"""What a source distribution and a wheel hold, and that a wheel alone exports and answers."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import fastmmoe

REPOSITORY = Path(__file__).resolve().parents[1]
FOLDERS = ("runtime", "exporter", "calibration", "plugins")
LIBRARY = "fastmmoe/plugins/lib/libfastmmoe_ort.so"

# One of the build system's two functions, as pip calls it; the name of the file comes last.
BUILD = """
import sys
from scikit_build_core import build
print(getattr(build, f"build_{sys.argv[1]}")(sys.argv[2], {"wheel.cmake": "false"}))
"""


def tracked(*folders: str) -> set[str]:
    """Files that git knows."""
    command = ["git", "ls-files", *folders]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip("needs git and a clone")
    return set(done.stdout.splitlines())


def build(kind: str, out: Path, project: Path = REPOSITORY) -> Path:
    """A distribution of the checkout, without its native library."""
    command = [sys.executable, "-c", BUILD, kind, str(out)]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return out / done.stdout.splitlines()[-1]


def test_one_version() -> None:
    assert importlib.metadata.version("fastmmoe") == fastmmoe.__version__


def test_sdist_holds_what_builds_the_libraries(tmp_path: Path) -> None:
    with tarfile.open(build("sdist", tmp_path)) as archive:
        members = {member.name.partition("/")[2]: member for member in archive}
    wanted = {name for name in tracked(*FOLDERS, "fastmmoe", "scripts") if (REPOSITORY / name).exists()}
    assert wanted <= members.keys()
    assert {Path(name).suffix for name in wanted} >= {".cpp", ".cu", ".cuh", ".h", ".sh", ".py"}
    assert {"pyproject.toml", "LICENSE", "README.md", "Makefile"} <= members.keys()
    for name in FOLDERS:
        assert members[f"fastmmoe/{name}"].linkname == f"../{name}"
    assert not [name for name in members if name.endswith(".so") or name.startswith((".venv", ".build", "tests"))]


def test_wheel_holds_the_python_files_and_their_data(tmp_path: Path) -> None:
    with zipfile.ZipFile(build("wheel", tmp_path)) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    sources = (".cpp", ".h", ".cu", ".cuh", ".cmake", ".map", "CMakeLists.txt")
    files = {f"fastmmoe/{name}" for name in tracked(*FOLDERS) if not name.endswith(sources)}
    existing = {name for name in files if (REPOSITORY / name).exists()}
    assert {name for name in names if "/lib/" not in name} == existing | {"fastmmoe/__init__.py", "fastmmoe/py.typed"}


def test_plugins_are_a_wheel_of_their_own(tmp_path: Path) -> None:
    libraries = ("libfastmmoe_trt.so", "aarch64/libfastmmoe_trt.so")
    for name in libraries:
        if not (REPOSITORY / "plugins" / "lib" / name).is_file():
            pytest.skip(f"needs plugins/lib/{name}: make plugins")
    made = build("wheel", tmp_path, REPOSITORY / "distributions" / "plugins")
    assert made.name == f"fastmmoe_plugins-{fastmmoe.__version__}-py3-none-any.whl"
    with zipfile.ZipFile(made) as archive:
        names = [name for name in archive.namelist() if ".dist-info/" not in name]
    assert sorted(names) == sorted(["fastmmoe_plugins/__init__.py", *(f"fastmmoe_plugins/lib/{n}" for n in libraries)])


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that pip makes of a bare clone."""
    directory = tmp_path_factory.mktemp("wheel")
    tracked()
    subprocess.run(["git", "clone", "--quiet", str(REPOSITORY), str(directory / "clone")], check=True)
    pip(directory, sys.executable, "wheel", "--no-deps", "--wheel-dir", str(directory), str(directory / "clone"))
    return next(directory.glob("*.whl"))


def pip(directory: Path, python: str | Path, *arguments: str) -> None:
    command = [str(python), "-m", "pip", "--disable-pip-version-check", "--quiet", *arguments]
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_wheel_of_a_bare_clone_is_for_this_platform(wheel: Path) -> None:
    assert wheel.name.endswith(f"-py3-none-linux_{platform.machine()}.whl")
    with zipfile.ZipFile(wheel) as archive:
        assert [name for name in archive.namelist() if name.endswith(".so")] == [LIBRARY]


@pytest.mark.slow
def test_wheel_alone_exports_and_answers(wheel: Path, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    programs = tmp_path / "venv" / "bin"
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "FASTMMOE"))}

    def answer(*command: str) -> subprocess.CompletedProcess[str]:
        line = [str(programs / "fastmmoe"), *command]
        return subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    question = ("run", "out", "--prompt", "What color is the star?", "--max-new-tokens", "4")
    torch = f"torch=={importlib.metadata.version('torch').partition('+')[0]}"
    pip(tmp_path, programs / "python", "install", f"{wheel}[export]", torch)
    refused = answer("export", "demo", "out")
    assert refused.returncode == 2
    assert "pip install 'fastmmoe[cpu]'" in refused.stderr and refused.stderr.count("\n") == 1
    pip(tmp_path, programs / "python", "install", f"{wheel}[cpu]")
    exported = answer("export", "demo", "out")
    assert exported.returncode == 0, exported.stderr
    native, portable = answer(*question), answer(*question, "--portable")
    assert native.returncode == portable.returncode == 0, native.stderr + portable.stderr
    assert native.stdout == portable.stdout != ""
