# SPDX-License-Identifier: Apache-2.0
"""The kinds of steps that a decoder is made of; a tensor is named as runtime/bundle/graph_io.py has it.

Nothing here knows its layer's number, its group's or its site's: what belongs to one comes in by name.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from fastmmoe.exporter.pruning.sites import HIDDEN_STATES, LAST, RANDOM_SCORES, RESIDUAL, is_active, watched
from fastmmoe.exporter.pruning.sparsevlm import rater_weights
from fastmmoe.exporter.pruning.tokens import Tokens, Watch
from fastmmoe.runtime.bundle import graph_io
from fastmmoe.runtime.method.policy import SPARSEVLM

Tensors = dict[str, torch.Tensor]

RATER_WEIGHTS = "rater_weights"
COS, SIN, PAST_LENGTHS, PAST_POSITION_IDS = "cos", "sin", "past_lengths", "past_position_ids"
ROTARY_POSITIONS = "rotary_positions"
PRESENT_LENGTHS, PRESENT_POSITION_IDS = "present_lengths", "present_position_ids"
PROMPT_POSITIONS, PROMPT_OFFSETS = "prompt_positions", "prompt_offsets"


def past(part: str) -> str:
    """Name of a part of a layer's cache before the call."""
    return f"past.{part}"


def present(part: str) -> str:
    """Name of a part of a layer's cache after the call."""
    return f"present.{part}"


class RandomScores(nn.Module):
    """Method random: the visual tokens' scores [V] at their rows [T], 0 at the others."""

    def forward(self, inputs: Tensors) -> Tensors:
        visual_index, T = inputs[graph_io.VISUAL_INDEX], inputs[graph_io.POSITION_IDS].shape[0]
        return {RANDOM_SCORES: torch.zeros(T).scatter(0, visual_index.long(), inputs[graph_io.RANDOM_SCORES])}


class RaterWeights(nn.Module):
    """Method sparsevlm: what the last Q rows of the prompt weigh as raters, [Q] float32."""

    def forward(self, inputs: Tensors) -> Tensors:
        embeds = inputs[graph_io.INPUTS_EMBEDS]
        visual = embeds.index_select(0, inputs[graph_io.VISUAL_INDEX])
        text = embeds.index_select(0, _last_rows(inputs[graph_io.RATER_SLOTS], embeds))
        return {RATER_WEIGHTS: rater_weights(visual, text)}


class RotaryAngles(nn.Module):
    """Positions [T] -> cos and sin of their angles, [T, 1, rotary / 2].

    Args:
        dtype: of cos and sin.
        rope_scale: what they are multiplied by.
    """

    def __init__(self, inv_freq: nn.Parameter, dtype: torch.dtype, rope_scale: float) -> None:
        super().__init__()
        self.inv_freq, self.dtype, self.rope_scale = inv_freq, dtype, rope_scale

    def forward(self, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        angles = position_ids.float()[:, None, None] * self.inv_freq
        cos, sin = angles.cos() * self.rope_scale, angles.sin() * self.rope_scale
        return cos.to(self.dtype), sin.to(self.dtype)


class GroupTokens(nn.Module):
    """What the layers of a group share: angles of its rows, and lengths of its caches after the call.

    Args:
        inv_freq, dtype, rope_scale: see `RotaryAngles`.
        renumbers: positions become those of what is left of each sequence, for requests of SparseVLM v1.5.
        method: the policy's.
    """

    def __init__(
        self, inv_freq: nn.Parameter, dtype: torch.dtype, rope_scale: float, method: str, *, renumbers: bool
    ) -> None:
        super().__init__()
        self.rotary, self.renumbers = RotaryAngles(inv_freq, dtype, rope_scale), renumbers
        self.method = method if renumbers else ""

    def forward(self, inputs: Tensors) -> Tensors:
        position_ids, past_lengths = inputs[graph_io.POSITION_IDS], inputs[PAST_LENGTHS]
        sequences = torch.arange(past_lengths.shape[0], dtype=torch.int32)
        new = (sequences[:, None] == inputs[graph_io.SEQUENCE_IDS][None, :]).sum(1)
        found = {PRESENT_LENGTHS: past_lengths + new.to(torch.int32)}
        if self.renumbers:
            position_ids = found[ROTARY_POSITIONS] = self._positions(inputs)
        return found | dict(zip((COS, SIN), self.rotary(position_ids), strict=True))

    def _positions(self, inputs: Tensors) -> torch.Tensor:
        """[T] int32: the numbers of what is left of the original sequence, or the original ones."""
        position_ids, offsets = inputs[graph_io.POSITION_IDS], inputs[graph_io.SEQUENCE_OFFSETS]
        row = torch.arange(position_ids.shape[0], dtype=torch.int32)
        a = (row[:, None] >= offsets[None, 1:]).sum(1)  # the sequence of the call that each belongs to
        before = inputs[PAST_LENGTHS].index_select(0, inputs[graph_io.SEQUENCE_IDS])
        compact = before + row - offsets.index_select(0, a)
        active = is_active(self.method, SPARSEVLM, inputs)
        return compact if active is True else torch.where(torch.as_tensor(active), compact, position_ids)


class WatchedRows(nn.Module):
    """The rows of a call that a watch looks at, by its name."""

    def forward(self, name: str, inputs: Tensors) -> Watch:
        if name == LAST:
            last = inputs[graph_io.SEQUENCE_OFFSETS][1:] - 1
            return Watch(last, torch.ones_like(last, dtype=torch.float32))
        # The raters are the last rows of the sequence, however many have been pruned before them.
        return Watch(_last_rows(inputs[graph_io.RATER_SLOTS], inputs[RESIDUAL]), inputs[RATER_WEIGHTS])


class AttentionStep(nn.Module):
    """A layer up to its MLP: attention on the rows as they came, and the norm after it.

    Args:
        layer: a `DecoderLayer`.
        watches: see `watch_names`.
        writes_positions: it is the first layer of its group that slides.
    """

    def __init__(self, layer: Any, watches: tuple[str, ...], *, writes_positions: bool) -> None:
        super().__init__()
        self.input_layernorm, self.self_attn = layer.input_layernorm, layer.self_attn
        self.post_attention_layernorm = layer.post_attention_layernorm
        self.watches, self.writes_positions, self.watched_rows = watches, writes_positions, WatchedRows()

    def forward(self, inputs: Tensors) -> Tensors:
        attention, residual = self.self_attn, inputs[RESIDUAL]
        tokens = Tokens(
            inputs[graph_io.SEQUENCE_IDS],
            inputs[graph_io.SEQUENCE_OFFSETS],
            inputs.get(ROTARY_POSITIONS),
            inputs[COS],
            inputs[SIN],
            inputs[PAST_LENGTHS],
            inputs.get(PAST_POSITION_IDS),
            has_new_positions=not self.writes_positions,
        )
        caches = [inputs[past(part)] for part in attention.cache_parts]
        watches = [self.watched_rows(name, inputs) for name in self.watches]
        y = attention(self.input_layernorm(residual), tokens, caches, watches)
        residual = residual + y.output
        found = {RESIDUAL: residual, HIDDEN_STATES: self.post_attention_layernorm(residual)}
        found |= {present(part): cache for part, cache in zip(attention.cache_parts, y.present, strict=True)}
        if y.present_position_ids is not None:
            found[PRESENT_POSITION_IDS] = y.present_position_ids
        return found | {watched(name): a for name, a in zip(self.watches, y.watched, strict=True)}


class FeedForward(nn.Module):
    """The rest of a layer: its MLP or MoE block. prunes: visual tokens may take fewer experts."""

    def __init__(self, mlp: Any, *, is_moe: bool, prunes: bool) -> None:
        super().__init__()
        self.mlp, self.is_moe, self.prunes = mlp, is_moe, prunes

    def forward(self, inputs: Tensors) -> Tensors:
        h = inputs[HIDDEN_STATES]
        if not self.is_moe:
            return {RESIDUAL: inputs[RESIDUAL] + self.mlp(h)}
        if self.prunes:
            visual_top_k = inputs[graph_io.VISUAL_TOP_K]
        else:
            visual_top_k = torch.full((1,), self.mlp.experts.config.top_k, dtype=torch.int32)
        return {RESIDUAL: inputs[RESIDUAL] + self.mlp(h, inputs[graph_io.VISUAL_INDEX], visual_top_k)}


class EveryRow(nn.Module):
    """Final norm and head of all rows that are left: [T', H] -> [T', vocab] float32."""

    def __init__(self, norm: nn.Module, lm_head: nn.Module) -> None:
        super().__init__()
        self.norm, self.lm_head = norm, lm_head

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        return self.lm_head(self.norm(x)).float()

    def forward(self, inputs: Tensors) -> Tensors:
        return {graph_io.LOGITS: self.logits(inputs[RESIDUAL])}


class NextTokens(EveryRow):
    """Final norm and head of each sequence's last row, the greatest logit's token, and the position after the row."""

    def forward(self, inputs: Tensors) -> Tensors:
        logits = self.logits(inputs[RESIDUAL].index_select(0, inputs[graph_io.SEQUENCE_OFFSETS][1:] - 1))
        is_finite = logits.abs().sum(-1) < float("inf")
        # Of the call's own last rows: those that are left may be others.
        last = inputs[PROMPT_OFFSETS][1:] - 1
        return {
            graph_io.LOGITS: logits,
            graph_io.NEXT_IDS: torch.where(is_finite, logits.argmax(-1).to(torch.int32), -1),
            graph_io.NEXT_POSITION_IDS: inputs[PROMPT_POSITIONS].index_select(0, last) + 1,
        }


def _last_rows(slots: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """[Q] int32: the last of the rows [T, H], as many as there are slots [Q]."""
    Q = slots.shape[0]
    return torch.arange(Q, dtype=torch.int32) + (rows.shape[0] - Q)
