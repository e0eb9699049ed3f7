# SPDX-License-Identifier: Apache-2.0
"""What the tests of CUDA kernels share: building them for the emulator, guarded memory, nvcc, FmmSparseMoE."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import numpy as np
import pytest

from fastmmoe.exporter.ops import sparse_moe_reference
from fastmmoe.runtime.types import Array
from tests.support.moe_params import TOLERANCES, MoeParams, expected_experts, moe_params, moe_sizes, typed

REPOSITORY = Path(__file__).resolve().parents[3]
PLUGINS = REPOSITORY / "plugins"

# nvcc takes seconds for a file: make verify compiles for the others.
ARCHITECTURES = [87, *(pytest.param(arch, marks=pytest.mark.slow) for arch in (80, 90, 120))]

GUARD_BYTES = 256
ALIGNMENT = 16
INPUT_GUARD = 0xFF  # NaN and -1: what is read beyond an input shows


class Buffer:
    """An array between two guard zones, `offset` bytes behind an aligned address."""

    def __init__(self, shape: tuple[int, ...], dtype: Any, fill: int, offset: int = 0) -> None:
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        self.fill = fill
        self.bytes = np.full(GUARD_BYTES + ALIGNMENT + offset + size + GUARD_BYTES, fill, np.uint8)
        self.start = GUARD_BYTES + -self.bytes.ctypes.data % ALIGNMENT + offset
        self.inside = self.bytes[self.start : self.start + size]
        self.array = self.inside.view(dtype).reshape(shape)

    @property
    def address(self) -> int:
        return self.array.ctypes.data

    def check_guards(self, name: str) -> None:
        around = np.concatenate([self.bytes[: self.start], self.bytes[self.start + self.inside.size :]])
        assert (around == self.fill).all(), f"{name}: written outside of the buffer"


def check_message(message: bytes | None) -> None:
    """Raise RuntimeError with what a C function returned, where it failed."""
    if message is not None:
        raise RuntimeError(message.decode())


class EmulatedOp:
    """The kernels of one operator compiled against the emulator, with the C entry points of the tests."""

    def __init__(self, library: Path, function: str) -> None:
        self.library = ctypes.CDLL(str(library))
        self.function = self.library[function]
        self.function.restype = ctypes.c_char_p

    def run(
        self,
        inputs: dict[str, Array],
        outputs: dict[str, tuple[tuple[int, ...], Any]],
        workspace_bytes: int,
        make_arguments: Callable[[dict[str, int], int], tuple[Any, ...]],
        *,
        seed: int,
        poison: int,
        offsets: dict[str, int],
        aliases: Mapping[str, str] = MappingProxyType({}),
    ) -> tuple[dict[str, Array], Array]:
        """Launch once; the outputs and the bytes of the workspace. Every buffer is checked for stray writes.

        Args:
            outputs: shape and dtype of each. poison: fills them and the workspace beforehand.
            make_arguments: (addresses of inputs and outputs, address of the workspace) -> arguments of the function.
            offsets: bytes by which an array lies behind an aligned address.
            aliases: outputs that have the address of an input, which is then no longer as it was.
        Raises RuntimeError with the C++ message.
        """
        buffers: dict[str, Buffer] = {}
        for name, value in inputs.items():
            buffers[name] = Buffer(value.shape, value.dtype, INPUT_GUARD, offsets.get(name, 0))
            buffers[name].array[...] = value
        for name, (shape, dtype) in outputs.items():
            alias = aliases.get(name)
            buffers[name] = buffers[alias] if alias else Buffer(shape, dtype, poison, offsets.get(name, 0))
        workspace = Buffer((workspace_bytes,), np.uint8, poison)
        addresses = {name: buffer.address for name, buffer in buffers.items()}
        self.library.fastmmoe_emulator_set_seed(ctypes.c_int64(seed))
        check_message(self.function(*make_arguments(addresses, workspace.address)))
        for name, buffer in (buffers | {"workspace": workspace}).items():
            buffer.check_guards(name)
        for name, value in inputs.items():
            if name in aliases.values():
                continue
            assert buffers[name].array.tobytes() == value.tobytes(), f"{name} was written"
        return {name: buffers[name].array for name in outputs}, workspace.array


@pytest.fixture(scope="session")
def emulated_op(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], EmulatedOp]:
    """Function (operator's folder) -> EmulatedOp, in a library of its own."""

    def build(name: str) -> EmulatedOp:
        library = tmp_path_factory.mktemp("cuda") / f"lib{name}.so"
        sources = [*sorted((PLUGINS / name / "cuda").glob("*.cu")), Path(__file__).with_name(f"{name}_abi.cpp")]
        command = [str(REPOSITORY / "scripts" / "build_emulator.sh"), str(library), *map(str, sources)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return EmulatedOp(library, f"run_{name}")

    return build


@pytest.fixture
def count_kernels(tmp_path: Path) -> Callable[[Path, int], int]:
    """Function (file, compute capability) -> kernels that nvcc made of it, after checking that none spills."""
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("nvcc is not installed: the kernels are not compiled for a GPU here")

    def count(source: Path, arch: int) -> int:
        command = [nvcc, "-std=c++17", "-O3", f"-arch=sm_{arch}", "-cubin", "-Werror", "all-warnings", "-Xptxas", "-v"]
        command += ["-I", str(PLUGINS), str(source), "-o", str(tmp_path / "kernel.cubin")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        spills = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", done.stderr)
        assert set(spills) <= {("0", "0")}, done.stderr
        return len(spills)

    return count


class SparseMoeKernels:
    """The kernels of FmmSparseMoE, and how their results are judged."""

    TOLERANCES: ClassVar = TOLERANCES
    SEEDS = (0, 1, 20240607)
    POISONS = (0x7F, 0xFF)  # large integers, or negative ones and NaN
    OFFSETS: ClassVar = {"gate_up_scale": 2, "down_scale": 2, "gate_up_zero": 1, "down_zero": 1}

    def __init__(self, op: EmulatedOp) -> None:
        self.op = op
        op.library.workspace_bytes.restype = ctypes.c_char_p
        op.library.workspace_bytes.argtypes = [ctypes.POINTER(MoeParams), ctypes.POINTER(ctypes.c_size_t)]
        op.function.argtypes = [ctypes.POINTER(MoeParams), ctypes.c_void_p]

    typed = staticmethod(typed)

    def workspace_bytes(self, sizes: dict[str, int], dtype: Any, attributes: dict[str, Any]) -> int:
        size = ctypes.c_size_t()
        check_message(self.op.library.workspace_bytes(moe_params(sizes, dtype, attributes, {}), size))
        return size.value

    def __call__(
        self, inputs: dict[str, Array], attributes: dict[str, Any], *, seed: int = 0, poison: int = POISONS[0]
    ) -> tuple[Array, Array]:
        """output [T, H] and experts [T, k]: those in use ascending, -1 for the others."""
        sizes, dtype, k = moe_sizes(inputs), inputs["hidden_states"].dtype, attributes["top_k"]

        def arguments(addresses: dict[str, int], workspace: int) -> tuple[Any, ...]:
            return moe_params(sizes, dtype, attributes, addresses), workspace

        outputs, workspace = self.op.run(
            inputs,
            {"output": ((sizes["T"], sizes["H"]), dtype)},
            self.workspace_bytes(sizes, dtype, attributes),
            arguments,
            seed=seed,
            poison=poison,
            offsets=self.OFFSETS,
        )
        return outputs["output"], workspace[: 4 * sizes["T"] * k].view(np.int32).reshape(-1, k)

    def check_output(self, output: Array, inputs: dict[str, Array], attributes: dict[str, Any]) -> None:
        with np.errstate(all="ignore"):
            expected = sparse_moe_reference(**inputs, **attributes).astype(np.float32)
        assert output.dtype == inputs["hidden_states"].dtype
        atol = self.TOLERANCES[output.dtype] * np.nanmax(np.abs(expected), initial=0.0)
        np.testing.assert_allclose(output.astype(np.float32), expected, rtol=0, atol=atol)

    def check(self, inputs: dict[str, Array], attributes: dict[str, Any]) -> Array:
        """The output, compared with the reference: choices exactly, values within the type's tolerance."""
        output, experts = self(inputs, attributes)
        np.testing.assert_array_equal(experts, expected_experts(inputs, attributes))
        self.check_output(output, inputs, attributes)
        return output

    def check_schedules(self, inputs: dict[str, Array], attributes: dict[str, Any]) -> None:
        """`check`; other schedules and other bytes in the workspace give the same bits."""
        first = self.check(inputs, attributes)
        for seed in self.SEEDS[1:]:
            output, _ = self(inputs, attributes, seed=seed, poison=self.POISONS[1])
            assert output.tobytes() == first.tobytes(), f"seed {seed} gives other values"


@pytest.fixture(scope="session")
def moe_kernels(emulated_op: Callable[[str], EmulatedOp]) -> SparseMoeKernels:
    """The kernels of FmmSparseMoE in a library of their own."""
    return SparseMoeKernels(emulated_op("sparse_moe"))


@pytest.fixture(params=SparseMoeKernels.TOLERANCES, ids=str)
def moe_dtype(request: pytest.FixtureRequest) -> Any:
    """Type F, one after the other."""
    return request.param
