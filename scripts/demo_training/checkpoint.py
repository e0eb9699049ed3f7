# SPDX-License-Identifier: Apache-2.0
"""Writes the trained model as a DeepSeek-VL2 checkpoint directory."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

from demo_training.config import write_config
from demo_training.model import Decoder, Experts, Vision


def write_checkpoint(directory: Path, vision: Vision, decoder: Decoder) -> None:
    """config.json, processor and tokenizer files, and model.safetensors in bfloat16 with the published names."""
    directory.mkdir(parents=True, exist_ok=True)
    write_config(directory)
    tensors = _vision_tensors(vision) | _decoder_tensors(decoder)
    packed = {name: tensor.detach().to(torch.bfloat16).contiguous() for name, tensor in sorted(tensors.items())}
    save_file(packed, directory / "model.safetensors", metadata={"format": "pt"})


def _vision_tensors(vision: Vision) -> dict[str, torch.Tensor]:
    projector = {"projector_in.": "projector.layers.0.", "projector_out.": "projector.layers.2."}
    tensors = {}
    for name, tensor in vision.state_dict().items():
        for ours, theirs in projector.items():
            if name.startswith(ours):
                tensors[theirs + name[len(ours) :]] = tensor
                break
        else:
            tensors[f"vision.{name}"] = tensor
    return tensors


def _decoder_tensors(decoder: Decoder) -> dict[str, torch.Tensor]:
    tensors = {name: getattr(decoder, name) for name in ("image_newline", "view_seperator")}
    tensors["language.model.embed_tokens.weight"] = decoder.embed_tokens.weight
    tensors["language.model.norm.weight"] = decoder.norm.weight
    tensors["language.lm_head.weight"] = decoder.lm_head.weight
    for i, layer in enumerate(decoder.layers):
        prefix = f"language.model.layers.{i}."
        rest = {name: t for name, t in layer.state_dict().items() if not name.startswith("mlp.")}
        tensors |= {prefix + name: t for name, t in rest.items()}
        mlp = layer.get_submodule("mlp")
        if isinstance(mlp, Experts):
            tensors |= _expert_tensors(f"{prefix}mlp.", mlp)
        else:
            tensors |= {f"{prefix}mlp.{name}": t for name, t in mlp.state_dict().items()}
    return tensors


def _expert_tensors(prefix: str, experts: Experts) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = {f"{prefix}gate.weight": experts.gate}
    for e, (gate_up, down) in enumerate(zip(experts.gate_up, experts.down, strict=True)):
        gate, up = gate_up.chunk(2)
        name = f"{prefix}experts.{e}."
        parts = {"gate_proj": gate, "up_proj": up, "down_proj": down}
        tensors |= {f"{name}{part}.weight": tensor for part, tensor in parts.items()}
    shared = {f"{prefix}shared_experts.{name}": t for name, t in experts.shared.state_dict().items()}
    return tensors | shared
