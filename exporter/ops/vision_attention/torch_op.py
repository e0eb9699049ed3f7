# SPDX-License-Identifier: Apache-2.0
"""FmmVisionAttention as a torch.library custom op: an eager kernel for checks and calibration, a fake for tracing."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from fastmmoe.exporter.ops.vision_attention.contract import VISION_ATTENTION


@torch.library.custom_op("fastmmoe::vision_attention", mutates_args=())
def vision_attention(qkv: torch.Tensor, attributes: str) -> torch.Tensor:
    """FmmVisionAttention in torch, float32 inside whatever `compute` is: qkv [B, T, 3, N, D] -> [B, T, N, D].

    `attributes` is `VISION_ATTENTION.encode`. Raises ValueError for inputs outside of the contract.
    """
    a = VISION_ATTENTION.decode(attributes)
    VISION_ATTENTION.check_inputs(a, {"qkv": qkv})
    query, key, value = (part.transpose(1, 2) for part in qkv.float().unbind(2))
    output = F.scaled_dot_product_attention(query, key, value, scale=float(a["scale"]))
    return output.transpose(1, 2).to(qkv.dtype).contiguous()


@vision_attention.register_fake
def _(qkv: torch.Tensor, attributes: str) -> torch.Tensor:
    B, T, _, N, D = qkv.shape
    return qkv.new_empty((B, T, N, D))
