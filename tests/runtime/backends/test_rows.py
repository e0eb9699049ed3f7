# SPDX-License-Identifier: Apache-2.0
"""Where the features of pictures go among the rows of a call."""

from __future__ import annotations

import numpy as np
import pytest

from fastmmoe.runtime.backends.rows import PromptRows, placements, runs
from fastmmoe.runtime.errors import RunFailed


def prompt(tokens: int, visual_index: list[int], features: str | None) -> PromptRows[str]:
    """features: a text with a letter for each row."""
    return PromptRows(np.zeros(tokens, np.int32), np.array(visual_index, np.int32), features)


def test_runs_of_neighbours() -> None:
    assert runs(np.array([3])) == [(3, 0, 1)]
    assert runs(np.array([1, 2, 3, 7, 9, 10])) == [(1, 0, 3), (7, 3, 1), (9, 4, 2)]


def test_features_go_to_the_rows_of_their_own_prompt() -> None:
    prompts = [prompt(5, [1, 2, 4], "abc"), prompt(3, [], None), prompt(2, [0], "d"), prompt(4, [], "")]
    assert [len(one) for one in prompts] == [5, 3, 2, 4]
    assert list(placements(prompts)) == [("abc", [(1, 0, 2), (4, 2, 1)]), ("d", [(8, 0, 1)])]


@pytest.mark.parametrize("features", ["", "ab"])
def test_features_are_as_many_as_visual_tokens(features: str) -> None:
    with pytest.raises(RunFailed, match=rf"^{len(features)} rows of features for 1 visual tokens$"):
        list(placements([prompt(3, [1], features)]))
