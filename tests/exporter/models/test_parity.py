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
from fastmmoe.exporter.fastmmoe.tokens import Watch
from fastmmoe.runtime import abi

Array = npt.NDArray[Any]

FLOAT32_TOLERANCE = 1e-4
# Between ranks k and k + 1 of a token's router logits; with less than this, either expert is a legal choice.
DECISIVE_GAP = 1e-4
# Softmax turns an absolute error of the scores, which are sums of products, into a relative one of this size.
ATTENTION_RTOL = 3e-4
# Share of the tokens that must have a clear choice in every layer, so that leaving the others out hides nothing.
MOST = 0.99
MODELS = ("dsvl2-mha", "dsvl2-mla", "internvl-qwen3moe", "internvl-gptoss")
CASES = ("single", "batch2", "text")
EVERY_MODEL = pytest.mark.parametrize("name", MODELS)
EVERY_CASE = pytest.mark.parametrize("case", CASES)


@dataclass
class Trace:
    """What one prefill computes inside: by layer, hidden states [T, H] after it, router logits, last-row attention."""

    prompt: Any
    inputs_embeds: torch.Tensor
    schedule: Any = None
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

        def watch_last_row(_: Any, args: Any) -> Any:
            x, tokens, past, watches = args
            return x, tokens, past, [*watches, Watch(torch.tensor([len(x) - 1]), torch.ones(1))]

        def on_attention(_: Any, __: Any, y: Any, i: int = i) -> None:
            trace.last_rows[i] = y[2].pop()

        handles += [
            layer.post_attention_layernorm.register_forward_pre_hook(on_norm),
            layer.mlp.register_forward_hook(on_mlp),
            layer.self_attn.register_forward_pre_hook(watch_last_row),
            layer.self_attn.register_forward_hook(on_attention),
        ]
        if hasattr(layer.mlp, "experts"):
            handles.append(layer.mlp.experts.router.register_forward_hook(on_router))
    schedule = trace.schedule = model.schedule(len(prompt.visual_index), 1.0)
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


def assert_close(ours: torch.Tensor | Array, theirs: Array, rtol: float = 0) -> None:
    np.testing.assert_allclose(np.asarray(ours), theirs, rtol=rtol, atol=FLOAT32_TOLERANCE)


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


def gap_at(router_logits: Array, k: int) -> Array:
    """Distance between ranks k and k + 1 of the last axis."""
    best = np.sort(router_logits, axis=-1)[..., ::-1]
    return best[..., k - 1] - best[..., k]


@EVERY_MODEL
@EVERY_CASE
def test_hidden_states(name: str, case: str, traces: Any, torch_model: Any, golden_array: Any) -> None:
    """After every layer; the last golden entry is after the final norm.

    From a layer in which a token's choice of experts is not decisive, that token is left out.
    """
    golden = golden_array(f"{name}/outputs_{case}.npz", "hidden_states")
    router_logits = golden_array(f"{name}/outputs_{case}.npz", "router_logits")
    model = torch_model(name)
    for row, trace in enumerate(traces(name, case)):
        states = [trace.hidden_states[i] for i in range(len(golden) - 1)]
        states[-1] = model.language_model.norm(states[-1])
        is_clear = np.ones(len(trace.inputs_embeds), bool)
        logits_of = dict(zip(model.model.config.moe_layers, router_logits[:, row, trace.prompt.is_token], strict=True))
        for i, ours in enumerate(states):
            if i in logits_of:
                is_clear &= gap_at(logits_of[i], model.model.config.moe.top_k) > DECISIVE_GAP
            # The residual stream is the one array here that grows with depth, and its rounding with it.
            assert_close(ours[is_clear], golden[i + 1, row, trace.prompt.is_token][is_clear], FLOAT32_TOLERANCE)
        assert is_clear.mean() > MOST


@EVERY_MODEL
@EVERY_CASE
def test_routing(name: str, case: str, traces: Any, torch_model: Any, golden_array: Any) -> None:
    """Router logits, chosen experts and their weights in every MoE layer."""
    file = f"{name}/outputs_{case}.npz"
    router_logits, experts, weights = (golden_array(file, n) for n in ("router_logits", "topk_idx", "topk_weight"))
    model = torch_model(name)
    k = model.model.config.moe.top_k
    assert k == experts.shape[-1]
    for row, trace in enumerate(traces(name, case)):
        is_token = trace.prompt.is_token
        is_clear_before = np.ones(is_token.sum(), bool)
        for j, i in enumerate(model.model.config.moe_layers):
            golden_logits, logits = router_logits[j, row, is_token], trace.router_logits[i]
            assert_close(logits[is_clear_before], golden_logits[is_clear_before])
            is_clear = is_clear_before & (gap_at(golden_logits, k) > DECISIVE_GAP)
            selected, ours = route(model, i, logits)
            np.testing.assert_array_equal(selected[is_clear], experts[j, row, is_token][is_clear])
            assert_close(ours[is_clear], weights[j, row, is_token][is_clear])
            is_clear_before = is_clear
        assert is_clear_before.mean() > MOST


def route(model: Any, layer: int, router_logits: torch.Tensor) -> tuple[Array, Array]:
    """Chosen experts and weights [T, k] of tokens that are all text, sorted by expert like the golden arrays."""
    attributes = vars(model.model.config.moe) | {"reduction_weights": model.model.policy.reduction_weights}
    bias = model.language_model.layers[layer].mlp.experts.correction_bias
    is_visual = torch.zeros(len(router_logits), dtype=torch.bool)
    selected, weights = torch_ops.route(router_logits, is_visual, 1, bias, attributes)
    selected, order = selected.sort(dim=1)
    return selected.numpy(), weights.gather(1, order).numpy()


@EVERY_MODEL
@EVERY_CASE
def test_attention_of_the_last_query(name: str, case: str, traces: Any, torch_model: Any, golden_array: Any) -> None:
    """Mean over heads, in every layer that may prune by it: sliding layers never do."""
    golden = golden_array(f"{name}/outputs_{case}.npz", "attn_last_query").mean(axis=2)
    sliding = getattr(torch_model(name).model.config, "sliding_layers", ())
    for row, trace in enumerate(traces(name, case)):
        for i in sorted(trace.last_rows.keys() - set(sliding)):
            # Relative to an even spread over all keys: most entries are far below the tolerance itself.
            T = len(trace.last_rows[i])
            assert_close(T * trace.last_rows[i], T * golden[i, row, trace.prompt.is_token], ATTENTION_RTOL)
        assert len(trace.last_rows) == len(golden)


@EVERY_MODEL
@EVERY_CASE
def test_logits_of_the_last_row(name: str, case: str, traces: Any, golden_last_logits: Any) -> None:
    golden = golden_last_logits(f"{name}/outputs_{case}.npz")
    rows = traces(name, case)
    assert_close(torch.cat([trace.outputs[abi.LOGITS] for trace in rows]), golden)
    assert len(rows) == (2 if case == "batch2" else 1)


@EVERY_MODEL
def test_cache_after_prefill(name: str, traces: Any, golden_array: Any) -> None:
    """Keys are after RoPE; latent attention keeps the normalised latent and the rotated k_pe side by side."""
    (trace,) = traces(name, "single")
    file, layer = f"{name}/outputs_single.npz", 1 if name.startswith("internvl-") else 0
    if name == "dsvl2-mla":
        k_pe, latent = golden_array(file, "past_k_pe_layer0"), golden_array(file, "past_ckv_layer0")
        assert_close(trace.outputs["present.0.latent"], np.concatenate((latent, k_pe), axis=-1)[0])
        return
    for part in abi.KEY_VALUE:
        assert_close(trace.outputs[f"present.{layer}.{part}"], golden_array(file, f"past_{part}_layer{layer}"))


@EVERY_MODEL
def test_greedy_decoding(name: str, traces: Any, torch_model: Any, golden_array: Any) -> None:
    """Six steps on the prefill's caches."""
    (trace,) = traces(name, "single")
    tokens = golden_array(f"{name}/outputs_single.npz", "decode_tokens")
    logits = golden_array(f"{name}/outputs_single.npz", "decode_logits")
    steps = torch_model(name).decode(trace.outputs, len(trace.inputs_embeds), len(logits), trace.schedule)
    chosen = [int(outputs[abi.LOGITS].argmax()) for outputs in (trace.outputs, *steps)]
    assert chosen == tokens.tolist()
    assert_close(np.stack([outputs[abi.LOGITS] for outputs in steps]), logits)


@pytest.mark.parametrize("name", ["dsvl2-mha", "dsvl2-mla"])
def test_three_pictures(name: str, torch_model: Any, prompts: Any, golden_array: Any, golden_last_logits: Any) -> None:
    """The decoder alone: the golden pictures of this case are not kept as pixels."""
    embeds = torch.from_numpy(golden_array(f"{name}/outputs_multi3.npz", "inputs_embeds")[0])
    (prompt,) = prompts(name, "multi3")
    model = torch_model(name)
    outputs = model.prefill(embeds, prompt.visual_index, model.schedule(len(prompt.visual_index), 1.0))
    assert_close(outputs[abi.LOGITS], golden_last_logits(f"{name}/outputs_multi3.npz"))


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
