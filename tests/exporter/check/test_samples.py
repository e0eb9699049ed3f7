# SPDX-License-Identifier: Apache-2.0
"""Written weights against the checkpoint: every tensor and every expert is looked at, integers by what they mean."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from fastmmoe.exporter import progress
from fastmmoe.exporter.check import samples
from fastmmoe.exporter.check.samples import check_samples
from fastmmoe.exporter.check.structure import CheckFailed
from fastmmoe.exporter.model import EXPERT_WEIGHTS, Model, Precision
from fastmmoe.exporter.ops.quantise import Packing
from tests.support.golden import CHECKPOINTS
from tests.support.models import model_of

BF16 = Precision(torch.bfloat16, torch.float32)
PACKINGS = [Packing("int4", 32, False), Packing("int4", 32, True), Packing("int8", 32, True), Packing("fp8", 32, False)]


class InMemory:
    """Stands for written weights: what an export would write, to be changed."""

    def __init__(self, model: Model, graph: str) -> None:
        names = [name for name, _ in dict(model.graphs.items())[graph].named_parameters()]
        self.parameters = {name: SimpleNamespace(name=name) for name in names}
        self.values = {name: model.load(f"{graph}.{name}").clone() for name in names}
        packing = model.precision.packing
        for name in names:
            if packing is not None and name.endswith(EXPERT_WEIGHTS):
                self._pack(name, packing)

    def _pack(self, name: str, packing: Packing) -> None:
        experts = [packing.quantise(expert.float().numpy()) for expert in self.values[name]]
        for suffix, part in (("", "values"), ("_scale", "scale"), ("_zero", "zero")):
            if getattr(experts[0], part) is not None:
                self.values[name + suffix] = torch.from_numpy(np.stack([getattr(one, part) for one in experts]))

    def has(self, name: str) -> bool:
        return name in self.parameters

    def parameter(self, name: str) -> torch.Tensor:
        return self.values[name]

    def tensor(self, name: str) -> torch.Tensor:
        return self.values[name]


def written(model: Model) -> dict[str, Any]:
    return {graph: InMemory(model, graph) for graph, _ in model.graphs.items()}


def check(model: Model, weights: dict[str, Any]) -> str:
    return check_samples(model, weights, lambda line: None)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_what_an_export_writes_is_the_checkpoints(name: str, checkpoint: Callable[[str], Path]) -> None:
    model = model_of(checkpoint(name), BF16, method="none")
    experts = 2 * model.config.moe.num_experts * len(model.config.moe_layers)
    assert f"{experts} expert matrices" in check(model, written(model))


@pytest.mark.parametrize("name", ["dsvl2-mla", "internvl-gptoss", "internvl-qwen3moe"])
def test_every_tensor_and_every_expert_is_looked_at(name: str, checkpoint: Callable[[str], Path]) -> None:
    """Whatever tensor, or expert of a stack, is another one, it is named."""
    model = model_of(checkpoint(name), BF16, method="none")
    weights = written(model)
    for graph, of_graph in weights.items():
        for parameter, values in list(of_graph.values.items()):
            is_stack = parameter.endswith(EXPERT_WEIGHTS)
            for part in [values[e] for e in range(len(values))] if is_stack else [values]:
                before = part.clone()
                part.add_(1)
                with pytest.raises(CheckFailed, match=rf"^{graph}\.{parameter}: other values are stored"):
                    check_one(model, weights, f"{graph}.{parameter}")
                part.copy_(before)


def check_one(model: Model, weights: dict[str, Any], name: str) -> None:
    graph, _, parameter = name.partition(".")
    samples._check_parameter(model, name, weights[graph].parameter(parameter))


def test_transposed_weights_are_compared_in_their_own_order(checkpoint: Callable[[str], Path]) -> None:
    model = model_of(checkpoint("internvl-qwen3moe"), BF16, method="none")
    weights = written(model)
    for of_graph in weights.values():
        of_graph.values = {n: v.T.contiguous().T if v.ndim == 2 else v for n, v in of_graph.values.items()}
    check(model, weights)


@pytest.mark.parametrize("packing", PACKINGS, ids=str)
@pytest.mark.parametrize("name", ["dsvl2-mha", "internvl-gptoss", "internvl-qwen3moe"])
def test_integers_stand_for_the_checkpoints_values(
    name: str, packing: Packing, wide_checkpoint: Callable[[str], Path]
) -> None:
    model = model_of(wide_checkpoint(name), Precision(torch.float16, torch.float16, packing=packing), method="none")
    weights = written(model)
    check(model, weights)
    of_graph = weights["language_model"]
    parameter = next(name for name in of_graph.parameters if name.endswith("down"))
    for suffix in ("", "_scale", *(["_zero"] if packing.zero_points else [])):
        for e in (0, -1):
            part = of_graph.values[parameter + suffix][e]
            before = part.clone()
            part.copy_(part + 1 if suffix != "_scale" else part * 1.125)
            with pytest.raises(CheckFailed, match=f"{parameter}: (other values|integers stand for)"):
                check(model, weights)
            part.copy_(before)


@pytest.mark.parametrize("packing", PACKINGS, ids=str)
def test_weights_whose_scales_are_below_float16(
    packing: Packing, wide_checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    """Experts that nothing reaches have such weights: they are rounded coarsely, the least to zeros."""
    source = Path(shutil.copytree(wide_checkpoint("dsvl2-mha"), tmp_path / "small")) / "model.safetensors"
    tensors = load_file(source)
    sizes = (1.0, 1e-4, 1e-5, 1e-6, 1e-8, 1e-30)
    for name in (name for name in tensors if ".experts." in name):
        tensors[name] = tensors[name] * sizes[int(name.split(".experts.")[1].split(".")[0]) % len(sizes)]
    save_file(tensors, source, metadata={"format": "pt"})
    model = model_of(source.parent, Precision(torch.float16, torch.float16, packing=packing), method="none")
    check(model, written(model))


@pytest.mark.parametrize("packing", PACKINGS, ids=str)
def test_a_rounding_that_is_wrong_by_itself_is_found(
    packing: Packing, wide_checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both what is written and what is expected of it come from the same mistaken rounding."""
    quantise = Packing.quantise
    monkeypatch.setattr(Packing, "quantise", lambda self, weights: quantise(self, np.float32(1.3) * weights))
    model = model_of(
        wide_checkpoint("dsvl2-mha"), Precision(torch.float16, torch.float16, packing=packing), method="none"
    )
    with pytest.raises(CheckFailed, match="integers stand for values up to"):
        check(model, written(model))


@pytest.mark.parametrize("shape", [(152_000, 2048), (3200, 12_800), (8, 2880, 5760), (7, 40_000_000)])
def test_some_value_of_every_block_is_looked_at(shape: tuple[int, ...]) -> None:
    """A block is what is written in one go (4 MiB), of a transposed weight one of columns."""
    *_, rows, columns = shape
    of_rows = samples._sample(shape, 2, is_dense=True)[-1]
    of_columns = samples._sample(shape, 2, is_dense=False)[-1]
    assert isinstance(of_rows, torch.Tensor) and isinstance(of_columns, torch.Tensor)
    for places, count, size in ((of_rows, rows, 2 * columns), (of_columns.flatten(), columns, 2 * rows)):
        assert places[0] == 0 and places[-1] == count - 1
        assert int(places.diff().max()) * size <= max(4 << 20, size)


def test_a_large_parameter_without_tensor(checkpoint: Callable[[str], Path]) -> None:
    """A small one may be another tensor of equal values."""
    model = model_of(checkpoint("dsvl2-mha"), BF16, method="none")
    weights = written(model)
    del weights["language_model"].parameters["layers.1.input_layernorm.weight"]
    check(model, weights)
    del weights["language_model"].parameters["lm_head.weight"]
    with pytest.raises(CheckFailed, match=r"^language_model.lm_head.weight \[\d+, \d+\] has no tensor in the graph"):
        check(model, weights)


def test_another_type_or_shape(checkpoint: Callable[[str], Path]) -> None:
    model = model_of(checkpoint("dsvl2-mha"), BF16, method="none")
    weights = written(model)
    values = weights["language_model"].values
    values["norm.weight"] = values["norm.weight"].half()
    with pytest.raises(CheckFailed, match=r"is stored as torch\.float16, expected torch\.float32"):
        check(model, weights)
    values["norm.weight"] = values["norm.weight"].float()[:-1]
    with pytest.raises(CheckFailed, match=r"is stored as \[\d+\], expected \[\d+\]"):
        check(model, weights)


def test_what_takes_long_says_how_long(checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "STEPS_SECONDS", -1.0)
    model = model_of(checkpoint("dsvl2-mha"), BF16, method="none")
    lines: list[str] = []
    check_samples(model, written(model), lines.append)
    assert lines[-1].endswith("about 0 s left")
