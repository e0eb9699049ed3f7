# SPDX-License-Identifier: Apache-2.0
"""The experts' weights from the file to the device, whatever the windows, and nothing left where that fails."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastmmoe.runtime.backends import expert_file
from fastmmoe.runtime.backends.tensorrt.device import OutOfDeviceMemory
from fastmmoe.runtime.backends.tensorrt.experts import experts_layout, load_experts
from fastmmoe.runtime.backends.tensorrt.memory import Layout
from fastmmoe.runtime.bundle.storage import ExpertTensor
from fastmmoe.runtime.errors import BundleMismatch
from tests.support.double import Double
from tests.support.toy_engines import Gpu, gpu_of

INPUTS = {
    "late": ExpertTensor(dtype="int8", shape=(3, 10, 10), offset=1000),
    "early": ExpertTensor(dtype="float16", shape=(2, 10, 11), offset=10),
    "least": ExpertTensor(dtype="bfloat16", shape=(1, 1, 1), offset=600),
}
END = 1300


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "language_model.data"
    path.write_bytes(np.random.default_rng(0).integers(0, 256, END, np.uint8).tobytes())
    return path


def block(gpu: Gpu) -> int:
    return gpu.device.allocate(experts_layout(INPUTS).size)


def test_each_has_its_place() -> None:
    assert experts_layout(INPUTS) == Layout({"late": 0, "early": 512, "least": 1024}, 1280)


@pytest.mark.parametrize("window", [64 << 20, 300, 299, 100, 7])
def test_all_values_arrive(window: int, double: Double, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows greater than every tensor, as great as one, and smaller, in schedules of all kinds."""
    monkeypatch.setattr(expert_file, "WINDOW", window)
    whole = weights.read_bytes()
    for seed in range(5):
        gpu = gpu_of(double.modules(seed=seed))
        address = block(gpu)
        places = load_experts(gpu.device, weights, INPUTS, address, gpu.stream)
        assert places == {"late": address, "early": address + 512, "least": address + 1024}
        for name, tensor in INPUTS.items():
            found = gpu.read(places[name], tensor.bytes).tobytes()
            assert found == whole[tensor.offset : tensor.offset + tensor.bytes], name
        _, pinned = gpu.modules.control.live()
        # Two windows at most, not greater than the greatest tensor, and the one that this test reads through.
        assert pinned.most_bytes <= max(-(-2 * min(window, 440) // 512) * 512, 512)
        assert pinned.bytes == 0 and gpu.modules.control.current().events == {}


def test_the_page_cache_keeps_nothing_of_it(gpu: Gpu, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On Jetson it is the device's own memory; said of the whole file, after it was read and before it is closed."""
    said: list[tuple[Any, ...]] = []
    monkeypatch.setattr(os, "posix_fadvise", lambda *arguments: said.append((os.lseek(arguments[0], 0, 1), *arguments)))
    load_experts(gpu.device, weights, INPUTS, block(gpu), gpu.stream)
    ((_, _, *rest),) = said
    assert rest == [0, 0, os.POSIX_FADV_DONTNEED]


def test_a_read_that_gives_less_is_repeated(gpu: Gpu, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system may give less than it was asked for: here never more than 7 bytes."""
    preadv = os.preadv
    monkeypatch.setattr(os, "preadv", lambda file, views, offset: preadv(file, [views[0][:7]], offset))
    places = load_experts(gpu.device, weights, INPUTS, block(gpu), gpu.stream)
    assert gpu.read(places["late"], 300).tobytes() == weights.read_bytes()[1000:]


@pytest.mark.parametrize("window", [64 << 20, 100])
@pytest.mark.parametrize(("size", "name"), [(END - 1, "late"), (1000, "late"), (601, "least"), (0, "early")])
def test_a_file_that_ends_early(
    size: int, name: str, window: int, gpu: Gpu, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(expert_file, "WINDOW", window)
    os.truncate(weights, size)
    address = block(gpu)
    with pytest.raises(BundleMismatch) as refusal:
        load_experts(gpu.device, weights, INPUTS, address, gpu.stream)
    assert str(refusal.value) == f"{weights}: ends before {name} does; copy the bundle or export again"
    gpu.device.free(address)
    assert gpu.live_bytes() == (0, 0) and gpu.modules.control.current().events == {}


def test_a_file_that_is_gone(gpu: Gpu, weights: Path) -> None:
    weights.unlink()
    address = block(gpu)
    with pytest.raises(BundleMismatch) as refusal:
        load_experts(gpu.device, weights, INPUTS, address, gpu.stream)
    assert str(refusal.value) == f"{weights}: No such file or directory; copy the bundle or export again"
    gpu.device.free(address)
    assert gpu.live_bytes() == (0, 0)


@pytest.mark.parametrize("call", ["cudaHostAlloc", "cudaEventCreateWithFlags", "cudaMemcpyAsync", "cudaEventRecord"])
def test_a_failure_leaves_nothing(call: str, gpu: Gpu, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither pinned memory nor an event nor an open file."""
    cuda, files = gpu.modules.cudart, len(list(Path("/proc/self/fd").iterdir()))
    real, calls = getattr(cuda, call), []

    def second(*arguments: Any) -> Any:
        calls.append(arguments)
        fails = len(calls) == 2 or call == "cudaHostAlloc"
        return (cuda.cudaError_t.cudaErrorMemoryAllocation, None) if fails else real(*arguments)

    monkeypatch.setattr(cuda, call, second)
    address = block(gpu)
    with pytest.raises(OutOfDeviceMemory, match=f"^CUDA: {call}"):
        load_experts(gpu.device, weights, INPUTS, address, gpu.stream)
    gpu.device.free(address)
    assert gpu.live_bytes() == (0, 0) and gpu.modules.control.current().events == {}
    assert len(list(Path("/proc/self/fd").iterdir())) == files
