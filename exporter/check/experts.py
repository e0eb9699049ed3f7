# SPDX-License-Identifier: Apache-2.0
"""Experts' weights of an engine's graph, whose inputs they are, as the check gives them to torch and ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from fastmmoe.exporter.check.stored import StoredWeights, bits_of
from fastmmoe.exporter.model import EXPERT_WEIGHTS
from fastmmoe.exporter.ops.quantise import Packing, QuantisedWeights, dequantise
from fastmmoe.runtime.types import Array


class Experts:
    """Floating-point weights for every MoE layer: the written ones, mapped.

    Integers stand for floats that a CPU would need gigabytes for in every layer. So all layers get what those of the
    first one stand for, rounded to bfloat16; which integers are whose is compared by itself.

    Args:
        weights: of the language model.
        packing: of integers and fp8; None = the written weights are floats.
        directory: for the file of what integers stand for.
    """

    def __init__(self, weights: StoredWeights, packing: Packing | None, directory: Path) -> None:
        self._weights = weights
        self._shared: dict[str, torch.Tensor] = {}
        names = [name for name in weights.parameters if name.endswith(EXPERT_WEIGHTS)]
        if packing is not None:
            for end in EXPERT_WEIGHTS:
                first = next(name for name in names if name.endswith(end))
                self._shared[end] = _unpacked(weights, first, packing, directory / f"{end.rpartition('.')[2]}.floats")
        self.inputs: dict[str, Array] = {
            weights.parameters[name].name: bits_of(tensor)
            for name in names
            if (tensor := self.parameter(name)) is not None
        }
        """The graph's input -> its values; of bfloat16 the bits."""

    def parameter(self, name: str) -> torch.Tensor | None:
        """Values of a parameter in 16 bits; None where it is none of these."""
        if not name.endswith(EXPERT_WEIGHTS):
            return None
        shared = next((tensor for end, tensor in self._shared.items() if name.endswith(end)), None)
        return self._weights.parameter(name) if shared is None else shared


def _unpacked(weights: StoredWeights, name: str, packing: Packing, file: Path) -> torch.Tensor:
    """bfloat16 [E, rows, columns], in a file of its own."""
    own = weights.parameters[name].name
    values, scale = (weights.tensor(own + part).numpy() for part in ("", "_scale"))
    zero = weights.tensor(f"{own}_zero").numpy() if packing.zero_points else None
    columns = values.shape[-1] * (2 if packing.weight_format == "int4" else 1)
    shape = (*values.shape[:-1], columns)
    bits = np.memmap(file, np.int16, "w+", shape=shape)
    for e in range(len(values)):
        of_expert = QuantisedWeights(values[e], scale[e], None if zero is None else zero[e])
        floats = torch.from_numpy(dequantise(of_expert, packing.weight_format, packing.group_size))
        bits[e] = floats.to(torch.bfloat16).view(torch.int16).numpy()
    return torch.from_numpy(bits).view(torch.bfloat16)
