# SPDX-License-Identifier: Apache-2.0
"""What a source distribution and a wheel hold, and that a wheel alone exports and answers."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastmmoe
from fastmmoe import VLM
from fastmmoe.calibration.data import BUILTIN, load_samples
from fastmmoe.exporter.cli import main as export_main
from fastmmoe.runtime.bundle.manifest import PLUGIN

REPOSITORY = Path(__file__).resolve().parents[1]
FOLDERS = ("runtime", "exporter", "calibration", "plugins")
LIBRARY = "fastmmoe/plugins/lib/libfastmmoe_ort.so"
PLUGINS = (
    "libfastmmoe_trt.so",
    "libfastmmoe_ort_cuda.so",
    "aarch64/libfastmmoe_trt.so",
    "jetpack6/libfastmmoe_trt.so",
)
CROSS_COMPILER = "aarch64-linux-gnu-g++-12"

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
    others = {"fastmmoe/__init__.py", "fastmmoe/py.typed", "optimum/commands/register/register_fastmmoe.py"}
    assert {name for name in names if "/lib/" not in name} == existing | others


def test_plugins_are_a_wheel_of_their_own(tmp_path: Path) -> None:
    project = shutil.copytree(REPOSITORY / "distributions" / "plugins", tmp_path / "distributions" / "plugins")
    (tmp_path / "fastmmoe").mkdir()
    shutil.copy(REPOSITORY / "fastmmoe" / "__init__.py", tmp_path / "fastmmoe")
    for name in PLUGINS:
        (tmp_path / "plugins" / "lib" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "plugins" / "lib" / name).write_text(name, encoding="utf-8")
    made = build("wheel", tmp_path, project)
    assert made.name == f"fastmmoe_plugins-{fastmmoe.__version__}-py3-none-any.whl"
    with zipfile.ZipFile(made) as archive:
        files = {name: archive.read(name).decode() for name in archive.namelist() if ".dist-info/" not in name}
    assert files.pop("fastmmoe_plugins/__init__.py")
    assert files == {f"fastmmoe_plugins/lib/{name}": name for name in PLUGINS}


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bare clone: what git knows, nothing built."""
    directory = tmp_path_factory.mktemp("clone")
    tracked()
    subprocess.run(["git", "clone", "--quiet", str(REPOSITORY), str(directory)], check=True)
    return directory


@pytest.fixture(scope="module")
def wheel(clone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that pip makes of a bare clone."""
    directory = tmp_path_factory.mktemp("wheel")
    pip(clone, sys.executable, "wheel", "--no-deps", "--wheel-dir", str(directory), ".")
    return next(directory.glob("*.whl"))


def pip(directory: Path, python: str | Path, *arguments: str, **environment: str) -> None:
    command = [str(python), "-m", "pip", "--disable-pip-version-check", "--quiet", *arguments]
    done = subprocess.run(
        command, cwd=directory, env=os.environ | environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def clean_environment() -> dict[str, str]:
    """Without what would lead a program into the checkout."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "FASTMMOE"))}


@dataclass(frozen=True)
class Outside:
    """An environment that has the wheels alone, and a folder outside of any checkout."""

    folder: Path

    def install(self, *what: str) -> None:
        pip(self.folder, self.folder / "venv" / "bin" / "python", "install", *what)

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        program = str(self.folder / "venv" / "bin" / "fastmmoe")
        return subprocess.run(
            [program, *command], cwd=self.folder, env=clean_environment(), capture_output=True, text=True, check=False
        )

    def refusal(self, *command: str) -> str:
        """The one line that refuses it."""
        done = self.run(*command)
        assert done.returncode == 2, done.stderr
        assert done.stderr.count("\n") == 1
        return done.stderr

    def export(self, *arguments: str) -> None:
        done = self.run("export", "demo", *arguments)
        assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def outside(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Outside:
    """With the extra export, and no ONNX Runtime."""
    made = Outside(tmp_path_factory.mktemp("outside"))
    subprocess.run([sys.executable, "-m", "venv", str(made.folder / "venv")], check=True)
    torch = f"torch=={importlib.metadata.version('torch').partition('+')[0]}"
    made.install(f"{wheel}[export]", torch)
    return made


@pytest.mark.slow
def test_wheel_alone_exports_and_answers(outside: Outside, wheel: Path) -> None:
    assert "pip install 'fastmmoe[cpu]'" in outside.refusal("export", "demo", "out")
    outside.install(f"{wheel}[cpu]")
    outside.export("out")
    question = ("run", "out", "--prompt", "What color is the star?", "--max-new-tokens", "4")
    native, portable = outside.run(*question), outside.run(*question, "--portable")
    assert native.returncode == portable.returncode == 0, native.stderr + portable.stderr
    assert native.stdout == portable.stdout != ""


@pytest.mark.slow
def test_optimum_exports_the_same_bytes(outside: Outside, wheel: Path) -> None:
    """With the released Optimum and its ONNX exporter, through the command that it finds by itself."""
    outside.install(f"{wheel}[cpu,optimum]", "optimum-onnx")
    outside.export("by-fastmmoe")
    program = str(outside.folder / "venv" / "bin" / "optimum-cli")
    command = [program, "export", "fastmmoe", "-m", "demo", "by-optimum", "--task", "image-text-to-text"]
    done = subprocess.run(
        command, cwd=outside.folder, env=clean_environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    files = [
        {path.name: path.read_bytes() for path in (outside.folder / name).iterdir()}
        for name in ("by-fastmmoe", "by-optimum")
    ]
    assert files[0] == files[1] and len(files[0]) == 9
    failed = subprocess.run(
        [*command, "--task", "fill-mask"], cwd=outside.folder, env=clean_environment(), capture_output=True, check=False
    )
    assert failed.returncode == 2


@pytest.mark.slow
def test_both_wheels_export_for_tensorrt(outside: Outside, wheel: Path, tmp_path: Path) -> None:
    """As docs/install.md says: without the second wheel one line names it, with it bundles for TensorRT are made."""
    for name in PLUGINS:
        if not (REPOSITORY / "plugins" / "lib" / name).is_file():
            pytest.skip(f"needs plugins/lib/{name}: make plugins jetpack6")
    outside.install(f"{wheel}[cpu,rtx]")
    line = f"`pip install fastmmoe-plugins=={fastmmoe.__version__}` brings it"
    for target in ("jetson-orin", "rtx"):
        assert line in outside.refusal("export", "demo", target, "--target", target)
    outside.install(str(build("wheel", tmp_path, REPOSITORY / "distributions" / "plugins")))
    for target, library in zip(("rtx", "jetson-orin", "jetson-orin@jp6.2"), PLUGINS, strict=True):
        outside.export(target, "--target", target)
        verified = outside.run("verify", target)
        assert verified.returncode == 0, verified.stderr
        built = (REPOSITORY / "plugins" / "lib" / library).read_bytes()
        assert (outside.folder / target / PLUGIN).read_bytes() == built
    # An engine of a Jetson is built there; the one for RTX needs no GPU.
    assert "aarch64" in outside.refusal("build", "jetson-orin")
    again = outside.run("build", "rtx")
    assert again.returncode == 0, again.stderr


@pytest.fixture(scope="module")
def aarch64_wheel(clone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel for aarch64 that pip makes of a bare clone, as docs/install.md says."""
    if platform.machine() != "x86_64":
        pytest.skip("needs an x86-64 machine")
    if shutil.which(CROSS_COMPILER) is None:
        pytest.skip(f"needs {CROSS_COMPILER}")
    directory = tmp_path_factory.mktemp("aarch64-wheel")
    toolchain = ("-C", f"cmake.toolchain-file={clone}/plugins/cmake/aarch64.cmake")
    arguments = ("wheel", "--no-deps", "--wheel-dir", str(directory), *toolchain, ".")
    pip(clone, sys.executable, *arguments, _PYTHON_HOST_PLATFORM="linux-aarch64")
    return next(directory.glob("*.whl"))


@pytest.mark.slow
@pytest.mark.parametrize("machine", [platform.machine(), "aarch64"])
def test_auditwheel_finds_that_it_may_be_called_manylinux_2_28(
    machine: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    made: Path = request.getfixturevalue("wheel" if machine == platform.machine() else "aarch64_wheel")
    assert made.name.endswith(f"-py3-none-linux_{machine}.whl")
    with zipfile.ZipFile(made) as archive:
        assert [name for name in archive.namelist() if name.endswith(".so")] == [LIBRARY]
    pip(tmp_path, sys.executable, "install", "--target", "tools", "auditwheel")
    command = [sys.executable, "-m", "auditwheel", "show", str(made)]
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "tools")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    tag = re.search(rf'"manylinux_2_(\d+)_{machine}"', done.stdout)
    assert tag is not None and int(tag[1]) <= 28, done.stdout + done.stderr


@pytest.fixture(scope="module")
def aarch64_python() -> str:
    """A command that is Python for aarch64, run by an emulator."""
    command = ["bash", "scripts/fetch_aarch64_python.sh"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"needs an emulator and Python for aarch64: {done.stderr.strip()}")
    return done.stdout.strip()


@pytest.mark.slow
def test_aarch64_wheel_answers_as_on_x86_64(aarch64_wheel: Path, aarch64_python: str, tmp_path: Path) -> None:
    """With the wheels of ONNX Runtime and NumPy that a device takes, native and portable."""
    platforms = [word for minor in range(28, 16, -1) for word in ("--platform", f"manylinux_2_{minor}_aarch64")]
    options = ("--target", "site", "--only-binary=:all:", "--platform", "linux_aarch64", *platforms)
    version = aarch64_python.rpartition("python")[2]
    pip(tmp_path, sys.executable, "install", *options, "--python-version", version, f"{aarch64_wheel}[cpu]")
    sample = load_samples(BUILTIN, split="test", count=1)[0]
    sample.image.save(tmp_path / "scene.png")
    assert export_main(["demo", str(tmp_path / "out")]) == 0
    vlm = VLM(tmp_path / "out")
    expected = vlm.generate(sample.messages, retention=0.5, max_new_tokens=4)
    assert len(expected.token_ids) >= 2 and expected.stats.kept_visual_tokens[-1] < expected.stats.visual_tokens
    tensors = {"input_ids": np.arange(3, 35)[None]}
    np.savez(tmp_path / "in.npz", **tensors)  # type: ignore[arg-type]
    wanted = vlm.run_tensors(tensors, max_new_tokens=2)
    command = [aarch64_python, "site/bin/fastmmoe", "run", "out", "--json"]
    environment = clean_environment() | {"PYTHONPATH": str(tmp_path / "site")}

    def run(*arguments: str) -> dict[str, Any]:
        words = [*command, *arguments]
        done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    question = ("--image", "scene.png", "--prompt", sample.question, "--retention", "0.5", "--max-new-tokens", "4")
    for flags in ((), ("--portable",)):
        answer = run(*question, *flags)
        assert answer["token_ids"] == list(expected.token_ids)
        assert answer["kept_visual_tokens"] == list(expected.stats.kept_visual_tokens)
        run("--inputs", "in.npz", "--dump", "out.npz", "--max-new-tokens", "2", *flags)
        with np.load(tmp_path / "out.npz") as found:
            for name in ("logits", "decode_logits"):
                np.testing.assert_allclose(found[name], wanted[name], rtol=0, atol=1e-4)
