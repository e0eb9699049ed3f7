# SPDX-License-Identifier: Apache-2.0
"""The NumPy reference of FmmRotary: cases whose result is known."""

from __future__ import annotations

import numpy as np
import pytest

from fastmmoe.exporter.ops import rotary_reference
from tests.support.rotary_cases import REFUSED, RotaryCase, refused_inputs


def test_pairs_turn_like_complex_numbers() -> None:
    case = RotaryCase(5, 3, 4, False)
    inputs = case.inputs
    turned = (inputs["x"][..., :4] + 1j * inputs["x"][..., 4:]) * (inputs["cos"] + 1j * inputs["sin"])
    expected = np.concatenate((turned.real, turned.imag), -1)
    np.testing.assert_allclose(rotary_reference(case.attributes, inputs), expected, rtol=1e-5, atol=1e-6)


def test_a_norm_leaves_the_root_of_the_mean_square_of_its_weights() -> None:
    """Where all values of a head are one, and whatever this one is; epsilon counts where it is small."""
    x = np.array([3.0, 3.0, 2e-3, 2e-3], np.float32).reshape(2, 1, 2)
    turns = {"cos": np.array([1, 0], np.float32).reshape(2, 1, 1), "sin": np.array([0, 1], np.float32).reshape(2, 1, 1)}
    inputs = {"x": x, **turns, "norm": np.array([2, 5], np.float32)}
    y = rotary_reference({"has_norm": 1, "epsilon": 1e-6}, inputs)
    small = 2e-3 / np.sqrt(4e-6 + 1e-6)
    np.testing.assert_allclose(y[:, 0], [[2, 5], [-5 * small, 2 * small]], rtol=1e-6)


@pytest.mark.parametrize(("shapes", "message"), REFUSED)
def test_shapes_that_are_refused(shapes: dict[str, tuple[int, ...]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rotary_reference(RotaryCase(3, 2, 4, True).attributes, refused_inputs(shapes))
