# SPDX-License-Identifier: Apache-2.0
"""Linear layers whose weights are stored in 16, 8 or 4 bits: which of a model's they are, and their module."""

from __future__ import annotations

import torch
from torch import nn

from fastmmoe.exporter.models.graphs import GraphModules
from fastmmoe.exporter.ops import LINEAR
from fastmmoe.exporter.ops.linear import torch_op as _linear  # noqa: F401  (registers the operator)
from fastmmoe.exporter.ops.linear.packing import LinearPackings


class PackedLinear(nn.Module):
    """A linear layer that becomes an FmmLinear: x [..., K] -> [..., N]. Its weight is packed when it is written."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.attributes = LINEAR.encode(
            {
                "out_features": linear.out_features,
                "weight_format": "float",
                "weight_layout": "logical",
                "group_size": 0,
                "zero_points": 0,
                "has_bias": int(linear.bias is not None),
                "activation": "none",
                "has_residual": 0,
            }
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weights = [self.weight] if self.bias is None else [self.weight, self.bias]
        rows = x if x.ndim == 2 else x.flatten(0, -2)
        y = torch.ops.fastmmoe.linear(rows, weights, self.attributes)
        return y if x.ndim == 2 else y.view(*x.shape[:-1], self.out_features)


def use_packed_linears(graphs: GraphModules, packings: LinearPackings) -> set[str]:
    """Put `PackedLinear` where a layer's weights are to be packed; their weights' graph-qualified names."""
    found = set()
    for graph, module in graphs.items():
        for path, layer in list(module.named_modules()):
            weight = f"{graph}.{path}.weight"
            if isinstance(layer, nn.Linear) and packings.of(weight) is not None:
                parent, _, name = path.rpartition(".")
                setattr(module.get_submodule(parent), name, PackedLinear(layer))
                found.add(weight)
    return found
