# SPDX-License-Identifier: Apache-2.0
"""Logits that are no numbers are refused, and the message says which part of the model computed the first of them."""

from __future__ import annotations

import numpy as np
import pytest

from fastmmoe.runtime.backends.finite import check_finite
from fastmmoe.runtime.errors import NotFinite
from fastmmoe.runtime.method.call import Chunk
from fastmmoe.runtime.method.schedule import Schedule

SCHEDULE = Schedule(
    method="none", retention=1.0, visual_tokens=2, keep=(), merge=(), recycle=(), sites=(), visual_top_k=()
)


def chunk(*bad: int) -> Chunk:
    """Five rows, the second and third of them visual, with NaN in these."""
    embeds = np.ones((5, 4), np.float32)
    embeds[list(bad), 2] = np.nan
    return Chunk(0, embeds, np.array([1, 2], np.int32), SCHEDULE)


def test_numbers_pass() -> None:
    check_finite(np.full((1, 4), np.finfo(np.float32).max, np.float32), [chunk()])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ((), "its inputs are finite, so the language model computed them"),
        ((1,), "so do the pictures' features at 1 of 2 visual tokens (vision graph)"),
        ((0, 2), "so do the pictures' features at 1 of 2 visual tokens (vision graph)"),
        ((0, 4), "so do the embeddings of 2 of 5 tokens (embedding graph)"),
    ],
)
def test_the_first_part_is_named(value: float, bad: tuple[int, ...], words: str) -> None:
    logits = np.zeros((2, 4), np.float32)
    logits[1, [0, 3]] = value
    with pytest.raises(NotFinite) as error:
        check_finite(logits, [chunk(), chunk(*bad)])
    line = str(error.value)
    assert line.startswith("the logits of row 1 hold NaN or infinity: ")
    assert words in line and "fastmmoe verify" in line


def test_one_row_has_no_number() -> None:
    with pytest.raises(NotFinite, match=r"^the logits hold NaN"):
        check_finite(np.full((1, 4), np.nan, np.float32), [chunk()])


def test_tokens_chosen_by_no_numbers_are_below_zero() -> None:
    check_finite(np.array([0, 5], np.int32), [chunk(), chunk()])
    with pytest.raises(NotFinite, match=r"^the logits of row 1 hold NaN"):
        check_finite(np.array([0, -1], np.int32), [chunk(), chunk()])


def test_embeddings_that_stay_on_the_device_are_not_looked_at() -> None:
    one = Chunk(0, range(5), np.array([1, 2], np.int32), SCHEDULE)
    with pytest.raises(NotFinite, match="stay on the device"):
        check_finite(np.array([-1], np.int32), [one])
