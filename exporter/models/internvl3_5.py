# SPDX-License-Identifier: Apache-2.0
"""InternVL3.5 mixture-of-experts models: InternViT (300M or 6B), pixel shuffle, Qwen3-MoE or GPT-OSS decoder.

Source: the official code (OpenGVLab/InternVL) and transformers' Qwen3Moe and GptOss classes; both checkpoint layouts.
Layers in reading order, weight map last.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from fastmmoe.exporter.checkpoint.reader import WeightRule
from fastmmoe.exporter.models.attention import GroupedAttention
from fastmmoe.exporter.models.decoder import DecoderLayer, LanguageModel, MoeBlock
from fastmmoe.exporter.models.graphs import Embedding, GraphModules
from fastmmoe.exporter.models.internvl3_5_config import Config, VisionConfig
from fastmmoe.exporter.models.internvl3_5_config import read_config as read_config
from fastmmoe.exporter.models.layers import (
    PATCHES,
    RMSNorm,
    SparseMoe,
    VisionAttention,
    VisionBlock,
    VisionMlp,
    rotary_frequencies,
    vision_program,
)
from fastmmoe.exporter.models.steps import Program, Take
from fastmmoe.exporter.models.weight_rules import BUFFERS, expert_weights, linear, norm, same
from fastmmoe.runtime.bundle import graph_io
from fastmmoe.runtime.method.policy import Policy
from fastmmoe.runtime.request import internvl as preprocessing
from fastmmoe.runtime.request.family import Family as Preprocessing

PREPROCESSING: Preprocessing = preprocessing
DROPPED_TENSORS: tuple[str, ...] = BUFFERS
# Names of the Hugging Face classes in memory, which some tools write -> those of their files.
RENAMED_PREFIXES: dict[str, str] = {
    "model.language_model.": "language_model.model.",
    "lm_head.": "language_model.lm_head.",
    "model.vision_tower.": "vision_tower.",
    "model.multi_modal_projector.": "multi_modal_projector.",
}
PROJECTOR_NORM_EPS = 1e-5


class Vision(nn.Module):
    """InternViT, pixel shuffle and projector: pixel_values [tiles, 3, S, S] -> image_features [tiles * side^2, H]."""

    def __init__(self, config: VisionConfig, hidden_size: int) -> None:
        super().__init__()
        c = self.config = config
        make_norm = nn.LayerNorm if c.norm_type == "layer_norm" else RMSNorm
        self.patch_embed = nn.Conv2d(3, c.width, c.patch_size, stride=c.patch_size)
        self.class_embedding = nn.Parameter(torch.empty(1, 1, c.width))
        self.position_embedding = nn.Parameter(torch.empty(1, c.grid**2 + 1, c.width))
        self.blocks = nn.ModuleList(
            VisionBlock(
                c.width,
                VisionAttention(c.width, c.heads, qkv_bias=c.qkv_bias, qk_norm_eps=c.norm_eps if c.qk_norm else None),
                VisionMlp(c.width, c.mlp_width, "none"),
                make_norm(c.width, c.norm_eps),
                make_norm(c.width, c.norm_eps),
                scale=True,
            )
            for _ in range(c.layers)
        )
        self.projector_norm = nn.LayerNorm(c.projector_inputs, PROJECTOR_NORM_EPS)
        self.projector_in = nn.Linear(c.projector_inputs, hidden_size)
        self.projector_out = nn.Linear(hidden_size, hidden_size)

    def forward(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return self.program().run(inputs)

    def program(self) -> Program:
        """The tower as steps: patches, each block, projector."""
        c, dtype = self.config, self.class_embedding.dtype
        pixels: Take = (("tiles", 3, c.image_size, c.image_size), dtype)
        return vision_program(
            Patches(self),
            self.blocks,
            Projector(self),
            {graph_io.PIXEL_VALUES: pixels},
            block_take=(("tiles", c.grid**2 + 1, c.width), dtype),
        )


class Patches(nn.Module):
    """[tiles, 3, S, S] -> [tiles, 1 + grid^2, width], class token first."""

    def __init__(self, vision: Vision) -> None:
        super().__init__()
        self.patch_embed = vision.patch_embed
        self.class_embedding, self.position_embedding = vision.class_embedding, vision.position_embedding

    def forward(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        x = self.patch_embed(inputs[graph_io.PIXEL_VALUES]).flatten(2).transpose(1, 2)
        x = torch.cat((self.class_embedding.expand(x.shape[0], -1, -1), x), dim=1)
        return {PATCHES: x + self.position_embedding}


class Projector(nn.Module):
    """[tiles, 1 + grid^2, width] -> [tiles * side^2, H]; pixel shuffle v2: channel (dy * 2 + dx) * width + c."""

    def __init__(self, vision: Vision) -> None:
        super().__init__()
        self.side, self.width = vision.config.grid // 2, vision.config.width
        self.projector_norm, self.projector_in = vision.projector_norm, vision.projector_in
        self.projector_out = vision.projector_out

    def forward(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        side, width = self.side, self.width
        x = inputs[PATCHES][:, 1:].reshape(-1, side, 2, side, 2, width).permute(0, 1, 3, 2, 4, 5)
        x = self.projector_norm(x.reshape(-1, side * side, 4 * width))
        return {graph_io.IMAGE_FEATURES: self.projector_out(F.gelu(self.projector_in(x))).flatten(0, 1)}


def build_attention(c: Config, layer: int) -> GroupedAttention:
    """Attention of a decoder layer: Qwen3 norms every head of q and k; gpt-oss has biases, sinks and sliding layers."""
    return GroupedAttention(
        c.hidden_size,
        c.num_attention_heads,
        c.num_key_value_heads,
        c.head_dim,
        bias=c.is_gpt_oss,
        qk_norm_eps=None if c.is_gpt_oss else c.rms_norm_eps,
        has_sinks=c.is_gpt_oss,
        window=c.sliding_window or 0 if layer in c.sliding_layers else 0,
    )


def build_graphs(c: Config, policy: Policy) -> GraphModules:
    """The three graphs as modules with uninitialised parameters."""
    layers = []
    for i in range(c.num_hidden_layers):
        norms = (RMSNorm(c.hidden_size, c.rms_norm_eps) for _ in range(2))
        mlp = MoeBlock(SparseMoe(c.hidden_size, c.moe, policy.reduction_weights))
        layers.append(DecoderLayer(build_attention(c, i), mlp, *norms))
    language_model = LanguageModel(
        layers,
        RMSNorm(c.hidden_size, c.rms_norm_eps),
        nn.Linear(c.hidden_size, c.vocab_size, bias=False),
        c.head_dim,
        policy,
        rope_scale=1.0 if c.yarn is None else c.yarn.attention_factor,
    )
    return GraphModules(Vision(c.vision, c.hidden_size), Embedding(c.vocab_size, c.hidden_size), language_model)


def computed_weights(c: Config) -> dict[str, torch.Tensor]:
    """Parameters that follow from the configuration, by graph-qualified name."""
    bias = {
        f"language_model.layers.{i}.mlp.experts.correction_bias": torch.zeros(c.moe.num_experts) for i in c.moe_layers
    }
    return bias | {"language_model.inv_freq": rotary_frequencies(c.rope_theta, c.head_dim, c.yarn)}


def weight_map(c: Config, *, fused_experts: bool = False) -> dict[str, WeightRule]:
    """How every parameter is made from the checkpoint, by graph-qualified name; `expert_weights` says what is fused."""
    H, V = c.hidden_size, c.vocab_size
    vision = _hf_vision_map(c.vision, H) if c.is_hf_layout else _original_vision_map(c.vision, H)
    rules = {f"vision.{name}": rule for name, rule in vision.items()}
    rules["embedding.weight"] = same("language_model.model.embed_tokens.weight", V, H)
    rules["language_model.norm.weight"] = same("language_model.model.norm.weight", H)
    rules["language_model.lm_head.weight"] = same("language_model.lm_head.weight", V, H)
    for i in range(c.num_hidden_layers):
        ours, theirs = f"language_model.layers.{i}.", f"language_model.model.layers.{i}."
        layer = {f"{n}.weight": same(f"{theirs}{n}.weight", H) for n in ("input_layernorm", "post_attention_layernorm")}
        layer |= _attention_map(c, theirs)
        mlp = theirs + "mlp."
        layer |= _gpt_oss_moe_map(c, mlp) if c.is_gpt_oss else _qwen_moe_map(c, mlp, fused_experts)
        rules |= {ours + name: rule for name, rule in layer.items()}
    return rules


def _attention_map(c: Config, theirs: str) -> dict[str, WeightRule]:
    q, kv, H = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim, c.hidden_size
    rules: dict[str, WeightRule] = {}
    for name, shape in {"q_proj": (q, H), "k_proj": (kv, H), "v_proj": (kv, H), "o_proj": (H, q)}.items():
        rules |= linear(f"self_attn.{name}", f"{theirs}self_attn.{name}", *shape, bias=c.is_gpt_oss)
    if c.is_gpt_oss:
        return rules | {"self_attn.sinks": same(f"{theirs}self_attn.sinks", c.num_attention_heads)}
    for name in ("q_norm", "k_norm"):
        rules |= norm(f"self_attn.{name}", f"{theirs}self_attn.{name}", c.head_dim, bias=False)
    return rules


def _qwen_moe_map(c: Config, theirs: str, is_fused: bool) -> dict[str, WeightRule]:
    router = {"mlp.experts.router.weight": same(f"{theirs}gate.weight", c.moe.num_experts, c.hidden_size)}
    return router | expert_weights(f"{theirs}experts.", c.moe, c.hidden_size, is_fused=is_fused)


def _gpt_oss_moe_map(c: Config, theirs: str) -> dict[str, WeightRule]:
    E, width, H = c.moe.num_experts, c.moe.intermediate_size, c.hidden_size

    def split_pairs(stored: torch.Tensor) -> torch.Tensor:
        # The last axis alternates gate, up: [E, H, 2I] becomes [E, 2, I, H], [E, 2I] becomes [E, 2, I], gates first.
        return stored.unflatten(-1, (width, 2)).transpose(-1, 1)

    def source(name: str, *shape: int) -> tuple[tuple[str, tuple[int, ...]], ...]:
        return ((f"{theirs}experts.{name}", shape),)

    return linear("mlp.experts.router", f"{theirs}router", E, H, bias=True) | {
        "mlp.experts.gate_up": WeightRule(
            source("gate_up_proj", E, H, 2 * width),
            (E, 2 * width, H),
            (split_pairs,),
        ),
        "mlp.experts.gate_up_bias": WeightRule(
            source("gate_up_proj_bias", E, 2 * width), (E, 2 * width), (split_pairs,)
        ),
        "mlp.experts.down": WeightRule(source("down_proj", E, width, H), (E, H, width), (lambda w: w.transpose(1, 2),)),
        "mlp.experts.down_bias": WeightRule(source("down_proj_bias", E, H)),
    }


def _original_vision_map(v: VisionConfig, hidden_size: int) -> dict[str, WeightRule]:
    C, has_bias = v.width, v.norm_type == "layer_norm"
    theirs = "vision_model.embeddings."
    rules = {
        "class_embedding": same(f"{theirs}class_embedding", 1, 1, C),
        "position_embedding": same(f"{theirs}position_embedding", 1, v.grid**2 + 1, C),
        "patch_embed.weight": same(f"{theirs}patch_embedding.weight", C, 3, v.patch_size, v.patch_size),
        "patch_embed.bias": same(f"{theirs}patch_embedding.bias", C),
    }
    for i in range(v.layers):
        ours, theirs = f"blocks.{i}.", f"vision_model.encoder.layers.{i}."
        rules |= {ours + name: same(theirs + name, C) for name in ("ls1", "ls2")}
        for name in ("norm1", "norm2"):
            rules |= norm(ours + name, theirs + name, C, bias=has_bias)
        rules |= linear(f"{ours}attn.qkv", f"{theirs}attn.qkv", 3 * C, C, bias=v.qkv_bias)
        for name, rows, columns in (("attn.proj", C, C), ("mlp.fc1", v.mlp_width, C), ("mlp.fc2", C, v.mlp_width)):
            rules |= linear(ours + name, theirs + name, rows, columns, bias=True)
        if v.qk_norm:
            for name in ("attn.q_norm", "attn.k_norm"):
                rules |= norm(ours + name, theirs + name, C, bias=False)
    return rules | _projector_map(C, hidden_size, "mlp1.0", "mlp1.1", "mlp1.3")


def _hf_vision_map(v: VisionConfig, hidden_size: int) -> dict[str, WeightRule]:
    C, has_bias = v.width, v.norm_type == "layer_norm"
    theirs = "vision_tower.embeddings."
    rules = {
        "class_embedding": same(f"{theirs}cls_token", 1, 1, C),
        "position_embedding": same(f"{theirs}position_embeddings", 1, v.grid**2 + 1, C),
        "patch_embed.weight": same(f"{theirs}patch_embeddings.projection.weight", C, 3, v.patch_size, v.patch_size),
        "patch_embed.bias": same(f"{theirs}patch_embeddings.projection.bias", C),
    }
    for i in range(v.layers):
        ours, theirs = f"blocks.{i}.", f"vision_tower.encoder.layer.{i}."
        rules |= {f"{ours}ls1": same(f"{theirs}lambda_1", C), f"{ours}ls2": same(f"{theirs}lambda_2", C)}
        rules |= norm(f"{ours}norm1", f"{theirs}layernorm_before", C, bias=has_bias)
        rules |= norm(f"{ours}norm2", f"{theirs}layernorm_after", C, bias=has_bias)
        parts = [f"{theirs}attention.{name}_proj" for name in "qkv"]
        rules[f"{ours}attn.qkv.weight"] = WeightRule(tuple((f"{p}.weight", (C, C)) for p in parts), (3 * C, C))
        if v.qkv_bias:
            rules[f"{ours}attn.qkv.bias"] = WeightRule(tuple((f"{p}.bias", (C,)) for p in parts), (3 * C,))
        rules |= linear(f"{ours}attn.proj", f"{theirs}attention.projection_layer", C, C, bias=True)
        rules |= linear(f"{ours}mlp.fc1", f"{theirs}mlp.fc1", v.mlp_width, C, bias=True)
        rules |= linear(f"{ours}mlp.fc2", f"{theirs}mlp.fc2", C, v.mlp_width, bias=True)
        if v.qk_norm:
            for name in ("q_norm", "k_norm"):
                rules |= norm(f"{ours}attn.{name}", f"{theirs}attention.{name}", C, bias=False)
    names = ("layer_norm", "linear_1", "linear_2")
    return rules | _projector_map(C, hidden_size, *(f"multi_modal_projector.{name}" for name in names))


def _projector_map(C: int, H: int, norm_name: str, in_name: str, out_name: str) -> dict[str, WeightRule]:
    rules = norm("projector_norm", norm_name, 4 * C, bias=True)
    rules |= linear("projector_in", in_name, H, 4 * C, bias=True)
    return rules | linear("projector_out", out_name, H, H, bias=True)
