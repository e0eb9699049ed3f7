# SPDX-License-Identifier: Apache-2.0
"""The torch modules at retention 1 against recorded outputs of the official code, layer by layer."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastmmoe.exporter.checkpoint.reader import Checkpoint
from fastmmoe.exporter.model import Model, Precision
from fastmmoe.exporter.models.layers import PATCHES
from fastmmoe.exporter.models.steps import Program
from fastmmoe.exporter.ops.contract import OpSpec
from fastmmoe.exporter.pruning.settings import PolicyOptions
from fastmmoe.runtime.bundle import graph_io
from fastmmoe.runtime.types import Array
from tests.support.rounding import rounding_of
from tests.support.torch_models import TorchModel, read_prompts
from tests.support.traces import Routing, Trace, record, record_choices, route

# Share of the tokens that must have a decisive choice in every layer, so that leaving the others out hides nothing.
MOST = 0.99
MODELS = ("dsvl2-mha", "dsvl2-mla", "internvl-qwen3moe", "internvl-gptoss")
CASES = ("single", "batch2", "text")
EVERY_MODEL = pytest.mark.parametrize("name", MODELS)
EVERY_CASE = pytest.mark.parametrize("case", CASES)


@pytest.fixture(scope="module")
def routings(golden: Path, golden_array: Callable[..., Array], torch_model: Any) -> Callable[[str, str], list[Routing]]:
    """Function (checkpoint, case) -> the recorded routing of every row."""

    def get(name: str, case: str) -> list[Routing]:
        arrays = [golden_array(f"{name}/outputs_{case}.npz", n) for n in ("router_logits", "topk_idx", "topk_weight")]
        layers = torch_model(name).model.config.moe_layers
        found = []
        for row, prompt in enumerate(read_prompts(golden, name, case)):
            logits, experts, weights = (array[:, row, prompt.is_token] for array in arrays)
            atol = [rounding_of("router_logits", one, i + 1)[1] for i, one in zip(layers, logits, strict=True)]
            is_near_tie = gap_at(logits, experts.shape[-1]) < np.array(atol)[:, None]
            assert is_near_tie.any(0).mean() < 1 - MOST
            found.append(Routing(logits, experts, weights, is_near_tie))
        return found

    return get


@pytest.fixture(scope="module")
def traces(
    torch_model: Callable[..., Any], routings: Callable[..., list[Routing]], golden: Path
) -> Callable[[str, str], list[Trace]]:
    """Function (checkpoint, case) -> the trace of every row, near ties as recorded where this golden set has them."""

    @cache
    def get(name: str, case: str) -> list[Trace]:
        model, rows = torch_model(name), read_prompts(golden, name, case)
        with np.load(golden / name / f"outputs_{case}.npz") as arrays:
            if "router_logits" not in arrays.files:
                return [record(model, prompt) for prompt in rows]
        return [record_choices(model, *row) for row in zip(rows, routings(name, case), strict=True)]

    return get


@EVERY_MODEL
@pytest.mark.parametrize("case", ["single", "batch2"])
def test_vision(name: str, case: str, torch_model: Any, golden: Path, golden_array: Any, assert_close: Any) -> None:
    """Tower and projector; the InternVL golden features of `single` are those of the first tiles."""
    features = golden_array(f"{name}/outputs_{case}.npz", "vision_features")
    projected = golden_array(f"{name}/outputs_{case}.npz", "projected_tiles")
    (prompt,) = (p for p in read_prompts(golden, name, case) if p.pixel_values is not None)
    vision, pixels = torch_model(name).vision, torch.from_numpy(prompt.pixel_values)
    *tower, projector = vision.program().steps
    ours = Program(tower, {PATCHES: projector.reads[PATCHES]}).run({graph_io.PIXEL_VALUES: pixels})[PATCHES]
    # SigLIP ends with a norm; DeepSeek-VL2's layout is here the tiles' features in order.
    ours = vision.norm(ours) if hasattr(vision, "norm") else ours
    assert_close("image_features", ours[: len(features)], features, 1)
    layout = torch.arange(projected.shape[0] * projected.shape[1], dtype=torch.int32)
    tiles = vision({graph_io.PIXEL_VALUES: pixels, graph_io.LAYOUT_INDEX: layout})[graph_io.IMAGE_FEATURES]
    assert_close("image_features", tiles.view(*projected.shape), projected, 1)


@EVERY_MODEL
@EVERY_CASE
def test_inputs_embeds(name: str, case: str, traces: Any, golden_array: Any, assert_close: Any) -> None:
    golden = golden_array(f"{name}/outputs_{case}.npz", "inputs_embeds")
    for row, trace in enumerate(traces(name, case)):
        assert_close("image_features", trace.inputs_embeds, golden[row, trace.prompt.is_token], 1)


def gap_at(router_logits: Array, k: int) -> Array:
    """Distance between ranks k and k + 1 of the last axis."""
    best = np.sort(router_logits, axis=-1)[..., ::-1]
    return best[..., k - 1] - best[..., k]


@EVERY_MODEL
@EVERY_CASE
def test_hidden_states(
    name: str, case: str, traces: Any, routings: Any, torch_model: Any, golden_array: Any, assert_close: Any
) -> None:
    """After every layer; the last golden entry is after the final norm."""
    golden = golden_array(f"{name}/outputs_{case}.npz", "hidden_states")
    routings(name, case)
    for row, trace in enumerate(traces(name, case)):
        states = [trace.hidden_states[i] for i in range(len(golden) - 1)]
        states[-1] = torch_model(name).language_model.norm(states[-1])
        for i, ours in enumerate(states):
            assert_close("hidden_states", ours, golden[i + 1, row, trace.prompt.is_token], i + 1)


@EVERY_MODEL
@EVERY_CASE
def test_routing(name: str, case: str, traces: Any, routings: Any, torch_model: Any, assert_close: Any) -> None:
    """Router logits of every MoE layer, chosen experts and their weights where the choice is decisive."""
    model = torch_model(name)
    for trace, recorded in zip(traces(name, case), routings(name, case), strict=True):
        assert model.model.config.moe.top_k == recorded.experts.shape[-1]
        for j, i in enumerate(model.model.config.moe_layers):
            assert_close("router_logits", trace.router_logits[i], recorded.router_logits[j], i + 1)
            is_clear = ~recorded.is_near_tie[j]
            selected, weights = route(model, i, trace.router_logits[i])
            np.testing.assert_array_equal(selected[is_clear], recorded.experts[j, is_clear])
            assert_close("routing_weights", weights[is_clear], recorded.weights[j, is_clear], i + 1)


@EVERY_MODEL
@EVERY_CASE
def test_attention_of_the_last_query(
    name: str, case: str, traces: Any, torch_model: Any, golden_array: Any, assert_close: Any
) -> None:
    """Mean over heads, in every layer that may prune by it: sliding layers never do."""
    golden = golden_array(f"{name}/outputs_{case}.npz", "attn_last_query").mean(axis=2)
    sliding = getattr(torch_model(name).model.config, "sliding_layers", ())
    for row, trace in enumerate(traces(name, case)):
        for i in sorted(trace.last_rows.keys() - set(sliding)):
            assert_close("attention", trace.last_rows[i], golden[i, row, trace.prompt.is_token], i + 1)
        assert len(trace.last_rows) == len(golden)


@EVERY_MODEL
@EVERY_CASE
def test_logits_of_the_last_row(
    name: str, case: str, traces: Any, golden_last_logits: Any, torch_model: Any, assert_close: Any
) -> None:
    golden = golden_last_logits(f"{name}/outputs_{case}.npz")
    rows = traces(name, case)
    logits = torch.cat([trace.outputs[graph_io.LOGITS] for trace in rows])
    assert_close("logits", logits, golden, len(torch_model(name).language_model.layers))
    assert len(rows) == (2 if case == "batch2" else 1)


@EVERY_MODEL
def test_cache_after_prefill(name: str, traces: Any, torch_model: Any, golden_array: Any, assert_close: Any) -> None:
    """Keys are after RoPE; latent attention keeps the normalised latent and the rotated k_pe side by side."""
    (trace,) = traces(name, "single")
    cached = torch_model(name).cached(trace.outputs)
    file, layer = f"{name}/outputs_single.npz", 1 if name.startswith("internvl-") else 0
    if name == "dsvl2-mla":
        k_pe, latent = golden_array(file, "past_k_pe_layer0"), golden_array(file, "past_ckv_layer0")
        assert_close("cache", cached["present.0.latent"], np.concatenate((latent, k_pe), axis=-1)[0], 1)
        return
    for part in graph_io.KEY_VALUE:
        recorded = golden_array(file, f"past_{part}_layer{layer}")
        assert_close("cache", cached[f"present.{layer}.{part}"][None], recorded, layer + 1)


@EVERY_MODEL
def test_greedy_decoding(name: str, traces: Any, torch_model: Any, golden_array: Any, assert_close: Any) -> None:
    """Six steps on the prefill's caches."""
    (trace,) = traces(name, "single")
    tokens = golden_array(f"{name}/outputs_single.npz", "decode_tokens")
    logits = golden_array(f"{name}/outputs_single.npz", "decode_logits")
    model = torch_model(name)
    steps = model.decode(trace.outputs, len(trace.inputs_embeds), len(logits), trace.schedule)
    chosen = [int(outputs[graph_io.LOGITS].argmax()) for outputs in (trace.outputs, *steps)]
    assert chosen == tokens.tolist()
    found = np.stack([outputs[graph_io.LOGITS] for outputs in steps])
    assert_close("logits", found, logits, len(model.language_model.layers))


@pytest.mark.parametrize("name", ["dsvl2-mha", "dsvl2-mla"])
def test_three_pictures(
    name: str, torch_model: Any, golden: Path, golden_array: Any, golden_last_logits: Any, assert_close: Any
) -> None:
    """The decoder alone: the golden pictures of this case are not kept as pixels."""
    embeds = torch.from_numpy(golden_array(f"{name}/outputs_multi3.npz", "inputs_embeds")[0])
    (prompt,) = read_prompts(golden, name, "multi3")
    model = torch_model(name)
    outputs = model.prefill(embeds, prompt.visual_index, model.schedule(len(prompt.visual_index), 1.0))
    theirs = golden_last_logits(f"{name}/outputs_multi3.npz")
    assert_close("logits", outputs[graph_io.LOGITS], theirs, len(model.language_model.layers))


# Allowed is so many times what the recording and this run together differ from the exact result.
MARGIN = 2
NOISE = 2.0**-24  # relative, half a step of float32


def make_float64(model: Any, patch: pytest.MonkeyPatch) -> Any:
    """The model, changed to compute in float64 all but the angles of the positions, which are float32 by definition."""
    to_float32 = torch.Tensor.float
    # The operators' contract knows no float64: what the twin gives them counts as float32.
    bind = OpSpec._bind_type
    empty = torch.empty(0, dtype=torch.float32)
    patch.setattr(OpSpec, "_bind_type", lambda s, t, x, *a: bind(s, t, empty if x.dtype == torch.float64 else x, *a))
    patch.setattr(torch.Tensor, "float", lambda x: x.double() if x.is_floating_point() else to_float32(x))
    for module in (model.vision, model.language_model, model.model.graphs.embedding):
        for name, parameter in module.named_parameters():
            if not name.endswith("inv_freq"):
                parameter.data = parameter.data.double()
        module.register_forward_pre_hook(
            lambda _, args: ({n: x.double() if x.is_floating_point() else x for n, x in args[0].items()},)
        )
    return model


def quantities(trace: Trace, model: Any) -> dict[tuple[str, int], Any]:
    """What a trace holds of ROUNDING's quantities, by quantity and layers passed."""
    found: dict[tuple[str, int], Any] = {
        ("image_features", 1): trace.inputs_embeds,
        ("logits", len(trace.hidden_states)): trace.outputs[graph_io.LOGITS],
    }
    found |= {("hidden_states", i + 1): x for i, x in list(trace.hidden_states.items())[:-1]}
    found |= {("router_logits", i + 1): x for i, x in trace.router_logits.items()}
    # By size, so that a near tie that falls the other way is no difference.
    found |= {("routing_weights", i + 1): np.sort(route(model, i, x)[1]) for i, x in trace.router_logits.items()}
    sliding = getattr(model.model.config, "sliding_layers", ())
    return found | {("attention", i + 1): x for i, x in trace.last_rows.items() if i not in sliding}


def recorded_quantities(arrays: Any, routing: Routing, row: int, trace: Trace, layers: tuple[int, ...]) -> Any:
    """The same of the recording."""
    rows = trace.prompt.is_token
    found = {("image_features", 1): arrays["inputs_embeds"][row, rows]}
    found[("logits", len(trace.hidden_states))] = arrays["logits"][row, -1:]
    found |= {("hidden_states", i): arrays["hidden_states"][i, row, rows] for i in range(1, len(trace.hidden_states))}
    for j, i in enumerate(layers):
        found[("router_logits", i + 1)] = routing.router_logits[j]
        found[("routing_weights", i + 1)] = np.sort(routing.weights[j])
    attention = arrays["attn_last_query"].mean(axis=2)
    return found | {("attention", i + 1): attention[i, row, rows] for i in trace.last_rows}


@EVERY_MODEL
@pytest.mark.parametrize("case", ["text", *(pytest.param(c, marks=pytest.mark.slow) for c in ("batch2", "single"))])
def test_the_tolerance_follows_from_rounding(
    name: str,
    case: str,
    traces: Any,
    routings: Any,
    torch_model: Any,
    checkpoint: Any,
    golden: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Against a float64 twin: the recording, this run, and this run with noise on its embeddings (printed, with -s)."""
    model, own, recorded = torch_model(name), traces(name, case), routings(name, case)
    noisy = []
    for trace, routing in zip(own, recorded, strict=True):
        noise = torch.rand(trace.inputs_embeds.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(model, "embed", lambda _, t=trace, n=noise: t.inputs_embeds * (1 + NOISE * n))
            noisy.append(record_choices(model, trace.prompt, routing))
    twin = make_float64(TorchModel(checkpoint(name), PolicyOptions()), monkeypatch)
    with np.load(golden / name / f"outputs_{case}.npz") as file:
        arrays = {n: file[n] for n in ("inputs_embeds", "logits", "hidden_states", "attn_last_query")}
    used: dict[str, Array] = {}
    for row, (trace, routing) in enumerate(zip(own, recorded, strict=True)):
        exact = quantities(record_choices(twin, trace.prompt, routing), twin)
        theirs = recorded_quantities(arrays, routing, row, trace, model.model.config.moe_layers)
        for (quantity, layers), values in exact.items():
            rtol, atol = rounding_of(quantity, np.asarray(values), layers)
            found = [quantities(t, model)[quantity, layers] for t in (trace, noisy[row])]
            allowed = atol + rtol * np.abs(np.asarray(values))
            shares = [
                np.max(np.abs(x - np.asarray(values)) / allowed)
                for x in map(np.asarray, [theirs[quantity, layers], *found])
            ]
            used[quantity] = np.maximum(used.get(quantity, 0), shares)
    for quantity, (recording, run, noise) in used.items():
        print(f"{name} {case} {quantity}: recording {recording:.3f}, run {run:.3f}, noise {noise:.3f} of the tolerance")
        assert MARGIN * (recording + run) <= 1, quantity


@pytest.mark.parametrize("name", ["internvl-qwen3moe", "internvl-gptoss"])
def test_original_layout_gives_the_same_parameters(name: str, checkpoint: Callable[[str], Path]) -> None:
    """Every parameter of the original (GitHub) checkpoint equals the Hugging Face twin's bit for bit."""
    exact = Precision(torch.float32, torch.float32)
    hf, original = (
        Model(Checkpoint(checkpoint(n)), PolicyOptions(prune_layers=(1,)), exact) for n in (name, f"{name}-original")
    )
    assert original.policy == hf.policy
    names = [f"{graph}.{n}" for graph, module in hf.graphs.items() for n, _ in module.named_parameters()]
    assert len(names) > 100
    for parameter in names:
        assert torch.equal(original.load(parameter), hf.load(parameter)), parameter
