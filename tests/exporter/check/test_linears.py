# SPDX-License-Identifier: Apache-2.0
"""Written linear layers as floats, and their bodies."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from fastmmoe.exporter.check.linears import StoredLinear, body_difference
from fastmmoe.exporter.check.samples import check_samples
from fastmmoe.exporter.check.stored import Initializer
from fastmmoe.exporter.check.structure import CheckFailed
from fastmmoe.exporter.checkpoint.reader import Checkpoint
from fastmmoe.exporter.graph import pack_linears
from fastmmoe.exporter.graph.pack_linears import SUFFIXES, block_rows
from fastmmoe.exporter.graph.weights import as_tensor
from fastmmoe.exporter.model import Model, Precision
from fastmmoe.exporter.ops.linear.packing import LinearPacking, LinearPackings
from fastmmoe.exporter.pruning.settings import PolicyOptions
from tests.support.linear_cases import IN_ROWS, PACKINGS

FORMATS = (LinearPacking("int4", 32, zero_points=True), LinearPacking("int8", 128), LinearPacking("bf16"))
"""Of dense layers, head and vision tower."""


class InMemory:
    """Stands for a written graph: what an export would write, to be changed."""

    def __init__(self, model: Model, graph: str, folder: Path) -> None:
        self.path = folder / f"{graph}.data"
        names = [name for name, _ in dict(model.graphs.items())[graph].named_parameters()]
        self.parameters = {name: Initializer(name, None) for name in names}
        self.values = {name: model.load(f"{graph}.{name}").clone() for name in names}
        for name in names:
            packing = model.linear_packing(f"{graph}.{name}")
            if packing is not None:
                parts = packing.pack(self.values[name].float().numpy())
                self.values |= {name + SUFFIXES[part]: as_tensor(values) for part, values in parts.items()}

    def has(self, name: str) -> bool:
        return name in self.parameters

    def parameter(self, name: str) -> torch.Tensor:
        return self.values[name]

    tensor = parameter


def written(directory: Path, folder: Path, linears: LinearPackings) -> tuple[Model, dict[str, Any]]:
    model = Model(Checkpoint(directory), PolicyOptions(), Precision(torch.float32, torch.float32, linears=linears))
    return model, {graph: InMemory(model, graph, folder) for graph, _ in model.graphs.items()}


@pytest.mark.parametrize("packing", [*PACKINGS, *IN_ROWS], ids=str)
def test_all_of_a_layer_and_some_of_its_rows(
    packing: LinearPacking, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pack_linears, "BLOCK_VALUES", 32 * 70)  # blocks of two panels
    N, K = 71, 70 if packing.is_tiled else 72
    weights = np.random.default_rng(0).standard_normal((N, K)).astype(np.float32)
    parts = {f"w{SUFFIXES[part]}": as_tensor(values) for part, values in packing.pack(weights).items()}
    stored: Any = SimpleNamespace(
        parameters={"w": Initializer("w", None)}, tensor=parts.__getitem__, path=tmp_path / "graph.data"
    )
    layer = StoredLinear(stored, "w", packing, (N, K))
    floats = layer.floats().numpy()
    np.testing.assert_array_equal(floats, packing.round(weights))
    rows = np.array([0, 15, 16, 33, 70])
    np.testing.assert_array_equal(packing.unpack(layer.rows(rows), len(rows), K), floats[rows])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("packing", [PACKINGS[0], PACKINGS[-1], IN_ROWS[-1]], ids=str)
def test_a_layer_among_others_in_one_tensor(packing: LinearPacking, tmp_path: Path) -> None:
    weights = np.random.default_rng(0).standard_normal((16 + 35 + 5, 64)).astype(np.float32)
    weights[16 + 35 :] = np.nan
    whole = packing.pack(np.nan_to_num(weights))
    stored: Any = SimpleNamespace(
        parameters={"w": Initializer("all", None, (16, 16 + 35))},
        tensor={f"all{SUFFIXES[part]}": as_tensor(values) for part, values in whole.items()}.__getitem__,
        path=tmp_path / "graph.data",
    )
    layer = StoredLinear(stored, "w", packing, (35, 64))
    np.testing.assert_array_equal(layer.floats().numpy(), packing.round(weights[16 : 16 + 35]))
    rows = np.array([0, 17, 34])
    np.testing.assert_array_equal(packing.unpack(layer.rows(rows), 3, 64), layer.floats().numpy()[rows])


@pytest.mark.parametrize("name", ["dsvl2-mla", "internvl-gptoss"])
def test_layers_that_are_not_the_checkpoint_s(name: str, checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    model, weights = written(checkpoint(name), tmp_path, LinearPackings(*FORMATS))
    assert "equal the checkpoint" in check_samples(model, weights, lambda line: None)
    wrong = {
        "vision": next(n for n in weights["vision"].values if n.endswith("qkv.weight")),
        "language_model": next(n for n in weights["language_model"].values if n.endswith("o_proj.weight_scale")),
    }
    for graph, tensor in wrong.items():
        values = weights[graph].values
        before = values[tensor]
        values[tensor] = before.roll(1, 0) if before.ndim == 4 else before * 1.5
        with pytest.raises(CheckFailed, match=f"{graph}.{tensor.removesuffix('_scale')}"):
            check_samples(model, weights, lambda line: None)
        values[tensor] = before


@pytest.mark.parametrize(
    "tensor", ["layers.1.self_attn.q_proj.weight", "layers.0.mlp.down_proj.weight", "lm_head.weight"]
)
def test_rows_that_are_not_the_checkpoint_s(tensor: str, checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    """Engine targets have integers in rows: a row too far, and steps of another size."""
    dense, head = (replace(packing, is_tiled=False) for packing in FORMATS[:2])
    model, weights = written(checkpoint("dsvl2-mha"), tmp_path, LinearPackings(dense, head))
    assert "equal the checkpoint" in check_samples(model, weights, lambda line: None)
    values = weights["language_model"].values
    right = values[tensor], values[f"{tensor}_scale"]
    for wrong in ((right[0].roll(1, 0), right[1]), (right[0], right[1] * 1.5)):
        values[tensor], values[f"{tensor}_scale"] = wrong
        with pytest.raises(CheckFailed, match=f"language_model.{tensor}"):
            check_samples(model, weights, lambda line: None)


def test_every_block_is_looked_at(
    checkpoint: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A head has more rows than samples: a block of them may be another one, or stand where another belongs."""
    monkeypatch.setattr(pack_linears, "BLOCK_VALUES", 16 * 64)
    model, weights = written(checkpoint("dsvl2-mha"), tmp_path, LinearPackings(*FORMATS))
    head = weights["language_model"].values["lm_head.weight"]
    assert block_rows(64) == 16 and len(head) == 20
    for block in head:
        before = block.clone()
        block.copy_(block.flip(0))
        with pytest.raises(CheckFailed, match=r"language_model\.lm_head\.weight: other values"):
            check_samples(model, weights, lambda line: None)
        block.copy_(before)


@pytest.mark.parametrize("is_tiled", [True, False])
def test_bodies_of_all_kinds(
    is_tiled: bool, checkpoint: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    formats = LinearPackings(*(replace(packing, is_tiled=is_tiled) for packing in FORMATS))
    model, weights = written(checkpoint("internvl-gptoss"), tmp_path, formats)
    for graph in ("vision", "language_model"):
        assert 0 < body_difference(model, graph, weights[graph]) < 1e-4
    assert body_difference(model, "embedding", weights["embedding"]) == 0
    monkeypatch.setattr("fastmmoe.exporter.ops.linear.function.ZEROS", {"int8": 1.0, "int4": 8.0})
    assert body_difference(model, "language_model", weights["language_model"]) > 1e-2
