# SPDX-License-Identifier: Apache-2.0
"""What is recorded of a model: routing and attention by layer, ranges of activations by module."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from fastmmoe.calibration.activations import ActivationRecorder, Activations, write_activations
from fastmmoe.calibration.evaluate import FULL_MODEL, run_pack, run_prompts
from fastmmoe.calibration.prompts import Prompts
from fastmmoe.calibration.routing_statistics import record_statistics
from fastmmoe.calibration.torch_model import TorchModel
from fastmmoe.runtime.types import Array

MODELS = ("dsvl2-mha", "dsvl2-mla", "internvl-qwen3moe", "internvl-gptoss")
RTOL = 1e-4  # float32


def record(model: TorchModel, prompts: Prompts, count: int) -> tuple[Activations, dict[str, Array]]:
    decoder = model.decoder(model.resolve(FULL_MODEL))
    recorder = ActivationRecorder(model, decoder)
    with recorder.recording():
        for _ in run_prompts(model, decoder, prompts, count):
            pass
    return recorder.finished(count)


@pytest.mark.parametrize("name", MODELS)
def test_statistics_of_every_moe_layer(
    golden_model: Callable[[str], TorchModel], golden_prompts: Callable[[str], Prompts], name: str
) -> None:
    model, prompts = golden_model(name), golden_prompts(name)
    found = record_statistics(model, prompts, 1)
    assert [s.layer for s in found.layers] == list(model.config.moe_layers)
    experts = model.config.moe.num_experts
    for s in found.layers:
        assert sum(s.expert_load_visual) == pytest.approx(1)
        assert sum(s.expert_load_text) == pytest.approx(1)
        assert max(s.expert_load_visual) <= 1 / model.config.moe.top_k + 1e-9
        assert 0 < s.routing_entropy_visual < math.log(experts)
        assert 0 < s.routing_entropy_text < math.log(experts)
        assert 0 < s.window_similarity <= 1 + 1e-6
        assert (s.attention_on_visual is None) == (s.layer not in model.layers.prunable)
        assert s.attention_on_visual is None or 0 < s.attention_on_visual < 1


def test_statistics_of_an_even_router(
    golden_prompts: Callable[[str], Prompts], checkpoint: Callable[[str], Path]
) -> None:
    model, prompts = TorchModel(checkpoint("dsvl2-mha")), golden_prompts("dsvl2-mha")
    router = model.model.graphs.language_model.layers[2].mlp.experts.router
    with torch.no_grad():
        router.weight.zero_()
    even, other = record_statistics(model, prompts, 1).layers[1:3]
    assert even.routing_entropy_visual == pytest.approx(math.log(12))
    assert even.window_similarity == pytest.approx(1)
    # Ties: the experts of the smallest numbers.
    assert even.expert_load_text == pytest.approx([0.25] * 4 + [0] * 8)
    assert other.routing_entropy_visual < even.routing_entropy_visual - 0.01


def test_statistics_tell_visual_from_text_tokens(
    golden_model: Callable[[str], TorchModel], golden_prompts: Callable[[str], Prompts]
) -> None:
    model, prompts = golden_model("internvl-qwen3moe"), golden_prompts("internvl-qwen3moe")
    decoder, inputs = model.decoder(model.resolve(FULL_MODEL)), []
    experts = decoder.language_model.layers[4].mlp.experts
    experts.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    run_pack(model, decoder, prompts, [0])
    with torch.no_grad():
        logits = experts.router_logits(inputs[0])
    is_visual = np.zeros(len(logits), bool)
    is_visual[prompts.questions[0].visual_index] = True
    entropy = torch.distributions.Categorical(logits=logits).entropy().numpy()
    chosen = logits.topk(model.config.moe.top_k).indices.numpy()
    found = record_statistics(model, prompts, 1).layers[4]
    for mask, mean, load in (
        (is_visual, found.routing_entropy_visual, found.expert_load_visual),
        (~is_visual, found.routing_entropy_text, found.expert_load_text),
    ):
        assert mean == pytest.approx(entropy[mask].mean(), rel=RTOL)
        assert load == pytest.approx(np.bincount(chosen[mask].ravel(), minlength=len(load)) / chosen[mask].size)


def test_attention_on_visual_tokens(
    golden_model: Callable[[str], TorchModel], golden_prompts: Callable[[str], Prompts]
) -> None:
    """Where the first layer's keys are all alike attention is even, so the share is that of the tokens."""
    model, prompts = golden_model("internvl-qwen3moe"), golden_prompts("internvl-qwen3moe")
    keys = model.model.graphs.language_model.layers[0].self_attn.k_proj.weight
    kept = keys.detach().clone()
    with torch.no_grad():
        keys.zero_()
        found = record_statistics(model, prompts, 1).layers[0].attention_on_visual
        keys.copy_(kept)
    tokens, visual = prompts.sizes[0]
    assert found == pytest.approx(visual / tokens, rel=RTOL)


@pytest.mark.parametrize("name", MODELS)
def test_activations_are_named_by_the_checkpoint(
    golden_model: Callable[[str], TorchModel], golden_prompts: Callable[[str], Prompts], name: str
) -> None:
    model, prompts = golden_model(name), golden_prompts(name)
    found, channels = record(model, prompts, 1)
    tensors = model.model.checkpoint.tensors
    for module, r in found.ranges.items():
        one, number = f"{module}.weight", module.rpartition(".")
        if one in tensors:
            assert tensors[one].shape[1] == r.channels
        else:
            assert number[2].isdecimal()
            assert r.channels in tensors[number[0]].shape[1:]
        assert channels[module].shape == (r.channels,)
        assert channels[module].max() == pytest.approx(r.absmax)
        assert 0 < r.p99_9 <= r.p99_99 <= r.absmax
    assert not set(found.unreached) & found.ranges.keys()
    T, k = prompts.sizes[0][0], model.config.moe.top_k
    layer = f"layers.{model.config.moe_layers[0]}.mlp.experts"
    down = [r for module, r in found.ranges.items() if layer in module and "down_proj" in module]
    assert sum(r.tokens for r in down) == T * k
    every = len(down) + sum(layer in module and "down_proj" in module for module in found.unreached)
    assert every == model.config.moe.num_experts


def test_activations_are_those_of_the_model(
    golden_model: Callable[[str], TorchModel], golden_prompts: Callable[[str], Prompts]
) -> None:
    model, prompts = golden_model("dsvl2-mha"), golden_prompts("dsvl2-mha")
    seen: list[Array] = []
    decoder = model.decoder(model.resolve(FULL_MODEL))
    attention = decoder.language_model.layers[3].self_attn
    handle = attention.o_proj.register_forward_pre_hook(lambda _, args: seen.append(args[0].numpy()))
    for place in (0, 1):
        run_pack(model, decoder, prompts, [place])
    handle.remove()
    x = np.abs(np.concatenate(seen))
    found, channels = record(model, prompts, 2)
    name = "language.model.layers.3.self_attn.o_proj"
    np.testing.assert_allclose(channels[name], x.max(axis=0), rtol=RTOL)
    r = found.ranges[name]
    assert (r.tokens, r.channels) == x.shape
    for share, value in ((99.9, r.p99_9), (99.99, r.p99_99)):
        assert np.percentile(x, share) * 0.995 <= value <= np.percentile(x, share) * 1.02


def test_down_projections_see_the_gated_product(
    golden_model: Callable[[str], TorchModel], golden_prompts: Callable[[str], Prompts]
) -> None:
    """What the recorded inputs of a layer's experts sum to must be what the layer computes."""
    model, prompts = golden_model("internvl-gptoss"), golden_prompts("internvl-gptoss")
    found, channels = record(model, prompts, 1)
    experts = model.model.graphs.language_model.layers[0].mlp.experts
    inputs: list[torch.Tensor] = []
    decoder = model.decoder(model.resolve(FULL_MODEL))
    decoder.language_model.layers[0].mlp.experts.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    run_pack(model, decoder, prompts, [0])
    x = inputs[0]
    chosen = experts.router_logits(x).topk(model.config.moe.top_k).indices
    e = int(chosen[-1, 0])
    rows = x[(chosen == e).any(1)]
    gate, up = torch.nn.functional.linear(rows, experts.gate_up[e], experts.gate_up_bias[e]).chunk(2, 1)
    gate, up = gate.clamp(max=7), up.clamp(-7, 7)
    y = (up + 1) * gate * torch.sigmoid(1.702 * gate)
    name = f"language_model.model.layers.0.mlp.experts.down_proj.{e}"
    assert found.ranges[name].tokens == len(rows)
    np.testing.assert_allclose(channels[name], y.abs().max(0).values.detach().numpy(), rtol=RTOL)


def test_files(
    golden_model: Callable[[str], TorchModel], golden_prompts: Callable[[str], Prompts], tmp_path: Path
) -> None:
    found, channels = record(golden_model("dsvl2-mha"), golden_prompts("dsvl2-mha"), 1)
    write_activations(tmp_path, found, channels)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["activations.json", "activations.safetensors"]
    tensors, contents = (
        load_file(tmp_path / "activations.safetensors"),
        json.loads((tmp_path / "activations.json").read_text()),
    )
    assert tensors.keys() == contents["ranges"].keys()
    assert contents["questions"] == 1


def test_last_row_shares_nothing_with_other_prompts(
    golden_model: Callable[[str], TorchModel],
    golden_prompts: Callable[[str], Prompts],
    assert_close: Callable[..., None],
) -> None:
    """Packing does not change a prompt's logits beyond rounding."""
    model, prompts = golden_model("dsvl2-mla"), golden_prompts("dsvl2-mla")
    decoder = model.decoder(model.resolve(FULL_MODEL))
    packed = run_pack(model, decoder, prompts, [0, 2]).logits
    alone = np.stack([run_pack(model, decoder, prompts, [place]).logits[0] for place in (0, 2)])
    assert_close("logits", packed, alone, len(decoder.language_model.layers))
