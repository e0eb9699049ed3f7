# SPDX-License-Identifier: Apache-2.0
"""Every parameter is written as `Model.load` assembles it, byte by byte: each kind of rule, dtype and order of axes."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fastmmoe.exporter import weight_stream
from fastmmoe.exporter.checkpoint.reader import Checkpoint
from fastmmoe.exporter.model import EXPERT_WEIGHTS, Model, Precision
from fastmmoe.exporter.ops.quantise import Packing
from fastmmoe.exporter.pruning.settings import PolicyOptions
from fastmmoe.exporter.weight_stream import WeightStream
from fastmmoe.runtime.errors import UnsupportedModel
from tests.support.checkpoint_files import fuse_experts

OPTIONS = PolicyOptions(prune_layers=(1, 3))
CHECKPOINTS = [
    ("dsvl2-mha", torch.float16),
    ("dsvl2-mla", torch.float32),
    ("dsvl2-mla", torch.bfloat16),
    ("internvl-gptoss", torch.bfloat16),
    ("internvl-gptoss", torch.float32),
    ("internvl-qwen3moe", torch.bfloat16),
    ("internvl-qwen3moe-original", torch.float16),
    ("fused", torch.bfloat16),
]
HALF = Precision(torch.float16, torch.bfloat16)
INT8 = Precision(torch.bfloat16, torch.float16, packing=Packing("int8", 32, zero_points=True))
PRECISIONS = {
    "fp32": Precision(torch.float32, torch.float32),
    "bf16": Precision(torch.bfloat16, torch.float32),
    "16 bits": HALF,
    "twin": HALF.float32_twin(),
    "int8 twin": INT8.float32_twin(),
}
BEFORE = b"before"


@pytest.fixture(scope="module", params=CHECKPOINTS, ids=lambda p: f"{p[0]} {p[1]}")
def directory(
    request: pytest.FixtureRequest, checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A golden checkpoint, stored in another dtype."""
    name, dtype = request.param
    source, path = checkpoint("internvl-qwen3moe" if name == "fused" else name), tmp_path_factory.mktemp("model")
    for file in source.iterdir():
        if file.suffix == ".json":
            (path / file.name).write_bytes(file.read_bytes())
    tensors = {name: tensor.to(dtype) for name, tensor in load_file(source / "model.safetensors").items()}
    save_file(fuse_experts(tensors) if name == "fused" else tensors, path / "model.safetensors")
    return path


def written(stream: WeightStream, name: str, order: tuple[int, ...] | None) -> tuple[bytes, int]:
    """The bytes of a parameter, and the number that was reported."""
    reported: list[int] = []
    with tempfile.TemporaryFile() as file:
        file.write(BEFORE)
        file.flush()
        stream.write(name, order, file.fileno(), len(BEFORE), reported.append)
        file.seek(0)
        data = file.read()
    assert data.startswith(BEFORE)
    return data.removeprefix(BEFORE), sum(reported)


def as_bytes(values: torch.Tensor) -> bytes:
    return values.reshape(-1).view(torch.uint8).numpy().tobytes()


@pytest.mark.parametrize("limits", [(1 << 26, 1 << 22, 40 << 20), (3000, 1500, 5000)], ids=["whole", "blocks"])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_bytes_are_those_of_the_assembled_parameter(
    directory: Path, precision: str, limits: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, limit in zip(("_COPY_BYTES", "_BLOCK_BYTES", "_STRIDED_BYTES"), limits, strict=True):
        monkeypatch.setattr(weight_stream, name, limit)
    model = Model(Checkpoint(directory), OPTIONS, PRECISIONS[precision])
    for graph, module in model.graphs.items():
        stream = WeightStream(model, graph)
        for name, meta in module.named_parameters():
            expected = model.load(f"{graph}.{name}")
            assert written(stream, name, None) == (as_bytes(expected), expected.nbytes), name
            if meta.ndim > 1 and not name.endswith(EXPERT_WEIGHTS) and not name.endswith("gate_up_bias"):
                axes = tuple(range(meta.ndim))
                for order in {axes[::-1], (*axes[1:], 0)}:
                    data, count = written(stream, name, order)
                    assert data == as_bytes(expected.permute(order)) and count == len(data), (name, order)
        assert all(len(buffer) <= max(limits[1:]) for buffer in stream._buffers)


def test_experts_come_one_by_one_as_they_are_stored(directory: Path) -> None:
    model = Model(Checkpoint(directory), OPTIONS, INT8)
    stream, graph = WeightStream(model, "language_model"), "language_model."
    for name in (name for name in model.rules if name.endswith(EXPERT_WEIGHTS)):
        assert torch.equal(torch.stack(list(stream.experts(name.removeprefix(graph)))), model.load(name)), name


def test_a_file_that_changed_is_refused_by_name(own_checkpoint: Callable[[str], Path]) -> None:
    path = own_checkpoint("dsvl2-mha") / "model.safetensors"
    stream = WeightStream(Model(Checkpoint(path.parent), OPTIONS, PRECISIONS["fp32"]), "language_model")
    data = path.read_bytes()
    path.write_bytes(data[:-100])
    with pytest.raises(UnsupportedModel, match=r"model\.safetensors cannot be read any more"):
        written(stream, "norm.weight", None)
