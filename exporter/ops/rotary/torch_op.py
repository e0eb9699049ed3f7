# SPDX-License-Identifier: Apache-2.0
"""FmmRotary as a torch.library custom op: an eager kernel for checks and calibration, a fake one for tracing."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from fastmmoe.exporter.ops.rotary.contract import ROTARY


@torch.library.custom_op("fastmmoe::rotary", mutates_args=())
def rotary(
    x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, norm: list[torch.Tensor], attributes: str
) -> torch.Tensor:
    """FmmRotary in torch: x [T, N, 2P] -> [T, N, 2P].

    `norm` holds the norm's weights or nothing, `attributes` is `ROTARY.encode`; the rest as in the contract. Raises
    ValueError for inputs outside of it.
    """
    a = ROTARY.decode(attributes)
    ROTARY.check_inputs(a, dict(zip((t.name for t in ROTARY.inputs_for(a)), (x, cos, sin, *norm), strict=True)))
    if norm:
        x = F.rms_norm(x, (x.shape[2],), norm[0], float(a["epsilon"]))
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


@rotary.register_fake
def _(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, norm: list[torch.Tensor], attributes: str) -> torch.Tensor:
    return torch.empty_like(x)
