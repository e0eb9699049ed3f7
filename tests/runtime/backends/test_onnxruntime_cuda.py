# SPDX-License-Identifier: Apache-2.0
"""What is bound where on a GPU, by stand-ins that record it; tests/end_to_end/test_cuda_runs.py computes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from fastmmoe.runtime.backends.onnxruntime_cuda import CudaOnnxRuntime, DeviceFeatures
from fastmmoe.runtime.bundle.mapped_files import MappedFiles
from fastmmoe.runtime.errors import BackendMissing, RunFailed
from fastmmoe.runtime.types import Array
from tests.support.manifests import toy_manifest

ROW = 16
"""Bytes of a row of the toy model in 16 bits."""


class Value:
    """A tensor on the device: its shape, its type and an address of its own."""

    def __init__(self, shape: Sequence[int], dtype: str = "", address: int = 0) -> None:
        self.dims, self.dtype, self.address = tuple(shape), dtype, address

    def shape(self) -> list[int]:
        """Its sizes."""
        return list(self.dims)

    def data_ptr(self) -> int:
        """Its address."""
        return self.address

    def numpy(self) -> Array:
        """What the host gets."""
        return np.zeros(self.dims)


class Memory:
    """Device memory that counts."""

    def __init__(self) -> None:
        self.made: list[Value] = []
        self.copies: list[tuple[int, int, int]] = []
        self.grown: list[tuple[Value, Value]] = []
        self.is_full = False

    def empty(self, shape: Sequence[int], dtype: str) -> Value:
        """A tensor a million bytes after the one before."""
        if self.is_full:
            raise RuntimeError("Failed to allocate\nmemory")
        self.made.append(Value(shape, dtype, (len(self.made) + 1) * 10**6))
        return self.made[-1]

    def copy(self, target: int, source: int, size: int) -> None:
        """Only recorded."""
        self.copies.append((target, source, size))

    def grow(self, old: Value, shape: Sequence[int], dtype: str) -> Value:
        """Likewise."""
        self.grown.append((old, self.empty(shape, dtype)))
        return self.made[-1]


class Session:
    """A session and its only binding; outputs that it makes itself have a shape of their own."""

    def __init__(self, *shape: int) -> None:
        self.inputs: dict[str, Any] = {}
        self.outputs: dict[str, Any] = {}
        self._shape, self.runs = shape, 0
        self.fetched_to: set[str] = set()

    def io_binding(self) -> Session:
        """Itself."""
        return self

    def bind_ortvalue_input(self, name: str, value: Any) -> None:
        """An input on the device, or in the host's memory."""
        self.inputs[name] = value

    def bind_ortvalue_output(self, name: str, value: Any) -> None:
        """An output that is written where it is."""
        self.outputs[name] = value

    def bind_output(self, name: str, device: str, number: int = 0) -> None:
        """An output that the session makes."""
        assert number == 0
        self.outputs[name] = device

    def clear_binding_outputs(self) -> None:
        """None are bound any more."""
        self.outputs.clear()

    def run_with_iobinding(self, binding: Session) -> None:
        """A call."""
        assert binding is self
        self.runs += 1
        self.fetched_to |= {of for of in self.outputs.values() if isinstance(of, str)}

    def get_outputs(self) -> list[Any]:
        """In the order of binding."""
        return [Value(self._shape, address=5 * 10**8) if isinstance(v, str) else v for v in self.outputs.values()]

    def get_providers(self) -> list[str]:
        """Of an ONNX Runtime whose CUDA did not start."""
        return ["CPUExecutionProvider"]


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The toy model in bfloat16: two groups' worth of layers, experts that are inputs, and sessions that record."""
    monkeypatch.setattr("onnxruntime.OrtValue", Value)
    for module in ("onnxruntime", "onnxruntime_cuda"):
        monkeypatch.setattr(f"fastmmoe.runtime.backends.{module}.ort_value", lambda array: ("host", array))
    backend: Any = CudaOnnxRuntime.__new__(CudaOnnxRuntime)
    backend.manifest = toy_manifest("deepseek_vl2", cache_dtype="bfloat16", activation_dtype="bfloat16")
    backend._memory, backend._weights = Memory(), MappedFiles(())
    backend._sessions = {"vision": Session(3, 8), "embedding": Session(5, 8), "language_model": Session(1)}
    backend._experts = {"layers.1.experts": Value((16, 8, 8), "int8", 7)}
    backend._dtypes, backend._shown, backend._unasked = {"pixel_values": "bfloat16"}, {}, []
    return backend


def test_caches_and_experts_are_bound_once_and_never_copied(backend: Any) -> None:
    caches, session = backend.new_caches(2, (512, 256, 256)), backend._sessions["language_model"]
    assert len(caches.values) == len(backend._memory.made) == 8
    assert {value.dtype for value in caches.values.values()} == {"bfloat16"}
    assert [value.dims[2] for value in caches.values.values()] == [512, 512, 512, 512, 256, 256, 256, 256]
    assert session.runs == 0
    for _ in range(2):
        caches.run({}, ["next_ids"])
        for name, value in caches.values.items():
            present = name.replace("past_key_values", "present")
            assert session.inputs[name] is value and session.outputs[present] is value
    assert session.inputs["layers.1.experts"] is backend._experts["layers.1.experts"]
    assert session.runs == 2 and backend._memory.copies == []


def test_only_caches_that_grow_are_made_anew(backend: Any) -> None:
    before = backend.new_caches(1, (256, 256, 256))
    after = backend.new_caches(1, (512, 256, 256), before)
    assert len(backend._memory.made) == 8 + 4 == 8 + len(backend._memory.grown)
    for i in range(4):
        for name in (f"past_key_values.{i}.key", f"past_key_values.{i}.value"):
            assert (after.values[name] is before.values[name]) == (i > 1)
    assert [old for old, _ in backend._memory.grown] == list(before.values.values())[:4]


def test_caches_for_which_there_is_no_room(backend: Any) -> None:
    backend._memory.is_full = True
    with pytest.raises(RunFailed, match=r"^key-value caches of 0\.1 MB do not fit: .*\(Failed to allocate memory\)$"):
        backend.new_caches(2, (256, 256, 256))


def test_features_stay_on_the_device(backend: Any) -> None:
    """They are made there, and copied over the rows of their visual tokens."""
    pixels = np.full((1, 3, 2, 2), 1.5, np.float32)
    features = backend.image_features({"pixel_values": pixels})
    vision = backend._sessions["vision"]
    place, values = vision.inputs["pixel_values"]
    assert place == "host" and (values.view(ml_dtypes.bfloat16) == 1.5).all()
    assert vision.outputs == {"image_features": "cuda"} and isinstance(features, DeviceFeatures) and len(features) == 3
    prompts = [backend.embed(np.array([7])), backend.embed(np.array([9, 9, 4, 9]), np.array([0, 1, 3]), features)]
    caches = backend.new_caches(1, (256, 256, 256))
    outputs = backend.extend({"inputs_embeds": prompts, "alpha": np.ones(2)}, caches, ["next_ids", "kept_index.0"])
    assert list(outputs) == ["next_ids", "kept_index.0"]
    ids = backend._sessions["embedding"].inputs["input_ids"]
    assert ids[0] == "host" and ids[1].tolist() == [7, 9, 9, 4, 9] and ids[1].dtype == np.int32
    start = 5 * 10**8
    assert backend._memory.copies == [
        (start + ROW, start, 2 * ROW),
        (start + 4 * ROW, start + 2 * ROW, ROW),
    ]
    session = backend._sessions["language_model"]
    assert session.inputs["inputs_embeds"].address == start and session.inputs["alpha"][0] == "host"
    # Only these reach the host; the next call finds memory for them there.
    fetched = {name: of[0] for name, of in session.outputs.items() if isinstance(of, tuple)}
    assert fetched == {"next_ids": "host", "kept_index.0": "host"} and session.fetched_to == {"cpu"}


def test_onnx_runtime_that_goes_on_without_cuda(backend: Any) -> None:
    with pytest.raises(BackendMissing, match="started CPUExecutionProvider alone, expected CUDAExecutionProvider: "):
        backend._check_provider(backend._sessions["vision"])


def test_what_is_held_goes_back(backend: Any) -> None:
    backend.close()
    assert backend._sessions == {} and backend._experts == {}
