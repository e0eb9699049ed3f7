# SPDX-License-Identifier: Apache-2.0
"""Refusing NaN and infinity, with the first part of the model that computed them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fastmmoe.runtime.errors import NotFinite
from fastmmoe.runtime.method.call import Chunk
from fastmmoe.runtime.types import Array


def check_finite(logits: Array, chunks: Sequence[Chunk]) -> None:
    """Raise NotFinite unless all logits [A, vocab] are numbers.

    Args:
        chunks: what the rows of logits were computed from; they tell where the first such value is.
    """
    if np.isfinite(logits).all():
        return
    row = int(np.flatnonzero(~np.isfinite(logits).all(axis=1))[0])
    of_row = f"logits of row {row}" if len(chunks) > 1 else "logits"
    raise NotFinite(
        f"the {of_row} hold {describe_values(logits[row])}: {_first_part(chunks[row])}; check the bundle with "
        f"fastmmoe verify; if it is intact, its 16-bit weights or activations overflow: export with --dtype fp32"
    )


def describe_values(values: Array) -> str:
    """How many of them are no numbers, such as "3 of 416 values NaN or infinite"."""
    return f"{np.count_nonzero(~np.isfinite(values))} of {values.size} values NaN or infinite"


def _first_part(chunk: Chunk) -> str:
    bad = np.asarray(~np.isfinite(chunk.inputs_embeds).all(axis=1))
    visual = np.zeros(len(bad), bool)
    visual[chunk.visual_index] = True
    if bad[visual].any():
        count = int(bad[visual].sum())
        return f"so do the pictures' features at {count} of {int(visual.sum())} visual tokens (vision graph)"
    if bad.any():
        return f"so do the embeddings of {int(bad.sum())} of {len(bad)} tokens (embedding graph)"
    return "its inputs are finite, so the language model computed them"
