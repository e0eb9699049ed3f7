# SPDX-License-Identifier: Apache-2.0
"""Refusing NaN and infinity, with the first part of the model that computed them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from fastmmoe.runtime.errors import NotFinite
from fastmmoe.runtime.method.call import Chunk
from fastmmoe.runtime.types import Array


def check_finite(found: Array, chunks: Sequence[Chunk]) -> None:
    """Raise NotFinite unless all logits are numbers.

    Args:
        found: logits [A, vocab], or what the graph chose by them, next_ids [A].
        chunks: what the rows of logits were computed from; they tell where the first such value is.
    """
    # NaN is the least and the greatest. A look at each takes a decode step longer.
    least, greatest = found.item(found.argmin()), found.item(found.argmax())
    if least >= 0 if found.ndim == 1 else math.isfinite(least) and math.isfinite(greatest):
        return
    is_finite = found >= 0 if found.ndim == 1 else np.isfinite(found)
    row = int(np.argwhere(~is_finite)[0, 0])
    of_row = f"logits of row {row}" if len(chunks) > 1 else "logits"
    raise NotFinite(
        f"the {of_row} hold NaN or infinity: {_first_part(chunks[row])}; check the bundle with fastmmoe verify; if it "
        f"is intact, its 16-bit weights or activations overflow: export with --dtype fp32, or bf16 for engines"
    )


def _first_part(chunk: Chunk) -> str:
    if not isinstance(chunk.inputs_embeds, np.ndarray):
        return "which graph computed them first is not known, as the embeddings stay on the device"
    bad = np.asarray(~np.isfinite(chunk.inputs_embeds).all(axis=1))
    visual = np.zeros(len(bad), bool)
    visual[chunk.visual_index] = True
    if bad[visual].any():
        count = int(bad[visual].sum())
        return f"so do the pictures' features at {count} of {int(visual.sum())} visual tokens (vision graph)"
    if bad.any():
        return f"so do the embeddings of {int(bad.sum())} of {len(bad)} tokens (embedding graph)"
    return "its inputs are finite, so the language model computed them"
