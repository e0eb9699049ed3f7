# SPDX-License-Identifier: Apache-2.0
"""What a loaded bundle holds of the device, and that a failure at any place gives all of it back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastmmoe.runtime.backends.tensorrt.device import Device, OutOfDeviceMemory
from fastmmoe.runtime.backends.tensorrt.resources import DECODE, PREFILL, Resources
from fastmmoe.runtime.bundle.manifest import PLUGIN, Manifest, read_engines, weights_file
from fastmmoe.runtime.errors import BackendMissing, BundleMismatch
from tests.support.double import Double
from tests.support.toy_engines import EXPERT_VALUES, Gpu, gpu_of, write_engine_bundle

MAKING = ("cudaMalloc", "cudaHostAlloc", "cudaStreamCreateWithPriority", "cudaEventCreateWithFlags")


class Failing:
    """cuda.bindings.runtime, whose n-th call that makes something fails."""

    def __init__(self, cudart: Any, n: int) -> None:
        self._cuda, self._left = cudart, n
        self.has_failed = False

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._cuda, name)

        def make(*arguments: Any) -> Any:
            self._left -= 1
            if self._left == 0:
                self.has_failed = True
                return self._cuda.cudaError_t.cudaErrorMemoryAllocation, None
            return real(*arguments)

        return make if name in MAKING else real


@pytest.fixture
def bundle(double: Double, tmp_path: Path) -> tuple[Path, Manifest]:
    directory = tmp_path / "bundle"
    return directory, write_engine_bundle(directory, double.modules().trt)


def open_on(bundle: tuple[Path, Manifest], gpu: Gpu, device: Device | None = None) -> Resources:
    directory, manifest = bundle
    engines = read_engines(directory)
    assert engines is not None
    return Resources(gpu.modules.trt, device or gpu.device, directory, manifest, engines)


def is_clean(gpu: Gpu, streams: int = 2) -> bool:
    """Whether nothing is left but the streams of this test."""
    sim = gpu.modules.control.current()
    return gpu.live_bytes() == (0, 0) and sim.events == {} and len(sim.streams) == streams


def test_everything_has_its_place(bundle: tuple[Path, Manifest], gpu: Gpu) -> None:
    found = open_on(bundle, gpu)
    for name, values in EXPERT_VALUES.items():
        assert gpu.read(found.experts[name], values.nbytes).tobytes() == values.tobytes()
    outputs = {"logits", "next_ids", "next_position_ids", "kept_index.0", "kept_index.1"}
    assert found.outputs.keys() == outputs | {f"present_lengths.{g}" for g in range(3)}
    addresses = [found.inputs, found.embeds, *found.outputs.values(), *found.experts.values()]
    engines = read_engines(bundle[0])
    assert engines is not None
    sizes = found._output_bytes(bundle[1], engines)
    assert sizes == {
        "logits": 2 * 10 * 4,
        "next_ids": 8,
        "next_position_ids": 8,
        **{f"present_lengths.{g}": 8 for g in range(3)},
        **{f"kept_index.{s}": 24 * 4 for s in range(2)},
    }
    assert len({*addresses}) == len(addresses) and all(address % 256 == 0 for address in addresses)
    # To the last byte of the greatest call: 24 rows of 8 float16, kept_index of 24 rows, the last output.
    gpu.write(found.embeds, np.zeros(24 * 8, np.float16))
    gpu.write(found.outputs["kept_index.1"], np.zeros(24, np.int32))
    assert found.limits.max_tokens == 24 and found.directory == bundle[0]
    profiles = [one._context.active_optimization_profile for one in (found.prefill, found.decode)]
    assert profiles == [PREFILL, DECODE]
    found.close()
    assert is_clean(gpu)


def test_prefill_and_decode_share_scratch_memory(bundle: tuple[Path, Manifest], gpu: Gpu) -> None:
    """Embedding has its own, and so has vision, whose stream is another."""
    found = open_on(bundle, gpu)
    contexts = (found.prefill, found.decode, found.embedding, found.vision._context)
    scratch = [one._context._scratch for one in contexts]
    assert scratch[0] == scratch[1] and len({*scratch}) == 3
    assert int(found.vision._stream) != int(found.stream)


def test_a_failure_at_any_place_gives_everything_back(bundle: tuple[Path, Manifest], double: Double) -> None:
    """Every call that makes memory, a stream or an event fails once."""
    for n in range(1, 100):
        gpu = gpu_of(double.modules())
        failing = Failing(gpu.modules.cudart, n)
        try:
            found = open_on(bundle, gpu, Device(failing))
        except OutOfDeviceMemory:
            assert is_clean(gpu), n
            continue
        assert not failing.has_failed and n > 15
        found.close()
        assert is_clean(gpu)
        return
    pytest.fail("there is no end of allocations")


def test_memory_that_is_short_somewhere(bundle: tuple[Path, Manifest], double: Double) -> None:
    gpu = gpu_of(double.modules())
    found = open_on(bundle, gpu)
    needed, _ = gpu.live_bytes()
    found.close()
    for memory in range(needed - 512, 0, -4096):
        gpu = gpu_of(double.modules(memory=memory))
        with pytest.raises(OutOfDeviceMemory, match=r"^CUDA: cudaMalloc of \d+\.\d MB: out of memory$"):
            open_on(bundle, gpu)
        assert is_clean(gpu), memory
    gpu = gpu_of(double.modules(memory=needed))
    open_on(bundle, gpu).close()


def test_a_plugin_that_cannot_be_loaded(bundle: tuple[Path, Manifest], gpu: Gpu) -> None:
    path = bundle[0] / PLUGIN
    path.write_bytes(bytes(256))
    with pytest.raises(BundleMismatch) as refusal:
        open_on(bundle, gpu)
    assert str(refusal.value) == f"{path}: tensorrt_rtx 1.7.1.116 cannot load it: no reason given"
    assert is_clean(gpu)


def test_tensorrt_that_cannot_start(bundle: tuple[Path, Manifest], gpu: Gpu, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its bindings raise TypeError where the constructor gives a null pointer."""

    def null(logger: Any) -> Any:
        logger.log(gpu.modules.trt.ILogger.Severity.ERROR, "CUDA\n failed")
        raise TypeError("pybind11::init(): factory function returned nullptr")

    monkeypatch.setattr(gpu.modules.trt, "Runtime", null)
    with pytest.raises(BackendMissing, match=r"^tensorrt_rtx 1\.7\.1\.116 cannot start: CUDA failed$"):
        open_on(bundle, gpu)
    assert is_clean(gpu)


@pytest.mark.parametrize("name", ["vision.engine", "embedding.engine", "language_model.engine"])
def test_an_engine_that_cannot_be_read(name: str, bundle: tuple[Path, Manifest], gpu: Gpu) -> None:
    path = bundle[0] / name
    path.write_bytes(b"nothing")
    with pytest.raises(BundleMismatch, match=rf"{name}: tensorrt_rtx 1\.7\.1\.116 cannot read it: [^\n]*$"):
        open_on(bundle, gpu)
    assert is_clean(gpu)


def test_weights_that_end_early(bundle: tuple[Path, Manifest], gpu: Gpu) -> None:
    path = bundle[0] / weights_file("language_model")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(
        BundleMismatch, match=r"language_model\.data: ends before layers\.1\.mlp\.experts\.gate_up does"
    ):
        open_on(bundle, gpu)
    assert is_clean(gpu)
