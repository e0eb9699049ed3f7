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

# How far caches that store bfloat16 move a float32 model from the recorded one: the root mean square of the difference
# over that of the recorded array, a layer. Twice what the worst run did (docs/precision.md).
OVER_BFLOAT16_CACHES = {"logits": 5e-2}


def check_over_bfloat16_caches(quantity: str, ours: Array, theirs: Array, layers: int) -> None:
    """Compare an array of a run over bfloat16 caches with the recorded one after so many decoder layers."""
    assert ours.shape == theirs.shape and len(theirs)
    difference, scale = (float(np.sqrt(np.mean(np.square(x, dtype=np.float64)))) for x in (ours - theirs, theirs))
    most = OVER_BFLOAT16_CACHES[quantity] * layers
    assert difference <= most * scale, f"{quantity}: {difference / scale:.2e} of {scale:.3g}, expected {most:.2e}"


def rounding_of(quantity: str, theirs: Array, layers: int) -> tuple[float, float]:
    """(rtol, atol) within which a float32 array of this quantity after so many decoder layers equals the recorded one.

    `theirs` is the whole recorded array, or all of it that is compared. Image features have gone through no decoder
    layer: 1.
    """
    share = ROUNDING[quantity] * layers
    if quantity == "attention":
        return share, share / theirs.shape[-1]
    return 0.0, share * float(np.sqrt(np.mean(np.square(theirs, dtype=np.float64))))
