# SPDX-License-Identifier: Apache-2.0
"""The demo model's answers: bundles beside each other on the same questions."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tests.support.scripts import script

evaluate = script("evaluate_demo")


def test_differences_pair_the_answers() -> None:
    samples: list[Any] = [SimpleNamespace(scene=i // 2) for i in range(400)]
    first = [i % 10 != 0 for i in range(400)]
    same, worse = list(first), [right and i % 20 != 1 for i, right in enumerate(first)]
    found = evaluate.differences(samples, [first, same, worse])
    assert (found[0].value, found[0].low, found[0].high) == (0, 0, 0)
    assert found[1].value == pytest.approx(-0.05) and -0.08 < found[1].low < -0.05 < found[1].high < -0.02


def test_a_row_for_each_bundle(monkeypatch: pytest.MonkeyPatch) -> None:
    samples: list[Any] = [SimpleNamespace(scene=i) for i in range(100)]
    rights = {"a": [True] * 90 + [False] * 10, "b": [True] * 85 + [False] * 14 + [True]}
    monkeypatch.setattr(evaluate, "VLM", lambda name: name)
    monkeypatch.setattr(evaluate, "right_answers", lambda vlm, samples, retention: rights[vlm])
    first, second = evaluate.beside(["a", "b"], samples, 1.0)
    assert first == ("a", "90.00%", "", "")
    assert second[:2] == ("b", "86.00%") and second[2].startswith("-4.00 (") and second[3] == "6"
