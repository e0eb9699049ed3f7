# SPDX-License-Identifier: Apache-2.0
"""Driver, TensorRT, plugin and ONNX Runtime, on made machines and the double of TensorRT."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from fastmmoe.runtime.doctor import software
from fastmmoe.runtime.doctor.host import Finding
from fastmmoe.runtime.doctor.software import EXPORTS, build_tiny_engine, probe_software
from fastmmoe.runtime.errors import BackendMissing
from fastmmoe.runtime.machines.gpu import Gpu
from tests.support.double import DOUBLES, Double
from tests.support.machine_trees import CONTAINER, LAPTOP, ORIN_JETPACK_6, ORIN_JETPACK_7, Files, machine

ORIN, LAPTOP_GPU, OLD = Gpu("Orin", 87), Gpu("NVIDIA GeForce RTX 4090 Laptop GPU", 89), Gpu("GTX 1080", 61)


@pytest.fixture
def software_of(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., dict[str, Finding]]:
    """Function (files, gpu, modules that are installed) -> findings by name; TensorRT is not asked."""

    def probe(files: Files, gpu: Gpu | None, modules: tuple[str, ...] = (), asks: bool = False) -> dict[str, Finding]:
        find = importlib.util.find_spec

        def find_spec(name: str, package: str | None = None) -> ModuleSpec | None:
            if name in software.TENSORRT_PACKAGES:
                return ModuleSpec(name, None) if name in modules else None
            return find(name, package)

        monkeypatch.setattr(importlib.util, "find_spec", find_spec)
        monkeypatch.setattr(software, "find_gpu", lambda: gpu)
        made = machine(tmp_path_factory.mktemp("machine"), files)
        return {finding.name: finding for finding in probe_software(made, asks_tensorrt=asks)}

    return probe


def test_a_laptop(software_of: Callable[..., dict[str, Finding]]) -> None:
    found = software_of(LAPTOP, LAPTOP_GPU)
    expected = "NVIDIA GeForce RTX 4090 Laptop GPU, SM 89, driver 580.65.06"
    assert found["gpu"] == Finding("gpu", "ok", expected)
    assert found["tensorrt"].severity == "warning"
    assert found["tensorrt"].mend == "pip install tensorrt-cu13"


@pytest.mark.parametrize(
    ("driver", "bindings", "severity", "words"),
    [
        ((13, 0), "13.0.3", "ok", "driver for CUDA 13.0, cuda-bindings 13.0.3"),
        ((12, 6), "13.0.3", "problem", "driver for CUDA 12.6, cuda-bindings 13.0.3 need a newer one"),
        ((13, 0), None, "warning", "driver for CUDA 13.0, no cuda-bindings: engines need them"),
        (None, "12.6", "ok", "cuda-bindings 12.6"),
    ],
)
def test_cuda(
    driver: tuple[int, int] | None,
    bindings: str | None,
    severity: str,
    words: str,
    software_of: Callable[..., dict[str, Finding]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(software, "driver_cuda", lambda: driver)
    monkeypatch.setattr(software, "_installed", lambda _: bindings)
    found = software_of(LAPTOP, LAPTOP_GPU)["cuda"]
    assert (found.severity, found.found) == (severity, words)
    assert bool(found.mend) == (severity != "ok")


def test_a_laptop_without_a_gpu(software_of: Callable[..., dict[str, Finding]]) -> None:
    found = software_of({}, None)
    assert found["gpu"] == Finding("gpu", "ok", "none of NVIDIA: bundles of target cpu run here")
    assert "cuda" not in found and "tensorrt" not in found


def test_a_container_that_was_started_without_the_gpu(software_of: Callable[..., dict[str, Finding]]) -> None:
    found = software_of(CONTAINER, None)["gpu"]
    assert found == Finding("gpu", "problem", "none is visible here, driver 570.124.06", "docker run --gpus all ...")
    broken = software_of(LAPTOP | {"proc/driver/nvidia/version": "?"}, None)["gpu"]
    assert broken == Finding("gpu", "problem", "CUDA finds none, driver '?'", "nvidia-smi")


def test_a_jetson(software_of: Callable[..., dict[str, Finding]]) -> None:
    found = software_of(ORIN_JETPACK_6, ORIN)
    assert found["gpu"].found == "Orin, SM 87"
    assert "python3-libnvinfer" in found["tensorrt"].mend
    assert software_of(ORIN_JETPACK_7, None)["gpu"].mend == "docker run --runtime nvidia ..."
    assert software_of({}, OLD)["gpu"].found == "GTX 1080, SM 61: no target is for this SM"


@pytest.mark.parametrize(
    ("gpu", "error"),
    [
        ("sm=87,name=Orin,integrated=1", None),
        ("sm=61,name=Old", "Target GPU SM 61 is not supported by this TensorRT release"),
        ("none", "cannot start, which needs a GPU and its driver"),
    ],
)
@pytest.mark.parametrize("version", ["10.3.0", "10.16.2.10", "11.4.0.106"])
def test_tensorrt_says_itself_whether_it_builds_for_this_gpu(
    gpu: str, error: str | None, version: str, double: Double, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (double.environment(gpu=gpu) | {"FASTMMOE_DOUBLE_TENSORRT": version}).items():
        monkeypatch.setenv(name, value)
    said = build_tiny_engine("tensorrt")
    assert said is None if error is None else said is not None and error in said


def test_what_tensorrt_says_is_a_finding(
    software_of: Callable[..., dict[str, Finding]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(software, "build_tiny_engine", lambda _: None)
    good = software_of(ORIN_JETPACK_7, ORIN, ("tensorrt",), asks=True)["tensorrt"]
    assert good.severity == "ok" and good.found.endswith("builds for Orin, SM 87")
    monkeypatch.setattr(software, "build_tiny_engine", lambda _: "no SM 87")
    bad = software_of(ORIN_JETPACK_7, ORIN, ("tensorrt",), asks=True)["tensorrt"]
    assert bad.severity == "problem" and bad.found.endswith("builds nothing for SM 87: no SM 87")
    assert bad.mend == "sudo apt install --reinstall tensorrt python3-libnvinfer"
    card = software_of({}, LAPTOP_GPU, ("tensorrt",), asks=True)["tensorrt"]
    assert card.mend == "pip install --upgrade tensorrt"
    # Not asked without a GPU, nor where the user does not want to wait.
    for gpu, asks in ((None, True), (ORIN, False)):
        assert software_of({}, gpu, ("tensorrt",), asks=asks)["tensorrt"].severity == "ok"


def test_a_builder_that_dies_or_hangs_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(DOUBLES / "none"))
    monkeypatch.setattr(software.api, "__name__", "no.such.module")
    said = build_tiny_engine("tensorrt")
    assert said is not None and said.startswith("it ended with 1: ")
    monkeypatch.setattr(software, "BUILD_SECONDS", 1e-3)
    assert build_tiny_engine("tensorrt") == "no answer within 0 s"


def test_the_plugin(software_of: Callable[..., dict[str, Finding]], fake_plugin: Callable[..., Path]) -> None:
    path = fake_plugin(architecture="x86_64")
    found = software_of({}, LAPTOP_GPU)["plugin"]
    assert found.severity == "problem" and "does not export getCreators, getPluginCreators" in found.found
    path.write_bytes(path.read_bytes() + b"\0".join(EXPORTS))
    found = software_of({}, LAPTOP_GPU)["plugin"]
    assert found.severity == "ok" and found.found.endswith(" for x86_64")
    old = fake_plugin(version="0.0.1", architecture="x86_64")
    old.write_bytes(old.read_bytes() + b"\0".join(EXPORTS))
    found = software_of({}, LAPTOP_GPU)["plugin"]
    assert found.severity == "problem" and "0.0.1 for x86_64, fastmmoe is " in found.found and found.mend
    path = fake_plugin()
    path.write_bytes(b"")
    found = software_of({}, LAPTOP_GPU)["plugin"]
    assert found.severity == "problem" and "not a shared library" in found.found
    path.unlink()
    assert software_of({}, LAPTOP_GPU)["plugin"].severity == "warning"
    assert "plugin" not in software_of({}, None)
    # A bundle brings the one that a Jetson needs.
    assert "plugin" not in software_of(ORIN_JETPACK_6, ORIN)


@pytest.mark.parametrize(
    ("error", "severity", "mend"),
    [
        (
            "ONNX Runtime is not installed for python: pip install 'fastmmoe[cpu]'",
            "warning",
            "pip install 'fastmmoe[cpu]'",
        ),
        (
            "onnxruntime 1 and onnxruntime-gpu 1 are installed over each other: keep one of them, for example pip "
            "uninstall -y onnxruntime onnxruntime-gpu && pip install 'fastmmoe[gpu]'",
            "problem",
            "pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'fastmmoe[gpu]'",
        ),
    ],
)
def test_onnxruntime(
    error: str,
    severity: str,
    mend: str,
    software_of: Callable[..., dict[str, Finding]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def check() -> None:
        raise BackendMissing(error)

    assert software_of({}, None)["onnxruntime"].severity == "ok"
    monkeypatch.setattr(software, "check_onnxruntime", check)
    found = software_of({}, None)["onnxruntime"]
    assert (found.severity, found.mend) == (severity, mend)


def test_the_native_library(
    software_of: Callable[..., dict[str, Finding]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    library = tmp_path / "libfastmmoe_ort.so"
    monkeypatch.setenv("FASTMMOE_ORT_LIBRARY", str(library))
    assert software_of({}, None)["operators"].mend == "make native"
    library.touch()
    assert software_of({}, None)["operators"].severity == "ok"
