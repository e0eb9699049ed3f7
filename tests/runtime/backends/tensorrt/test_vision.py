# SPDX-License-Identifier: Apache-2.0
"""The vision graph on its own stream: blocks are used again only once they were read."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fastmmoe.runtime.backends.base import Timed
from fastmmoe.runtime.backends.tensorrt.api import make_logger
from fastmmoe.runtime.backends.tensorrt.device import OutOfDeviceMemory
from fastmmoe.runtime.backends.tensorrt.engine import Engine
from fastmmoe.runtime.backends.tensorrt.memory import Staging
from fastmmoe.runtime.backends.tensorrt.vision import MOST_IDLE, DeviceFeatures, Vision
from fastmmoe.runtime.bundle import signatures
from fastmmoe.runtime.errors import RunFailed
from fastmmoe.runtime.types import Array
from tests.support.double import Double, Modules
from tests.support.toy_engines import Gpu, engine_bytes, engine_manifest, gpu_of

SCHEDULES = 20
ROW = 16
"""Bytes of a row of features: 8 of float16."""


class Tower(SimpleNamespace):
    """The vision graph of the toy bundle, and what it needs: gpu, vision, and another stream that reads."""

    gpu: Gpu
    vision: Vision

    def start(self, value: float, rows: int) -> DeviceFeatures:
        """Queue a picture: features [rows, 8] are 0, 1, ... and the value."""
        found: DeviceFeatures = self.vision.run(picture(value, rows), rows)
        return found

    def place(self, features: DeviceFeatures, target: int) -> None:
        """Queue a copy in the other stream, as the backend does."""
        device = self.gpu.device
        device.wait(self.gpu.stream, features.block.done)
        device.copy(target, features.block.address, len(features) * ROW, self.gpu.stream)
        device.record(features.block.read, self.gpu.stream)
        features.block.was_read = True

    def close(self) -> None:
        """Give everything back."""
        self.gpu.device.synchronize(self.gpu.stream)
        self.gpu.device.synchronize(self.stream)
        self.vision.close()
        self.staging.close()
        for address in self.addresses:
            self.gpu.device.free(address)


def picture(value: float, rows: int) -> dict[str, Array]:
    return {
        "pixel_values": np.full((1, 3, 16, 16), value, np.float32),
        "layout_index": np.arange(rows, dtype=np.int64),
    }


def expected(value: float, rows: int) -> Array:
    return np.repeat(np.arange(rows)[:, None] + value, 8, 1).astype(np.float16)


def tower_of(modules: Modules, path: Path) -> Tower:
    gpu, manifest = gpu_of(modules), engine_manifest()
    path.write_bytes(engine_bytes(modules.trt, manifest, "vision"))
    logger, signature = make_logger(modules.trt), signatures.signatures(manifest)["vision"]
    engine = Engine(modules.trt, logger, modules.trt.Runtime(logger), path, signature, {})
    size = engine.scratch_bytes()
    scratch, block, stream = gpu.device.allocate(size), gpu.device.allocate(4096), gpu.device.make_streams()[1]
    context, staging = engine.context(0, (scratch, size), stream), Staging(gpu.device, 4096)
    vision = Vision(gpu.device, context, signature.inputs, block, staging, stream, ROW)
    return Tower(gpu=gpu, vision=vision, stream=stream, staging=staging, addresses=[scratch, block])


@pytest.fixture
def make(double: Double, tmp_path: Path) -> Callable[..., Tower]:
    """Function of the double's settings -> the tower on a fresh device."""
    return lambda **settings: tower_of(double.modules(**settings), tmp_path / "vision.engine")


@pytest.fixture
def tower(make: Callable[..., Tower]) -> Iterator[Tower]:
    yield make()


def test_features_of_a_picture(tower: Tower) -> None:
    features = tower.start(0.5, 3)
    assert len(features) == 3
    target = tower.gpu.device.allocate(3 * ROW)
    tower.place(features, target)
    assert np.array_equal(tower.gpu.read(target, 3 * ROW).view(np.float16).reshape(3, 8), expected(0.5, 3))
    assert isinstance(features, Timed) and 0 <= features.elapsed_ms() < 10_000


def test_the_host_waits_for_nothing(tower: Tower) -> None:
    tower.start(0.5, 3)
    assert tower.gpu.modules.control.counters().synchronizations == 0


def test_requests_in_flight_have_features_of_their_own(make: Callable[..., Tower]) -> None:
    """Two at a time, of pictures one after the other, in every schedule: the double knows of any race."""
    for seed in range(SCHEDULES):
        tower = make(seed=seed)
        device = tower.gpu.device
        targets = [device.allocate(4 * ROW) for _ in range(6)]
        for first in range(0, 6, 2):
            both = [tower.start(first + i, 2 + i) for i in range(2)]
            assert both[0].block.address != both[1].block.address
            for i in (1, 0):
                tower.place(both[i], targets[first + i])
        del both
        for number, target in enumerate(targets):
            rows = 2 + number % 2
            found = tower.gpu.read(target, rows * ROW).view(np.float16).reshape(rows, 8)
            assert np.array_equal(found, expected(number, rows)), (seed, number)
            device.free(target)
        tower.close()
        assert tower.gpu.live_bytes() == (0, 0) and tower.gpu.modules.control.current().events == {}


def test_a_block_is_written_again_only_once_it_was_read(tower: Tower) -> None:
    """The picture after waits on the device for who reads this one's; the double calls it a race where it does not."""
    target = tower.gpu.device.allocate(3 * ROW)
    features = tower.start(1, 3)
    address = features.block.address
    tower.place(features, target)
    del features
    again = tower.start(2, 2)
    assert again.block.address == address
    del again
    tower.vision._pool.idle[0].was_read = False
    tower.place(tower.start(3, 3), target)
    tower.vision._pool.idle[0].was_read = False
    with pytest.raises(tower.gpu.modules.control.Misuse, match="race"):
        tower.start(4, 3)


def test_blocks_that_are_large_enough_are_used_again(tower: Tower) -> None:
    live, _ = tower.gpu.modules.control.live()
    before = live.allocations
    large = tower.start(1, 6)
    small = tower.start(1, 2)
    places = large.block.address, small.block.address
    del large, small
    gc.collect()
    assert live.allocations == before + 2
    five = tower.start(1, 5)
    assert five.block.address == places[0] and live.allocations == before + 2
    # Neither is large enough.
    seven = tower.start(1, 7)
    assert live.allocations == before + 3 and seven.block.address not in places


def test_so_many_blocks_are_kept(tower: Tower) -> None:
    live, _ = tower.gpu.modules.control.live()
    before, target = live.allocations, tower.gpu.device.allocate(12 * ROW)
    three = [tower.start(1, 1 + n) for n in range(MOST_IDLE + 1)]
    tower.place(three[0], target)
    del three
    assert live.allocations == before + 1 + MOST_IDLE + 1
    kept = tower.start(1, 12)
    # Two go before there is a greater one, which makes two.
    assert live.allocations == before + 1 + MOST_IDLE and len(kept) == 12


def test_what_is_kept_makes_room(make: Callable[..., Tower]) -> None:
    """Memory for one block of 4 KB; what is in use is not freed."""
    tower = make()
    tower.vision._row_bytes = 1024
    device, _ = tower.gpu.modules.control.live()
    tower.gpu.modules.control.current().memory.total = device.bytes + 5120
    block = tower.vision._take(2048)
    tower.vision.give(block)
    larger = tower.vision._take(4096)
    assert device.bytes == tower.gpu.device.memory()[1] - 1024
    with pytest.raises(OutOfDeviceMemory):
        tower.vision._take(2048)
    tower.vision.give(larger)
    tower.close()
    assert tower.gpu.live_bytes() == (0, 0)


def test_a_run_that_fails_gives_its_block_back(tower: Tower) -> None:
    """13 rows are more than the engine's profile has."""
    live, _ = tower.gpu.modules.control.live()
    before = live.allocations
    for _ in range(3):
        with pytest.raises(RunFailed, match=r"^vision\.engine: TensorRT refuses layout_index of \[13\]: "):
            tower.start(1, 13)
    gc.collect()
    assert live.allocations == before + 1
    tower.start(1, 3)
    tower.close()
    assert tower.gpu.live_bytes() == (0, 0) and tower.gpu.modules.control.current().events == {}


def test_a_block_is_freed_only_once_it_was_read(make: Callable[..., Tower]) -> None:
    """By the other stream, which nobody has waited for."""
    for seed in range(SCHEDULES):
        tower = make(seed=seed)
        target = tower.gpu.device.allocate(3 * ROW)
        tower.place(tower.start(1, 3), target)
        tower.vision.close()
        found = tower.gpu.read(target, 3 * ROW).view(np.float16).reshape(3, 8)
        assert np.array_equal(found, expected(1, 3)), seed


@pytest.mark.parametrize("which", [1, 2, 3])
def test_a_failure_leaves_nothing(which: int, tower: Tower, monkeypatch: pytest.MonkeyPatch) -> None:
    cuda, calls = tower.gpu.modules.cudart, []
    before, real = tower.gpu.live_bytes(), cuda.cudaEventCreateWithFlags

    def fail(flags: int) -> Any:
        calls.append(flags)
        return (cuda.cudaError_t.cudaErrorMemoryAllocation, None) if len(calls) >= which else real(flags)

    monkeypatch.setattr(cuda, "cudaEventCreateWithFlags", fail)
    with pytest.raises(OutOfDeviceMemory):
        tower.start(1, 3)
    assert tower.gpu.live_bytes() == before and tower.gpu.modules.control.current().events == {}
