# SPDX-License-Identifier: Apache-2.0
"""What keeps the CUDA provider from starting is one line each; stand-ins take the place of driver and ONNX Runtime.

The lines of `preload_dlls` are those of onnxruntime-gpu 1.31.1 on a machine without CUDA.
"""

from __future__ import annotations

import ctypes
import importlib
import platform
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fastmmoe.runtime.backends import cuda_provider
from fastmmoe.runtime.backends.cuda_provider import check_cuda_provider
from fastmmoe.runtime.errors import BackendMissing
from fastmmoe.runtime.machines.gpu import DRIVER, Gpu

NO_FILE = "cannot open shared object file: No such file or directory"
PRINTED = f"""Failed to load libcublasLt.so.13: libcublasLt.so.13: {NO_FILE}
Failed to load /site/nvidia/cu13/lib/libcurand.so.10: /site/nvidia/cu13/lib/libcurand.so.10: {NO_FILE}
Please follow https://onnxruntime.ai/docs/install/#cuda-and-cudnn to install CUDA."""


class Machine:
    """A machine on which the provider starts, until something is taken from it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.architecture, self.providers, self.printed = "x86_64", ["CUDAExecutionProvider"], ""
        self.driver: int | None = 13000
        self.gpu: Gpu | None = Gpu("L4", 89)
        self.has_cudnn = True
        monkeypatch.setattr(platform, "machine", lambda: self.architecture)
        monkeypatch.setattr(cuda_provider, "check_onnxruntime", lambda: None)
        monkeypatch.setattr(cuda_provider, "find_gpu", lambda: self.gpu)
        monkeypatch.setattr(ctypes, "CDLL", self._library)
        monkeypatch.setattr(importlib, "import_module", lambda _: self._onnxruntime())

    def _onnxruntime(self) -> Any:
        return SimpleNamespace(
            __version__="1.31.1",
            cuda_version="13.0",
            get_available_providers=lambda: self.providers,
            preload_dlls=lambda: print(self.printed),
        )

    def _library(self, name: str) -> Any:
        if (name == DRIVER and self.driver is None) or (name != DRIVER and not self.has_cudnn):
            raise OSError(f"{name}: {NO_FILE}")
        return SimpleNamespace(cuDriverGetVersion=lambda at: setattr(at._obj, "value", self.driver))


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


def test_a_machine_that_has_all(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    check_cuda_provider(Path("out"))
    machine.driver = 13020
    check_cuda_provider(Path("out"))
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("lacks", "words"),
    [
        ({"architecture": "aarch64"}, "provider cuda on aarch64: .* TensorRT is the way: fastmmoe build out, .*"),
        ({"providers": ["CPUExecutionProvider"]}, r"onnxruntime 1.31.1 is .* pip install 'fastmmoe\[gpu\]'"),
        ({"driver": None}, r"no NVIDIA driver is loaded \(libcuda.so.1: .*\): provider cuda runs on an NVIDIA GPU"),
        ({"driver": 12080}, "the NVIDIA driver is for CUDA 12.8, onnxruntime-gpu needs 13.0: .* built for CUDA 12"),
        ({"gpu": None}, "no NVIDIA GPU is visible: .*"),
        (
            {"printed": PRINTED},
            r"onnxruntime 1.31.1 needs libcublasLt.so.13, libcurand.so.10, of CUDA 13.0, which cannot be loaded "
            rf"\(libcublasLt.so.13: {NO_FILE}\): pip install 'onnxruntime-gpu\[cuda,cudnn\]'",
        ),
        ({"has_cudnn": False}, rf"onnxruntime 1.31.1 needs libcudnn.so.9, .* \(libcudnn.so.9: {NO_FILE}\): pip .*"),
    ],
)
def test_what_is_missing(
    lacks: dict[str, Any], words: str, machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    vars(machine).update(lacks)
    with pytest.raises(BackendMissing, match=f"^{words}$"):
        check_cuda_provider(Path("out"))
    assert capsys.readouterr() == ("", "")
