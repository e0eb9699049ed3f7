# SPDX-License-Identifier: Apache-2.0
"""Which checkpoints make a model, and under which names their tensors may stand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from fastmmoe.exporter.checkpoint.reader import Checkpoint
from fastmmoe.exporter.model import Model, Precision
from fastmmoe.exporter.models.layers import Rotary
from fastmmoe.exporter.ops.linear.packing import LinearPacking, LinearPackings
from fastmmoe.exporter.pruning.settings import PolicyOptions
from fastmmoe.runtime.errors import UnsupportedModel
from tests.support.checkpoint_files import fuse_experts

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


@pytest.mark.parametrize("name", ["internvl-qwen3moe", "internvl-qwen3moe-original", "dsvl2-mha", "dsvl2-mla"])
def test_fused_experts(name: str, checkpoint: Callable[[str], Path], own_checkpoint: Callable[[str], Path]) -> None:
    """Every parameter is bit by bit that of the checkpoint with one tensor an expert."""
    separate = Model(Checkpoint(checkpoint(name)), OPTIONS, FLOAT32)
    directory = own_checkpoint(name)
    tensors = fuse_experts(load_file(directory / "model.safetensors"))
    assert any(name.endswith("mlp.experts.gate_up_proj") for name in tensors)
    save_file(tensors, directory / "model.safetensors")
    fused = Model(Checkpoint(directory), OPTIONS, FLOAT32)
    for parameter in separate.rules:
        assert torch.equal(separate.load(parameter), fused.load(parameter)), parameter


def test_fused_and_separate_experts(own_checkpoint: Callable[[str], Path]) -> None:
    directory = own_checkpoint("internvl-qwen3moe")
    save_file(fuse_experts(load_file(directory / "model.safetensors"), layers=1), directory / "model.safetensors")
    with pytest.raises(
        UnsupportedModel, match=r"fused tensors \(.*\.0\.mlp\.experts\..*\) and one by one \(.*\.1\.mlp\."
    ):
        Model(Checkpoint(directory), OPTIONS, FLOAT32)


@pytest.mark.parametrize(
    ("name", "buffers"),
    [
        ("dsvl2-mha", ("language.model.layers.0.self_attn.rotary_emb.inv_freq", "vision.embeddings.position_ids")),
        ("internvl-qwen3moe", ("language_model.model.rotary_emb.inv_freq", "vision_tower.embeddings.position_ids")),
        ("internvl-gptoss-original", ("language_model.model.layers.2.self_attn.rotary_emb.inv_freq",)),
    ],
)
def test_buffers_of_older_versions_are_dropped(
    name: str, buffers: tuple[str, ...], own_checkpoint: Callable[[str], Path]
) -> None:
    directory = own_checkpoint(name)
    tensors = load_file(directory / "model.safetensors") | {buffer: torch.arange(4) for buffer in buffers}
    save_file(tensors, directory / "model.safetensors")
    assert Model(Checkpoint(directory), PolicyOptions(), FLOAT32).checkpoint.tensors.keys() >= set(buffers)


def test_one_tensor_under_two_names(own_checkpoint: Callable[[str], Path]) -> None:
    """The names on disk and in memory may not both be there: one of two different tensors would be used."""
    directory = own_checkpoint("internvl-qwen3moe")
    tensors = load_file(directory / "model.safetensors")
    tensors["lm_head.weight"] = torch.zeros_like(tensors["language_model.lm_head.weight"])
    save_file(tensors, directory / "model.safetensors")
    with pytest.raises(UnsupportedModel) as raised:
        Model(Checkpoint(directory), OPTIONS, FLOAT32)
    both = ("'lm_head.weight'", "'language_model.lm_head.weight'")
    assert all(name in str(raised.value) for name in both) and "keep one of the two" in str(raised.value)


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


def test_packed_linear_layers_and_their_twin(checkpoint: Callable[[str], Path]) -> None:
    """The twin holds what the integers stand for; in rows they have no operator for rotary positions beside them."""
    path, source = checkpoint("internvl-qwen3moe"), "language_model.layers.1.self_attn.q_proj.weight"
    int4, int8 = LinearPacking("int4", 32, zero_points=True, is_tiled=False), LinearPacking("int8", 128, is_tiled=False)
    precision = Precision(torch.float16, torch.float16, linears=LinearPackings(int4, int8))
    exact = Model(Checkpoint(path), OPTIONS, FLOAT32)
    packed, twin = (Model(Checkpoint(path), OPTIONS, p) for p in (precision, precision.float32_twin()))
    for name, packing in ((source, int4), ("language_model.lm_head.weight", int8)):
        assert packed.linear_packing(name) == twin.linear_packing(name) == packing
        found = twin.load(name)
        assert found.dtype == torch.float32
        np.testing.assert_array_equal(found.numpy(), packing.round(exact.load(name).numpy()))
    norm = "language_model.layers.1.self_attn.q_norm.weight"
    assert torch.equal(twin.load(norm), packed.load(norm).float())
    tiled = replace(precision, linears=LinearPackings(replace(int4, is_tiled=True)))
    for chosen, is_operator in ((precision, False), (tiled, True)):
        modules = Model(Checkpoint(path), OPTIONS, chosen).graphs.language_model.modules()
        assert {module.is_operator for module in modules if isinstance(module, Rotary)} == {is_operator}
