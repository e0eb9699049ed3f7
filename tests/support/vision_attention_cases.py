# SPDX-License-Identifier: Apache-2.0
"""Cases of FmmVisionAttention: head widths that are whole vectors and not, tiles of one row and of several blocks."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from fastmmoe.runtime.types import Array


class VisionCase(NamedTuple):
    """Sizes, as the contract names them, and the scale."""

    B: int
    T: int
    N: int
    D: int
    scale: float

    @property
    def inputs(self) -> dict[str, Array]:
        """Some scores of a row stand far above the others."""
        values = np.random.default_rng(self.T).standard_normal((self.B, self.T, 3, self.N, self.D))
        values[:, ::5, 1] *= 3
        return {"qkv": values.astype(np.float32)}

    def attributes(self, compute: str) -> dict[str, Any]:
        """Of a node."""
        return {"scale": self.scale, "compute": compute}


CASES = {
    "siglip": VisionCase(1, 729, 2, 72, 72**-0.5),
    "internvit": VisionCase(2, 130, 3, 64, 0.125),
    "one row": VisionCase(2, 1, 1, 8, 1.0),
    "a block of queries": VisionCase(1, 64, 2, 33, 0.2),
    "one key more than a tile of them": VisionCase(3, 129, 1, 80, 0.1),
    "no scale": VisionCase(1, 20, 2, 16, 0.0),
    "scale below 0": VisionCase(1, 70, 2, 24, -0.3),
    "a wide head": VisionCase(1, 65, 1, 128, 0.09),
}

REFUSED = [
    ((1, 4, 2, 1, 8), r"qkv is \[1, 4, 2, 1, 8\], expected \[B, T, 3, N, D\] = \[1, 4, 3, N, D\]"),
    ((1, 4, 3, 8), r"expected rank 5: \[B, T, 3, N, D\]"),
    ((1, 0, 3, 1, 8), "T is 0, expected 1 to 65536"),
]
"""Shapes of qkv, and what is said of them."""
