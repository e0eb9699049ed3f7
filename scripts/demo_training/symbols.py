# SPDX-License-Identifier: Apache-2.0
"""Visual tokens without pictures: sums of what a token shows. The decoder learns on them, the tower imitates them."""

from __future__ import annotations

import torch
from tokenizers import Tokenizer
from torch import nn

from demo_training.config import GRID
from demo_training.data import BINS
from demo_training.model import HIDDEN, Decoder
from fastmmoe.calibration.scenes import COLOR_NAMES, SHAPE_NAMES

_SCALE = 0.5
_PLACE_SCALE = 0.25


def _ordered(count: int, scale: float) -> torch.Tensor:
    """[count, H]: vectors of near numbers are alike, so that an order can be read from them."""
    centres = torch.linspace(0, count - 1, 8)
    bumps = torch.exp(-0.5 * ((torch.arange(count)[:, None] - centres) / (count / 8)).square())
    return bumps @ torch.randn(8, HIDDEN) * scale


class Symbols(nn.Module):
    """Tables of what a token may show: nothing, or an object's color, shape, x and y; and its own row and column."""

    def __init__(self) -> None:
        super().__init__()
        self.empty = nn.Parameter(torch.randn(HIDDEN) * _SCALE)
        self.attributes = nn.ParameterList(
            (
                torch.randn(len(COLOR_NAMES), HIDDEN) * _SCALE,
                torch.randn(len(SHAPE_NAMES), HIDDEN) * _SCALE,
                _ordered(BINS, _SCALE),
                _ordered(BINS, _SCALE),
            )
        )
        self.row, self.column = nn.Parameter(_ordered(GRID, _PLACE_SCALE)), nn.Parameter(_ordered(GRID, _PLACE_SCALE))

    def forward(self, objects: torch.Tensor, attributes: torch.Tensor) -> torch.Tensor:
        """objects [B, GRID^2] int64, attributes [B, objects, 4] int64 -> tokens of a view [B, GRID^2, H]."""
        shown = torch.stack([table[attributes[..., i].clamp(min=0)] for i, table in enumerate(self.attributes)]).sum(0)
        shown = torch.cat((shown, self.empty.expand(shown.shape[0], 1, HIDDEN)), dim=1)
        index = torch.where(objects < 0, shown.shape[1] - 1, objects)
        tokens = shown.gather(1, index[..., None].expand(-1, -1, HIDDEN))
        return tokens + (self.row[:, None] + self.column[None, :]).flatten(0, 1)

    @torch.no_grad()
    def share_words(self, decoder: Decoder, tokenizer: Tokenizer) -> None:
        """Start from one vector for a word, in questions and answers, and for what a visual token shows of it."""
        for table, names in zip(self.attributes, (COLOR_NAMES, SHAPE_NAMES), strict=False):
            for vector, name in zip(table, names, strict=True):
                for word in (name, f" {name}", f" {name}s"):
                    ids = tokenizer.encode(word, add_special_tokens=False).ids
                    if len(ids) == 1:
                        decoder.embed_tokens.weight[ids[0]] = vector
                        decoder.lm_head.weight[ids[0]] = vector * 0.2
        for layer in decoder.layers:
            queries, keys = (layer.get_parameter(f"self_attn.{name}.weight") for name in ("q_proj", "k_proj"))
            keys.copy_(queries)
