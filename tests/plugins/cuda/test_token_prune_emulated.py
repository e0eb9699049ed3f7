# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernel of FmmTokenPrune: run by the emulator against the golden cases and the reference; built by nvcc."""

from __future__ import annotations

import ctypes
import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fastmmoe.exporter.ops import token_prune_reference
from fastmmoe.runtime.types import Array
from tests.plugins.cuda.conftest import ARCHITECTURES
from tests.support.native_node import run_native
from tests.support.operators import prune_inputs
from tests.support.prune_params import (
    DTYPES,
    INPUTS,
    OFFSETS,
    OUTPUTS,
    STATES,
    TOLERANCES,
    Params,
    prune_output_types,
    prune_params,
    prune_sizes,
    with_dtype,
)

REPOSITORY = Path(__file__).resolve().parents[3]
KERNEL = REPOSITORY / "plugins" / "token_prune" / "cuda" / "kernel.cu"
MLERP: dict[str, Any] = {"window": 3, "merge": "mlerp"}

SEEDS = (0, 1, 20240607)
MAX_BLOCKS = 1 << 16

POISON = 0xA5  # in outputs, the workspace and around them


class EmulatedKernel:
    """The kernel compiled against the emulator."""

    def __init__(self, op: Any) -> None:
        self.op = op
        op.library.workspace_bytes.restype = ctypes.c_size_t
        op.library.workspace_bytes.argtypes = [ctypes.c_int64] * 3
        op.function.argtypes = [ctypes.POINTER(Params), ctypes.c_void_p, ctypes.c_int]

    def __call__(
        self,
        inputs: dict[str, Array],
        attributes: dict[str, Any],
        *,
        seed: int = 0,
        max_blocks: int = MAX_BLOCKS,
        offset: int = 0,
    ) -> list[Array]:
        """The four outputs. offset: bytes by which the states lie behind an aligned address."""
        sizes, dtype = prune_sizes(inputs), inputs["hidden_states"].dtype

        def arguments(addresses: dict[str, int], workspace: int) -> tuple[Any, ...]:
            return prune_params(sizes, dtype, attributes, addresses), workspace, max_blocks

        is_pruning = sizes["K"] < sizes["V"]
        outputs, workspace = self.op.run(
            {name: inputs[name] for name in INPUTS},
            prune_output_types(sizes, dtype),
            self.op.library.workspace_bytes(sizes["B"], sizes["V"], sizes["E"]) if is_pruning else 0,
            arguments,
            seed=seed,
            poison=POISON,
            offsets=dict.fromkeys((*STATES, *OUTPUTS[:2]), offset),
        )
        if is_pruning:
            assert workspace[-4:].view(np.int32) == sizes["K"], "the workspace is not used to its end"
        return list(outputs.values())


@pytest.fixture(scope="session")
def kernel(emulated_op: Callable[[str], Any]) -> EmulatedKernel:
    """The kernel in a library of its own."""
    return EmulatedKernel(emulated_op("token_prune"))


def assert_same_bits(outputs: list[Array], expected: list[Array]) -> None:
    for ours, theirs in zip(outputs, expected, strict=True):
        assert ours.dtype == theirs.dtype
        assert ours.shape == theirs.shape
        assert ours.tobytes() == theirs.tobytes()


def split(inputs: dict[str, Array]) -> list[dict[str, Array]]:
    """The sequences of a request, a request each; text between the visual rows of two goes to the first."""
    index, T = inputs["visual_index"], len(inputs["hidden_states"])
    starts = [0, *(int(index[v]) if v < len(index) else T for v in inputs["visual_offsets"][1:-1]), T]
    sequences = []
    for b, (first, end) in enumerate(itertools.pairwise(starts)):
        rows, tokens = slice(first, end), slice(*inputs["visual_offsets"][b : b + 2])
        sequence = {name: inputs[name][rows] for name in STATES}
        sequence |= {name: inputs[name][tokens] for name in ("routing_probs", "attention")}
        sequence |= {"visual_index": index[tokens] - np.int32(first), "alpha": inputs["alpha"]}
        sequence |= {name: inputs[name][b : b + 2] - inputs[name][b] for name in OFFSETS}
        sequence |= {f"{name}_slots": np.zeros(sequence[f"{name}_offsets"][1], np.int8) for name in ("keep", "merge")}
        sequences.append(sequence)
    return sequences


def run_alone(kernel: EmulatedKernel, inputs: dict[str, Array], attributes: dict[str, Any]) -> list[Array]:
    """What a request of each sequence gives, put together."""
    sequences = split(inputs)
    outputs = [kernel(sequence, attributes) for sequence in sequences]
    row = row_out = 0
    for sequence, (hidden_out, _, kept_index, visual_index_out) in zip(sequences, outputs, strict=True):
        kept_index += row
        visual_index_out += row_out
        row += len(sequence["hidden_states"])
        row_out += len(hidden_out)
    return [np.concatenate(arrays) for arrays in zip(*outputs, strict=True)]


def check(kernel: EmulatedKernel, inputs: dict[str, Array], attributes: dict[str, Any], **options: Any) -> list[Array]:
    """Compare with the reference: choices and moved rows exactly, merged rows within the type's tolerance."""
    with np.errstate(all="ignore"):
        expected = token_prune_reference(**inputs, **attributes)
    outputs = kernel(inputs, attributes, **options)
    assert_same_bits(outputs[2:], list(expected[2:]))
    for ours, theirs in zip(outputs[:2], expected[:2], strict=True):
        assert ours.dtype == theirs.dtype
        scale = np.nanmax(np.abs(theirs.astype(np.float32)), initial=0.0)
        atol = TOLERANCES[ours.dtype] * scale
        np.testing.assert_allclose(ours.astype(np.float32), theirs.astype(np.float32), rtol=0, atol=atol)
    return outputs


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_golden_case(kernel: EmulatedKernel, golden_prune_case: Any, dtype: Any) -> None:
    inputs = with_dtype(golden_prune_case.inputs, dtype)
    first, *others = (kernel(inputs, golden_prune_case.attributes, seed=seed) for seed in SEEDS)
    dataclasses.replace(golden_prune_case, inputs=inputs).check(first, TOLERANCES[dtype])
    for outputs in others:
        assert_same_bits(outputs, first)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_case(kernel: EmulatedKernel, prune_case: tuple[dict[str, Array], dict[str, Any]], dtype: Any) -> None:
    """Ordinary and hostile cases, those of the CPU kernel; with other schedules the same bits."""
    inputs, attributes = with_dtype(prune_case[0], dtype), prune_case[1]
    first = check(kernel, inputs, attributes, seed=SEEDS[0])
    for seed in SEEDS[1:]:
        assert_same_bits(kernel(inputs, attributes, seed=seed), first)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_grids_give_the_same_bits(kernel: EmulatedKernel, dtype: Any) -> None:
    """Short windows too, which need sums over all chunks of tokens."""
    visual = np.r_[10:500, 520:889]
    inputs = with_dtype(prune_inputs(T=900, K=300, M=15, visual=visual, H=40, E=72), dtype)
    whole = check(kernel, inputs, {"window": 4, "merge": "mlerp"})
    for max_blocks in (1, 7):
        assert_same_bits(kernel(inputs, {"window": 4, "merge": "mlerp"}, max_blocks=max_blocks, seed=5), whole)


def check_sequences(kernel: EmulatedKernel, inputs: dict[str, Array], attributes: dict[str, Any]) -> None:
    """Each sequence gives the bits that it gives alone, whatever the grid and the schedule."""
    expected = run_alone(kernel, inputs, attributes)
    for seed, max_blocks in zip((*SEEDS, 5), (MAX_BLOCKS, 1, 2, 7), strict=True):
        assert_same_bits(kernel(inputs, attributes, seed=seed, max_blocks=max_blocks), expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sequences_do_not_see_each_other(
    kernel: EmulatedKernel, packed_prune_case: tuple[dict[str, Array], dict[str, Any]], dtype: Any
) -> None:
    check_sequences(kernel, with_dtype(packed_prune_case[0], dtype), packed_prune_case[1])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sequences_of_many_tokens_do_not_see_each_other(kernel: EmulatedKernel, dtype: Any) -> None:
    """Runs of 6 and windows of 4: half of them are filled up with a mean that is summed over chunks of tokens.

    Runs go on from one sequence to the next. One has no visual tokens, and one whole chunks of them, all of which stay.
    """
    visual = np.flatnonzero(np.arange(800) % 7 < 6)
    inputs = with_dtype(prune_inputs(T=800, K=315, M=40, visual=visual, H=40, E=72, alpha=1.0), dtype)
    inputs["visual_offsets"] = np.cumsum([0, 271, 0, 64, 98, 253], dtype=np.int32)
    inputs["keep_offsets"] = np.cumsum([0, 90, 0, 64, 31, 130], dtype=np.int32)
    inputs["merge_offsets"] = np.cumsum([0, 20, 0, 0, 9, 11], dtype=np.int32)
    for b, (first, end) in enumerate(itertools.pairwise(inputs["visual_offsets"])):
        inputs["routing_probs"][first:end, b] += np.float32(0.1 * b)
    check_sequences(kernel, inputs, {"window": 4, "merge": "mlerp"})


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("H", "offset"), [(13, 0), (16, 0), (16, 4)])
def test_widths_and_alignments(kernel: EmulatedKernel, H: int, offset: int, dtype: Any) -> None:
    check(kernel, with_dtype(prune_inputs(H=H), dtype), MLERP, offset=offset)


@pytest.mark.parametrize("E", [8, 31, 64, 72, 128, 160, 256])
def test_numbers_of_experts(kernel: EmulatedKernel, E: int) -> None:
    check(kernel, prune_inputs(E=E, visual=np.r_[3:34, 40:54]), MLERP)


def test_moved_rows_keep_their_bits(kernel: EmulatedKernel) -> None:
    """Also a NaN with a payload, in a row that survives."""
    for dtype in DTYPES:
        inputs = with_dtype(prune_inputs(M=0), dtype)
        inputs["residual"].view(np.uint8)[0, : dtype.itemsize] = 0xFD
        hidden_out, residual_out, kept_index, _ = kernel(inputs, MLERP)
        assert kept_index[0] == 0
        assert hidden_out.tobytes() == inputs["hidden_states"][kept_index].tobytes()
        assert residual_out.tobytes() == inputs["residual"][kept_index].tobytes()


def test_merging_rows_that_are_not_finite(kernel: EmulatedKernel) -> None:
    """The window of rows 3 to 5 is merged; a row that overflows nothing but its square is no problem."""
    inputs = prune_inputs(M=12, K=20, alpha=1.0)
    inputs["routing_probs"][:3] = 0.125
    inputs["hidden_states"][4, 2] = np.nan
    inputs["residual"][3:6] *= 1e25
    hidden_out, residual_out, kept_index, _ = kernel(inputs, MLERP)
    row = int(np.searchsorted(kept_index, 3))
    assert kept_index[row : row + 2].tolist() == [3, 6]
    assert np.isnan(hidden_out[row]).all()
    norms = np.linalg.norm(inputs["residual"][3:6].astype(np.float64), axis=1)
    np.testing.assert_allclose(np.linalg.norm(residual_out[row].astype(np.float64)), norms.max(), rtol=1e-6)


def test_the_cpu_kernel_chooses_alike(kernel: EmulatedKernel) -> None:
    """Scores that lie within some tens of floats of each other: both kernels round the same sums alike."""
    random = np.random.default_rng(3)
    V, E = 2100, 64
    inputs = {
        "hidden_states": random.standard_normal((2200, 8)).astype(np.float32),
        "residual": random.standard_normal((2200, 8)).astype(np.float32),
        "routing_probs": ((1 + 5e-3 * random.standard_normal((V, E))) / E).astype(np.float32),
        "attention": (1e-3 + 2e-9 * random.random(V)).astype(np.float32),
        "visual_index": np.r_[5:1055, 1090:2140].astype(np.int32),
        "visual_offsets": np.array([0, 1100, V], np.int32),
        "keep_slots": np.zeros(900, np.int8),
        "keep_offsets": np.array([0, 500, 900], np.int32),
        "merge_slots": np.zeros(150, np.int8),
        "merge_offsets": np.array([0, 70, 150], np.int32),
        "alpha": np.array([0.3], np.float32),
    }
    attributes = {"window": 7, "merge": "mlerp"}
    ours, theirs = kernel(inputs, attributes), run_native("FmmTokenPrune", inputs, attributes)
    assert_same_bits(ours[2:], theirs[2:])
    for a, b in zip(ours[:2], theirs[:2], strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=TOLERANCES[a.dtype] * np.abs(b).max())


def test_as_many_tokens_as_expected(kernel: EmulatedKernel) -> None:
    """8192 visual tokens in runs of 8, so a third of the windows is short; attention values in few exponents."""
    visual = np.flatnonzero(np.arange(9300) % 9)[:8192]
    inputs = prune_inputs(T=9300, K=3000, M=150, visual=visual, H=8, E=8)
    inputs["attention"] = (np.round(inputs["attention"] * 64) / 2**16).astype(np.float32)
    check(kernel, inputs, MLERP)


def test_order_of_floats(kernel: EmulatedKernel) -> None:
    """NaN of either sign before all numbers: processors differ in the sign of the NaN that inf / inf gives."""
    order = kernel.op.library.order_bits
    order.restype, order.argtypes = ctypes.c_uint32, [ctypes.c_float]
    tiny, greatest = float(np.float32(1e-45)), float(np.finfo(np.float32).max)
    values = [-np.inf, -greatest, -1.0, -tiny, 0.0, tiny, 1.0, greatest, np.inf]
    bits = [order(value) for value in values]
    assert bits == sorted(set(bits))
    assert order(-0.0) == order(0.0)
    assert 0 < order(np.nan) == order(-np.nan) < bits[0]  # 0 is no candidate


CONTENTS = ("zeros", "minus one", "greatest", "descending", "random")


def anything(content: str, count: int, end: int) -> Array:
    """int32 [count] as memory may hold it; `end` is where descending values begin."""
    return {
        "zeros": np.zeros(count, np.int32),
        "minus one": np.full(count, -1, np.int32),
        "greatest": np.full(count, 2**31 - 1, np.int32),
        "descending": np.arange(end, end - count, -1, dtype=np.int32),
        "random": np.random.default_rng(0).integers(-(2**31), 2**31, count, dtype=np.int32),
    }[content]


@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize(("K", "M"), [(20, 3), (44, 0), (0, 0)])
def test_an_index_that_is_none_stays_within_the_buffers(kernel: EmulatedKernel, content: str, K: int, M: int) -> None:
    """TensorRT times plugins on memory that holds anything. The guard zones are checked by every run."""
    inputs = prune_inputs(K=K, M=M)
    inputs["visual_index"] = anything(content, len(inputs["visual_index"]), end=59)
    outputs = kernel(inputs, MLERP)
    assert [len(output) for output in outputs] == [60 - 44 + K, 60 - 44 + K, 60 - 44 + K, K]


@pytest.mark.parametrize("names", [*((name,) for name in OFFSETS), OFFSETS, (*OFFSETS, "visual_index")], ids="-".join)
@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize("B", [1, 2, 7, 90])
def test_offsets_that_are_none_stay_within_the_buffers(
    kernel: EmulatedKernel, names: tuple[str, ...], content: str, B: int
) -> None:
    """Likewise; whatever sequences there are then own all tokens, and there are B of them."""
    inputs = prune_inputs(T=130, K=61, M=9, visual=np.r_[3:100, 110:130])
    ends = {"visual_offsets": 117, "keep_offsets": 61, "merge_offsets": 9, "visual_index": 129}
    inputs |= {name: np.sort(np.linspace(0, ends[name], B + 1).astype(np.int32)) for name in OFFSETS}
    inputs |= {name: anything(content, 117 if name == "visual_index" else B + 1, ends[name]) for name in names}
    for max_blocks in (MAX_BLOCKS, 2):
        outputs = kernel(inputs, MLERP, max_blocks=max_blocks)
        assert [len(output) for output in outputs] == [130 - 117 + 61] * 3 + [61]


def test_too_many_experts_are_refused(kernel: EmulatedKernel) -> None:
    message = "FmmTokenPrune: E is 257, expected at most 256 experts on CUDA"
    with pytest.raises(RuntimeError, match=f"^{message}$"):
        kernel(prune_inputs(E=257), MLERP)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_nvcc_compiles_it_without_spills(count_kernels: Callable[[Path, int], int], arch: int) -> None:
    assert count_kernels(KERNEL, arch) == 2 + 3 * 2  # scoring, choosing; gather_rows for three types and two widths
