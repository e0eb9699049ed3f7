# SPDX-License-Identifier: Apache-2.0
"""Copies of parts of tensors, by the CPU provider: the graphs and addresses are those of any other."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from fastmmoe.runtime.backends import device_memory, expert_file
from fastmmoe.runtime.backends.device_memory import DeviceMemory, ort_value
from fastmmoe.runtime.bundle.storage import ExpertTensor
from fastmmoe.runtime.errors import BundleMismatch
from fastmmoe.runtime.types import Array


@pytest.fixture
def memory() -> DeviceMemory:
    return DeviceMemory("cpu", ["CPUExecutionProvider"])


def bytes_of(value: ort.OrtValue) -> Array:
    """The memory of a tensor itself, uint8 [N]."""
    size = value.tensor_size_in_bytes()
    return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(value.data_ptr()))


@pytest.mark.parametrize(("inputs", "attributes"), [(["x"], {}), (["x", "y"], {"axis": 1})])
def test_the_graphs_are_models(inputs: list[str], attributes: dict[str, int]) -> None:
    model = onnx.load_from_string(device_memory._graph("Concat" if attributes else "Identity", inputs, attributes))
    onnx.checker.check_model(model, full_check=True)
    assert [value.name for value in model.graph.input] == inputs
    assert [(a.name, a.i) for a in model.graph.node[0].attribute] == list(attributes.items())


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int8", "int32"])
def test_tensors_of_every_type(dtype: str, memory: DeviceMemory) -> None:
    value = memory.empty((2, 3), dtype)
    names = {"float32": "float", "bfloat16": "bfloat16"}
    assert value.data_type() == f"tensor({names.get(dtype, dtype)})" and value.shape() == [2, 3]


def test_parts_are_written_and_copied_where_they_are(memory: DeviceMemory) -> None:
    value = memory.empty((300,), "uint8")
    bytes_of(value)[:] = 0
    memory.write(value.data_ptr() + 10, np.arange(200, dtype=np.uint8))
    expected = np.zeros(300, np.uint8)
    expected[10:210] = np.arange(200)
    assert np.array_equal(bytes_of(value), expected)
    memory.copy(value.data_ptr() + 250, value.data_ptr() + 20, 30)
    expected[250:280] = expected[20:50]
    assert np.array_equal(bytes_of(value), expected)


@pytest.mark.parametrize(
    ("before", "after", "dtype"),
    [
        ((2, 3, 4, 5), (2, 3, 7, 5), "float16"),
        ((1, 1, 256, 8), (1, 1, 512, 8), "float32"),
        ((2, 3, 4, 5), (2, 3, 5, 5), "bfloat16"),
        ((2, 4), (2, 9), "int32"),
    ],
)
def test_a_greater_tensor_begins_with_the_rows_there_were(
    before: tuple[int, ...], after: tuple[int, ...], dtype: str, memory: DeviceMemory
) -> None:
    old = memory.empty(before, dtype)
    bytes_of(old)[:] = np.random.default_rng(0).integers(0, 256, old.tensor_size_in_bytes(), np.uint8)
    new = memory.grow(old, after, dtype)
    item = np.uint32 if dtype in ("float32", "int32") else np.uint16
    found, expected = bytes_of(new).view(item).reshape(after), bytes_of(old).view(item).reshape(before)
    assert new.data_type() == old.data_type() and tuple(new.shape()) == after
    assert np.array_equal(found[tuple(map(slice, before))], expected)


def test_weights_are_read_a_window_at_a_time(
    memory: DeviceMemory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows that no tensor is a multiple of; bytes before and between are left out."""
    monkeypatch.setattr(expert_file, "WINDOW", 7)
    path, data = tmp_path / "weights", np.random.default_rng(1).integers(0, 256, 100, np.uint8)
    path.write_bytes(data.tobytes())
    tensors = {
        "b": ExpertTensor(dtype="float16", shape=(2, 2, 3), offset=60),
        "a": ExpertTensor(dtype="int8", shape=(1, 5, 3), offset=4),
        "c": ExpertTensor(dtype="bfloat16", shape=(1, 1, 8), offset=84),
    }
    found = memory.load(path, tensors)
    for name, tensor in tensors.items():
        assert np.array_equal(bytes_of(found[name]), data[tensor.offset : tensor.offset + tensor.bytes])
    assert found["c"].data_type() == "tensor(bfloat16)" and found["a"].shape() == [1, 5, 3]
    for size in (99, 84, 0):
        path.write_bytes(data.tobytes()[:size])
        with pytest.raises(BundleMismatch, match=r"^\S*weights: ends before [abc] does; copy the bundle"):
            memory.load(path, tensors)
    path.unlink()
    with pytest.raises(BundleMismatch, match=r"^\S*weights: No such file"):
        memory.load(path, tensors)
    assert memory.load(path, {}) == {}


@pytest.mark.parametrize(("dtype", "name"), [(np.float16, "float16"), (np.uint16, "bfloat16"), (np.int32, "int32")])
def test_a_value_is_the_array_itself(dtype: Any, name: str) -> None:
    array = np.ones(3, dtype)
    value = ort_value(array)
    assert value.data_ptr() == array.ctypes.data and value.data_type() == f"tensor({name})"
