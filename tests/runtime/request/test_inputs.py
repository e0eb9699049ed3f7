# SPDX-License-Identifier: Apache-2.0
"""Checks of tensors that official processors made: names, shapes, types, ids, padding and length."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest

from fastmmoe.runtime.errors import InvalidRequest
from fastmmoe.runtime.request.config import InternVlProcessorConfig
from fastmmoe.runtime.request.inputs import (
    ModelInputs,
    as_array,
    check_length,
    check_names,
    check_tensor,
    check_tokens,
    is_tensor,
    no_ids,
    read_rows,
)

FLOATS = np.zeros((2, 3), np.float32)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((), "missing a, b; unknown none; expected a, b and, optionally, c"),
        (("a", "c"), "missing b; unknown none; expected a, b and, optionally, c"),
        (("b", "a", "d", "e"), "missing none; unknown d, e; expected a, b and, optionally, c"),
    ],
)
def test_names(given: tuple[str, ...], message: str) -> None:
    check_names({"a": FLOATS, "b": FLOATS}, ("a", "b"), ("c",))
    with pytest.raises(InvalidRequest, match=f"^input tensors: {message}$"):
        check_names(dict.fromkeys(given, FLOATS), ("a", "b"), ("c",))


@pytest.mark.parametrize(
    ("tensor", "shape", "kinds"),
    [
        (FLOATS, (2, 3), "f4"),
        (FLOATS, (None, None), "f4"),
        (np.zeros((0, 3), np.float32), (None, 3), "f4"),
        (np.ones(3, np.uint8), (3,), "iu"),
        (np.ones(3, np.int64), (3,), "biu"),
        (np.ones(3, bool), (3,), "biu"),
    ],
)
def test_tensors_that_fit(tensor: Any, shape: tuple[int | None, ...], kinds: str) -> None:
    assert check_tensor({"x": tensor}, "x", shape, kinds) is tensor


@pytest.mark.parametrize(
    ("tensor", "shape", "kinds", "message"),
    [
        ([1], (1,), "iu", "x is of type list: expected a NumPy array"),
        (FLOATS, (2, 4), "f4", "x is float32 [2, 3]: expected float32 of shape [2, 4]"),
        (FLOATS, (2, 3, None), "f4", "x is float32 [2, 3]: expected float32 of shape [2, 3, any]"),
        (FLOATS.astype(np.float64), (2, 3), "f4", "x is float64 [2, 3]: expected float32"),
        (FLOATS.astype(np.float16), (2, 3), "f4", "x is float16 [2, 3]: expected float32"),
        (FLOATS, (2, 3), "iu", "x is float32 [2, 3]: expected integer of shape [2, 3]"),
        (np.ones(3, bool), (3,), "iu", "x is bool [3]: expected integer"),
        (np.ones(3, np.int64), (3,), "b", "x is int64 [3]: expected bool"),
        (FLOATS, (2, 3), "biu", "expected bool or integer"),
        (np.float32(1), (), "f4", "x is of type float32: expected a NumPy array"),
    ],
)
def test_tensors_that_do_not(tensor: Any, shape: tuple[int | None, ...], kinds: str, message: str) -> None:
    with pytest.raises(InvalidRequest, match=re.escape(message)):
        check_tensor({"x": tensor}, "x", shape, kinds)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_the_first_number_that_is_not_finite_is_named(value: float) -> None:
    tensor = FLOATS.copy()
    tensor[1, 1:] = value
    with pytest.raises(InvalidRequest, match=rf"^x holds {value} at \[1, 1\]: expected finite numbers$"):
        check_tensor({"x": tensor}, "x", (2, 3), "f4")


def test_rows_without_their_padding() -> None:
    ids = np.array([[0, 0, 5, 6], [7, 8, 9, 0]], np.int64)
    rows = read_rows({"input_ids": ids, "attention_mask": np.array([[0, 0, 1, 1], [1, 1, 1, 1]])}, vocab_size=10)
    assert [(kept.tolist(), start) for kept, start in rows] == [([5, 6], 2), ([7, 8, 9, 0], 0)]
    assert all(kept.dtype == np.int32 for kept, _ in rows)
    assert [start for _, start in read_rows({"input_ids": ids}, vocab_size=10)] == [0, 0]


@pytest.mark.parametrize("mask", [[0, 0, 0], [1, 1, 0], [0, 1, 0], [1, 0, 1]])
def test_padding_that_is_not_in_front(mask: list[int]) -> None:
    tensors = {"input_ids": np.zeros((1, 3), np.int32), "attention_mask": np.array([mask], bool)}
    message = f"attention_mask, row 0: {sum(mask)} of 3 positions are set and not all of them at the end; expected left"
    with pytest.raises(InvalidRequest, match=message):
        read_rows(tensors, vocab_size=10)


@pytest.mark.parametrize(("ids", "is_legal"), [([0, 9], True), ([0, 10], False), ([-1, 9], False)])
def test_ids_are_those_of_the_vocabulary(ids: list[int], is_legal: bool) -> None:
    tensors = {"input_ids": np.array([[10, *ids]]), "attention_mask": np.array([[0, 1, 1]])}
    if is_legal:
        assert read_rows(tensors, vocab_size=10)[0][0].tolist() == ids
        return
    with pytest.raises(InvalidRequest, match=f"^input_ids, row 0: ids from {ids[0]} to {ids[1]}, expected 0 to 9$"):
        read_rows(tensors, vocab_size=10)


def test_a_mask_of_other_numbers() -> None:
    tensors = {"input_ids": np.zeros((1, 2), np.int32), "attention_mask": np.array([[1, 2]])}
    with pytest.raises(InvalidRequest, match=r"^attention_mask holds values from 1 to 2: expected 0 and 1$"):
        read_rows(tensors, vocab_size=10)


def test_the_longest_sequence(internvl: InternVlProcessorConfig) -> None:
    limit = internvl.max_position_embeddings
    check_tokens(limit, 3, limit)
    check_tokens(10, 3, limit, tokens_before=limit - 10)
    with pytest.raises(InvalidRequest) as alone:
        check_tokens(limit + 1, 3, limit)
    assert str(alone.value) == (
        f"the sequence has {limit + 1} tokens, 3 of them visual: the model takes at most {limit}; give fewer tiles "
        "(--max-tiles), fewer pictures or a shorter text"
    )
    with pytest.raises(InvalidRequest) as later:
        check_tokens(11, 3, limit, tokens_before=limit - 10)
    assert f"{limit - 10} of them of earlier turns and 3 of the new ones visual" in str(later.value)
    assert str(later.value).endswith("or a shorter text, or start a new conversation")


def test_inputs_of_the_longest_sequence(internvl: InternVlProcessorConfig) -> None:
    ids = np.zeros(internvl.max_position_embeddings, np.int32)
    inputs = ModelInputs(ids, no_ids(), {})
    assert check_length(inputs, internvl) is inputs
    with pytest.raises(InvalidRequest, match="0 of them visual"):
        check_length(ModelInputs(np.append(ids, ids[:1]), no_ids(), {}), internvl)


def test_tensors_of_torch_are_arrays() -> None:
    torch = pytest.importorskip("torch", reason="needs torch")
    ids, halves = torch.tensor([[1, 2]]), torch.tensor([0.5], dtype=torch.bfloat16, requires_grad=True)
    assert is_tensor(ids) and is_tensor(FLOATS) and not is_tensor([1]) and not is_tensor(None)
    assert (as_array(ids).dtype, as_array(ids).tolist()) == (np.int64, [[1, 2]])
    assert (as_array(halves).dtype, as_array(halves).tolist()) == (np.float32, [0.5])
    assert as_array(FLOATS) is FLOATS
