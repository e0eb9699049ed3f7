# SPDX-License-Identifier: Apache-2.0
"""ONNX Runtime that is not there, there twice or damaged is one line that mends it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fastmmoe.runtime.backends import distribution
from fastmmoe.runtime.backends.distribution import NO_TELEMETRY, check_onnxruntime
from fastmmoe.runtime.cli.command import check_installed
from fastmmoe.runtime.errors import BackendMissing, InvalidRequest
from fastmmoe.runtime.machines.gpu import Gpu


class Site:
    """An environment's folder of packages, the only one that Python looks into."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def install(self, name: str, version: str) -> None:
        """The metadata of a distribution and the module that both bring."""
        info = self.folder / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", "utf-8")
        module = self.folder / "onnxruntime"
        module.mkdir(exist_ok=True)
        (module / "__init__.py").touch()


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "onnxruntime", raising=False)
    monkeypatch.setattr(distribution, "find_gpu", lambda: None)
    return Site(tmp_path)


def refusal() -> str:
    with pytest.raises(BackendMissing) as refused:
        check_onnxruntime()
    return str(refused.value)


@pytest.mark.parametrize("name", ["onnxruntime", "onnxruntime-gpu"])
def test_one_of_them_is_enough(site: Site, name: str) -> None:
    site.install(name, "1.31.1")
    check_onnxruntime()


def test_a_build_of_another_name_is_not_questioned(site: Site) -> None:
    site.install("onnxruntime-openvino", "1.24.1")
    check_onnxruntime()


def test_none(site: Site) -> None:
    assert refusal() == f"ONNX Runtime is not installed for {sys.executable}: pip install 'fastmmoe[cpu]'"


@pytest.mark.parametrize(
    ("machine", "line"),
    [
        ("x86_64", "pip install 'fastmmoe[cpu]', or 'fastmmoe[gpu]' for bundles that run on the GPU"),
        ("aarch64", "pip install 'fastmmoe[cpu]'"),
    ],
)
def test_the_line_goes_by_the_machine(site: Site, monkeypatch: pytest.MonkeyPatch, machine: str, line: str) -> None:
    monkeypatch.setattr(distribution, "find_gpu", lambda: Gpu("L4", 89))
    monkeypatch.setattr("platform.machine", lambda: machine)
    assert refusal().endswith(f": {line}")


def test_both_over_each_other(site: Site) -> None:
    site.install("onnxruntime-gpu", "1.31.1")
    site.install("onnxruntime", "1.32.0")
    assert refusal() == (
        "onnxruntime 1.32.0 and onnxruntime-gpu 1.31.1 are installed over each other: keep one of them, for example "
        "pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'fastmmoe[gpu]'"
    )


def test_what_the_removal_of_the_other_one_leaves(site: Site) -> None:
    site.install("onnxruntime-gpu", "1.31.1")
    (site.folder / "onnxruntime" / "__init__.py").unlink()
    assert refusal() == (
        "onnxruntime-gpu has lost files to another package: pip install --force-reinstall --no-deps onnxruntime-gpu"
    )


def test_extras_of_what_is_missing_come_in_one_line(site: Site) -> None:
    with pytest.raises(InvalidRequest, match=r"^it needs no_such_module: pip install 'fastmmoe\[cpu,export\]'$"):
        check_installed("it", ["no_such_module"], "export")
    with pytest.raises(BackendMissing, match="ONNX Runtime is not installed"):
        check_installed("it", [], "export")
    site.install("onnxruntime", "1.32.0")
    with pytest.raises(InvalidRequest, match=r"^it needs no_such_module: pip install 'fastmmoe\[export\]'$"):
        check_installed("it", ["no_such_module"], "export")
    check_installed("it", [], "export")


def test_onnx_runtime_writes_nothing_about_its_user(tmp_path: Path) -> None:
    """Its telemetry would leave a device id and events in the home folder."""
    environment = {k: v for k, v in os.environ.items() if k not in (NO_TELEMETRY, "XDG_CACHE_HOME")}
    program = (
        "import fastmmoe.runtime.backends.onnxruntime as b; b.ort.SessionOptions(); b.ort.get_available_providers()"
    )
    command = [sys.executable, "-c", program]
    subprocess.run(command, env=environment | {"HOME": str(tmp_path)}, check=True)
    assert list(tmp_path.rglob("*")) == []
