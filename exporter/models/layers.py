# SPDX-License-Identifier: Apache-2.0
"""Blocks that both families share. Sequences are unbatched: hidden states are [T, H]."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from fastmmoe.exporter.models.config_checks import MoeConfig
from fastmmoe.exporter.models.rope import YarnConfig
from fastmmoe.exporter.models.steps import Program, Step, Take
from fastmmoe.exporter.ops import ROTARY, SPARSE_MOE, VISION_ATTENTION
from fastmmoe.exporter.ops.rotary import torch_op as _rotary  # noqa: F401  (registers the operator)
from fastmmoe.exporter.ops.sparse_moe import torch_op as _moe  # noqa: F401  (registers the operator)
from fastmmoe.exporter.ops.sparse_moe.storage import Storage
from fastmmoe.exporter.ops.vision_attention import torch_op as _vision  # noqa: F401  (registers the operator)
from fastmmoe.runtime.bundle import graph_io

PATCHES = "patches"
"""Name of the hidden states of a vision tower in its steps."""


class RMSNorm(nn.Module):
    """Root-mean-square norm with float32 statistics."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x, (x.shape[-1],), self.weight, self.eps)


class Mlp(nn.Module):
    """down(silu(gate(x)) * up(x)), without biases."""

    def __init__(self, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.up_proj = nn.Linear(hidden_size, intermediate_size, bias=False)
        self.down_proj = nn.Linear(intermediate_size, hidden_size, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class SparseMoe(nn.Module):
    """Router and routed experts. The router works in float32 in every dtype of the model."""

    def __init__(self, hidden_size: int, config: MoeConfig, reduction_weights: str) -> None:
        super().__init__()
        E, width = config.num_experts, config.intermediate_size
        self.config = config
        self.attributes = SPARSE_MOE.encode(
            {
                "top_k": config.top_k,
                "scoring_func": config.scoring_func,
                "topk_method": config.topk_method,
                "n_group": config.n_group,
                "topk_group": config.topk_group,
                "norm_topk_prob": int(config.norm_topk_prob),
                "routed_scaling_factor": config.routed_scaling_factor,
                "reduction_weights": reduction_weights,
                "activation": config.activation,
                "swiglu_limit": config.swiglu_limit,
                "expert_bias": int(config.expert_bias),
                "weight_format": "float",
                "group_size": 0,
                "zero_points": 0,
                "weight_layout": "logical",
                "expert_size": 0,
            }
        )
        self.router = nn.Linear(hidden_size, E, bias=config.expert_bias)
        self.correction_bias = nn.Parameter(torch.empty(E))
        self.gate_up = nn.Parameter(torch.empty(E, 2 * width, hidden_size))
        self.down = nn.Parameter(torch.empty(E, hidden_size, width))
        if config.expert_bias:
            self.gate_up_bias = nn.Parameter(torch.empty(E, 2 * width))
            self.down_bias = nn.Parameter(torch.empty(E, hidden_size))

    def store(self, storage: Storage) -> None:
        """Take the experts' weights as they are written, without values, in place of floats."""
        E, hidden_size, width = self.down.shape
        self.attributes = SPARSE_MOE.encode(SPARSE_MOE.decode(self.attributes) | storage.attributes(width))
        types = {"": torch.int8 if storage.packing is not None else torch.bfloat16, "_scale": torch.float16}
        for name, rows, columns in (("gate_up", 2 * width, hidden_size), ("down", hidden_size, width)):
            for part in storage.parts:
                shape = storage.shape(part, E, rows, columns, is_gate_up=name == "gate_up")
                values = torch.empty(shape, dtype=types.get(part, torch.int8), device=self.correction_bias.device)
                setattr(self, f"{name}{part}", nn.Parameter(values, requires_grad=False))

    def router_logits(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """[T, H] -> [T, E] float32."""
        return self.router(hidden_states.float())

    def routing_probs(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Router distribution over all experts, [T, E] float32: softmax, or sigmoid scores of sigmoid routers."""
        logits = self.router_logits(hidden_states)
        return logits.sigmoid() if self.config.scoring_func == "sigmoid" else logits.softmax(-1)

    def _others(self) -> list[torch.Tensor]:
        """Biases, scales and zeros, as far as there are some, in the contract's order."""
        names = [tensor.name for tensor in SPARSE_MOE.inputs if tensor.only_if is not None]
        return [getattr(self, name) for name in names if hasattr(self, name)]

    def forward(
        self, hidden_states: torch.Tensor, visual_index: torch.Tensor, visual_top_k: torch.Tensor
    ) -> torch.Tensor:
        return torch.ops.fastmmoe.sparse_moe(
            hidden_states,
            self.router_logits(hidden_states),
            visual_index,
            visual_top_k,
            self.correction_bias,
            self.gate_up,
            self.down,
            self._others(),
            self.attributes,
        )


def rotary_frequencies(theta: float, dim: int, yarn: YarnConfig | None = None) -> torch.Tensor:
    """[dim / 2] float32; YaRN: interpolated below the correction range, unchanged above it, a ramp between."""
    plain = 1.0 / theta ** (torch.arange(0, dim, 2).float() / dim)
    if yarn is None:
        return plain
    original = yarn.original_max_position_embeddings

    def correction_dim(rotations: float) -> float:
        return dim * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(theta))

    low, high = max(correction_dim(yarn.beta_fast), 0.0), min(correction_dim(yarn.beta_slow), dim - 1.0)
    ramp = ((torch.arange(dim // 2).float() - low) / (high - low or 1e-3)).clamp(0, 1)
    return plain / yarn.factor * ramp + plain * (1 - ramp)


class Rotary(nn.Module):
    """Rotary embedding, halves layout, behind the norm of each head, where there is one. A module, so its nodes say so.

    Attributes:
        is_operator: norm and rotary are FmmRotary; else they are standard operators.
    """

    def __init__(self) -> None:
        super().__init__()
        self.is_operator = False

    def forward(
        self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, norm: RMSNorm | None = None
    ) -> torch.Tensor:
        """x [T, N, D], cos and sin [T, 1, D / 2]."""
        if self.is_operator:
            attributes = ROTARY.encode({"has_norm": int(norm is not None), "epsilon": norm.eps if norm else 0.0})
            return torch.ops.fastmmoe.rotary(x, cos, sin, [norm.weight] if norm else [], attributes)
        first, second = (norm(x) if norm else x).chunk(2, dim=-1)
        return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def use_rotary_operator(language_model: nn.Module) -> None:
    """Have the rotary embeddings of a decoder be FmmRotary."""
    for module in language_model.modules():
        if isinstance(module, Rotary):
            module.is_operator = True


class VisionBlock(nn.Module):
    """A vision transformer block: x += ls1 * attn(norm1(x)); x += ls2 * mlp(norm2(x)); layer scales are optional."""

    def __init__(
        self, width: int, attn: nn.Module, mlp: nn.Module, norm1: nn.Module, norm2: nn.Module, *, scale: bool = False
    ) -> None:
        super().__init__()
        self.attn, self.mlp, self.norm1, self.norm2, self.scale = attn, mlp, norm1, norm2, scale
        if scale:
            self.ls1 = nn.Parameter(torch.empty(width))
            self.ls2 = nn.Parameter(torch.empty(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.attn(self.norm1(x))
        x = x + (self.ls1 * y if self.scale else y)
        y = self.mlp(self.norm2(x))
        return x + (self.ls2 * y if self.scale else y)


class VisionBlockStep(nn.Module):
    """A `VisionBlock` as a step: PATCHES [tiles, patches, width] in and out."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {PATCHES: self.block(inputs[PATCHES])}


def vision_program(
    patches: nn.Module,
    blocks: nn.ModuleList,
    projector: nn.Module,
    takes: dict[str, Take],
    *,
    block_take: Take,
    layout: tuple[str, ...] = (),
) -> Program:
    """A vision tower as steps: pixels to PATCHES, each block, PATCHES to IMAGE_FEATURES.

    Args:
        takes: of the tower's inputs; those in `layout` go to the projector.
        block_take: of PATCHES.
    """
    before = {name: take for name, take in takes.items() if name not in layout}
    after = {name: takes[name] for name in layout}
    steps = [Step("patches", patches, before, {name: name for name in before}, {PATCHES: f"{PATCHES}.0"})]
    for i, block in enumerate(blocks):
        reads, writes = {PATCHES: f"{PATCHES}.{i}"}, {PATCHES: f"{PATCHES}.{i + 1}"}
        steps.append(Step(f"blocks.{i}", VisionBlockStep(block), {PATCHES: block_take}, reads, writes))
    reads = {PATCHES: f"{PATCHES}.{len(blocks)}"} | {name: name for name in after}
    results = {graph_io.IMAGE_FEATURES: graph_io.IMAGE_FEATURES}
    return Program([*steps, Step("projector", projector, {PATCHES: block_take} | after, reads, results)], results)


class VisionAttention(nn.Module):
    """Full self-attention over the patches of a tile, one fused qkv projection; optional norm of whole q and k rows.

    Attributes:
        compute: attention is FmmVisionAttention that computes in this type; "" = in standard operators.
    """

    def __init__(self, width: int, heads: int, *, qkv_bias: bool, qk_norm_eps: float | None = None) -> None:
        super().__init__()
        self.heads, self.compute = heads, ""
        self.qkv = nn.Linear(width, 3 * width, bias=qkv_bias)
        self.proj = nn.Linear(width, width)
        self.has_qk_norm = qk_norm_eps is not None
        if qk_norm_eps is not None:
            self.q_norm = RMSNorm(width, qk_norm_eps)
            self.k_norm = RMSNorm(width, qk_norm_eps)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tiles, patches, width = x.shape
        qkv = self.qkv(x)
        q, k, v = qkv.chunk(3, dim=-1)
        if self.has_qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        if self.compute:
            qkv = torch.cat((q, k, v), dim=-1) if self.has_qk_norm else qkv
            attributes = VISION_ATTENTION.encode({"scale": (width // self.heads) ** -0.5, "compute": self.compute})
            y = torch.ops.fastmmoe.vision_attention(qkv.view(tiles, patches, 3, self.heads, -1), attributes)
            return self.proj(y.view(tiles, patches, width))
        q, k, v = (t.view(tiles, patches, self.heads, width // self.heads).transpose(1, 2) for t in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v)
        return self.proj(y.transpose(1, 2).reshape(tiles, patches, width))


def use_vision_operator(vision: nn.Module, compute: str) -> None:
    """Have the attention of a tower's blocks be FmmVisionAttention, which computes in this type."""
    for module in vision.modules():
        if isinstance(module, VisionAttention):
            module.compute = compute


class VisionMlp(nn.Module):
    """fc2(gelu(fc1(x))) with biases; `approximate` is torch's name of the GELU form."""

    def __init__(self, width: int, hidden: int, approximate: str) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)
        self.approximate = approximate

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate=self.approximate))
