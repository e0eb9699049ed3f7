# SPDX-License-Identifier: Apache-2.0
"""Rows of a prompt that are embedded on a device when they are used."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from fastmmoe.runtime.errors import RunFailed
from fastmmoe.runtime.types import Array

Features = TypeVar("Features", bound=Sized)


@dataclass(frozen=True)
class PromptRows(Generic[Features]):
    """Ids int32 [T], and where among them [V] the pictures' features stand, which the backend keeps; None = none."""

    input_ids: Array
    visual_index: Array
    features: Features | None

    def __len__(self) -> int:
        return len(self.input_ids)


def placements(prompts: Iterable[PromptRows[Features]]) -> Iterator[tuple[Features, list[tuple[int, int, int]]]]:
    """Features of each prompt of a call that has some, and where they go.

    Of each run of neighbours (row of the call, row of the features, how many).

    Raises:
        RunFailed: there are not as many features as visual tokens.
    """
    first = 0
    for prompt in prompts:
        features = prompt.features
        if features is not None and len(features) != len(prompt.visual_index):
            raise RunFailed(f"{len(features)} rows of features for {len(prompt.visual_index)} visual tokens")
        if features is not None and len(features):
            yield features, [(first + place, start, count) for place, start, count in runs(prompt.visual_index)]
        first += len(prompt)


def runs(index: Array) -> list[tuple[int, int, int]]:
    """(first value, its place, how many) of each run of neighbours in ascending numbers."""
    ends = np.flatnonzero(np.diff(index) != 1) + 1
    starts = [0, *ends.tolist()]
    return [(int(index[a]), a, b - a) for a, b in zip(starts, [*starts[1:], len(index)], strict=True)]
