# SPDX-License-Identifier: Apache-2.0
"""DeepSeek-VL2 tiny, small and base: SigLIP tower, projector, 2D layout, DeepSeekMoE decoder with MHA or MLA.

Source: the official code (deepseek-ai/DeepSeek-VL2); layers in reading order, weight map last.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import nn

from fastmmoe.exporter.checkpoint.reader import WeightRule
from fastmmoe.exporter.models.attention import Attended, GroupedAttention, WatchedAttention, attend
from fastmmoe.exporter.models.decoder import DecoderLayer, LanguageModel, MoeBlock
from fastmmoe.exporter.models.deepseek_vl2_config import Config, MlaConfig, VisionConfig
from fastmmoe.exporter.models.deepseek_vl2_config import read_config as read_config
from fastmmoe.exporter.models.graphs import Embedding, GraphModules
from fastmmoe.exporter.models.layers import (
    PATCHES,
    Mlp,
    RMSNorm,
    Rotary,
    SparseMoe,
    VisionAttention,
    VisionBlock,
    VisionMlp,
    rotary_frequencies,
    vision_program,
)
from fastmmoe.exporter.models.steps import Program, Take
from fastmmoe.exporter.models.weight_rules import BUFFERS, expert_weights, linear, norm, same
from fastmmoe.exporter.pruning.tokens import Tokens, Watch
from fastmmoe.runtime.bundle import graph_io
from fastmmoe.runtime.method.policy import Policy
from fastmmoe.runtime.request import deepseek_vl2 as preprocessing
from fastmmoe.runtime.request.family import Family as Preprocessing

PREPROCESSING: Preprocessing = preprocessing
DROPPED_TENSORS: tuple[str, ...] = ("vision.attn_pool.*", *BUFFERS)
RENAMED_PREFIXES: dict[str, str] = {}
LATENT_NORM_EPS = 1e-6
VISION_NORM_EPS = 1e-6


class Vision(nn.Module):
    """SigLIP tower, projector and 2D layout.

    pixel_values [tiles, 3, S, S] -> image_features [V, H]. layout_index [V] int32 names, for every visual position,
    a row of the tiles' features in order, then image_newline, then view_seperator.
    """

    def __init__(self, config: VisionConfig, hidden_size: int) -> None:
        super().__init__()
        c = self.config = config
        self.patch_embed = nn.Conv2d(3, c.width, c.patch_size, stride=c.patch_size)
        self.pos_embed = nn.Parameter(torch.empty(1, c.grid**2, c.width))
        self.blocks = nn.ModuleList(
            VisionBlock(
                c.width,
                VisionAttention(c.width, c.heads, qkv_bias=True),
                VisionMlp(c.width, c.mlp_width, "tanh"),
                nn.LayerNorm(c.width, VISION_NORM_EPS),
                nn.LayerNorm(c.width, VISION_NORM_EPS),
            )
            for _ in range(c.layers)
        )
        self.norm = nn.LayerNorm(c.width, VISION_NORM_EPS)
        self.projector_in = nn.Linear(c.projector_inputs, hidden_size)
        self.projector_out = nn.Linear(hidden_size, hidden_size)
        self.image_newline = nn.Parameter(torch.empty(hidden_size))
        self.view_seperator = nn.Parameter(torch.empty(hidden_size))

    def forward(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return self.program().run(inputs)

    def program(self) -> Program:
        """The tower as steps: patches, each block, projector with the layout."""
        c, dtype = self.config, self.pos_embed.dtype
        pixels: Take = (("tiles", 3, c.image_size, c.image_size), dtype)
        return vision_program(
            Patches(self),
            self.blocks,
            Projector(self),
            {graph_io.PIXEL_VALUES: pixels, graph_io.LAYOUT_INDEX: (("V",), torch.int32)},
            block_take=(("tiles", c.grid**2, c.width), dtype),
            layout=(graph_io.LAYOUT_INDEX,),
        )


class Patches(nn.Module):
    """[tiles, 3, S, S] -> [tiles, grid^2, width]."""

    def __init__(self, vision: Vision) -> None:
        super().__init__()
        self.patch_embed, self.pos_embed = vision.patch_embed, vision.pos_embed

    def forward(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        x = self.patch_embed(inputs[graph_io.PIXEL_VALUES]).flatten(2).transpose(1, 2)
        return {PATCHES: x + self.pos_embed}


class Projector(nn.Module):
    """[tiles, grid^2, width] -> [V, H]: final norm, projector, layout.

    The projector makes side^2 features of a tile; its channel order is that of F.unfold: c, then dy, then dx.
    """

    def __init__(self, vision: Vision) -> None:
        super().__init__()
        c = vision.config
        self.downsample_ratio, self.grid, self.width = c.downsample_ratio, c.grid, c.width
        self.norm, self.projector_in, self.projector_out = vision.norm, vision.projector_in, vision.projector_out
        self.image_newline, self.view_seperator = vision.image_newline, vision.view_seperator

    def project(self, x: torch.Tensor) -> torch.Tensor:
        """[tiles, grid^2, width] -> [tiles, side^2, H]."""
        d, grid, width = self.downsample_ratio, self.grid, self.width
        pad = -grid % d
        side = (grid + pad) // d
        x = F.pad(x.view(-1, grid, grid, width), (0, 0, 0, pad, 0, pad))
        x = x.view(-1, side, d, side, d, width).permute(0, 1, 3, 5, 2, 4).reshape(-1, side * side, width * d * d)
        return self.projector_out(F.gelu(self.projector_in(x)))

    def forward(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        tiles = self.project(self.norm(inputs[PATCHES]))
        rows = torch.cat((tiles.flatten(0, 1), self.image_newline[None], self.view_seperator[None]))
        return {graph_io.IMAGE_FEATURES: rows.index_select(0, inputs[graph_io.LAYOUT_INDEX])}


class LatentAttention(nn.Module):
    """Multi-head latent attention, absorbed: every head attends to the one latent row a token leaves in the cache.

    The latent [rank + rope] is c after its norm, then k_pe after RoPE. kv_b_proj is split into w_uk [N, nope, rank],
    which moves queries into latent space, and w_uv [N, rank, v], which moves the attended latents out of it.
    """

    cache_parts = graph_io.LATENT
    window = 0

    def __init__(self, c: Config, mla: MlaConfig) -> None:
        super().__init__()
        self.heads, self.mla = c.num_attention_heads, mla
        self.cache_shape = (1, mla.kv_lora_rank + mla.qk_rope_head_dim)
        self.q_proj = nn.Linear(c.hidden_size, self.heads * (mla.qk_nope_head_dim + mla.qk_rope_head_dim), bias=False)
        self.kv_a_proj_with_mqa = nn.Linear(c.hidden_size, mla.kv_lora_rank + mla.qk_rope_head_dim, bias=False)
        self.kv_a_layernorm = RMSNorm(mla.kv_lora_rank, LATENT_NORM_EPS)
        self.w_uk = nn.Parameter(torch.empty(self.heads, mla.qk_nope_head_dim, mla.kv_lora_rank))
        self.w_uv = nn.Parameter(torch.empty(self.heads, mla.kv_lora_rank, mla.v_head_dim))
        self.o_proj = nn.Linear(self.heads * mla.v_head_dim, c.hidden_size, bias=False)
        self.rotary, self.watched = Rotary(), WatchedAttention((mla.qk_nope_head_dim + mla.qk_rope_head_dim) ** -0.5)

    def forward(self, x: torch.Tensor, tokens: Tokens, past: list[torch.Tensor], watches: list[Watch]) -> Attended:
        """x [T, H] -> output [T, H]."""
        T, mla = x.shape[0], self.mla
        q = self.q_proj(x).view(T, self.heads, -1)
        q_nope, q_pe = q.split((mla.qk_nope_head_dim, mla.qk_rope_head_dim), dim=-1)
        q_latent = torch.matmul(q_nope.transpose(0, 1), self.w_uk).transpose(0, 1)
        q = torch.cat((q_latent, self.rotary(q_pe, tokens.cos, tokens.sin)), dim=-1)
        c, k_pe = self.kv_a_proj_with_mqa(x).split((mla.kv_lora_rank, mla.qk_rope_head_dim), dim=-1)
        c, k_pe = self.kv_a_layernorm(c)[:, None], self.rotary(k_pe[:, None], tokens.cos, tokens.sin)
        latent = torch.cat((c, k_pe), dim=-1)
        y = attend(q, latent, None, past, tokens, watches, self.watched, value_width=mla.kv_lora_rank)
        output = torch.matmul(y.output.transpose(0, 1), self.w_uv).transpose(0, 1).reshape(T, -1)
        return replace(y, output=self.o_proj(output))


def build_graphs(c: Config, policy: Policy) -> GraphModules:
    """The three graphs as modules with uninitialised parameters."""
    layers = []
    for i in range(c.num_hidden_layers):
        if i in c.moe_layers:
            shared = Mlp(c.hidden_size, c.shared_intermediate_size)
            mlp: nn.Module = MoeBlock(SparseMoe(c.hidden_size, c.moe, policy.reduction_weights), shared)
        else:
            mlp = Mlp(c.hidden_size, c.intermediate_size)
        attn = LatentAttention(c, c.mla) if c.mla is not None else GroupedAttention(c.hidden_size, *c.head_shape)
        norms = (RMSNorm(c.hidden_size, c.rms_norm_eps) for _ in range(2))
        layers.append(DecoderLayer(attn, mlp, *norms))
    language_model = LanguageModel(
        layers,
        RMSNorm(c.hidden_size, c.rms_norm_eps),
        nn.Linear(c.hidden_size, c.vocab_size, bias=False),
        c.rope_dim,
        policy,
    )
    return GraphModules(Vision(c.vision, c.hidden_size), Embedding(c.vocab_size, c.hidden_size), language_model)


def computed_weights(c: Config) -> dict[str, torch.Tensor]:
    """Parameters that follow from the configuration, by graph-qualified name."""
    weights = {"language_model.inv_freq": rotary_frequencies(c.rope_theta, c.rope_dim)}
    if c.moe.topk_method != "noaux_tc":
        for i in c.moe_layers:
            weights[f"language_model.layers.{i}.mlp.experts.correction_bias"] = torch.zeros(c.moe.num_experts)
    return weights


def weight_map(c: Config, *, fused_experts: bool = False) -> dict[str, WeightRule]:
    """How every parameter is made from the checkpoint, by graph-qualified name; `expert_weights` says what is fused."""
    H, V = c.hidden_size, c.vocab_size
    rules = _vision_map(c.vision, H)
    rules["embedding.weight"] = same("language.model.embed_tokens.weight", V, H)
    rules["language_model.norm.weight"] = same("language.model.norm.weight", H)
    rules["language_model.lm_head.weight"] = same("language.lm_head.weight", V, H)
    for i in range(c.num_hidden_layers):
        ours, theirs = f"language_model.layers.{i}.", f"language.model.layers.{i}."
        layer = {f"{n}.weight": same(f"{theirs}{n}.weight", H) for n in ("input_layernorm", "post_attention_layernorm")}
        layer |= _attention_map(c, theirs) if c.mla is None else _latent_map(c, c.mla, theirs)
        if i in c.moe_layers:
            layer |= _moe_map(c, theirs, fused_experts)
        else:
            layer |= _mlp_map("mlp.", f"{theirs}mlp.", H, c.intermediate_size)
        rules |= {ours + name: rule for name, rule in layer.items()}
    return rules


def _vision_map(v: VisionConfig, hidden_size: int) -> dict[str, WeightRule]:
    C, W, H = v.width, v.mlp_width, hidden_size
    rules = norm("norm", "vision.norm", C, bias=True)
    rules["pos_embed"] = same("vision.pos_embed", 1, v.grid**2, C)
    rules["patch_embed.weight"] = same("vision.patch_embed.proj.weight", C, 3, v.patch_size, v.patch_size)
    rules["patch_embed.bias"] = same("vision.patch_embed.proj.bias", C)
    for i in range(v.layers):
        block = f"blocks.{i}."
        for name in ("norm1", "norm2"):
            rules |= norm(block + name, f"vision.{block}{name}", C, bias=True)
        shapes = {"attn.qkv": (3 * C, C), "attn.proj": (C, C), "mlp.fc1": (W, C), "mlp.fc2": (C, W)}
        for name, (rows, columns) in shapes.items():
            rules |= linear(block + name, f"vision.{block}{name}", rows, columns, bias=True)
    rules |= linear("projector_in", "projector.layers.0", H, v.projector_inputs, bias=True)
    rules |= linear("projector_out", "projector.layers.2", H, H, bias=True)
    rules |= {name: same(name, H) for name in ("image_newline", "view_seperator")}
    return {f"vision.{name}": rule for name, rule in rules.items()}


def _attention_map(c: Config, theirs: str) -> dict[str, WeightRule]:
    H, q, kv = c.hidden_size, c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
    shapes = {"q_proj": (q, H), "k_proj": (kv, H), "v_proj": (kv, H), "o_proj": (H, q)}
    return {f"self_attn.{n}.weight": same(f"{theirs}self_attn.{n}.weight", *s) for n, s in shapes.items()}


def _rows(start: int, end: int, step: int = 1) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda weight: weight[start:end:step]


def _latent_map(c: Config, mla: MlaConfig, theirs: str) -> dict[str, WeightRule]:
    N, H, rank = c.num_attention_heads, c.hidden_size, mla.kv_lora_rank
    nope, rope, v = mla.qk_nope_head_dim, mla.qk_rope_head_dim, mla.v_head_dim

    def rope_rows_to_halves(name: str, heads: int, plain: int, columns: int) -> WeightRule:
        # The official code rotates pairs (2i, 2i + 1) after moving them to halves. Moving the weight's rows once does
        # the same, and the graph rotates halves like every other model's.
        rows = plain + rope
        views: list[Callable[[torch.Tensor], torch.Tensor]] = []
        for start in range(0, heads * rows, rows):
            turned = start + plain
            end = start + rows
            views += [_rows(start, turned), _rows(turned, end, 2), _rows(turned + 1, end, 2)]
        shape = (heads * rows, columns)
        return WeightRule(((f"{theirs}self_attn.{name}.weight", shape),), shape, tuple(views))

    def kv_b(weight: torch.Tensor) -> torch.Tensor:
        return weight.view(N, nope + v, rank)

    kv_b_source = ((f"{theirs}self_attn.kv_b_proj.weight", (N * (nope + v), rank)),)
    return {
        "self_attn.q_proj.weight": rope_rows_to_halves("q_proj", N, nope, H),
        "self_attn.kv_a_proj_with_mqa.weight": rope_rows_to_halves("kv_a_proj_with_mqa", 1, rank, H),
        "self_attn.kv_a_layernorm.weight": same(f"{theirs}self_attn.kv_a_layernorm.weight", rank),
        "self_attn.w_uk": WeightRule(kv_b_source, (N, nope, rank), (lambda w: kv_b(w)[:, :nope],)),
        "self_attn.w_uv": WeightRule(kv_b_source, (N, rank, v), (lambda w: kv_b(w)[:, nope:].transpose(1, 2),)),
        "self_attn.o_proj.weight": same(f"{theirs}self_attn.o_proj.weight", H, N * v),
    }


def _mlp_map(ours: str, theirs: str, hidden_size: int, width: int) -> dict[str, WeightRule]:
    shapes = {"gate_proj": (width, hidden_size), "up_proj": (width, hidden_size), "down_proj": (hidden_size, width)}
    return {f"{ours}{n}.weight": same(f"{theirs}{n}.weight", *s) for n, s in shapes.items()}


def _moe_map(c: Config, theirs: str, is_fused: bool) -> dict[str, WeightRule]:
    rules = expert_weights(f"{theirs}mlp.experts.", c.moe, c.hidden_size, is_fused=is_fused)
    rules["mlp.experts.router.weight"] = same(f"{theirs}mlp.gate.weight", c.moe.num_experts, c.hidden_size)
    if c.moe.topk_method == "noaux_tc":
        rules["mlp.experts.correction_bias"] = same(f"{theirs}mlp.gate.e_score_correction_bias", c.moe.num_experts)
    prefix = f"{theirs}mlp.shared_experts."
    return rules | _mlp_map("mlp.shared_experts.", prefix, c.hidden_size, c.shared_intermediate_size)
