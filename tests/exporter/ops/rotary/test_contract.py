# SPDX-License-Identifier: Apache-2.0
"""What the contract of FmmRotary refuses."""

from __future__ import annotations

import pytest

from fastmmoe.exporter.ops.rotary.contract import ROTARY
from tests.support.rotary_cases import REFUSED, RotaryCase, refused_inputs


@pytest.mark.parametrize(("shapes", "message"), REFUSED)
def test_shapes_that_are_refused(shapes: dict[str, tuple[int, ...]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ROTARY.check_inputs(RotaryCase(3, 2, 4, True).attributes, refused_inputs(shapes))


@pytest.mark.parametrize(
    ("has_norm", "epsilon", "message"),
    [
        (1, 0.0, "epsilon is 0 with has_norm 1, expected one between 0 and 1"),
        (1, 1.0, "epsilon is 1 with has_norm 1"),
        (1, float("nan"), "epsilon is nan with has_norm 1"),
        (0, 1e-6, "epsilon is 1e-06 with has_norm 0, expected 0"),
        (2, 1e-6, r"has_norm is 2, supported are \[0, 1\]"),
    ],
)
def test_attributes_that_are_refused(has_norm: int, epsilon: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ROTARY.check_attributes({"has_norm": has_norm, "epsilon": epsilon})
