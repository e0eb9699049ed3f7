# SPDX-License-Identifier: Apache-2.0
"""How far a float32 array may be from the recorded one."""

from __future__ import annotations

import numpy as np

from fastmmoe.runtime.types import Array

# How far float32 rounding moves a quantity between two correct implementations, by docs/precision.md: a share of the
# recorded array's root mean square, times the decoder layers it went through. Of attention, which is mostly far below
# its mean, a share of each entry and of an even spread.
ROUNDING = {
    "image_features": 2e-5,
    "hidden_states": 6e-5,
    "attention": 1e-4,
    "router_logits": 4e-5,
    "routing_weights": 4e-5,
    "cache": 4e-5,
    "logits": 4e-5,
}


def rounding_of(quantity: str, theirs: Array, layers: int) -> tuple[float, float]:
    """(rtol, atol) within which a float32 array of this quantity after so many decoder layers equals the recorded one.

    `theirs` is the whole recorded array, or all of it that is compared. Image features have gone through no decoder
    layer: 1.
    """
    share = ROUNDING[quantity] * layers
    if quantity == "attention":
        return share, share / theirs.shape[-1]
    return 0.0, share * float(np.sqrt(np.mean(np.square(theirs, dtype=np.float64))))
