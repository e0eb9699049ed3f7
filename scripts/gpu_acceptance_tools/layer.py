# SPDX-License-Identifier: Apache-2.0
"""A MoE layer of a published model with random weights on the device, calls of FmmSparseMoE on it, and its result.

Sizes are those of scripts/sass_tools/roofline.py. Weights of integers are random integers: they need no rounding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sass_tools.roofline import LAYERS, WEIGHTS, Layer, Weights

from fastmmoe.exporter.ops.quantise import NIBBLE_COLUMNS
from gpu_acceptance_tools.kernels import Kernels
from tests.support.moe_params import moe_params
from tests.support.operators import moe_attributes

TINY = (Layer("tiny", H=64, I=32, E=8, top_k=2, layers=1),)
FORMATS = (*WEIGHTS, Weights("fp8", "fp8", 8, 128))
RENORMALISES = "InternVL"
GAIN = 2.5
"""Of the router's logits: random routing would touch every expert for a handful of tokens."""


def layers(*, is_rehearsal: bool) -> tuple[Layer, ...]:
    """Those of both models."""
    return TINY if is_rehearsal else LAYERS


@dataclass
class Tokens:
    """Rows of a call.

    Attributes:
        hidden: float16 [T, H]. logits: float32 [T, E].
        visual: how many of the first rows are visual tokens, of visual_top_k experts each.
    """

    hidden: torch.Tensor
    logits: torch.Tensor
    visual: int
    visual_top_k: int


class RandomLayer:
    """A layer's experts in one format, and calls on them.

    Attributes:
        tensors: by the contract's names; each 16-bit float is float16.
        attributes: of the operator.
    """

    def __init__(self, layer: Layer, weights: Weights, device: torch.device) -> None:
        self.layer, self.weights, self.device = layer, weights, device
        E, H, I = layer.E, layer.H, layer.I  # noqa: E741
        self.attributes: dict[str, Any] = moe_attributes(
            top_k=layer.top_k,
            norm_topk_prob=int(layer.model.startswith(RENORMALISES)),
            weight_format=weights.weight_format,
            group_size=weights.group_size,
        )
        self.tensors: dict[str, torch.Tensor] = {}
        for name, rows, columns in (("gate_up", 2 * I, H), ("down", H, I)):
            self._fill(name, (E, rows, columns))

    def _fill(self, name: str, shape: tuple[int, int, int]) -> None:
        E, rows, columns = shape
        weights, device, std = self.weights, self.device, columns**-0.5
        if weights.weight_format == "float":
            made = torch.empty(shape, dtype=torch.float16, device=device)
            for e in range(E):
                made[e] = torch.randn(rows, columns, device=device).mul_(std).half()
            self.tensors[name] = made
            return
        if weights.weight_format == "fp8":
            spread = 1.0
            made = torch.empty(shape, dtype=torch.int8, device=device)
            for e in range(E):
                made[e] = torch.randn(rows, columns, device=device).to(torch.float8_e4m3fn).view(torch.int8)
        else:
            width = columns // 2 if weights.weight_format == "int4" else columns
            low, spread = (-128, 4.6) if weights.weight_format == "int4" else (-127, 73.6)
            made = torch.randint(low, 128, (E, rows, width), dtype=torch.int8, device=device)
        self.tensors[name] = made
        groups = -(-columns // weights.group_size)
        scale = (std / spread) * (0.5 + torch.rand(E, rows, groups, device=device))
        self.tensors[f"{name}_scale"] = scale.half()

    def tokens(self, T: int, seed: int, *, visual: int = 0, visual_top_k: int = 1) -> Tokens:
        """Random rows."""
        generator = torch.Generator(self.device).manual_seed(seed)

        def normal(width: int) -> torch.Tensor:
            return torch.randn(T, width, device=self.device, generator=generator)

        return Tokens(normal(self.layer.H).half(), GAIN * normal(self.layer.E), visual, visual_top_k)

    def call(self, kernels: Kernels, tokens: Tokens, output: torch.Tensor, stream: int | None = None) -> Any:
        """Function that queues the operator on these rows; everything it needs lives as long as it does."""
        index = torch.arange(tokens.visual, dtype=torch.int32, device=self.device)
        top_k = torch.tensor([tokens.visual_top_k], dtype=torch.int32, device=self.device)
        bias = torch.zeros(self.layer.E, device=self.device)
        given = self.tensors | {"hidden_states": tokens.hidden, "router_logits": tokens.logits, "visual_index": index}
        given |= {"visual_top_k": top_k, "correction_bias": bias, "output": output}
        T, E = tokens.logits.shape
        sizes = {"T": T, "V": tokens.visual, "H": self.layer.H, "I": self.layer.I, "E": E}
        addresses = {name: tensor.data_ptr() for name, tensor in given.items()}
        params = moe_params(sizes, np.float16, self.attributes, addresses)
        size = kernels.workspace_bytes("sparse_moe", params)
        workspace = torch.empty(size + 256, dtype=torch.uint8, device=self.device)
        place = -(-workspace.data_ptr() // 256) * 256

        def queue(keep: Mapping[str, torch.Tensor] = given, block: torch.Tensor = workspace) -> None:
            kernels.launch("sparse_moe", params, place, stream)

        return queue

    def routing(self, tokens: Tokens, *, renormalises: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        """Experts int64 [T, k] and weights float32 [T, k], by the method's rules; weights 0 where one is not used.

        renormalises: whether the model does or not.
        """
        k = self.layer.top_k
        weights, experts = torch.softmax(tokens.logits, 1).topk(k, 1)
        if renormalises or self.attributes["norm_topk_prob"]:
            weights = weights / weights.sum(1, keepdim=True)
        if tokens.visual:
            # Those that stay share what all had.
            kept = weights[: tokens.visual].clone()
            kept[:, tokens.visual_top_k :] = 0
            kept *= weights[: tokens.visual].sum(1, keepdim=True) / kept.sum(1, keepdim=True)
            weights = torch.cat([kept, weights[tokens.visual :]])
        return experts, weights

    def expert(self, name: str, e: int) -> torch.Tensor:
        """Weights of one expert, float32 [rows, columns]."""
        found = self.tensors[name][e]
        if self.weights.weight_format == "float":
            return found.float()
        if self.weights.weight_format == "int4":
            q = unpack_int4(found).float() - 8
        else:
            q = (found.view(torch.float8_e4m3fn) if self.weights.weight_format == "fp8" else found).float()
        scale = self.tensors[f"{name}_scale"][e].float().repeat_interleave(self.weights.group_size, 1)
        return q * scale[:, : q.shape[1]]

    def expected(self, tokens: Tokens, *, renormalises: bool = False) -> torch.Tensor:
        """The layer's output in float32 [T, H], expert by expert."""
        experts, weights = self.routing(tokens, renormalises=renormalises)
        hidden = tokens.hidden.float()
        output = torch.zeros_like(hidden)
        used = (experts[..., None] == torch.arange(self.layer.E, device=self.device)) & (weights != 0)[..., None]
        for e in range(self.layer.E):
            rows, places = torch.nonzero(used[:, :, e], as_tuple=True)
            if len(rows):
                gate, up = (hidden[rows] @ self.expert("gate_up", e).T).chunk(2, 1)
                made = (torch.nn.functional.silu(gate) * up) @ self.expert("down", e).T
                output.index_add_(0, rows, made * weights[rows, places, None])
        return output

    def work(self, tokens: Tokens) -> tuple[float, float]:
        """The fewest bytes and operations: used experts' weights once, rows in and out; products of each slot."""
        experts, weights = self.routing(tokens)
        used = experts[weights != 0]
        each = 3 * self.layer.I * self.layer.H
        size = len(used.unique()) * each * self.weights.bytes_each + 2 * 2 * tokens.hidden.numel()
        return size, 2.0 * each * len(used)


def unpack_int4(packed: torch.Tensor) -> torch.Tensor:
    """int8 [rows, columns / 2] -> uint8 [rows, columns], as exporter/ops/quantise.py packs them."""
    low, high = packed.view(torch.uint8) & 15, packed.view(torch.uint8) >> 4
    nibbles = torch.stack([low, high], -1).reshape(len(packed), -1, len(NIBBLE_COLUMNS))
    columns = torch.empty_like(nibbles)
    columns[..., list(NIBBLE_COLUMNS)] = nibbles
    return columns.reshape(len(packed), -1)


def relative_error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Norm of the difference over the norm; NaN where either is not finite."""
    return float((ours.float() - theirs).norm() / theirs.norm())
