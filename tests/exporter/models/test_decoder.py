# SPDX-License-Identifier: Apache-2.0
"""The decoder around its blocks: who sees whom, positions, groups of caches, and where the rows are pruned."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from fastmmoe.exporter.models.attention import GroupedAttention
from fastmmoe.exporter.models.decoder import DecoderLayer, LanguageModel, MoeBlock
from fastmmoe.exporter.models.layers import Mlp, MoeConfig, RMSNorm, SparseMoe, rotary_frequencies
from fastmmoe.exporter.pruning.settings import Layers, PolicyOptions, resolve_policy
from fastmmoe.exporter.pruning.sites import Sites
from fastmmoe.exporter.pruning.tokens import Rows, Tokens
from fastmmoe.runtime.bundle import graph_io

H, HEADS, VOCAB, DEPTH = 8, 2, 11, 4
MOE = MoeConfig(num_experts=4, top_k=2, intermediate_size=3, scoring_func="softmax")


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


def decoder(*, window: int | None = None, dense: tuple[int, ...] = (0,), **options: Any) -> LanguageModel:
    """Four layers with random weights, the first dense; with a window the even ones slide."""
    every = tuple(range(DEPTH))
    moe = tuple(i for i in every if i not in dense)
    full = every if window is None else every[1::2]
    policy = resolve_policy(PolicyOptions(**options), family="deepseek_vl2", layers=Layers(DEPTH, moe, full, MOE.top_k))
    layers = []
    for i in every:
        attention = GroupedAttention(H, HEADS, 1, H // HEADS, is_sliding=i not in full)
        mlp: nn.Module = Mlp(H, 6) if i in dense else MoeBlock(SparseMoe(H, MOE, "none"), Mlp(H, 3))
        layers.append(DecoderLayer(attention, mlp, RMSNorm(H, 1e-6), RMSNorm(H, 1e-6)))
    model = LanguageModel(
        layers, RMSNorm(H, 1e-6), nn.Linear(H, VOCAB, bias=False), H // HEADS, policy, sliding_window=window
    )
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.5
    model.inv_freq.data = rotary_frequencies(100.0, H // HEADS)
    return model


def ints(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


def inputs_of(model: LanguageModel, embeds: torch.Tensor, **others: torch.Tensor) -> dict[str, torch.Tensor]:
    """A first call of one sequence without visual tokens."""
    T = len(embeds)
    given = {
        graph_io.INPUTS_EMBEDS: embeds,
        graph_io.POSITION_IDS: torch.arange(T, dtype=torch.int32),
        graph_io.SEQUENCE_IDS: torch.zeros(T, dtype=torch.int32),
        graph_io.SEQUENCE_OFFSETS: ints(0, T),
        graph_io.VISUAL_INDEX: ints(),
    }
    for i in range(DEPTH):
        given |= {name: torch.zeros(1, 1, 0, H // HEADS) for name in graph_io.past_names(i, graph_io.KEY_VALUE)}
    for g in range(len(model.groups)):
        given |= {graph_io.past_position_ids(g): ints(), graph_io.past_sequence_ids(g): ints()}
    return given | others


def embeds_of(T: int) -> torch.Tensor:
    return torch.randn(T, H, generator=torch.Generator().manual_seed(1))


def tokens_of(model: LanguageModel, group: int, rows: Rows, **inputs: torch.Tensor) -> Tokens:
    given = {graph_io.INPUTS_EMBEDS: torch.zeros(1, H), **inputs}
    return model._tokens(given, Sites(model.policy, given), group, rows)


def rows_of(positions: torch.Tensor, sequences: torch.Tensor) -> Rows:
    return Rows(positions, sequences, ints(0, len(positions)), ints(), None, None)


def test_a_sequence_sees_its_own_earlier_keys_alone() -> None:
    """Three cached tokens, two of sequence 0 and one of 7; then a row of each."""
    model = decoder(method="none")
    past = {graph_io.past_sequence_ids(0): ints(0, 7, 0)}
    tokens = tokens_of(model, 0, rows_of(ints(2, 3, 1), ints(0, 0, 7)), **past)
    assert tokens.key_sequence_ids.tolist() == [0, 7, 0, 0, 0, 7]
    assert tokens.mask.int().tolist() == [[1, 0, 1, 1, 0, 0], [1, 0, 1, 1, 1, 0], [0, 1, 0, 0, 0, 1]]
    assert (tokens.sliding_mask, tokens.key_position_ids) == (None, None)


def test_a_window_counts_positions() -> None:
    """A window of 3: distances 0, 1 and 2, whatever lies between."""
    model = decoder(method="none", window=3)
    past = {graph_io.past_sequence_ids(0): ints(0, 0, 0), graph_io.past_position_ids(0): ints(0, 4, 5)}
    tokens = tokens_of(model, 0, rows_of(ints(6, 7), ints(0, 0)), **past)
    assert tokens.key_position_ids is not None and tokens.key_position_ids.tolist() == [0, 4, 5, 6, 7]
    assert tokens.sliding_mask is not None
    assert tokens.sliding_mask.int().tolist() == [[0, 1, 1, 1, 0], [0, 0, 1, 1, 1]]
    assert tokens.mask.int().tolist() == [[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]


def test_angles_are_position_times_frequency() -> None:
    model = decoder(method="none")
    model.rope_scale = 2.0
    tokens = tokens_of(model, 0, rows_of(ints(0, 5), ints(0, 0)), **{graph_io.past_sequence_ids(0): ints()})
    angles = torch.tensor([0.0, 5.0])[:, None] * torch.tensor([1.0, 0.1])
    torch.testing.assert_close(tokens.cos, 2 * angles.cos())
    torch.testing.assert_close(tokens.sin, 2 * angles.sin())


@pytest.mark.parametrize(
    ("method", "positions", "active", "expected"),
    [
        ("sparsevlm", "compact", 4, [2, 3]),
        ("sparsevlm", "original", 4, [6, 9]),
        ("fastmmoe", "compact", 1, [6, 9]),
        ("all", "compact", 4, [2, 3]),
        ("all", "compact", 1, [6, 9]),
    ],
)
def test_positions_after_a_site(method: str, positions: str, active: int, expected: list[int]) -> None:
    """Two rows behind two cached ones: numbered anew by SparseVLM 1.5 alone; `active` is the request's method."""
    model = decoder(method=method, prune_layers=(1,), sparsevlm_positions=positions)
    given = {
        graph_io.INPUTS_EMBEDS: torch.zeros(2, H),
        graph_io.RATER_SLOTS: torch.zeros(0, dtype=torch.int8),
        graph_io.VISUAL_INDEX: ints(),
        graph_io.METHOD: ints(active),
    }
    found = model._positions(Sites(model.policy, given), rows_of(ints(6, 9), ints(0, 0)), 2)
    assert (found.tolist(), found.dtype) == (expected, torch.int32)


@pytest.mark.parametrize("window", [None, 2])
def test_a_call_after_another_is_one_call(window: int | None) -> None:
    """Outputs carried as caches: five rows, then three, equal eight at once."""
    model, embeds = decoder(method="none", window=window), embeds_of(8)
    whole = model(inputs_of(model, embeds))
    first = model(inputs_of(model, embeds[:5]))
    caches = {past: first[graph_io.present_name(past)] for past in whole_caches(model, window)}
    second = model(
        inputs_of(model, embeds[5:], **caches, **{graph_io.POSITION_IDS: torch.arange(5, 8, dtype=torch.int32)})
    )
    torch.testing.assert_close(second[graph_io.LOGITS], whole[graph_io.LOGITS], rtol=1e-4, atol=1e-5)
    for past in caches:
        name = graph_io.present_name(past)
        torch.testing.assert_close(second[name], whole[name], rtol=1e-4, atol=1e-5)


def whole_caches(model: LanguageModel, window: int | None) -> list[str]:
    names = [name for i in range(DEPTH) for name in graph_io.past_names(i, graph_io.KEY_VALUE)]
    groups = range(len(model.groups))
    return [
        *names,
        *(graph_io.past_sequence_ids(g) for g in groups),
        *(graph_io.past_position_ids(g) for g in groups if window is not None),
    ]


def test_only_a_model_with_a_window_caches_positions() -> None:
    for window in (None, 3):
        model = decoder(method="none", window=window)
        outputs = model(inputs_of(model, embeds_of(2)))
        assert (graph_io.present_name(graph_io.past_position_ids(0)) in outputs) == (window is not None)


def test_logits_are_those_of_the_last_row_of_each_sequence() -> None:
    model, embeds = decoder(method="none"), embeds_of(5)
    both = inputs_of(model, embeds)
    both |= {
        graph_io.SEQUENCE_IDS: ints(0, 0, 1, 1, 1),
        graph_io.POSITION_IDS: ints(0, 1, 0, 1, 2),
        graph_io.SEQUENCE_OFFSETS: ints(0, 2, 5),
    }
    outputs = model(both)
    assert next(iter(outputs)) == graph_io.LOGITS
    logits = outputs[graph_io.LOGITS]
    assert (logits.shape, logits.dtype) == ((2, VOCAB), torch.float32)
    for row, part in enumerate((embeds[:2], embeds[2:])):
        alone = model(inputs_of(model, part))[graph_io.LOGITS][0]
        torch.testing.assert_close(logits[row], alone, rtol=1e-4, atol=1e-5)


def prune_inputs(model: LanguageModel, embeds: torch.Tensor, keep: int, **others: torch.Tensor) -> dict[str, Any]:
    """A first call with visual rows 1 to 6, of which every site keeps so many."""
    given = inputs_of(model, embeds)
    given |= {
        graph_io.VISUAL_INDEX: torch.arange(1, 7, dtype=torch.int32),
        graph_io.VISUAL_OFFSETS: ints(0, 6),
        graph_io.VISUAL_TOP_K: ints(*[2] * len(model.moe_layers)),
        graph_io.ALPHA: torch.full((len(model.policy.sites),), 0.5),
    }
    for s in range(len(model.policy.sites)):
        given |= {
            graph_io.keep_slots(s): torch.zeros(keep, dtype=torch.int8),
            graph_io.keep_offsets(s): ints(0, keep),
            graph_io.merge_slots(s): torch.zeros(0, dtype=torch.int8),
            graph_io.merge_offsets(s): ints(0, 0),
        }
    return given | others


@pytest.mark.parametrize(
    ("method", "prune_layer", "longest"),
    [
        # The layer of the site still caches every row: K = 2 of fastv is the first layer with fewer, after layer 1.
        ("fastmmoe", 2, 3),
        ("fastv", 2, 2),
    ],
)
def test_layers_after_a_site_cache_fewer_rows(method: str, prune_layer: int, longest: int) -> None:
    model, embeds = decoder(method=method, prune_layers=(prune_layer,)), embeds_of(9)
    outputs = model(prune_inputs(model, embeds, keep=2))
    lengths = [outputs[f"present.{i}.key"].shape[2] for i in range(DEPTH)]
    assert lengths == [9] * longest + [5] * (DEPTH - longest)
    kept = outputs[graph_io.kept_index(0)].tolist()
    assert len(kept) == 5 and {0, 7, 8} <= set(kept) and kept == sorted(kept)
    groups = [outputs[graph_io.present_name(graph_io.past_sequence_ids(g))].shape[0] for g in range(len(model.groups))]
    assert groups == [9, 5]


def test_random_keeps_the_greatest_scores() -> None:
    model, embeds = decoder(method="random", prune_layers=(2,)), embeds_of(9)
    scores = torch.tensor([0.1, 0.9, 0.2, 0.8, 0.3, 0.4])
    outputs = model(prune_inputs(model, embeds, keep=2, **{graph_io.RANDOM_SCORES: scores}))
    assert outputs[graph_io.kept_index(0)].tolist() == [0, 2, 4, 7, 8]


def test_visual_tokens_take_fewer_experts_in_each_layer_of_its_own_number() -> None:
    """The numbers are those of the MoE layers, 1 to 3: the second is of layer 2."""
    model, embeds = decoder(method="fastv", prune_layers=(3,)), embeds_of(9)
    seen: dict[int, int] = {}
    for i in model.moe_layers:
        model.layers[i].mlp.register_forward_hook(lambda _, args, __, i=i: seen.update({i: int(args[2])}))
    model(prune_inputs(model, embeds, keep=6, **{graph_io.VISUAL_TOP_K: ints(2, 1, 2)}))
    assert seen == {1: 2, 2: 1, 3: 2}
    plain = decoder(method="none")
    plain.layers[2].mlp.register_forward_hook(lambda _, args, __: seen.update({2: int(args[2])}))
    plain(inputs_of(plain, embeds))
    assert seen[2] == MOE.top_k


def test_the_shared_expert_is_added() -> None:
    experts, shared = SparseMoe(H, MOE, "none"), nn.Linear(H, H)
    for parameter in experts.parameters():
        parameter.data = torch.zeros_like(parameter)
    x, none, one = embeds_of(3), ints(), ints(1)
    assert not MoeBlock(experts)(x, none, one).any()
    torch.testing.assert_close(MoeBlock(experts, shared)(x, none, one), shared(x))
