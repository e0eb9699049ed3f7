# SPDX-License-Identifier: Apache-2.0
"""The kinds of steps of a decoder: lengths, angles and positions of a group, raters and scores, watches, last rows."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from fastmmoe.exporter.models import decoder_steps as steps
from fastmmoe.exporter.models.attention import Attended
from fastmmoe.exporter.pruning.sites import HIDDEN_STATES, LAST, RANDOM_SCORES, RATERS, RESIDUAL, watched
from fastmmoe.exporter.pruning.sparsevlm import rater_weights
from fastmmoe.runtime.bundle import graph_io

H = 4


def ints(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def group_tokens(
    positions: torch.Tensor, sequences: torch.Tensor, past: torch.Tensor, *, scale: float = 1.0, **options: Any
) -> dict[str, torch.Tensor]:
    """Of sequences that start at rows 0 and 2 where that counts."""
    given = {
        graph_io.POSITION_IDS: positions,
        graph_io.SEQUENCE_IDS: sequences,
        graph_io.SEQUENCE_OFFSETS: ints(0, 2, 3),
        steps.PAST_LENGTHS: past,
        graph_io.METHOD: ints(options.pop("active", 0)),
    }
    settings: dict[str, Any] = {"method": "none", "renumbers": False} | options
    module = steps.GroupTokens(nn.Parameter(torch.tensor([1.0, 0.1])), torch.float32, scale, **settings)
    with torch.no_grad():
        found: dict[str, torch.Tensor] = module(given)
    return found


def test_lengths_grow_by_the_rows_of_each_sequence() -> None:
    """Three sequences of 2, 4 and no cached rows; two rows of the first and one of the last."""
    present = group_tokens(ints(2, 3, 0), ints(0, 0, 2), ints(2, 4, 0))[steps.PRESENT_LENGTHS]
    assert (present.tolist(), present.dtype) == ([4, 4, 1], torch.int32)


def test_angles_are_position_times_frequency() -> None:
    found = group_tokens(ints(0, 5), ints(0, 0), ints(0), scale=2.0)
    angles = torch.tensor([0.0, 5.0])[:, None, None] * torch.tensor([1.0, 0.1])
    torch.testing.assert_close(found[steps.COS], 2 * angles.cos())
    torch.testing.assert_close(found[steps.SIN], 2 * angles.sin())
    assert steps.ROTARY_POSITIONS not in found


@pytest.mark.parametrize(
    ("method", "active", "expected"), [("sparsevlm", 4, [2, 3, 5]), ("all", 4, [2, 3, 5]), ("all", 1, [6, 9, 8])]
)
def test_positions_after_a_site(method: str, active: int, expected: list[int]) -> None:
    """Two rows behind two cached ones of sequence 2, one behind five of sequence 0; `active` is the request's."""
    found = group_tokens(ints(6, 9, 8), ints(2, 2, 0), ints(5, 7, 2), method=method, active=active, renumbers=True)
    positions = found[steps.ROTARY_POSITIONS]
    assert (positions.tolist(), positions.dtype) == (expected, torch.int32)
    angles = torch.tensor(expected)[:, None, None] * torch.tensor([1.0, 0.1])
    torch.testing.assert_close(found[steps.COS], angles.cos())


def test_random_scores_stand_at_the_visual_rows() -> None:
    scores = {graph_io.RANDOM_SCORES: torch.tensor([0.5, 0.25]), graph_io.VISUAL_INDEX: ints(1, 3)}
    found = steps.RandomScores()(scores | {graph_io.POSITION_IDS: ints(0, 1, 2, 3, 4)})
    assert found[RANDOM_SCORES].tolist() == [0, 0.5, 0, 0.25, 0]


def test_the_last_rows_of_the_prompt_rate() -> None:
    embeds, slots = normal(12, H), torch.zeros(6, dtype=torch.int8)
    given = {graph_io.INPUTS_EMBEDS: embeds, graph_io.VISUAL_INDEX: ints(1, 2, 3), graph_io.RATER_SLOTS: slots}
    found = steps.RaterWeights()(given)[steps.RATER_WEIGHTS]
    assert torch.equal(found, rater_weights(embeds[1:4], embeds[6:]))


@dataclass
class Given:
    """What an attention block was called with."""

    tokens: Any = None
    watches: Any = None


class Attending(nn.Module):
    """Attention that doubles, and remembers."""

    cache_parts = graph_io.LATENT

    def __init__(self, given: Given) -> None:
        super().__init__()
        self.given = given

    def forward(self, x: torch.Tensor, tokens: Any, past: list[torch.Tensor], watches: list[Any]) -> Attended:
        self.given.tokens, self.given.watches = tokens, watches
        found = [torch.full((len(x),), float(k)) for k in range(len(watches))]
        return Attended(2 * x, past, tokens.past_position_ids, found)


def attention(*, writes: bool, rows: int = 8) -> tuple[Given, dict[str, torch.Tensor]]:
    given = Given()
    parts = {"input_layernorm": nn.Identity(), "post_attention_layernorm": nn.Tanh(), "self_attn": Attending(given)}
    module = steps.AttentionStep(SimpleNamespace(**parts), (LAST, RATERS), writes_positions=writes)
    inputs = {
        RESIDUAL: normal(rows, H),
        steps.COS: torch.zeros(rows, 1, 1),
        steps.SIN: torch.ones(rows, 1, 1),
        steps.PAST_LENGTHS: ints(0),
        steps.past("latent"): torch.zeros(1, 1, 9, 2),
        graph_io.SEQUENCE_IDS: ints(*[0] * rows),
        graph_io.SEQUENCE_OFFSETS: ints(0, 3, rows),
        graph_io.RATER_SLOTS: torch.zeros(2, dtype=torch.int8),
        steps.RATER_WEIGHTS: torch.tensor([0.75, 0.25]),
        steps.PAST_POSITION_IDS: ints(*range(9))[None],
        steps.ROTARY_POSITIONS: ints(*range(rows)),
    }
    return given, module(inputs) | {"given": inputs[RESIDUAL]}


def test_attention_is_added_and_normed() -> None:
    _, found = attention(writes=False)
    torch.testing.assert_close(found[RESIDUAL], 3 * found["given"])
    torch.testing.assert_close(found[HIDDEN_STATES], found[RESIDUAL].tanh())
    assert steps.present("latent") in found


@pytest.mark.parametrize("rows", [8, 5])
def test_who_is_watched(rows: int) -> None:
    """The last row of each sequence, and the raters: the last rows, however many have been pruned before them."""
    given, found = attention(writes=False, rows=rows)
    last, raters = given.watches
    assert (last.rows.tolist(), last.weights.tolist()) == ([2, rows - 1], [1.0, 1.0])
    assert (raters.rows.tolist(), raters.weights.tolist()) == ([rows - 2, rows - 1], [0.75, 0.25])
    assert (found[watched(LAST)][0], found[watched(RATERS)][0]) == (0, 1)


@pytest.mark.parametrize("writes", [True, False])
def test_one_layer_of_a_group_writes_positions(writes: bool) -> None:
    given, found = attention(writes=writes)
    assert given.tokens.has_new_positions is not writes
    assert found[steps.PRESENT_POSITION_IDS].shape == (1, 9)


class Moe(nn.Module):
    """A MoE block of three experts a token that gives how many visual tokens take."""

    experts = SimpleNamespace(config=SimpleNamespace(top_k=3))

    def forward(self, x: torch.Tensor, visual_index: torch.Tensor, visual_top_k: torch.Tensor) -> torch.Tensor:
        assert visual_index.tolist() == [1]
        return x * visual_top_k


@pytest.mark.parametrize(("prunes", "factor"), [(True, 2), (False, 3)])
def test_experts_of_a_visual_token(prunes: bool, factor: int) -> None:
    given = {RESIDUAL: normal(2, H), HIDDEN_STATES: torch.ones(2, H), graph_io.VISUAL_INDEX: ints(1)}
    found = steps.FeedForward(Moe(), is_moe=True, prunes=prunes)(given | {graph_io.VISUAL_TOP_K: ints(2)})
    torch.testing.assert_close(found[RESIDUAL], given[RESIDUAL] + factor)


def test_a_dense_layer_looks_at_no_visual_rows() -> None:
    given = {RESIDUAL: normal(2, H), HIDDEN_STATES: torch.zeros(2, H)}
    found = steps.FeedForward(nn.Hardtanh(1, 2), is_moe=False, prunes=True)(given)
    torch.testing.assert_close(found[RESIDUAL], given[RESIDUAL] + 1)


def test_every_row_or_the_last_of_each_sequence() -> None:
    x = torch.tensor([[1.0, 5.0], [7.0, 7.0], [2.0, 3.0], [float("nan"), 0.0]])
    every = steps.EveryRow(nn.Identity(), nn.Identity())({RESIDUAL: x})[graph_io.LOGITS]
    assert torch.equal(every[:3], x[:3])
    given = {RESIDUAL: x, graph_io.SEQUENCE_OFFSETS: ints(0, 2, 3, 4)}
    given |= {steps.PROMPT_POSITIONS: ints(0, 1, 2, 3, 7, 9), steps.PROMPT_OFFSETS: ints(0, 4, 5, 6)}
    found = steps.NextTokens(nn.Identity(), nn.Identity())(given)
    # Ties go to the smaller id; nothing follows what is not finite. Positions count rows that were pruned.
    assert found[graph_io.NEXT_IDS].tolist() == [0, 1, -1]
    assert found[graph_io.NEXT_POSITION_IDS].tolist() == [4, 8, 10]
    assert found[graph_io.LOGITS][:2].tolist() == [[7, 7], [2, 3]]
