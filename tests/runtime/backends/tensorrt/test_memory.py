# SPDX-License-Identifier: Apache-2.0
"""Layouts, and pinned memory that is used in turn."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from fastmmoe.runtime.backends.elements import as_dtype
from fastmmoe.runtime.backends.tensorrt.memory import (
    Layout,
    Results,
    Staging,
    aligned,
    host_view,
)
from fastmmoe.runtime.errors import RunFailed
from fastmmoe.runtime.types import Array
from tests.support.double import Double
from tests.support.toy_engines import Gpu, gpu_of

SCHEDULES = 20


def test_sizes() -> None:
    assert [aligned(size) for size in (0, 1, 256, 257)] == [256, 256, 256, 512]


def test_parts_of_a_block() -> None:
    layout = Layout.of({"a": 1, "b": 257, "c": 0, "d": 256})
    assert layout == Layout({"a": 0, "b": 256, "c": 768, "d": 1024}, 1280)
    assert layout.at(4096) == {"a": 4096, "b": 4352, "c": 4864, "d": 5120}
    assert Layout.of({}) == Layout({}, 256)


def upload(gpu: Gpu, staging: Staging, values: Array, target: int) -> None:
    arrays = {"a": values, "empty": values[:0], "b": values + 1}
    staging.upload(arrays, Layout.of({name: array.nbytes for name, array in arrays.items()}), target, gpu.stream)


def test_the_host_fills_a_half_only_once_it_was_copied(double: Double) -> None:
    """In every schedule; the double says where the host changes what a copy has yet to read."""
    for seed in range(SCHEDULES):
        gpu = gpu_of(double.modules(seed=seed))
        staging = Staging(gpu.device, 768)
        targets = [gpu.device.allocate(768) for _ in range(7)]
        for number, target in enumerate(targets):
            upload(gpu, staging, np.full((2, 3), 10 * number, np.int32), target)
        for number, target in enumerate(targets):
            found = gpu.read(target, 768).view(np.int32)
            assert found[:6].tolist() == [10 * number] * 6 and found[128:134].tolist() == [10 * number + 1] * 6
            gpu.device.free(target)
        staging.close()
        assert gpu.live_bytes() == (0, 0) and gpu.modules.control.current().events == {}


def test_two_uploads_wait_for_nothing(gpu: Gpu) -> None:
    staging, target = Staging(gpu.device, 768), gpu.device.allocate(768)
    for waits in (0, 0, 1, 2):
        upload(gpu, staging, np.zeros(6, np.int32), target)
        assert gpu.modules.control.counters().synchronizations == waits
    assert gpu.modules.control.counters().copies == 4


def test_an_upload_that_is_too_large_is_refused(gpu: Gpu) -> None:
    staging, target = Staging(gpu.device, 700), gpu.device.allocate(2048)
    upload(gpu, staging, np.zeros(6, np.int32), target)
    words = r"^an upload of 1280 bytes: expected at most 768, by the engines' limits$"
    with pytest.raises(RunFailed, match=words):
        upload(gpu, staging, np.zeros(65, np.int32), target)
    assert gpu.modules.control.counters().copies == 1


def test_results_are_copies_once_the_stream_has_come_there(double: Double) -> None:
    for seed in range(SCHEDULES):
        gpu = gpu_of(double.modules(seed=seed))
        results, address = Results(gpu.device, 1024), gpu.device.allocate(512)
        values = np.arange(-3, 3, dtype=np.float32)
        gpu.write(address, values)
        gpu.write(address + 256, as_dtype(values, "bfloat16"))
        tensors = [("a", address, (2, 3), "float32"), ("b", address + 256, (6,), "bfloat16"), ("c", 0, (0, 4), "int32")]
        found = results.fetch(iter(tensors), gpu.stream)
        again = results.fetch([("a", address + 256, (3, 2), "bfloat16")], gpu.stream)
        assert found["a"].tolist() == values.reshape(2, 3).tolist() and found["a"].dtype == np.float32
        assert found["b"].view(ml_dtypes.bfloat16).astype(np.float32).tolist() == values.tolist()
        assert found["c"].shape == (0, 4) and found["c"].dtype == np.int32
        assert again["a"].shape == (3, 2) and again["a"].tolist() == found["b"].reshape(3, 2).tolist()
        results.close()
        gpu.device.free(address)
        assert gpu.live_bytes() == (0, 0) and gpu.modules.control.current().events == {}


def test_results_that_are_too_large_are_refused(gpu: Gpu) -> None:
    results = Results(gpu.device, 512)
    tensors = [(name, 0, (1,), "int32") for name in "abc"]
    with pytest.raises(RunFailed, match=r"^outputs of 768 bytes: expected at most 512, by the engines' limits$"):
        results.fetch(tensors, gpu.stream)


def test_host_view_is_the_memory_itself(gpu: Gpu) -> None:
    address = gpu.device.allocate_pinned(16)
    host_view(address, 16)[:] = 7
    assert host_view(address + 8, 8).tolist() == [7] * 8
