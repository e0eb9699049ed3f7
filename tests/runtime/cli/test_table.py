# SPDX-License-Identifier: Apache-2.0
"""Columns of a terminal."""

from __future__ import annotations

import pytest

from fastmmoe.runtime.cli.table import align, number


def test_numbers_stand_to_the_right_and_nothing_trails() -> None:
    assert align([["a", "b", "c"], ["long", "1", ""]], left=1) == ["a     b  c", "long  1"]
    assert align([["a", "b"], ["c", "100"]], left=1) == ["a    b", "c  100"]
    assert align([["a", "bb"], ["ccc", "d"]], left=2) == ["a    bb", "ccc  d"]


@pytest.mark.parametrize(
    ("value", "text"), [(0.1234, "0.123"), (12.345, "12.35"), (123.45, "123.5"), (1234.5, "1,234"), (0, "0.000")]
)
def test_at_least_three_digits(value: float, text: str) -> None:
    assert number(value) == text
