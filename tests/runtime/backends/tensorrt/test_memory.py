# SPDX-License-Identifier: Apache-2.0
"""Layouts, pinned memory that is used in turn, and elements as a device has them."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from fastmmoe.runtime.backends.tensorrt.memory import (
    Layout,
    Results,
    Staging,
    aligned,
    as_dtype,
    host_view,
    item_size,
    tensor_bytes,
)
from fastmmoe.runtime.errors import RunFailed
from fastmmoe.runtime.types import Array
from tests.support.double import Double
from tests.support.toy_engines import Gpu, gpu_of

SCHEDULES = 20


def test_sizes() -> None:
    assert [item_size(dtype) for dtype in ("float32", "float16", "bfloat16", "int8", "int32")] == [4, 2, 2, 1, 4]
    assert tensor_bytes((3, 5), "bfloat16") == 30 and tensor_bytes((), "int32") == 4
    assert tensor_bytes((4, 0), "float32") == 0
    assert [aligned(size) for size in (0, 1, 256, 257)] == [256, 256, 256, 512]


def test_bfloat16_rounds_to_nearest_even() -> None:
    """Every upper half of a float32, with lower halves below, at and above the tie."""
    upper = np.arange(1 << 16, dtype=np.uint32) << 16
    for lower in (0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF):
        values = (upper | np.uint32(lower)).view(np.float32)
        found = as_dtype(values, "bfloat16")
        with np.errstate(invalid="ignore"):
            expected = values.astype(ml_dtypes.bfloat16)
        assert found.dtype == np.uint16
        is_nan = np.isnan(values)
        assert np.array_equal(found[~is_nan], expected.view(np.uint16)[~is_nan])
        assert np.isnan(found.view(ml_dtypes.bfloat16)[is_nan].astype(np.float32)).all()
    ties = np.array([0x3F808000, 0x3F818000, 0xBF808000, 0xBF818000, 0x7F7FFFFF, 0x00000001], np.uint32)
    assert as_dtype(ties.view(np.float32), "bfloat16").tolist() == [0x3F80, 0x3F82, 0xBF80, 0xBF82, 0x7F80, 0]
    infinities = np.array([np.inf, -np.inf, np.nan, -0.0], np.float32)
    assert as_dtype(infinities, "bfloat16").tolist() == [0x7F80, 0xFF80, 0x7FC0, 0x8000]


def test_other_types_are_converted_and_made_contiguous() -> None:
    values = np.arange(12).reshape(3, 4).T
    for dtype in ("int32", "int8", "float16", "float32"):
        found = as_dtype(values, dtype)
        assert found.dtype == dtype and found.flags.c_contiguous and found.tolist() == values.tolist()
    assert as_dtype(values.astype(np.float32), "bfloat16").flags.c_contiguous
    as_it_is = np.zeros(3, np.int32)
    assert as_dtype(as_it_is, "int32") is as_it_is


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
