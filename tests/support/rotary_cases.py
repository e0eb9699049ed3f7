# SPDX-License-Identifier: Apache-2.0
"""Cases of FmmRotary: head widths that are whole vectors and not, rows of one item of work and of several."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from fastmmoe.runtime.types import Array


class RotaryCase(NamedTuple):
    """Sizes, as the contract names them, and whether heads have a norm."""

    T: int
    N: int
    P: int
    has_norm: bool

    @property
    def inputs(self) -> dict[str, Array]:
        """Heads of sizes that differ by 1000 and more, at positions far from each other."""
        random = np.random.default_rng(self.T)
        x = random.standard_normal((self.T, self.N, 2 * self.P)) * 10 ** random.uniform(-3, 1, (self.T, self.N, 1))
        angles = random.uniform(0, 5000, (self.T, 1, 1)) * 10000.0 ** -(np.arange(self.P) / self.P)
        inputs = {"x": x, "cos": np.cos(angles), "sin": np.sin(angles)}
        if self.has_norm:
            inputs["norm"] = random.uniform(0.2, 3, 2 * self.P)
        return {name: values.astype(np.float32) for name, values in inputs.items()}

    @property
    def attributes(self) -> dict[str, Any]:
        """Of a node."""
        return {"has_norm": int(self.has_norm), "epsilon": 1e-6 if self.has_norm else 0.0}


CASES = {
    "queries of a decode step": RotaryCase(1, 32, 64, True),
    "without a norm": RotaryCase(7, 16, 64, False),
    "several items": RotaryCase(70, 5, 32, True),
    "no whole vector": RotaryCase(9, 3, 5, True),
    "some lanes more": RotaryCase(4, 2, 19, False),
    "one pair": RotaryCase(3, 1, 1, True),
    "no rows": RotaryCase(0, 2, 8, True),
}

REFUSED: list[tuple[dict[str, tuple[int, ...]], str]] = [
    ({"x": (3, 2, 7)}, r"x is \[3, 2, 7\], expected \[T, N, 2P\]"),
    ({"cos": (3, 1, 3)}, r"cos is \[3, 1, 3\], expected \[T, 1, P\] = \[3, 1, 4\]"),
    ({"sin": (2, 1, 4)}, r"sin is \[2, 1, 4\], expected \[T, 1, P\] = \[3, 1, 4\]"),
    ({"norm": (4,)}, r"norm is \[4\], expected \[2P\] = \[8\]"),
    ({"x": (3, 8)}, r"x is \[3, 8\], expected rank 3: \[T, N, 2P\]"),
]
"""Shapes of inputs that take the place of others, and what is said of them."""


def refused_inputs(shapes: dict[str, tuple[int, ...]]) -> dict[str, Array]:
    """Inputs of T 3, N 2, P 4 with a norm, but for these."""
    inputs = RotaryCase(3, 2, 4, True).inputs
    return inputs | {name: np.ones(shape, np.float32) for name, shape in shapes.items()}


def limits(inputs: dict[str, Array], expected: Array) -> Array:
    """What float32 may move a value: a few units in the last place of the greatest of its head."""
    greatest: Array = np.abs(expected).max(-1, keepdims=True) * 4e-6 + 1e-30
    return greatest
