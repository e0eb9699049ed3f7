# SPDX-License-Identifier: Apache-2.0
"""FmmVisionAttention in NumPy: plain loops over tiles and heads, in float64 where asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fastmmoe.exporter.ops.contract import Attributes
from fastmmoe.exporter.ops.vision_attention.contract import check_vision_attention_inputs
from fastmmoe.runtime.types import Array


def vision_attention_reference(
    attributes: Attributes, inputs: Mapping[str, Array], dtype: Any = np.float32
) -> list[Array]:
    """The output [B, T, N, D] of FmmVisionAttention, whatever `compute` is: exact but for the rounding of `dtype`.

    Args:
        attributes: all of the contract.
        inputs: qkv [B, T, 3, N, D].
        dtype: of everything that is computed, and of the result.
    Raises:
        ValueError: the contract does not allow the attributes or inputs.
    """
    check_vision_attention_inputs(attributes, inputs)
    qkv = inputs["qkv"].astype(dtype)
    B, T, _, N, D = qkv.shape
    output = np.empty((B, T, N, D), dtype)
    for b in range(B):
        for n in range(N):
            query, key, value = (qkv[b, :, part, n] for part in range(3))
            scores = query @ key.T * dtype(attributes["scale"])
            weights = np.exp(scores - scores.max(1, keepdims=True))
            output[b, :, n] = weights @ value / weights.sum(1, keepdims=True)
    return [output]
