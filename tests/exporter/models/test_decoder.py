# SPDX-License-Identifier: Apache-2.0
"""The decoder around its blocks: positions, lengths and groups of caches, and where the rows are pruned."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from fastmmoe.exporter.models.decoder import LanguageModel, MoeBlock
from fastmmoe.exporter.models.layers import SparseMoe
from fastmmoe.runtime.bundle import graph_io
from tests.support.tiny_decoders import DEPTH, HEADS, MOE, VOCAB, H, decoder


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


def ints(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


def inputs_of(model: LanguageModel, embeds: torch.Tensor, sequences: int = 1) -> dict[str, torch.Tensor]:
    """A first call of sequence 0 without visual tokens; the caches have room for 12 rows and hold none."""
    T, capacity = len(embeds), 12
    given = {
        graph_io.INPUTS_EMBEDS: embeds,
        graph_io.POSITION_IDS: torch.arange(T, dtype=torch.int32),
        graph_io.SEQUENCE_IDS: torch.zeros(T, dtype=torch.int32),
        graph_io.SEQUENCE_OFFSETS: ints(0, T),
        graph_io.VISUAL_INDEX: ints(),
    }
    for i in range(DEPTH):
        cache = torch.full((sequences, 1, capacity, H // HEADS), math.nan)
        given |= dict.fromkeys(graph_io.past_names(i, graph_io.KEY_VALUE), cache)
    for g, layers in enumerate(model.groups):
        given[graph_io.past_lengths(g)] = torch.zeros(sequences, dtype=torch.int32)
        if any(model.layers[i].self_attn.window for i in layers):
            given[graph_io.past_position_ids(g)] = torch.full((sequences, capacity), -1, dtype=torch.int32)
    return given


def embeds_of(T: int) -> torch.Tensor:
    return torch.randn(T, H, generator=torch.Generator().manual_seed(1))


def written(model: LanguageModel) -> list[str]:
    """The inputs that a call writes to."""
    names = [name for i in range(DEPTH) for name in graph_io.past_names(i, graph_io.KEY_VALUE)]
    slides = [any(model.layers[i].self_attn.window for i in layers) for layers in model.groups]
    return [*names, *(graph_io.past_position_ids(g) for g, one in enumerate(slides) if one)]


def after(model: LanguageModel, outputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The caches and their lengths as a call left them."""
    names = [*written(model), *(graph_io.past_lengths(g) for g in range(len(model.groups)))]
    return {name: outputs[graph_io.present_name(name)] for name in names}


@pytest.mark.parametrize("window", [None, 2])
def test_a_call_after_another_is_one_call(window: int | None) -> None:
    """Outputs carried as caches: five rows, then three, equal eight at once."""
    model, embeds = decoder(method="none", window=window), embeds_of(8)
    whole = model(inputs_of(model, embeds))
    first = model(inputs_of(model, embeds[:5]))
    positions = {graph_io.POSITION_IDS: torch.arange(5, 8, dtype=torch.int32)}
    second = model(inputs_of(model, embeds[5:]) | after(model, first) | positions)
    assert first[graph_io.present_name(graph_io.past_lengths(0))].tolist() == [5]
    torch.testing.assert_close(second[graph_io.LOGITS], whole[graph_io.LOGITS], rtol=1e-4, atol=1e-5)
    for past, cache in after(model, second).items():
        expected = whole[graph_io.present_name(past)]
        torch.testing.assert_close(cache, expected, rtol=1e-4, atol=1e-5, equal_nan=True)


def test_only_groups_with_a_window_cache_positions() -> None:
    """With a site in layer 2 the groups are layers 0 to 2 and 3; the former has both layers that slide, of which the
    first writes."""
    plain, sliding = decoder(method="none"), decoder(method="none", window=3)
    pruned = decoder(method="fastmmoe", window=3, sliding=(0, 1), prune_layers=(2,))
    both = decoder(method="fastmmoe", window=3, prune_layers=(1,))
    for model, given, groups, writers in (
        (plain, inputs_of(plain, embeds_of(2)), [], []),
        (sliding, inputs_of(sliding, embeds_of(2)), [0], [0]),
        (pruned, prune_inputs(pruned, embeds_of(9), keep=2), [0], [0]),
        (both, prune_inputs(both, embeds_of(9), keep=6), [0, 1], [0, 2]),
    ):
        wrote: list[int] = []
        for i, layer in enumerate(model.layers):
            layer.self_attn.register_forward_hook(
                lambda _, __, y, i=i, wrote=wrote: wrote.extend([i] * (y.present_position_ids is not None))
            )
        outputs = model(given)
        assert wrote == writers
        found = [g for g in range(2) if graph_io.present_name(graph_io.past_position_ids(g)) in outputs]
        assert found == groups
        for g in groups:
            T = len(given[graph_io.POSITION_IDS])
            positions = outputs[graph_io.present_name(graph_io.past_position_ids(g))].tolist()
            assert positions == [[*range(T), *[-1] * (12 - T)]]


def test_logits_are_those_of_the_last_row_of_each_sequence() -> None:
    """Sequences 2 and 0 of three; 1 keeps its empty caches."""
    model, embeds = decoder(method="none"), embeds_of(5)
    both = inputs_of(model, embeds, sequences=3)
    both |= {
        graph_io.SEQUENCE_IDS: ints(2, 2, 0, 0, 0),
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
    assert outputs["present_lengths.0"].tolist() == [3, 0, 2]
    keys = outputs["present.3.key"][:, 0, :, 0].isnan()
    assert (~keys).sum(1).tolist() == [3, 0, 2]


def test_a_device_can_go_on_by_itself() -> None:
    """The next ids and positions of two sequences; of two tokens of one logit the smaller id."""
    model, embeds = decoder(method="none"), embeds_of(5)
    model.lm_head.weight.data[7] = model.lm_head.weight.data[4] = 3 * model.lm_head.weight.data[2]
    both = inputs_of(model, embeds, sequences=2)
    both |= {
        graph_io.SEQUENCE_IDS: ints(0, 0, 1, 1, 1),
        graph_io.POSITION_IDS: ints(0, 1, 40, 41, 42),
        graph_io.SEQUENCE_OFFSETS: ints(0, 2, 5),
    }
    outputs = model(both)
    logits, ids = outputs[graph_io.LOGITS], outputs[graph_io.NEXT_IDS]
    assert (logits[:, 4] == logits[:, 7]).all()
    assert ids.dtype == torch.int32
    assert ids.tolist() == [min(i for i in range(VOCAB) if row[i] == row.max()) for row in logits]
    assert 4 in ids.tolist()
    positions = outputs[graph_io.NEXT_POSITION_IDS]
    assert (positions.tolist(), positions.dtype) == ([2, 43], torch.int32)


def test_the_next_position_counts_rows_that_were_pruned() -> None:
    """A prompt that ends with visual tokens, of which the last is dropped: decoding goes on from the whole length."""
    model = decoder(method="random", prune_layers=(2,))
    scores = torch.tensor([0.9, 0.8, 0.4, 0.3, 0.2, 0.1])
    outputs = model(prune_inputs(model, embeds_of(7), keep=2, **{graph_io.RANDOM_SCORES: scores}))
    assert outputs[graph_io.kept_index(0)].tolist() == [0, 1, 2]
    assert outputs[graph_io.NEXT_POSITION_IDS].tolist() == [7]


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
    lengths = [int(outputs[f"present_lengths.{g}"]) for g, layers in enumerate(model.groups) for _ in layers]
    assert lengths == [9] * longest + [5] * (DEPTH - longest)
    filled = [int((~outputs[f"present.{i}.key"][0, 0, :, 0].isnan()).sum()) for i in range(DEPTH)]
    assert filled == lengths
    kept = outputs[graph_io.kept_index(0)].tolist()
    assert len(kept) == 5 and {0, 7, 8} <= set(kept) and kept == sorted(kept)


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
