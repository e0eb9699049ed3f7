# SPDX-License-Identifier: Apache-2.0
"""FmmTokenPrune on several sequences in one request: each must come out as it does alone."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from onnxruntime.capi.onnxruntime_pybind11_state import Fail, InvalidArgument

from fastmmoe.exporter.ops import TOKEN_PRUNE, token_prune_reference
from fastmmoe.exporter.ops.sparse_moe import torch_op as _moe  # noqa: F401  (registers the operator)
from fastmmoe.exporter.ops.token_prune import torch_op as _prune  # noqa: F401  (registers the operator)
from fastmmoe.exporter.ops.token_prune.contract import merge_capacity
from fastmmoe.runtime.types import Array
from tests.support.operator_bodies import run_body

Run = Callable[..., list[Array]]
Sequence = tuple[int, Array, int, int]  # T, visual rows, K, M

MLERP: dict[str, Any] = {"window": 3, "merge": "mlerp"}
ENDS, STARTS = (27, np.r_[2:12, 16:27], 9, 2), (31, np.r_[0:11, 20:25], 7, 2)
WHOLE, TEXT = (14, np.arange(11), 11, 0), (5, np.arange(0), 0, 0)
DROPPED, FULL = (8, np.arange(5), 0, 0), (7, np.arange(7), 3, 1)
REQUESTS: dict[str, tuple[Sequence, ...]] = {
    "one kept whole, one without images": (ENDS, WHOLE, TEXT),
    "adjacent runs": (TEXT, ENDS, STARTS),
    "many": (WHOLE, STARTS, ENDS, DROPPED, TEXT, FULL, FULL, ENDS),
    "one sequence": (STARTS,),
    "keeping all": (WHOLE, TEXT, WHOLE),
    "no visual tokens": (TEXT, TEXT),
}


def offsets_of(counts: list[int]) -> Array:
    return np.cumsum([0, *counts], dtype=np.int32)


def pack(sequences: tuple[Sequence, ...], first: int = 0) -> list[Array]:
    """A random request, H = 8 and E = 6; the values of a sequence are those of its place, counted from `first`.

    Routing and attention differ between sequences so that a mean or a maximum over several of them chooses otherwise.
    """
    parts: list[list[Array]] = []
    row = 0
    for place, (T, visual, _, _) in enumerate(sequences, first):
        random = np.random.default_rng(place)
        probabilities = random.random((len(visual), 6)).astype(np.float32)
        probabilities[:, place % 6] += np.float32(place)
        attention = random.random(len(visual)).astype(np.float32) * np.float32(4.0**-place)
        states = random.standard_normal((2, T, 8)).astype(np.float32)
        parts.append([*states, probabilities, attention, (row + visual).astype(np.int32)])
        row += T
    V, K, M = [len(visual) for _, visual, _, _ in sequences], [s[2] for s in sequences], [s[3] for s in sequences]
    slots = [part for n in (K, M) for part in (np.zeros(sum(n), np.int8), offsets_of(n))]
    joined = [np.concatenate(arrays) for arrays in zip(*parts, strict=True)]
    return [*joined, offsets_of(V), *slots, np.array([0.4], np.float32)]


def run_torch(attributes: dict[str, Any], inputs: list[Array]) -> list[Array]:
    tensors = [torch.from_numpy(array) for array in inputs]
    return [y.numpy() for y in torch.ops.fastmmoe.token_prune.default(*tensors, TOKEN_PRUNE.encode(attributes))]


@pytest.fixture(params=["reference", "torch", "function"])
def prune(request: pytest.FixtureRequest) -> Run:
    """Function (attributes, inputs) -> outputs; one implementation after the other."""
    implementations: dict[str, Run] = {
        "reference": lambda attributes, inputs: list(token_prune_reference(*inputs, **attributes)),
        "torch": run_torch,
        "function": lambda attributes, inputs: run_body(TOKEN_PRUNE, attributes, inputs),
    }
    return implementations[request.param]


def check_alone(prune: Run, attributes: dict[str, Any], sequences: tuple[Sequence, ...], change: Any = None) -> None:
    """The request equals its sequences one by one, bit for bit. `change` alters probabilities and attention of all."""
    inputs = pack(sequences)
    ends = inputs[5]
    if change is not None:
        change(inputs[2], inputs[3])
    expected = []
    row = row_out = 0
    for place, sequence in enumerate(sequences):
        alone = pack((sequence,), first=place)
        alone[2], alone[3] = (x[ends[place] : ends[place + 1]] for x in inputs[2:4])
        hidden, residual, kept_index, visual_index = prune(attributes, alone)
        expected.append([hidden, residual, kept_index + np.int32(row), visual_index + np.int32(row_out)])
        row, row_out = row + sequence[0], row_out + len(hidden)
    outputs = prune(attributes, inputs)
    assert len(outputs[0]) == row_out == sum(T - len(visual) + K for T, visual, K, _ in sequences)
    for output, parts in zip(outputs, zip(*expected, strict=True), strict=True):
        np.testing.assert_array_equal(output, np.concatenate(parts))


@pytest.mark.parametrize("merge", ["mlerp", "mean"])
@pytest.mark.parametrize("name", REQUESTS)
def test_each_sequence_is_pruned_as_if_alone(prune: Run, name: str, merge: str) -> None:
    check_alone(prune, {"window": 3, "merge": merge}, REQUESTS[name])


def random_requests() -> Iterator[tuple[int, tuple[Sequence, ...]]]:
    """A window and sequences of random rows and counts."""
    random = np.random.default_rng(11)
    for window in (1, 2, 3, 5):
        for _ in range(4):
            sequences = []
            for T in random.integers(1, 30, random.integers(1, 6)):
                visual = np.flatnonzero(random.random(T) < 0.8)
                K = int(random.integers(0, len(visual) + 1))
                M = int(random.integers(0, min(K, merge_capacity(len(visual), K, window)) + 1))
                sequences.append((int(T), visual, K, M))
            yield window, tuple(sequences)


def test_random_requests(prune: Run) -> None:
    for window, sequences in random_requests():
        check_alone(prune, {"window": window, "merge": "mlerp"}, sequences)


def make_ties(probabilities: Array, attention: Array) -> None:
    probabilities[:], attention[:] = 0.125, 0.25


def make_bad(probabilities: Array, attention: Array) -> None:
    probabilities[[3, 12, 21, 30], 2] = np.nan
    attention[[8, 25]] = np.inf, -np.inf


@pytest.mark.parametrize("change", [make_ties, make_bad])
def test_ties_and_values_that_are_not_finite(prune: Run, change: Any) -> None:
    with np.errstate(invalid="ignore"):
        check_alone(prune, MLERP, REQUESTS["adjacent runs"], change)


@pytest.mark.parametrize("name", ["one kept whole, one without images", "adjacent runs", "many"])
def test_the_offsets_decide(prune: Run, name: str) -> None:
    """The same rows as one sequence come out otherwise, so the tests above would notice."""
    inputs = pack(REQUESTS[name])
    whole = list(inputs)
    for offsets, counted in ((5, 4), (7, 6), (9, 8)):
        whole[offsets] = np.array([0, len(inputs[counted])], np.int32)
    _, _, kept_index, _ = prune(MLERP, inputs)
    _, _, kept_as_one, _ = prune(MLERP, whole)
    assert len(kept_index) == len(kept_as_one)
    assert (kept_index != kept_as_one).any()


def test_merge_slots_do_not_count_where_all_is_kept(prune: Run) -> None:
    inputs = pack(REQUESTS["keeping all"])
    inputs[8], inputs[9] = np.zeros(4, np.int8), np.array([0, 1, 3, 4], np.int32)
    outputs = prune(MLERP, inputs)
    np.testing.assert_array_equal(outputs[0], inputs[0])
    np.testing.assert_array_equal(outputs[2], np.arange(len(inputs[0])))
    np.testing.assert_array_equal(outputs[3], inputs[4])


# Offsets of ENDS, WHOLE, TEXT (V 21, 11, 0; K 9, 11, 0; M 2, 0, 0), and what is wrong with them.
BAD_OFFSETS: list[tuple[list[int], list[int], list[int], str]] = [
    ([1, 21, 32, 32], [0, 9, 20, 20], [0, 2, 2, 2], "visual_offsets is .1, 21, 32, 32., expected 0 to V = 32"),
    ([0, 21, 32, 31], [0, 9, 20, 20], [0, 2, 2, 2], "visual_offsets is .*, expected 0 to V = 32, not descending"),
    ([0, 21, 20, 32], [0, 9, 9, 20], [0, 2, 2, 2], "visual_offsets is .*, expected 0 to V = 32, not descending"),
    ([0, 21, 32, 32], [0, 9, 20, 19], [0, 2, 2, 2], "keep_offsets is .*, expected 0 to K = 20, not descending"),
    ([0, 21, 32, 32], [0, 9, 8, 20], [0, 2, 2, 2], "keep_offsets is .*, expected 0 to K = 20, not descending"),
    ([0, 21, 32, 32], [0, 9, 20, 20], [0, 2, 2, 3], "merge_offsets is .*, expected 0 to M = 2, not descending"),
    ([0, 21, 32, 32], [0, 9, 20, 20], [0, 2, -1, 2], "merge_offsets is .*, expected 0 to M = 2, not descending"),
    ([0, 21, 32, 32], [0, 8, 20, 20], [0, 2, 2, 2], "sequence 1: 12 keep slots for 11 visual tokens; at most 11"),
    ([0, 21, 32, 32], [0, 9, 20, 20], [0, 1, 2, 2], "sequence 1: 1 merge slots, at most 0"),
    ([0, 21, 32, 32], [0, 9, 20, 20], [0, 1, 1, 2], "sequence 2: 1 merge slots, at most 0"),
    ([0, 4, 32, 32], [0, 1, 20, 20], [0, 2, 2, 2], "sequence 0: 2 merge slots, at most 1"),
    ([0], [0], [0], r"B is 0, expected 1 to 65536 \(visual_offsets is \[1\]\)"),
]


@pytest.mark.parametrize(("visual", "keep", "merge", "message"), BAD_OFFSETS)
def test_impossible_offsets_are_refused(visual: list[int], keep: list[int], merge: list[int], message: str) -> None:
    inputs = pack(REQUESTS["one kept whole, one without images"])
    for place, offsets in ((5, visual), (7, keep), (9, merge)):
        inputs[place] = np.array(offsets, np.int32)
    with pytest.raises(ValueError, match=f"^FmmTokenPrune: {message}"):
        token_prune_reference(*inputs, **MLERP)
    with pytest.raises(ValueError, match=f"^FmmTokenPrune: {message}"):
        run_torch(MLERP, inputs)
    with pytest.raises((Fail, InvalidArgument), match=r"TopK.*slots_fit"):
        run_body(TOKEN_PRUNE, MLERP, inputs)


@pytest.mark.parametrize("window", [1, 3])
def test_descending_keep_offsets_are_refused_where_nothing_is_merged(window: int) -> None:
    attributes: dict[str, Any] = {"window": window, "merge": "mlerp"}
    inputs = pack(((*ENDS[:3], 0), WHOLE, TEXT))
    run_body(TOKEN_PRUNE, attributes, inputs)
    inputs[7] = np.array([0, 21, 20, 20], np.int32)
    with pytest.raises(ValueError, match=r"^FmmTokenPrune: keep_offsets is "):
        token_prune_reference(*inputs, **attributes)
    with pytest.raises((Fail, InvalidArgument), match=r"TopK.*slots_fit"):
        run_body(TOKEN_PRUNE, attributes, inputs)


def test_descending_merge_offsets_are_refused_where_all_others_fit() -> None:
    inputs = pack(((*ENDS[:3], 0), STARTS))
    inputs[9] = np.array([0, -1, 2], np.int32)
    with pytest.raises(ValueError, match=r"^FmmTokenPrune: merge_offsets is "):
        token_prune_reference(*inputs, **MLERP)
    with pytest.raises((Fail, InvalidArgument), match=r"TopK.*slots_fit"):
        run_body(TOKEN_PRUNE, MLERP, inputs)


def test_offsets_of_unequal_length_are_refused() -> None:
    inputs = pack((ENDS, TEXT))
    inputs[7] = np.array([0, 9], np.int32)
    with pytest.raises(ValueError, match=r"keep_offsets is \[2\], expected \[B\+1\] = \[3\]$"):
        token_prune_reference(*inputs, **MLERP)


def test_tiny_shapes_of_every_split(prune: Run) -> None:
    """Two sequences of up to three visual tokens each, every K: no split of so few is special."""
    for V, W in itertools.product(range(4), repeat=2):
        for K, L in itertools.product(range(V + 1), range(W + 1)):
            check_alone(prune, {"window": 2, "merge": "mean"}, ((V, np.arange(V), K, 0), (W + 1, np.arange(W), L, 0)))
