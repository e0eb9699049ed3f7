# SPDX-License-Identifier: Apache-2.0
"""The demo model for training: batches of packed questions, every expert computed for every token.

Parameter names are the checkpoint's, but for the experts, which are stacked here: gate_up [E, 2I, H], down [E, H, I].
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from demo_training.config import GRID, LANGUAGE, VISION, VOCAB_SIZE
from fastmmoe.runtime.request.deepseek_vl2 import deepseek_vl2_layout

HIDDEN = LANGUAGE["hidden_size"]
VIEW = GRID * (GRID + 1)
VISUAL = 2 * VIEW + 1
"""Visual tokens of a picture: rows of the global view, a newline after each, the separator, the local view."""


def layout_rows() -> torch.Tensor:
    """[VISUAL] int64: the token of the view, or newline, or separator, at each visual position."""
    rows = deepseek_vl2_layout(((1, 1),), GRID, global_view_first=True)
    # Both views show the same picture: it fits into one tile.
    tokens = GRID * GRID
    return torch.from_numpy(np.where(rows < 2 * tokens, rows % tokens, rows - tokens)).long()


def _linear(inputs: int, outputs: int, *, bias: bool, std: float) -> nn.Linear:
    layer = nn.Linear(inputs, outputs, bias=bias)
    nn.init.normal_(layer.weight, std=std)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


class Norm(nn.Module):
    """RMS norm with the checkpoint's epsilon."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x, (x.shape[-1],), self.weight, 1e-6)


class VisionBlock(nn.Module):
    """Pre-norm block of the vision tower."""

    def __init__(self) -> None:
        super().__init__()
        C, self.heads = VISION["width"], VISION["heads"]
        W = int(C * VISION["mlp_ratio"])
        self.norm1, self.norm2 = nn.LayerNorm(C, 1e-6), nn.LayerNorm(C, 1e-6)
        residual = 0.5 * C**-0.5 / math.sqrt(VISION["layers"])
        self.attn = nn.ModuleDict(
            {"qkv": _linear(C, 3 * C, bias=True, std=C**-0.5), "proj": _linear(C, C, bias=True, std=residual)}
        )
        self.mlp = nn.ModuleDict(
            {"fc1": _linear(C, W, bias=True, std=C**-0.5), "fc2": _linear(W, C, bias=True, std=residual)}
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        B, T, C = x.shape
        q, k, v = self.attn["qkv"](self.norm1(x)).view(B, T, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(B, T, C)
        x = x + self.attn["proj"](y)
        y = F.gelu(self.mlp["fc1"](self.norm2(x)), approximate="tanh")
        return x + self.mlp["fc2"](y)


class Vision(nn.Module):
    """Tower and projector: images [B, SIZE, SIZE, 3] uint8 -> tokens of one view [B, GRID^2, H]."""

    def __init__(self) -> None:
        super().__init__()
        C, P = VISION["width"], VISION["patch_size"]
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, C, P, stride=P)})
        self.pos_embed = nn.Parameter(torch.randn(1, (2 * GRID) ** 2, C) * 0.1)
        self.blocks = nn.ModuleList(VisionBlock() for _ in range(VISION["layers"]))
        self.norm = nn.LayerNorm(C, 1e-6)
        self.projector_in = _linear(4 * C, HIDDEN, bias=True, std=(4 * C) ** -0.5)
        self.projector_out = _linear(HIDDEN, HIDDEN, bias=True, std=HIDDEN**-0.5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        B, P, side = images.shape[0], VISION["patch_size"], 2 * GRID
        x = (images.float() - 127.5) / 127.5
        x = x.view(B, side, P, side, P, 3).permute(0, 1, 3, 5, 2, 4).reshape(B, side * side, 3 * P * P)
        conv: Any = self.patch_embed["proj"]
        x = F.linear(x, conv.weight.flatten(1), conv.bias) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        x = self.norm(x).view(B, GRID, 2, GRID, 2, -1).permute(0, 1, 3, 5, 2, 4).reshape(B, GRID * GRID, -1)
        return self.projector_out(F.gelu(self.projector_in(x)))


class Experts(nn.Module):
    """MoE block. Of the last call: `balance` is the load-balancing loss, `entropy` the mean entropy of a row's routing
    over that of a uniform one, `probs` [B, T, E] the routing itself."""

    def __init__(self) -> None:
        super().__init__()
        E, width, S = LANGUAGE["n_routed_experts"], LANGUAGE["moe_intermediate_size"], LANGUAGE["n_shared_experts"]
        self.top_k = LANGUAGE["num_experts_per_tok"]
        self.gate = nn.Parameter(torch.randn(E, HIDDEN) * 0.05)
        self.gate_up = nn.Parameter(torch.randn(E, 2 * width, HIDDEN) * HIDDEN**-0.5)
        self.down = nn.Parameter(torch.randn(E, HIDDEN, width) * 0.5 * width**-0.5)
        self.shared = GatedMlp(width * S)
        self.balance, self.entropy, self.probs = torch.zeros(()), torch.zeros(()), torch.zeros(())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        E, twice = self.gate_up.shape[:2]
        with torch.autocast("cpu", enabled=False):
            probs = F.linear(x.float(), self.gate).softmax(-1)
            weights, chosen = probs.topk(self.top_k, dim=-1)
            mix = torch.zeros_like(probs).scatter(-1, chosen, weights)
            load = (mix > 0).float().mean((0, 1)) / self.top_k
            self.balance = E * (load * probs.mean((0, 1))).sum()
            self.entropy = -(probs * (probs + 1e-9).log()).sum(-1).mean() / math.log(E)
        self.probs = probs.detach()
        gate, up = F.linear(x, self.gate_up.flatten(0, 1)).unflatten(-1, (E, 2, twice // 2)).unbind(-2)
        y = F.silu(gate) * up * mix.to(gate.dtype)[..., None]
        return F.linear(y.flatten(-2), self.down.permute(1, 0, 2).flatten(1)) + self.shared(x)


class GatedMlp(nn.Module):
    """down(silu(gate(x)) * up(x))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gate_proj = _linear(HIDDEN, width, bias=False, std=HIDDEN**-0.5)
        self.up_proj = _linear(HIDDEN, width, bias=False, std=HIDDEN**-0.5)
        self.down_proj = _linear(width, HIDDEN, bias=False, std=0.3 * width**-0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


@dataclass(frozen=True)
class Plan:
    """A packed sequence: `shared` rows of prefix and picture, then questions that see these rows and themselves.

    Attributes:
        positions: [turns * tokens] int64; every question stands right after the picture.
        mask: [tokens, tokens] additive causal mask of a question.
    """

    shared: int
    turns: int
    tokens: int
    positions: torch.Tensor
    mask: torch.Tensor

    @staticmethod
    def of(before: int, visual: int, turns: int, tokens: int) -> Plan:
        """For so many rows in front of the picture, visual tokens of it in the sequence, questions and their tokens."""
        mask = torch.full((tokens, tokens), float("-inf")).triu(1)
        positions = before + VISUAL + torch.arange(tokens).repeat(turns)
        return Plan(before + visual, turns, tokens, positions, mask)


class Layer(nn.Module):
    """Decoder layer with multi-head attention."""

    def __init__(self, index: int) -> None:
        super().__init__()
        self.heads = LANGUAGE["num_attention_heads"]
        self.input_layernorm, self.post_attention_layernorm = Norm(HIDDEN), Norm(HIDDEN)
        names = {"q_proj": 1.0, "k_proj": 1.0, "v_proj": 1.0, "o_proj": 0.5}
        self.self_attn = nn.ModuleDict(
            {name: _linear(HIDDEN, HIDDEN, bias=False, std=gain * HIDDEN**-0.5) for name, gain in names.items()}
        )
        is_dense = index < LANGUAGE["first_k_dense_replace"]
        self.mlp: Any = GatedMlp(LANGUAGE["intermediate_size"]) if is_dense else Experts()

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, plan: Plan) -> torch.Tensor:
        B, T, H = x.shape
        h = self.input_layernorm(x)
        q, k, v = (
            self.self_attn[n](h).view(B, T, self.heads, -1).transpose(1, 2) for n in ("q_proj", "k_proj", "v_proj")
        )
        q, k = _rotate(q, cos, sin), _rotate(k, cos, sin)
        S = plan.shared
        y = F.scaled_dot_product_attention(q[:, :, :S], k[:, :, :S], v[:, :, :S], is_causal=True)
        y = torch.cat((y, _attend_turns(q[:, :, S:], k, v, plan)), dim=2)
        x = x + self.self_attn["o_proj"](y.transpose(1, 2).reshape(B, T, H))
        return x + self.mlp(self.post_attention_layernorm(x))


def _attend_turns(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, plan: Plan) -> torch.Tensor:
    """Questions [B, N, turns * tokens, D] attend to the shared rows of k and v, and each to its own rows."""
    S, shape = plan.shared, (*q.shape[:2], plan.turns, plan.tokens, q.shape[3])
    q = q * q.shape[3] ** -0.5
    own_q, own_k, own_v = q.reshape(shape), k[:, :, S:].reshape(shape), v[:, :, S:].reshape(shape)
    own = (own_q @ own_k.transpose(-1, -2) + plan.mask.to(q.dtype)).flatten(2, 3)
    probs = torch.cat((q @ k[:, :, :S].transpose(-1, -2), own), dim=-1).softmax(-1).to(q.dtype)
    own_probs = probs[..., S:].unflatten(2, (plan.turns, plan.tokens))
    return probs[..., :S] @ v[:, :, :S] + (own_probs @ own_v).flatten(2, 3)


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """x [B, N, T, D], cos and sin [B or 1, 1, T, D / 2]."""
    a, b = x.chunk(2, dim=-1)
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


class Decoder(nn.Module):
    """Embedding, decoder layers, head, and the two learned vectors of the picture's layout."""

    inv_freq: torch.Tensor
    rows: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(VOCAB_SIZE, HIDDEN)
        nn.init.normal_(self.embed_tokens.weight, std=0.5)
        self.layers = nn.ModuleList(Layer(i) for i in range(LANGUAGE["num_hidden_layers"]))
        self.norm = Norm(HIDDEN)
        self.lm_head = _linear(HIDDEN, VOCAB_SIZE, bias=False, std=HIDDEN**-0.5)
        self.image_newline = nn.Parameter(torch.randn(HIDDEN) * 0.5)
        self.view_seperator = nn.Parameter(torch.randn(HIDDEN) * 0.5)
        dim = HIDDEN // LANGUAGE["num_attention_heads"]
        self.register_buffer("inv_freq", 10000.0 ** (-torch.arange(0, dim, 2).float() / dim), persistent=False)
        self.register_buffer("rows", layout_rows(), persistent=False)

    def lay_out(self, view: torch.Tensor) -> torch.Tensor:
        """Tokens of a view [B, GRID^2, H] -> the picture's visual tokens [B, VISUAL, H]."""
        extra = torch.stack((self.image_newline, self.view_seperator)).to(view.dtype).expand(view.shape[0], 2, HIDDEN)
        return torch.cat((view, extra), dim=1).index_select(1, self.rows)

    def forward(
        self, prefix: torch.Tensor, visual: torch.Tensor, places: torch.Tensor, ids: torch.Tensor, plan: Plan
    ) -> torch.Tensor:
        """Last hidden states of the questions.

        Args:
            prefix: [P] int64, what stands before the picture.
            visual: [B, V, H], places: [B or 1, V] int64, the visual tokens and their numbers among the picture's.
            ids: [B, turns, tokens] int64.
        Returns:
            [B, turns * tokens, H].
        """
        B, P, V = visual.shape[0], len(prefix), visual.shape[1]
        text = self.embed_tokens(ids.view(B, -1))
        x = torch.cat((self.embed_tokens(prefix).expand(B, P, HIDDEN), visual.to(text.dtype), text), dim=1)
        rows = places.shape[0]
        positions = (torch.arange(P).expand(rows, P), P + places, plan.positions.expand(rows, -1))
        angles = torch.cat(positions, dim=1)[:, None, :, None].float() * self.inv_freq
        cos, sin = angles.cos(), angles.sin()
        for layer in self.layers:
            x = layer(x, cos, sin, plan)
        return self.norm(x[:, P + V :])

    @property
    def experts(self) -> list[Experts]:
        """The MoE blocks."""
        return [layer.mlp for layer in self.layers if isinstance(layer.mlp, Experts)]

    def balance(self) -> torch.Tensor:
        """Mean load-balancing loss of the MoE layers' last call."""
        return torch.stack([experts.balance for experts in self.experts]).mean()

    def entropy(self) -> torch.Tensor:
        """Mean routing entropy of the MoE layers' last call, 1 = uniform."""
        return torch.stack([experts.entropy for experts in self.experts]).mean()
