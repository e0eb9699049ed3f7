# SPDX-License-Identifier: Apache-2.0
"""What no golden checkpoint shows, on random weights: the 6B InternViT, other gates of DeepSeek, sinks that matter."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from fastmmoe.exporter.checkpoint.config_reader import ConfigReader
from fastmmoe.exporter.models import internvl3_5
from fastmmoe.exporter.models.layers import causal_mask, watched_attention
from fastmmoe.exporter.pruning.settings import PolicyOptions
from fastmmoe.exporter.pruning.tokens import Watch
from fastmmoe.runtime.bundle import graph_io

FLOAT32_TOLERANCE = 1e-4
WIDTH, MLP_WIDTH, HEADS, LAYERS, HIDDEN = 32, 48, 4, 2, 64
IMAGE, PATCH = 56, 14
EPS, PROJECTOR_EPS = 1e-6, 1e-5

# Name in the original checkpoint -> name in the Hugging Face one ; q, k and v are apart there.
HF_NAMES = (
    (r"^vision_model\.embeddings\.class_embedding$", "vision_tower.embeddings.cls_token"),
    (r"^vision_model\.embeddings\.position_embedding$", "vision_tower.embeddings.position_embeddings"),
    (r"^vision_model\.embeddings\.patch_embedding\.", "vision_tower.embeddings.patch_embeddings.projection."),
    (r"^vision_model\.encoder\.layers\.", "vision_tower.encoder.layer."),
    (r"\.attn\.proj\.", ".attention.projection_layer."),
    (r"\.attn\.", ".attention."),
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
    (r"\.ls([12])$", r".lambda_\1"),
    (r"^mlp1\.0\.", "multi_modal_projector.layer_norm."),
    (r"^mlp1\.1\.", "multi_modal_projector.linear_1."),
    (r"^mlp1\.3\.", "multi_modal_projector.linear_2."),
)


def original_tensors() -> dict[str, torch.Tensor]:
    """Random tensors of a small tower like the 6B one, with the names and shapes of the original checkpoint."""
    C, W, patches = WIDTH, MLP_WIDTH, (IMAGE // PATCH) ** 2
    shapes: dict[str, tuple[int, ...]] = {
        "vision_model.embeddings.class_embedding": (1, 1, C),
        "vision_model.embeddings.position_embedding": (1, 1 + patches, C),
        "vision_model.embeddings.patch_embedding.weight": (C, 3, PATCH, PATCH),
        "vision_model.embeddings.patch_embedding.bias": (C,),
        "mlp1.0.weight": (4 * C,),
        "mlp1.0.bias": (4 * C,),
        "mlp1.1.weight": (HIDDEN, 4 * C),
        "mlp1.1.bias": (HIDDEN,),
        "mlp1.3.weight": (HIDDEN, HIDDEN),
        "mlp1.3.bias": (HIDDEN,),
    }
    for i in range(LAYERS):
        layer = f"vision_model.encoder.layers.{i}."
        shapes |= {f"{layer}{n}": (C,) for n in ("ls1", "ls2", "norm1.weight", "norm2.weight")}
        shapes |= {f"{layer}attn.{n}": (C,) for n in ("q_norm.weight", "k_norm.weight", "proj.bias")}
        shapes |= {f"{layer}attn.qkv.weight": (3 * C, C), f"{layer}attn.proj.weight": (C, C)}
        shapes |= {f"{layer}mlp.fc1.weight": (W, C), f"{layer}mlp.fc1.bias": (W,)}
        shapes |= {f"{layer}mlp.fc2.weight": (C, W), f"{layer}mlp.fc2.bias": (C,)}
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(shape, generator=generator) * (2 / shape[-1] ** 0.5 if len(shape) == 2 else 0.5)
        for name, shape in shapes.items()
    }


def hf_tensors(original: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    renamed: dict[str, torch.Tensor] = {}
    for name, tensor in original.items():
        parts = {".qkv.": tensor.chunk(3)} if ".qkv." in name else {}
        for pattern, replacement in HF_NAMES:
            name = re.sub(pattern, replacement, name)
        if parts:
            renamed |= {name.replace(".qkv.", f".{x}_proj."): t for x, t in zip("qkv", parts[".qkv."], strict=True)}
        else:
            renamed[name] = tensor
    return renamed


def vision_module(golden: Path, layout: str, tensors: dict[str, torch.Tensor]) -> Any:
    """The Vision module of a golden config whose tower is replaced, filled by the weight map from `tensors`."""
    is_hf = layout == "internvl-qwen3moe"
    config = json.loads((golden / layout / "config.json").read_text())
    config["vision_config"] |= {
        "hidden_size": WIDTH,
        "intermediate_size": MLP_WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "image_size": IMAGE,
        "norm_type": "rms_norm",
        "attention_bias" if is_hf else "qkv_bias": False,
        "use_qk_norm" if is_hf else "qk_normalization": True,
    }
    c = internvl3_5.read_config(ConfigReader(config))
    rules = {
        name.removeprefix("vision."): rule
        for name, rule in internvl3_5.weight_map(c).items()
        if name.startswith("vision.")
    }
    sources = dict(source for rule in rules.values() for source in rule.sources)
    assert sources == {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    with torch.device("meta"):
        module = internvl3_5.Vision(c.vision, c.hidden_size)
    values = {name: rule.build([tensors[n] for n, _ in rule.sources]) for name, rule in rules.items()}
    module.load_state_dict(values, assign=True)
    return module


def rms_norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + EPS).sqrt() * weight


def run_tower(tensors: dict[str, torch.Tensor], pixels: torch.Tensor) -> torch.Tensor:
    """image_features [tiles * side^2, HIDDEN] in float64, head by head, pixel shuffle by slices."""
    w = {name: tensor.double() for name, tensor in tensors.items()}
    embeddings = "vision_model.embeddings."
    tiles, side, D = len(pixels), IMAGE // PATCH, WIDTH // HEADS
    patches = pixels.double().view(tiles, 3, side, PATCH, side, PATCH).permute(0, 2, 4, 1, 3, 5)
    patches = patches.reshape(tiles, side * side, -1) @ w[f"{embeddings}patch_embedding.weight"].flatten(1).T
    patches = patches + w[f"{embeddings}patch_embedding.bias"]
    x = torch.cat((w[f"{embeddings}class_embedding"].expand(tiles, 1, -1), patches), dim=1)
    x = x + w[f"{embeddings}position_embedding"]
    for i in range(LAYERS):
        p = f"vision_model.encoder.layers.{i}."
        q, k, v = (rms_norm(x, w[f"{p}norm1.weight"]) @ w[f"{p}attn.qkv.weight"].T).chunk(3, dim=-1)
        q, k = rms_norm(q, w[f"{p}attn.q_norm.weight"]), rms_norm(k, w[f"{p}attn.k_norm.weight"])
        heads = []
        for h in range(HEADS):
            part = slice(h * D, (h + 1) * D)
            scores = q[..., part] @ k[..., part].transpose(1, 2) / D**0.5
            heads.append(scores.softmax(-1) @ v[..., part])
        y = torch.cat(heads, dim=-1) @ w[f"{p}attn.proj.weight"].T + w[f"{p}attn.proj.bias"]
        x = x + w[f"{p}ls1"] * y
        y = rms_norm(x, w[f"{p}norm2.weight"]) @ w[f"{p}mlp.fc1.weight"].T + w[f"{p}mlp.fc1.bias"]
        y = 0.5 * y * (1 + torch.erf(y / 2**0.5))
        x = x + w[f"{p}ls2"] * (y @ w[f"{p}mlp.fc2.weight"].T + w[f"{p}mlp.fc2.bias"])
    grid = x[:, 1:].view(tiles, side, side, WIDTH)
    x = torch.cat([grid[:, dy::2, dx::2] for dy in (0, 1) for dx in (0, 1)], dim=-1).reshape(-1, 4 * WIDTH)
    x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + PROJECTOR_EPS).sqrt()
    x = x * w["mlp1.0.weight"] + w["mlp1.0.bias"]
    x = x @ w["mlp1.1.weight"].T + w["mlp1.1.bias"]
    return 0.5 * x * (1 + torch.erf(x / 2**0.5)) @ w["mlp1.3.weight"].T + w["mlp1.3.bias"]


@pytest.mark.parametrize("layout", ["internvl-qwen3moe-original", "internvl-qwen3moe"])
def test_6b_tower_equals_a_plain_computation(golden: Path, layout: str) -> None:
    """RMSNorm, norms of whole q and k rows, no qkv bias; every tensor of both layouts is asked for by its name."""
    original = original_tensors()
    tensors = original if layout.endswith("-original") else hf_tensors(original)
    module = vision_module(golden, layout, tensors)
    pixels = torch.randn(2, 3, IMAGE, IMAGE, generator=torch.Generator().manual_seed(1))
    expected = run_tower(original, pixels)
    assert expected.std() > 0.5
    ours = module({graph_io.PIXEL_VALUES: pixels})[graph_io.IMAGE_FEATURES]
    np.testing.assert_allclose(ours, expected, rtol=0, atol=FLOAT32_TOLERANCE)


SIGMOID_GATE = {
    "scoring_func": "sigmoid",
    "topk_method": "noaux_tc",
    "norm_topk_prob": True,
    "routed_scaling_factor": 2.0,
}
GROUP_GATE = {"topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2, "routed_scaling_factor": 1.5}


def expert_weights(gate: dict[str, Any], logits: torch.Tensor, bias: torch.Tensor | None, used: int) -> torch.Tensor:
    """[E] weights of one token that uses `used` of 4 experts, as docs/operators.md says (FmmSparseMoE)."""
    E, k, weights = len(logits), 4, torch.zeros_like(logits)
    if gate is SIGMOID_GATE:
        assert bias is not None
        scores = logits.sigmoid()
        chosen = (scores + bias).argsort(descending=True)[:used]
        weights[chosen] = scores[chosen] / scores[chosen].sum() * 2.0
        return weights
    scores = logits.softmax(0)
    groups = scores.view(4, -1).amax(1).argsort(descending=True)[:2]
    allowed = torch.tensor([e // (E // 4) in groups.tolist() for e in range(E)])
    best = scores.masked_fill(~allowed, 0).argsort(descending=True)[:k]
    kept = best[:used]
    weights[kept] = scores[kept] * scores[best].sum() / scores[kept].sum() * 1.5
    return weights


def write_gate_checkpoint(directory: Path, gate: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Change the checkpoint's gate; return its tensors in float64."""
    config = json.loads((directory / "config.json").read_text())
    config["language_config"] |= gate
    (directory / "config.json").write_text(json.dumps(config))
    tensors = load_file(directory / "model.safetensors")
    if gate is SIGMOID_GATE:
        generator = torch.Generator().manual_seed(2)
        for name in [n for n in tensors if n.endswith(".mlp.gate.weight")]:
            bias = torch.randn(len(tensors[name]), generator=generator) * 0.3
            tensors[name.replace("gate.weight", "gate.e_score_correction_bias")] = bias
        save_file(tensors, directory / "model.safetensors")
    return {name: tensor.double() for name, tensor in tensors.items()}


def run_moe(
    w: dict[str, torch.Tensor], layer: int, x: torch.Tensor, visual: set[int], visual_top_k: int, gate: dict[str, Any]
) -> torch.Tensor:
    """The MoE block of one layer from the checkpoint's own tensors, token by token, in float64."""
    p = f"language.model.layers.{layer}.mlp."

    def mlp(name: str, rows: torch.Tensor) -> torch.Tensor:
        gate_weight, up, down = (w[f"{p}{name}.{part}_proj.weight"] for part in ("gate", "up", "down"))
        return (F.silu(rows @ gate_weight.T) * (rows @ up.T)) @ down.T

    logits = x @ w[f"{p}gate.weight"].T
    bias = w.get(f"{p}gate.e_score_correction_bias")
    out = mlp("shared_experts", x)
    for t, row in enumerate(logits):
        weights = expert_weights(gate, row, bias, visual_top_k if t in visual else 4)
        for e in weights.nonzero().flatten().tolist():
            out[t] += weights[e] * mlp(f"experts.{e}", x[t])
    return out


@pytest.mark.parametrize("gate", [SIGMOID_GATE, GROUP_GATE], ids=["sigmoid noaux_tc", "group_limited_greedy"])
def test_other_gates_of_deepseek(
    gate: dict[str, Any], own_checkpoint: Callable[[str], Path], make_model: Callable[..., Any]
) -> None:
    """A whole pruned prefill; the MoE block of every layer equals the plain computation on the same input."""
    directory = own_checkpoint("dsvl2-mla")
    tensors = write_gate_checkpoint(directory, gate)
    model = make_model(directory, PolicyOptions(prune_layers=(1, 3)))
    seen: dict[int, tuple[Any, ...]] = {}
    for i in model.model.config.moe_layers:
        block = model.language_model.layers[i].mlp
        block.register_forward_hook(lambda _, args, y, i=i: seen.update({i: (*args, y)}))
    embeds = torch.randn(60, model.model.config.hidden_size, generator=torch.Generator().manual_seed(3))
    outputs = model.prefill(embeds, np.arange(5, 45, dtype=np.int32), model.schedule(40, 0.5))
    assert torch.isfinite(outputs[graph_io.LOGITS]).all()
    for i, (x, visual_index, visual_top_k, y) in seen.items():
        assert int(visual_top_k) == (4 if i < 2 else 2)
        expected = run_moe(tensors, i, x.double(), set(visual_index.tolist()), int(visual_top_k), gate)
        np.testing.assert_allclose(y, expected, rtol=0, atol=FLOAT32_TOLERANCE)
    assert [len(seen[i][0]) for i in (1, 2, 3, 4, 5)] == [48, 48, 40, 40, 40]


def test_attention_sinks_of_gpt_oss(golden: Path) -> None:
    """In the golden checkpoint the sinks take under 0.1 % of every row; here they take most of some."""
    config = json.loads((golden / "internvl-gptoss" / "config.json").read_text())
    c = internvl3_5.read_config(ConfigReader(config))
    attention = internvl3_5.build_attention(c, layer=1)
    N, Nkv, D, T, scale = c.num_attention_heads, c.num_key_value_heads, c.head_dim, 9, 0.25
    assert attention.sinks is not None and not attention.is_sliding
    generator = torch.Generator().manual_seed(4)
    q, k, v = (torch.randn(n, T, D, generator=generator) for n in (N, Nkv, Nkv))
    attention.sinks.data = torch.linspace(-2, 4, N)
    expected, last_rows = torch.zeros(N, T, D), torch.zeros(N, T)
    for head in range(N):
        kv = head * Nkv // N
        for t in range(T):
            scores = (q[head, t] @ k[kv, : t + 1].T * scale).exp()
            probs = scores / (scores.sum() + attention.sinks[head].exp())
            expected[head, t] = probs @ v[kv, : t + 1]
        last_rows[head] = probs
    assert last_rows.sum(1).min() < 0.5
    y = attention._attend_with_sinks(q, k, v, causal_mask(T, T))
    np.testing.assert_allclose(y, expected, rtol=0, atol=FLOAT32_TOLERANCE)
    watch = Watch(torch.tensor([T - 1]), torch.ones(1))
    row = watched_attention(q, k, scale, watch, causal_mask(T, T), attention.sinks)
    np.testing.assert_allclose(row, last_rows.mean(0), rtol=0, atol=FLOAT32_TOLERANCE)
