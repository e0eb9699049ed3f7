# SPDX-License-Identifier: Apache-2.0
"""Which checkpoints make a model, and under which names their tensors may stand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fastmmoe.exporter.checkpoint import Checkpoint
from fastmmoe.exporter.families import Model, Precision
from fastmmoe.exporter.fastmmoe.policy import PolicyOptions
from fastmmoe.runtime.errors import UnsupportedModel

FLOAT32 = Precision(torch.float32, torch.float32)
OPTIONS = PolicyOptions(prune_layers=(1, 2, 3))


def in_memory_name(name: str) -> str:
    """A name on disk -> the name transformers' classes use in memory."""
    for disk, memory in (
        ("language_model.lm_head.", "lm_head."),
        ("language_model.model.", "model.language_model."),
        ("vision_tower.", "model.vision_tower."),
        ("multi_modal_projector.", "model.multi_modal_projector."),
    ):
        if name.startswith(disk):
            return memory + name.removeprefix(disk)
    raise AssertionError(name)


def test_names_of_the_classes_in_memory(
    checkpoint: Callable[[str], Path], own_checkpoint: Callable[[str], Path]
) -> None:
    on_disk = Model(Checkpoint(checkpoint("internvl-qwen3moe")), OPTIONS, FLOAT32)
    directory = own_checkpoint("internvl-qwen3moe")
    file = directory / "model.safetensors"
    tensors = {in_memory_name(name): tensor for name, tensor in load_file(file).items()}
    assert "model.language_model.layers.0.mlp.gate.weight" in tensors and "lm_head.weight" in tensors
    save_file(tensors, file)
    in_memory = Model(Checkpoint(directory), OPTIONS, FLOAT32)
    for graph, module in on_disk.graphs.items():
        for name, _ in module.named_parameters():
            assert torch.equal(on_disk.load(f"{graph}.{name}"), in_memory.load(f"{graph}.{name}")), name


def test_unknown_family(own_checkpoint: Callable[[str], Path]) -> None:
    directory = own_checkpoint("dsvl2-mha")
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"model_type": "llava"}))
    with pytest.raises(UnsupportedModel, match=r"model_type 'llava' in config.json: supported are deepseek_vl_v2, "):
        Model(Checkpoint(directory), OPTIONS, FLOAT32)


def test_sixteen_bit_parts_and_their_twin(checkpoint: Callable[[str], Path]) -> None:
    """Experts and activations take the given types, routers stay float32, the twin holds the rounded values."""
    path = checkpoint("dsvl2-mla")
    stored = Model(Checkpoint(path), OPTIONS, Precision(torch.bfloat16, torch.float32))
    experts, query = "language_model.layers.1.mlp.experts.gate_up", "language_model.layers.1.self_attn.q_proj.weight"
    router = "language_model.layers.1.mlp.experts.router.weight"
    assert [stored.load(n).dtype for n in (experts, query, router)] == [torch.bfloat16, torch.float32, torch.float32]
    half = Model(Checkpoint(path), OPTIONS, Precision(torch.float16, torch.float16))
    assert [half.load(n).dtype for n in (experts, query, router)] == [torch.float16, torch.float16, torch.float32]
    twin = Model(Checkpoint(path), OPTIONS, half.precision.float32_twin())
    exact = Model(Checkpoint(path), OPTIONS, FLOAT32)
    for name in (experts, query, router):
        assert twin.load(name).dtype == torch.float32
        assert torch.equal(twin.load(name), half.load(name).float())
        assert torch.equal(twin.load(name), exact.load(name)) == (name == router)
