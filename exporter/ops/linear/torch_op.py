# SPDX-License-Identifier: Apache-2.0
"""FmmLinear as a torch.library custom op: an eager kernel for checks and calibration, a fake one for tracing."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from fastmmoe.exporter.ops.linear.contract import LINEAR


@torch.library.custom_op("fastmmoe::linear", mutates_args=())
def linear(x: torch.Tensor, weights: list[torch.Tensor], attributes: str) -> torch.Tensor:
    """FmmLinear in torch, with floating-point weights as they are, and without what is moved into it after tracing.

    `weights` is [weight] or [weight, bias], `attributes` is `LINEAR.encode`; the rest as in the contract. Raises
    ValueError for inputs outside of it, activations and residuals.
    """
    a = LINEAR.decode(attributes)
    LINEAR.check_inputs(a, dict(zip((t.name for t in LINEAR.inputs_for(a)), (x, *weights), strict=True)))
    if a["activation"] != "none" or a["has_residual"]:
        raise ValueError(f"{LINEAR.name}: torch has no activation and no residual, expected none")
    return F.linear(x.float(), *(w.float() for w in weights)).to(x.dtype)


@linear.register_fake
def _(x: torch.Tensor, weights: list[torch.Tensor], attributes: str) -> Any:
    return x.new_empty(x.shape[0], weights[0].shape[0])
