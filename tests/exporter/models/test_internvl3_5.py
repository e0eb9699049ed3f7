# SPDX-License-Identifier: Apache-2.0
"""The tower of InternVL's 6B models on random weights, which no golden checkpoint has."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastmmoe.exporter.checkpoint.config_reader import ConfigReader
from fastmmoe.exporter.models import internvl3_5
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
