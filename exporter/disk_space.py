# SPDX-License-Identifier: Apache-2.0
"""The room that an export needs: a disk that is too small is refused before the work."""

from __future__ import annotations

from pathlib import Path

import torch

from fastmmoe.exporter.model import EXPERT_WEIGHTS, Model
from fastmmoe.runtime.errors import InvalidRequest
from fastmmoe.runtime.files import free_bytes, size_text


def weights_bytes(model: Model) -> dict[str, int]:
    """Bytes of each graph's parameters as the export stores them; the files are little larger."""
    return {
        graph: sum(_stored_bytes(model, name, parameter) for name, parameter in module.named_parameters())
        for graph, module in model.graphs.items()
    }


def _stored_bytes(model: Model, name: str, parameter: torch.nn.Parameter) -> int:
    linear = model.linear_packing(name)
    if linear is not None:
        return linear.bytes(*parameter.shape)
    packing = None if model.precision.is_twin else model.precision.packing
    if packing is None or not name.endswith(EXPERT_WEIGHTS):
        return parameter.nbytes
    # Scales and zeros come on top.
    return parameter.numel() // (2 if packing.weight_format == "int4" else 1)


def check_space(out: Path, model: Model, kept: int = 0) -> None:
    """Refuse an export that the disk of `out` has no room for: its weights, and what its check writes.

    Args:
        kept: bytes of them that are there already.
    Raises:
        InvalidRequest: with both numbers.
    """
    needed = sum(weights_bytes(model).values())
    checking = _check_bytes(model)
    free = free_bytes(out) + kept
    if free < needed + checking:
        of_it = f", {size_text(checking)} of it for the check" if checking else ""
        raise InvalidRequest(
            f"{out}: the export takes at least {size_text(needed + checking)}{of_it}, and its disk has "
            f"{size_text(free)} left: free some, or give another output directory"
        )


def _check_bytes(model: Model) -> int:
    """What integers of one layer's experts stand for, in 16 bits (exporter/check/experts.py), or a linear layer's."""
    names = {f"{graph}.{name}": p for graph, module in model.graphs.items() for name, p in module.named_parameters()}
    linear = max((4 * p.numel() for name, p in names.items() if model.linear_packing(name) is not None), default=0)
    if model.precision.packing is None or model.precision.activations == torch.float32:
        return linear
    parameters = model.graphs.language_model.named_parameters()
    sizes = {name.rpartition(".")[2]: 2 * p.numel() for name, p in parameters if name.endswith(EXPERT_WEIGHTS)}
    return max(sum(sizes.values()), linear)
