# SPDX-License-Identifier: Apache-2.0
"""Rows of a call: the last of each sequence, and what is left of them after a site."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fastmmoe.exporter.pruning.tokens import Rows


def ints(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


# Two sequences: positions 10 to 14 with visual rows 1, 2, 3, then 20 to 23 with visual rows 5, 6.
ROWS = Rows(
    position_ids=ints(10, 11, 12, 13, 14, 20, 21, 22, 23),
    sequence_ids=ints(0, 0, 0, 0, 0, 4, 4, 4, 4),
    sequence_offsets=ints(0, 5, 9),
    visual_index=ints(1, 2, 3, 5, 6),
    visual_offsets=ints(0, 3, 5),
    random_scores=torch.arange(9.0),
)


def test_the_last_row_of_every_sequence() -> None:
    assert ROWS.last.tolist() == [4, 8]
    assert ROWS.last.dtype == torch.int32


def test_survivors_keep_what_they_are() -> None:
    """One visual row of the first sequence is left, and both of the second."""
    left = ROWS.survivors(ints(0, 2, 4, 5, 6, 7, 8), ints(1, 3, 4), ints(0, 1, 3))
    assert left.position_ids.tolist() == [10, 12, 14, 20, 21, 22, 23]
    assert left.sequence_ids.tolist() == [0, 0, 0, 4, 4, 4, 4]
    assert left.sequence_offsets.tolist() == [0, 3, 7]
    assert left.last.tolist() == [2, 6]
    assert left.visual_index.tolist() == [1, 3, 4]
    assert left.visual_offsets is not None and left.visual_offsets.tolist() == [0, 1, 3]
    assert left.random_scores is not None and left.random_scores.tolist() == [0, 2, 4, 5, 6, 7, 8]


def test_scores_are_there_for_method_random_only() -> None:
    left = replace(ROWS, random_scores=None).survivors(ints(0, 4, 7, 8), ints(), ints(0, 0, 0))
    assert left.random_scores is None
    assert left.sequence_offsets.tolist() == [0, 2, 4]


def test_only_a_graph_with_sites_has_survivors() -> None:
    with pytest.raises(AssertionError):
        replace(ROWS, visual_offsets=None).survivors(ints(0), ints(), ints(0, 0, 0))
