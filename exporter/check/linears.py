# SPDX-License-Identifier: Apache-2.0
"""Written weights of packed linear layers, as the floats that they stand for."""

from __future__ import annotations

import tempfile

import numpy as np
import torch

from fastmmoe.exporter.check.portable import run_body
from fastmmoe.exporter.check.stored import StoredWeights
from fastmmoe.exporter.graph.pack_linears import SUFFIXES, block_rows
from fastmmoe.exporter.graph.weights import as_array
from fastmmoe.exporter.model import Model
from fastmmoe.exporter.ops import LINEAR
from fastmmoe.exporter.ops.linear.packing import LinearPacking
from fastmmoe.exporter.ops.tiles import PANEL_ROWS
from fastmmoe.runtime.types import Array

_ROWS_OF_WEIGHTS, _ROWS_OF_BODY = 256, 4


class StoredLinear:
    """A linear layer's weight in a written graph.

    Args:
        stored: tensors of the graph.
        name: the parameter's in its module.
        shape: of the weight that is packed, [N, K].
    """

    def __init__(
        self, stored: StoredWeights, name: str, packing: LinearPacking, shape: tuple[int, ...] | torch.Size
    ) -> None:
        self.packing, (self.N, self.K), self._folder = packing, shape, stored.path.parent
        own, _, rows = stored.parameters[name]
        self.parts = {part: as_array(stored.tensor(own + SUFFIXES[part])) for part in packing.parts(self.N, self.K)}
        self.parts = self.block(*(rows or (0, self.N)))

    def rows(self, numbers: Array) -> dict[str, Array]:
        """The parts of a layer of these rows alone."""
        if not self.packing.is_tiled:
            return {part: values[numbers] for part, values in self.parts.items()}
        panel, output = numbers // PANEL_ROWS, numbers % PANEL_ROWS
        # An index between slices comes first: [rows, words, elements], or [rows, groups].
        rows = {part: values[panel, :, output].reshape(len(numbers), -1) for part, values in self.parts.items()}
        return self.packing.place(rows)

    def block(self, start: int, end: int) -> dict[str, Array]:
        """The parts of a layer of the rows from start, a multiple of 16, to before end."""
        unit = PANEL_ROWS if self.packing.is_tiled else 1
        return {part: values[start // unit : -(-end // unit)] for part, values in self.parts.items()}

    def floats(self) -> torch.Tensor:
        """What all of it stands for, float32 [N, K]: mapped from a file that has no name, as it may be a gigabyte."""
        with tempfile.TemporaryFile(dir=self._folder) as file:
            file.truncate(max(self.N * self.K * 4, 1))
            found = np.memmap(file, np.float32, "r+", shape=(self.N, self.K))
        step = block_rows(self.K)
        for start in range(0, self.N, step):
            end = min(start + step, self.N)
            found[start:end] = self.packing.unpack(self.block(start, end), end - start, self.K)
        return torch.from_numpy(found)


def stored_linear(model: Model, graph: str, name: str, stored: StoredWeights) -> StoredLinear | None:
    """The packed linear layer whose weight the parameter is; None = it is none."""
    packing = model.linear_packing(f"{graph}.{name}")
    if packing is None:
        return None
    return StoredLinear(stored, name, packing, dict(model.graphs.items())[graph].get_parameter(name).shape)


def body_difference(model: Model, graph: str, stored: StoredWeights) -> float:
    """The greatest difference of FmmLinear's bodies from NumPy, on some outputs of a layer of each kind; 0 of none."""
    module, kinds, worst = dict(model.graphs.items())[graph], set(), 0.0
    for name, _ in module.named_parameters():
        layer = stored_linear(model, graph, name, stored)
        bias = name.removesuffix("weight") + "bias"
        if layer is None or (kind := (layer.packing, layer.K % 8, stored.has(bias))) in kinds:
            continue
        kinds.add(kind)
        N = min(layer.N, _ROWS_OF_WEIGHTS)
        parts = {part: np.ascontiguousarray(values) for part, values in layer.block(0, N).items()}
        x = np.random.default_rng(0).standard_normal((_ROWS_OF_BODY, layer.K)).astype(np.float32)
        biases = {"bias": stored.parameter(bias)[:N].numpy()} if stored.has(bias) else {}
        given = {"x": x, **parts, **biases}
        attributes = layer.packing.attributes(N, has_bias=bool(biases))
        (y,) = run_body(LINEAR, attributes, {t.name: given[t.name] for t in LINEAR.inputs_for(attributes)})
        expected = x @ layer.packing.unpack(parts, N, layer.K).T + biases.get("bias", np.float32(0))
        worst = max(worst, float(np.abs(y - expected).max()))
    return worst
