# SPDX-License-Identifier: Apache-2.0
"""The TensorRT plugin built for the emulator, and a host that calls it as TensorRT does."""

from __future__ import annotations

import ctypes
import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from fastmmoe import __version__
from fastmmoe.exporter.ops import OPS
from fastmmoe.runtime.types import Array

REPOSITORY = Path(__file__).resolve().parents[3]
PLUGINS = REPOSITORY / "plugins"
SPECS = {spec.name: spec for spec in OPS}

# nvinfer1::DataType
DATA_TYPES = {
    np.dtype(np.float32): 0,
    np.dtype(np.float16): 1,
    np.dtype(np.int8): 2,
    np.dtype(np.int32): 3,
    np.dtype(ml_dtypes.bfloat16): 7,
    np.dtype(np.int64): 8,
}
# nvinfer1::PluginFieldType
FLOAT32, INT32, CHAR, INT64 = 1, 5, 6, 10
BUILD, RUNTIME = 0, 1
LINEAR = 0
NO_LOGGER, BY_FINDER, BY_FUNCTION = 0, 1, 2

Dimension = tuple[int, int, int]


@dataclasses.dataclass(frozen=True)
class Field:
    """A plugin field: nvinfer1::PluginField with bytes of its own."""

    name: str
    type: int
    length: int
    data: bytes


@dataclasses.dataclass(frozen=True)
class TensorProfile:
    """Type and min, opt, max of each dimension of a tensor."""

    dtype: np.dtype[Any]
    dims: tuple[Dimension, ...]


def profile_of(array: Array) -> TensorProfile:
    """The array's own shape as min, opt and max."""
    return TensorProfile(array.dtype, tuple((n, n, n) for n in array.shape))


def covering_profiles(requests: Sequence[Sequence[Array]]) -> list[TensorProfile]:
    """Profiles for inputs of all the requests; the first is the optimal one."""
    profiles = []
    for arrays in zip(*requests, strict=True):
        sizes = zip(*(array.shape for array in arrays), strict=True)
        profiles.append(TensorProfile(arrays[0].dtype, tuple((min(n), n[0], max(n)) for n in sizes)))
    return profiles


def parser_fields(attributes: dict[str, Any]) -> list[Field]:
    """Attributes as TensorRT's ONNX parser passes them: an int as int32, a string with its zero byte."""
    fields = []
    for name, value in attributes.items():
        if isinstance(value, str):
            fields.append(Field(name, CHAR, len(value) + 1, value.encode() + b"\0"))
        elif isinstance(value, int):
            fields.append(Field(name, INT32, 1, np.int32(value).tobytes()))
        else:
            fields.append(Field(name, FLOAT32, 1, np.float32(value).tobytes()))
    return fields


class _Field(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_char_p),
        ("data", ctypes.c_void_p),
        ("type", ctypes.c_int32),
        ("length", ctypes.c_int32),
    ]


class _Fields(ctypes.Structure):
    _fields_ = [("count", ctypes.c_int32), ("first", ctypes.POINTER(_Field))]


class _Tensor(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_int32),
        ("rank", ctypes.c_int32),
        ("dims", (ctypes.c_int64 * 3) * 8),
        ("data", ctypes.c_void_p),
    ]


class _Tensors(ctypes.Structure):
    _fields_ = [("first", ctypes.POINTER(_Tensor)), ("inputs", ctypes.c_int32), ("outputs", ctypes.c_int32)]


def _fill(tensor: _Tensor, profile: TensorProfile) -> None:
    tensor.type = DATA_TYPES[profile.dtype]
    tensor.rank = len(profile.dims)
    for d, dimension in enumerate(profile.dims):
        tensor.dims[d][:] = dimension


def _tensors(inputs: Sequence[TensorProfile], outputs: Sequence[TensorProfile | None]) -> _Tensors:
    array = (_Tensor * (len(inputs) + len(outputs)))()
    for tensor, profile in zip(array, (*inputs, *outputs), strict=True):
        if profile is not None:
            _fill(tensor, profile)
    return _Tensors(array, len(inputs), len(outputs))


class Refused(Exception):
    """A call of a plugin failed, or the harness found a fault; `str` begins with what it logged meanwhile."""


class Host:
    """plugins/testing/harness with one plugin library."""

    def __init__(self, harness: Path, plugin: Path) -> None:
        self.functions = ctypes.CDLL(str(harness))
        for name in ("harness_clone", "harness_attach"):
            getattr(self.functions, name).restype = ctypes.c_void_p
        for name in ("harness_creators", "harness_take_messages"):
            getattr(self.functions, name).restype = ctypes.c_char_p
        self.functions.harness_fields.restype = ctypes.POINTER(_Fields)
        self.library = ctypes.c_void_p()
        self.emulator = ctypes.CDLL(str(plugin))
        self.call("open", str(plugin).encode(), ctypes.byref(self.library))

    def call(self, function: str, *arguments: Any) -> None:
        """A function that gives a text, which is raised as Refused."""
        entry = getattr(self.functions, f"harness_{function}")
        entry.restype = ctypes.c_char_p
        text = entry(*arguments)
        if text is not None:
            raise Refused("\n".join([*self.messages(), text.decode()]))

    def messages(self) -> list[str]:
        """What plugins logged since the last call: "SEVERITY MESSAGE"."""
        return self.functions.harness_take_messages(self.library).decode().splitlines()

    def set_logger(self, access: int) -> None:
        """How plugins get at the logger: NO_LOGGER, BY_FINDER (as it is at first) or BY_FUNCTION (getLogger)."""
        self.functions.harness_set_logger(self.library, access)

    def set_seed(self, seed: int) -> None:
        """Choose the emulator's schedule."""
        self.emulator.fastmmoe_emulator_set_seed(ctypes.c_int64(seed))

    def creators(self) -> list[list[str]]:
        """Namespace, name, version and "field:type" of each."""
        return [line.split() for line in self.functions.harness_creators(self.library).decode().splitlines()]

    def create(self, op: str, fields: Sequence[Field], phase: int = BUILD) -> Plugin:
        """A plugin; raise Refused with the logged message where the creator gives none."""
        array = (_Field * len(fields))()
        buffers = [ctypes.create_string_buffer(field.data, len(field.data)) for field in fields]
        for entry, field, buffer in zip(array, fields, buffers, strict=True):
            entry.name, entry.type, entry.length = field.name.encode(), field.type, field.length
            entry.data = ctypes.addressof(buffer)
        plugin = ctypes.c_void_p()
        collection = _Fields(len(fields), array)
        self.call("create", self.library, op.encode(), b"node", ctypes.byref(collection), phase, ctypes.byref(plugin))
        if plugin.value is None:
            raise Refused("\n".join(self.messages()))
        return Plugin(self, op, plugin.value)


class Plugin:
    """One nvinfer1::IPluginV3."""

    def __init__(self, host: Host, op: str, address: int) -> None:
        self.host, self.op, self.address = host, op, ctypes.c_void_p(address)

    def infer(self, inputs: Sequence[TensorProfile], output_count: int | None = None) -> list[TensorProfile]:
        """getOutputDataTypes and getOutputShapes, of all outputs of the contract if the node's are not told."""
        tensors = _tensors(inputs, [None] * (output_count or len(SPECS[self.op].outputs)))
        self.host.call("infer_outputs", self.address, ctypes.byref(tensors))
        dtypes = {number: dtype for dtype, number in DATA_TYPES.items()}
        return [
            TensorProfile(dtypes[t.type], tuple(tuple(d) for d in t.dims[: t.rank]))  # type: ignore[misc]
            for t in tensors.first[len(inputs) : len(inputs) + tensors.outputs]
        ]

    def supports(
        self, inputs: Sequence[TensorProfile], outputs: Sequence[TensorProfile], position: int, layout: int = LINEAR
    ) -> bool:
        """supportsFormatCombination with the tensor at `position` in a TensorFormat, all before it linear."""
        tensors, result = _tensors(inputs, outputs), ctypes.c_int32()
        self.host.call("supports", self.address, ctypes.byref(tensors), position, layout, ctypes.byref(result))
        return bool(result.value)

    def configure(self, inputs: Sequence[TensorProfile], outputs: Sequence[TensorProfile]) -> int:
        """configurePlugin, then getWorkspaceSize."""
        tensors, workspace_bytes = _tensors(inputs, outputs), ctypes.c_size_t()
        self.host.call("configure", self.address, ctypes.byref(tensors), ctypes.byref(workspace_bytes))
        return workspace_bytes.value

    def aliased_input(self, output: int) -> int:
        """getAliasedInput."""
        result = ctypes.c_int32()
        self.host.call("aliased_input", self.address, output, ctypes.byref(result))
        return result.value

    def fields(self) -> list[Field]:
        """Copies of getFieldsToSerialize."""
        collection = self.host.functions.harness_fields(self.address).contents
        itemsize = {FLOAT32: 4, INT32: 4, CHAR: 1, INT64: 8}
        return [
            Field(f.name.decode(), f.type, f.length, ctypes.string_at(f.data, itemsize[f.type] * f.length))
            for f in collection.first[: collection.count]
        ]

    def clone(self) -> Plugin:
        return Plugin(self.host, self.op, self.host.functions.harness_clone(self.address))

    def attach(self) -> Plugin:
        """attachToContext."""
        return Plugin(self.host, self.op, self.host.functions.harness_attach(self.address))

    def run(self, inputs: Sequence[Array], outputs: Sequence[TensorProfile], workspace_bytes: int) -> list[Array]:
        """onShapeChange and enqueue."""
        tensors = _tensors([profile_of(array) for array in inputs], outputs)
        arrays = [np.empty([opt for _, opt, _ in profile.dims], profile.dtype) for profile in outputs]
        contiguous = [np.ascontiguousarray(array) for array in inputs]
        for i, array in enumerate((*contiguous, *arrays)):
            tensors.first[i].data = array.ctypes.data
        self.host.call("run", self.address, ctypes.byref(tensors), ctypes.c_size_t(workspace_bytes))
        return arrays

    def destroy(self) -> None:
        self.host.functions.harness_destroy(self.address)


def _script(name: str, *arguments: str) -> str:
    environment = {**os.environ, "PYTHON": sys.executable}
    command = ["bash", str(REPOSITORY / "scripts" / name), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="session")
def tensorrt_include() -> str:
    """Folder of TensorRT's headers."""
    return _script("fetch_tensorrt_headers.sh", str(REPOSITORY / ".build" / "tensorrt_headers"))


@pytest.fixture(scope="session")
def host(tmp_path_factory: pytest.TempPathFactory, tensorrt_include: str) -> Host:
    """The emulated plugin library in the harness."""
    folder = tmp_path_factory.mktemp("tensorrt")
    options = ["-isystem", tensorrt_include, f'-DFASTMMOE_VERSION="{__version__}"']
    glue = [*PLUGINS.glob("tensorrt/*.cpp"), *PLUGINS.glob("contract/*.cpp"), *PLUGINS.glob("*/node.cpp")]
    sources = {
        "plugin.so": [*glue, *PLUGINS.glob("*/cuda/*.cu")],
        "harness.so": [*PLUGINS.glob("testing/harness/*.cpp")],
    }

    def build(name: str) -> None:
        _script("build_emulator.sh", str(folder / name), *options, *map(str, sources[name]))

    with ThreadPoolExecutor() as pool:
        list(pool.map(build, sources))
    return Host(folder / "harness.so", folder / "plugin.so")


@pytest.fixture
def harness() -> ModuleType:
    """This module."""
    return sys.modules[__name__]


@pytest.fixture
def life_cycle(host: Host) -> Callable[..., list[Array]]:
    """Function run_life_cycle of the host."""

    def run(op: str, inputs: dict[str, Array], attributes: dict[str, Any]) -> list[Array]:
        return run_life_cycle(host, op, inputs, attributes)

    return run


def run_life_cycle(host: Host, op: str, inputs: dict[str, Array], attributes: dict[str, Any]) -> list[Array]:
    """The outputs of a node after TensorRT's whole order of calls, with nothing logged.

    Build phase: create, infer, ask for formats, configure, serialize. Run time: create from the serialized fields,
    attach to a context, run; then again by a clone, which must give the same bits.
    """
    names = [t.name for t in SPECS[op].inputs_for(attributes)]
    arrays = [inputs[name] for name in names]
    profiles = [profile_of(array) for array in arrays]
    build = host.create(op, parser_fields(attributes))
    outputs = build.infer(profiles, len(SPECS[op].outputs_for(attributes)))
    assert all(build.supports(profiles, outputs, i) for i in range(len(profiles) + len(outputs)))
    workspace_bytes = build.configure(profiles, outputs)
    fields = build.fields()
    build.destroy()
    engine = host.create(op, fields, RUNTIME)
    context = engine.attach()
    results = context.run(arrays, outputs, workspace_bytes)
    engine.destroy()
    clone = context.clone()
    context.destroy()
    again = clone.run(arrays, outputs, workspace_bytes)
    clone.destroy()
    assert [a.tobytes() for a in again] == [a.tobytes() for a in results]
    assert host.messages() == []
    return results
