# SPDX-License-Identifier: Apache-2.0
"""Written weights of packed linear layers, as the floats that they stand for."""

from __future__ import annotations

import tempfile

import numpy as np
import torch

from fastmmoe.exporter.check.portable import run_body
from fastmmoe.exporter.check.stored import StoredWeights
from fastmmoe.exporter.graph.pack_linears import BLOCK_VALUES, SUFFIXES, TILES
from fastmmoe.exporter.graph.weights import as_array
from fastmmoe.exporter.model import Model
from fastmmoe.exporter.ops import LINEAR
from fastmmoe.exporter.ops.linear.packing import LinearPacking
from fastmmoe.exporter.ops.tiles import PANEL_ROWS, to_panels, to_tiles
from fastmmoe.runtime.types import Array

_PANELS_OF_BODY, _ROWS_OF_BODY = 16, 4


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
        own = stored.parameters[name].name
        self.parts = {part: as_array(stored.tensor(own + SUFFIXES[part])) for part in packing.parts(self.N, self.K)}

    def rows(self, numbers: Array) -> dict[str, Array]:
        """The parts of a layer of these rows alone."""
        panel, output = numbers // PANEL_ROWS, numbers % PANEL_ROWS
        found = {}
        for part, values in self.parts.items():
            # An index between slices comes first: [rows, words, elements], or [rows, groups].
            rows = values[panel, :, output].reshape(len(numbers), -1)
            found[part] = to_tiles(rows) if part == TILES else to_panels(rows)
        return found

    def floats(self) -> torch.Tensor:
        """What all of it stands for, float32 [N, K]: mapped from a file that has no name, as it may be a gigabyte."""
        with tempfile.TemporaryFile(dir=self._folder) as file:
            file.truncate(max(self.N * self.K * 4, 1))
            found = np.memmap(file, np.float32, "r+", shape=(self.N, self.K))
        step = max(BLOCK_VALUES // self.K // PANEL_ROWS, 1)
        for first in range(0, -(-self.N // PANEL_ROWS), step):
            start, end = first * PANEL_ROWS, min((first + step) * PANEL_ROWS, self.N)
            panels = {part: values[first : first + step] for part, values in self.parts.items()}
            found[start:end] = self.packing.unpack(panels, end - start, self.K)
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
        N = min(layer.N, _PANELS_OF_BODY * PANEL_ROWS)
        panels = {part: np.ascontiguousarray(values[:_PANELS_OF_BODY]) for part, values in layer.parts.items()}
        x = np.random.default_rng(0).standard_normal((_ROWS_OF_BODY, layer.K)).astype(np.float32)
        biases = {"bias": stored.parameter(bias)[:N].numpy()} if stored.has(bias) else {}
        given = {"x": x, **panels, **biases}
        attributes = layer.packing.attributes(N, has_bias=bool(biases))
        (y,) = run_body(LINEAR, attributes, {t.name: given[t.name] for t in LINEAR.inputs_for(attributes)})
        expected = x @ layer.packing.unpack(panels, N, layer.K).T + biases.get("bias", np.float32(0))
        worst = max(worst, float(np.abs(y - expected).max()))
    return worst
