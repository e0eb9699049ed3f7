# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernels of FmmSparseMoE: run by the emulator against the reference; built by nvcc."""

from __future__ import annotations

import ctypes
import itertools
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest

from fastmmoe.exporter.ops import sparse_moe_reference
from fastmmoe.exporter.ops.sparse_moe import route_reference

Array = npt.NDArray[Any]
Maker = Callable[..., dict[str, Array]]

REPOSITORY = Path(__file__).resolve().parents[3]
KERNEL = REPOSITORY / "plugins" / "sparse_moe" / "kernel.cu"

# Of the output's greatest value; the position is that in the enumeration FloatType, where 0 is float.
TOLERANCES = {np.dtype(np.float16): 2e-3, np.dtype(ml_dtypes.bfloat16): 2e-2}
DTYPES = list(TOLERANCES)
FLOAT_TYPES = [np.dtype(np.float32), *DTYPES]
SEEDS = (0, 1, 20240607)

GUARD_BYTES = 256
INPUT_GUARD = 0xFF  # NaN and -1: what is read beyond an input shows
# In the output, the workspace and around them: large integers, or negative ones and NaN.
POISONS = (0x7F, 0xFF)

SIZES = ("T", "V", "H", "I", "E")
EXPERTS = ("gate_up", "down", "gate_up_bias", "down_bias")
TYPED = ("hidden_states", *EXPERTS)
INPUTS = ("hidden_states", "router_logits", "visual_index", "visual_top_k", "correction_bias", *EXPERTS)


class Attributes(ctypes.Structure):
    """SparseMoeAttributes."""

    _fields_ = [
        ("top_k", ctypes.c_int64),
        ("scoring_func", ctypes.c_int),
        ("topk_method", ctypes.c_int),
        ("n_group", ctypes.c_int64),
        ("topk_group", ctypes.c_int64),
        ("norm_topk_prob", ctypes.c_bool),
        ("routed_scaling_factor", ctypes.c_float),
        ("reduction_weights", ctypes.c_int),
        ("activation", ctypes.c_int),
        ("swiglu_limit", ctypes.c_float),
        ("expert_bias", ctypes.c_bool),
    ]


ENUMERATIONS = {
    "scoring_func": ("softmax", "sigmoid", "topk_softmax"),
    "topk_method": ("greedy", "group_limited_greedy", "noaux_tc"),
    "reduction_weights": ("preserve_sum", "none"),
    "activation": ("swiglu", "swiglu_oai"),
}


class Params(ctypes.Structure):
    """SparseMoeKernelParams."""

    _fields_ = [
        ("attributes", Attributes),
        ("type", ctypes.c_int),
        *((name, ctypes.c_int64) for name in SIZES),
        *((name, ctypes.c_void_p) for name in (*INPUTS, "output")),
    ]


class Buffer:
    """An array between two guard zones, aligned to 16 bytes."""

    def __init__(self, shape: tuple[int, ...], dtype: Any, fill: int) -> None:
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        self.fill = fill
        self.bytes = np.full(GUARD_BYTES + 16 + size + GUARD_BYTES, fill, np.uint8)
        self.start = GUARD_BYTES + -self.bytes.ctypes.data % 16
        self.inside = self.bytes[self.start : self.start + size]
        self.array = self.inside.view(dtype).reshape(shape)

    def check_guards(self, name: str) -> None:
        around = np.concatenate([self.bytes[: self.start], self.bytes[self.start + self.inside.size :]])
        assert (around == self.fill).all(), f"{name}: written outside of the buffer"


def sizes_of(inputs: dict[str, Array]) -> dict[str, int]:
    T, E = inputs["router_logits"].shape
    H, I = inputs["down"].shape[1:]  # noqa: E741
    return {"T": T, "V": len(inputs["visual_index"]), "H": H, "I": I, "E": E}


def make_params(sizes: dict[str, int], dtype: Any, attributes: dict[str, Any], pointers: dict[str, int]) -> Params:
    values = attributes | {name: names.index(attributes[name]) for name, names in ENUMERATIONS.items()}
    return Params(Attributes(**values), FLOAT_TYPES.index(np.dtype(dtype)), **sizes, **pointers)


class EmulatedKernels:
    """The kernels compiled against the emulator."""

    def __init__(self, library: Path) -> None:
        self.library = ctypes.CDLL(str(library))
        self.library.workspace_bytes.restype = ctypes.c_size_t
        self.library.workspace_bytes.argtypes = [ctypes.POINTER(Params)]
        self.library.run_sparse_moe.restype = ctypes.c_char_p
        self.library.run_sparse_moe.argtypes = [ctypes.POINTER(Params), ctypes.c_void_p]

    def workspace_bytes(self, sizes: dict[str, int], attributes: dict[str, Any]) -> int:
        return self.library.workspace_bytes(make_params(sizes, np.float16, attributes, {}))

    def __call__(
        self, inputs: dict[str, Array], attributes: dict[str, Any], *, seed: int = 0, poison: int = POISONS[0]
    ) -> tuple[Array, Array]:
        """output [T, H] and experts [T, k]: those in use ascending, -1 for the others.

        Every buffer is checked for stray writes. Raises RuntimeError with the C++ message.
        """
        sizes, dtype, k = sizes_of(inputs), inputs["hidden_states"].dtype, attributes["top_k"]
        buffers = {name: Buffer(value.shape, value.dtype, INPUT_GUARD) for name, value in inputs.items()}
        for name, value in inputs.items():
            buffers[name].array[...] = value
        buffers["output"] = Buffer((sizes["T"], sizes["H"]), dtype, poison)
        pointers = {name: buffer.array.ctypes.data for name, buffer in buffers.items()}
        workspace = Buffer((self.workspace_bytes(sizes, attributes),), np.uint8, poison)
        params = make_params(sizes, dtype, attributes, pointers)
        self.library.fastmmoe_emulator_set_seed(ctypes.c_int64(seed))
        message = self.library.run_sparse_moe(params, workspace.array.ctypes.data)
        if message is not None:
            raise RuntimeError(message.decode())
        for name, buffer in (buffers | {"workspace": workspace}).items():
            buffer.check_guards(name)
        for name, value in inputs.items():
            assert buffers[name].array.tobytes() == value.tobytes(), f"{name} was written"
        experts = workspace.array[: 4 * sizes["T"] * k].view(np.int32).reshape(-1, k)
        return buffers["output"].array, experts


@pytest.fixture(scope="session")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> EmulatedKernels:
    """The kernels and their C entry points in a library of their own."""
    library = tmp_path_factory.mktemp("cuda") / "libsparse_moe.so"
    entry = Path(__file__).with_name("sparse_moe_abi.cpp")
    command = [str(REPOSITORY / "scripts" / "build_emulator.sh"), str(library), str(KERNEL), str(entry)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return EmulatedKernels(library)


def with_dtype(inputs: dict[str, Array], dtype: Any) -> dict[str, Array]:
    """States, weights and biases rounded to the type."""
    return inputs | {name: inputs[name].astype(dtype) for name in TYPED if name in inputs}


def expected_experts(inputs: dict[str, Array], attributes: dict[str, Any]) -> Array:
    """What the reference chooses, as the kernels store it."""
    is_visual = np.isin(np.arange(len(inputs["router_logits"])), inputs["visual_index"])
    visual_top_k = int(inputs["visual_top_k"][0])
    selected, weights = route_reference(
        inputs["router_logits"], is_visual, visual_top_k, inputs["correction_bias"], attributes
    )
    order = np.argsort(selected, axis=1)
    return np.take_along_axis(np.where(weights == 0, -1, selected), order, axis=1)


def check_output(output: Array, inputs: dict[str, Array], attributes: dict[str, Any]) -> None:
    with np.errstate(all="ignore"):
        expected = sparse_moe_reference(**inputs, **attributes).astype(np.float32)
    assert output.dtype == inputs["hidden_states"].dtype
    atol = TOLERANCES[output.dtype] * np.nanmax(np.abs(expected), initial=0.0)
    np.testing.assert_allclose(output.astype(np.float32), expected, rtol=0, atol=atol)


def check(kernels: EmulatedKernels, inputs: dict[str, Array], attributes: dict[str, Any], **options: Any) -> Array:
    """Compare with the reference, choices exactly and values within the type's tolerance."""
    output, experts = kernels(inputs, attributes, **options)
    np.testing.assert_array_equal(experts, expected_experts(inputs, attributes))
    check_output(output, inputs, attributes)
    return output


def assert_same_bits(output: Array, expected: Array) -> None:
    assert output.tobytes() == expected.tobytes()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_case(kernels: EmulatedKernels, moe_case: tuple[dict[str, Array], dict[str, Any]], dtype: Any) -> None:
    """The cases of the CPU kernel; other schedules and other bytes in the workspace give the same bits."""
    inputs, attributes = with_dtype(moe_case[0], dtype), moe_case[1]
    first = check(kernels, inputs, attributes, seed=SEEDS[0])
    for seed in SEEDS[1:]:
        assert_same_bits(kernels(inputs, attributes, seed=seed, poison=POISONS[1])[0], first)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("T", "E", "H", "I"),
    [(1, 8, 16, 16), (9, 8, 16, 16), (8, 16, 272, 80), (90, 64, 160, 80), (150, 16, 144, 80), (350, 8, 144, 80)],
    ids=["few, smallest", "smallest", "few", "small tiles", "medium tiles", "large tiles"],
)
def test_sizes(
    kernels: EmulatedKernels,
    moe_inputs: Maker,
    moe_attributes: Maker,
    T: int,
    E: int,
    H: int,
    I: int,  # noqa: E741
    dtype: Any,
) -> None:
    """More than one tile of columns, and more depth than is in flight at a time."""
    inputs = with_dtype(moe_inputs(T=T, E=E, H=H, I=I, expert_bias=True), dtype)
    attributes = moe_attributes(expert_bias=1)
    first = check(kernels, inputs, attributes)
    assert_same_bits(kernels(inputs, attributes, seed=SEEDS[2], poison=POISONS[1])[0], first)


@pytest.mark.parametrize("E", [8, 31, 72, 160, 256])
def test_numbers_of_experts(kernels: EmulatedKernels, moe_inputs: Maker, moe_attributes: Maker, E: int) -> None:
    for T in (3, 40):
        inputs = with_dtype(moe_inputs(T=T, E=E, H=16, I=16), np.float16)
        check(kernels, inputs, moe_attributes(top_k=min(E, 16)))


@pytest.mark.parametrize("T", [7, 17])
@pytest.mark.parametrize("scoring", ENUMERATIONS["scoring_func"])
@pytest.mark.parametrize("method", ENUMERATIONS["topk_method"])
def test_values_that_are_not_finite_spoil_their_token_only(
    kernels: EmulatedKernels, moe_inputs: Maker, moe_attributes: Maker, method: str, scoring: str, T: int
) -> None:
    groups = {} if method == "greedy" else {"n_group": 4, "topk_group": 2}
    attributes = moe_attributes(topk_method=method, scoring_func=scoring, **groups)
    clean = with_dtype(moe_inputs(T=T, H=32, I=32), np.float16)
    expected = check(kernels, clean, attributes)
    dirty = clean | {name: clean[name].copy() for name in ("hidden_states", "router_logits")}
    dirty["hidden_states"][1, 3] = np.nan
    dirty["router_logits"][2] = np.nan
    dirty["router_logits"][3, 4:] = np.nan  # NaN only in slots that this visual token does not use
    dirty["router_logits"][4, 7] = np.nan
    dirty["router_logits"][5] = -np.inf
    dirty["router_logits"][6, 2] = np.inf
    output, _ = kernels(dirty, attributes)
    check_output(output, dirty, attributes)  # where the reference is NaN, so is the output
    assert_same_bits(kernels(dirty, attributes, seed=SEEDS[1], poison=POISONS[1])[0], output)
    others = np.setdiff1d(np.arange(T), [1, 2, 3, 4, 5, 6])
    assert_same_bits(output[others], expected[others])
    if scoring == "sigmoid":
        assert np.isfinite(output[4]).all(), "a NaN score comes last"


@pytest.mark.parametrize("T", [4, 30])
def test_experts_without_tokens_are_not_read(
    kernels: EmulatedKernels, moe_inputs: Maker, moe_attributes: Maker, T: int
) -> None:
    inputs = with_dtype(moe_inputs(T=T, E=32, H=32, I=32), np.float16)
    inputs["router_logits"][:, 8:] -= 100
    expected = check(kernels, inputs, moe_attributes())
    inputs["gate_up"][8:] = inputs["down"][8:] = np.nan
    assert_same_bits(kernels(inputs, moe_attributes())[0], expected)


@pytest.mark.parametrize("T", [8, 17])
def test_visual_token_with_all_its_experts_is_a_text_token(
    kernels: EmulatedKernels, moe_inputs: Maker, moe_attributes: Maker, T: int
) -> None:
    for norm_topk_prob, scoring in itertools.product((0, 1), ENUMERATIONS["scoring_func"]):
        attributes = moe_attributes(norm_topk_prob=norm_topk_prob, scoring_func=scoring)
        text, visual = (
            with_dtype(moe_inputs(T=T, H=32, I=16, visual=index, visual_top_k=6), np.float16)
            for index in (np.arange(0), np.arange(T))
        )
        assert_same_bits(kernels(visual, attributes)[0], kernels(text, attributes)[0])


@pytest.mark.parametrize(("T", "E"), [(8, 16), (40, 16), (100, 8)])
def test_a_row_does_not_depend_on_its_place(
    kernels: EmulatedKernels, moe_inputs: Maker, moe_attributes: Maker, T: int, E: int
) -> None:
    inputs = with_dtype(moe_inputs(T=T, E=E, H=32, I=48, visual=np.arange(0)), np.float16)
    reversed_rows = {name: np.ascontiguousarray(inputs[name][::-1]) for name in ("hidden_states", "router_logits")}
    output, _ = kernels(inputs, moe_attributes())
    assert_same_bits(kernels(inputs | reversed_rows, moe_attributes())[0], np.ascontiguousarray(output[::-1]))


@pytest.mark.parametrize(("E", "top_k"), [(8, 1), (64, 6), (72, 6), (128, 8), (256, 16)])
def test_workspace_grows_with_tokens(kernels: EmulatedKernels, moe_attributes: Maker, E: int, top_k: int) -> None:
    sizes = {"V": 0, "H": 64, "I": 32, "E": E}
    lengths = [kernels.workspace_bytes(sizes | {"T": T}, moe_attributes(top_k=top_k)) for T in range(12000)]
    assert lengths[0] == 0
    assert (np.diff(lengths) >= 0).all()


@pytest.mark.parametrize(
    ("size", "attributes", "message"),
    [
        ({"E": 257}, {}, "FmmSparseMoE: E is 257, expected 1 to 256 experts on CUDA"),
        ({"H": 24}, {}, "FmmSparseMoE: H is 24, expected a multiple of 16 on CUDA"),
        ({"I": 40}, {}, "FmmSparseMoE: I is 40, expected a multiple of 16 on CUDA"),
        ({"E": 32}, {"top_k": 17}, "FmmSparseMoE: top_k is 17, expected 1 to 16"),
        ({"E": 4}, {"top_k": 5}, "FmmSparseMoE: top_k is 5, expected 1 to 4"),
        ({"E": 20}, {"n_group": 8}, "FmmSparseMoE: n_group is 8, expected 1 to 64, a divisor of 20"),
    ],
)
def test_sizes_it_cannot_take_are_refused(
    kernels: EmulatedKernels,
    moe_inputs: Maker,
    moe_attributes: Maker,
    size: dict[str, int],
    attributes: dict[str, Any],
    message: str,
) -> None:
    inputs = with_dtype(moe_inputs(**({"T": 2, "H": 32, "I": 32} | size)), np.float16)
    with pytest.raises(RuntimeError, match=f"^{message}$"):
        kernels(inputs, moe_attributes(**attributes))


def test_float_states_are_refused(kernels: EmulatedKernels, moe_inputs: Maker, moe_attributes: Maker) -> None:
    message = "FmmSparseMoE: hidden_states is float, expected float16 or bfloat16 on CUDA"
    with pytest.raises(RuntimeError, match=f"^{message}$"):
        kernels(moe_inputs(H=32, I=32), moe_attributes())


@pytest.mark.parametrize("arch", [80, 87, 90, 120])
def test_nvcc_compiles_it_without_spills(tmp_path: Path, arch: int) -> None:
    nvcc = shutil.which("nvcc")
    if nvcc is None:
        pytest.skip("nvcc is not installed: the kernels are not compiled for a GPU here")
    command = [nvcc, "-std=c++17", "-O3", f"-arch=sm_{arch}", "-cubin", "-Werror", "all-warnings", "-Xptxas", "-v"]
    command += ["-I", str(REPOSITORY / "plugins"), str(KERNEL), "-o", str(tmp_path / "kernel.cubin")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    spills = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", done.stderr)
    assert len(spills) == 3 + 2 * (2 + 2 * 3 + 1)  # for each type: few tokens, two products for three tiles, the sum
    assert set(spills) == {("0", "0")}, done.stderr
