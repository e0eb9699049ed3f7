# SPDX-License-Identifier: Apache-2.0
"""What is traced of a model: inputs of the table with torch's types, and programs that take them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fastmmoe.exporter.graph.inputs import graph_inputs, graph_program
from fastmmoe.exporter.graph.tracing import GraphInput
from fastmmoe.exporter.model import Precision
from fastmmoe.exporter.models.steps import source_name
from fastmmoe.runtime.bundle import graph_io
from tests.support.models import BFLOAT16, FLOAT16, FLOAT32, model_of

Checkpoints = Callable[[str], Path]


@pytest.mark.parametrize(
    ("precision", "dtype"), [(FLOAT32, torch.float32), (FLOAT16, torch.float16), (BFLOAT16, torch.bfloat16)]
)
def test_the_vision_graph(checkpoint: Checkpoints, precision: Precision, dtype: torch.dtype) -> None:
    """DeepSeek-VL2 alone has a layout."""
    pixels = GraphInput(graph_io.PIXEL_VALUES, ("tiles", 3, 384, 384), dtype)
    layout = GraphInput(graph_io.LAYOUT_INDEX, ("V",), torch.int32)
    assert graph_inputs(model_of(checkpoint("dsvl2-mha"), precision), "vision") == [pixels, layout]
    (only,) = graph_inputs(model_of(checkpoint("internvl-qwen3moe"), precision), "vision")
    assert only == GraphInput(graph_io.PIXEL_VALUES, ("tiles", 3, 448, 448), dtype)


def test_the_embedding_graph(checkpoint: Checkpoints) -> None:
    for precision in (FLOAT32, FLOAT16):
        found = graph_inputs(model_of(checkpoint("dsvl2-mha"), precision), "embedding")
        assert found == [GraphInput(graph_io.INPUT_IDS, ("T",), torch.int32)]


def test_caches_of_another_type(checkpoint: Checkpoints) -> None:
    """The latents alone; lengths and positions are whole numbers, embeddings are activations."""
    model = model_of(checkpoint("dsvl2-mla"), replace(FLOAT32, kv_caches=torch.bfloat16), prune_layers=(1, 3))
    of_bfloat16 = {i.name for i in graph_inputs(model, "language_model") if i.dtype == torch.bfloat16}
    assert of_bfloat16 == {f"past_key_values.{i}.latent" for i in range(6)}


def test_the_language_model(checkpoint: Checkpoints) -> None:
    """Of 6 layers with a site before the MoE block of layers 1 and 3: groups of 2, 2 and 2."""
    model = model_of(checkpoint("dsvl2-mla"), FLOAT16, prune_layers=(1, 3))
    found = {i.name: i for i in graph_inputs(model, "language_model")}
    assert len(found) == len(graph_inputs(model, "language_model"))
    H, latent = model.config.hidden_size, model.config.kv_lora_rank + model.config.rope_dim
    expected = [
        GraphInput(graph_io.INPUTS_EMBEDS, ("T", H), torch.float16),
        GraphInput(graph_io.SEQUENCE_OFFSETS, (graph_io.OFFSETS,), torch.int32),
        GraphInput(graph_io.VISUAL_INDEX, ("V",), torch.int32),
        GraphInput(graph_io.VISUAL_TOP_K, (5,), torch.int32),
        GraphInput(graph_io.ALPHA, (2,), torch.float32),
        GraphInput(graph_io.keep_slots(1), ("K1",), torch.int8),
        GraphInput(graph_io.past_lengths(2), ("B",), torch.int32),
        GraphInput("past_key_values.0.latent", ("B", 1, "C0", latent), torch.float16),
        GraphInput("past_key_values.5.latent", ("B", 1, "C2", latent), torch.float16),
    ]
    assert [found[i.name] for i in expected] == expected
    assert not [name for name in found if name.startswith("past_position_ids")]


def test_inputs_that_only_some_graphs_have(checkpoint: Checkpoints) -> None:
    def names(name: str, method: str) -> set[str]:
        return {i.name for i in graph_inputs(model_of(checkpoint(name), method=method), "language_model")}

    none, fastv, comparison = (names("internvl-gptoss", method) for method in ("none", "fastv", "all"))
    assert graph_io.past_position_ids(0) in none and graph_io.VISUAL_TOP_K not in none
    assert graph_io.keep_slots(0) in fastv and graph_io.merge_slots(0) not in fastv
    assert comparison - fastv >= {graph_io.METHOD, graph_io.RANDOM_SCORES, graph_io.RATER_SLOTS}


@pytest.mark.parametrize("name", ["dsvl2-mla", "internvl-gptoss"])
def test_programs_take_what_graphs_have(checkpoint: Checkpoints, name: str) -> None:
    """Every input is read, in the type that the graph has it in; caches may have one of their own."""
    model = model_of(checkpoint(name), replace(FLOAT16, kv_caches=torch.bfloat16), method="all")
    for graph in ("vision", "embedding", "language_model"):
        program, inputs = graph_program(model, graph), {i.name: i.dtype for i in graph_inputs(model, graph)}
        read = {source_name(s): step.takes[n][1] for step in program.steps for n, s in step.reads.items()}
        assert {name: read[name] for name in inputs} == inputs
