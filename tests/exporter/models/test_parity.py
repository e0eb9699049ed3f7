# SPDX-License-Identifier: Apache-2.0
"""The torch modules at retention 1 against recorded outputs of the official code, layer by layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from fastmmoe.exporter import torch_ops
from fastmmoe.exporter.checkpoint import Checkpoint
from fastmmoe.exporter.families import Model, Precision
from fastmmoe.exporter.fastmmoe.policy import PolicyOptions
from fastmmoe.runtime import abi

Array = npt.NDArray[Any]

FLOAT32_TOLERANCE = 1e-4
# Between ranks k and k + 1 of a token's router logits; with less than this, either expert is a legal choice.
DECISIVE_GAP = 1e-4
MODELS = ("dsvl2-mha", "dsvl2-mla", "internvl-qwen3moe", "internvl-gptoss")
CASES = ("single", "batch2", "text")
EVERY_MODEL = pytest.mark.parametrize("name", MODELS)
EVERY_CASE = pytest.mark.parametrize("case", CASES)


@dataclass
class Trace:
    """What one prefill computes inside: by layer, hidden states [T, H] after it, router logits, last-row attention."""

    prompt: Any
    inputs_embeds: torch.Tensor
    outputs: dict[str, torch.Tensor] = field(default_factory=dict)
    before_mlp: dict[int, torch.Tensor] = field(default_factory=dict)
    hidden_states: dict[int, torch.Tensor] = field(default_factory=dict)
    router_logits: dict[int, torch.Tensor] = field(default_factory=dict)
    last_rows: dict[int, torch.Tensor] = field(default_factory=dict)


def record(model: Any, prompt: Any) -> Trace:
    """Run one prompt unmodified with hooks on every decoder layer."""
    trace = Trace(prompt, model.embed(prompt))
    handles = []
    for i, layer in enumerate(model.language_model.layers):

        def on_norm(_: Any, args: Any, i: int = i) -> None:
            trace.before_mlp[i] = args[0]

        def on_mlp(_: Any, __: Any, y: torch.Tensor, i: int = i) -> None:
            trace.hidden_states[i] = trace.before_mlp[i] + y

        def on_router(_: Any, __: Any, y: torch.Tensor, i: int = i) -> None:
            trace.router_logits[i] = y

        def ask_last_row(_: Any, args: Any, kwargs: Any) -> Any:
            return args, {**kwargs, "with_last_row": True}

        def on_attention(_: Any, __: Any, y: Any, i: int = i) -> None:
            trace.last_rows[i] = y[2]

        handles += [
            layer.post_attention_layernorm.register_forward_pre_hook(on_norm),
            layer.mlp.register_forward_hook(on_mlp),
            layer.self_attn.register_forward_pre_hook(ask_last_row, with_kwargs=True),
            layer.self_attn.register_forward_hook(on_attention),
        ]
        if hasattr(layer.mlp, "experts"):
            handles.append(layer.mlp.experts.router.register_forward_hook(on_router))
    schedule = model.schedule(len(prompt.visual_index), 1.0)
    trace.outputs = model.prefill(trace.inputs_embeds, prompt.visual_index, schedule)
    for handle in handles:
        handle.remove()
    return trace


@pytest.fixture(scope="module")
def traces(torch_model: Callable[..., Any], prompts: Callable[..., Any]) -> Callable[[str, str], list[Trace]]:
    """Function (checkpoint, case) -> the trace of every row."""
    known: dict[tuple[str, str], list[Trace]] = {}

    def get(name: str, case: str) -> list[Trace]:
        if (name, case) not in known:
            known[name, case] = [record(torch_model(name), prompt) for prompt in prompts(name, case)]
        return known[name, case]

    return get


def assert_close(ours: torch.Tensor | Array, theirs: Array) -> None:
    np.testing.assert_allclose(np.asarray(ours), theirs, rtol=0, atol=FLOAT32_TOLERANCE)


@EVERY_MODEL
@pytest.mark.parametrize("case", ["single", "batch2"])
def test_vision(name: str, case: str, torch_model: Any, prompts: Any, golden_array: Any) -> None:
    """Tower and projector; the InternVL golden features of `single` are those of the first tiles."""
    features = golden_array(f"{name}/outputs_{case}.npz", "vision_features")
    projected = golden_array(f"{name}/outputs_{case}.npz", "projected_tiles")
    (prompt,) = (p for p in prompts(name, case) if p.pixel_values is not None)
    vision = torch_model(name).vision
    ours = vision.features(torch.from_numpy(prompt.pixel_values))
    assert_close(ours[: len(features)], features)
    assert_close(vision.project(ours), projected)


@EVERY_MODEL
@EVERY_CASE
def test_inputs_embeds(name: str, case: str, traces: Any, golden_array: Any) -> None:
    golden = golden_array(f"{name}/outputs_{case}.npz", "inputs_embeds")
    for row, trace in enumerate(traces(name, case)):
        assert_close(trace.inputs_embeds, golden[row, trace.prompt.is_token])


@EVERY_MODEL
@EVERY_CASE
def test_hidden_states(name: str, case: str, traces: Any, torch_model: Any, golden_array: Any) -> None:
    """After every layer; the last golden entry is after the final norm."""
    golden = golden_array(f"{name}/outputs_{case}.npz", "hidden_states")
    norm = torch_model(name).language_model.norm
    for row, trace in enumerate(traces(name, case)):
        is_token = trace.prompt.is_token
        decisive = decisive_rows(golden_array(f"{name}/outputs_{case}.npz", "router_logits")[:, row, is_token], trace)
        assert decisive.mean() > 0.99
        states = [trace.hidden_states[i] for i in sorted(trace.hidden_states)]
        assert len(states) == len(golden) - 1
        for ours, theirs in zip([*states[:-1], norm(states[-1])], golden[1:, row], strict=True):
            assert_close(ours[decisive], theirs[is_token][decisive])


def decisive_rows(router_logits: Array, trace: Trace) -> Array:
    """[T] bool: tokens that have a clear choice of experts in every layer; router_logits [MoE layers, T, E]."""
    return (gap_at(router_logits, top_k_of(trace)) > DECISIVE_GAP).all(axis=0)


def gap_at(router_logits: Array, k: int) -> Array:
    best = np.sort(router_logits, axis=-1)[..., ::-1]
    return best[..., k - 1] - best[..., k]


def top_k_of(trace: Trace) -> int:
    return trace.top_k
