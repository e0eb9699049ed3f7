# SPDX-License-Identifier: Apache-2.0
"""Prune sites: which attention each method watches, by what it chooses, and what it leaves."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fastmmoe.exporter.pruning.settings import Layers, PolicyOptions, resolve_policy
from fastmmoe.exporter.pruning.sites import LAST, RATERS, Pruned, Sites
from fastmmoe.exporter.pruning.sparsevlm import rater_weights
from fastmmoe.exporter.pruning.tokens import Rows, Watch
from fastmmoe.runtime.bundle import graph_io
from fastmmoe.runtime.method.policy import METHODS, Method, Policy

T, H, DEPTH = 8, 4, 6
VISUAL = (1, 2, 3, 4, 5)


def ints(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


def slots(count: int) -> torch.Tensor:
    return torch.zeros(count, dtype=torch.int8)


def policy_of(**options: Any) -> Policy:
    every = tuple(range(DEPTH))
    return resolve_policy(PolicyOptions(**options), family="deepseek_vl2", layers=Layers(DEPTH, every, every, 2))


def sites_of(
    policy: Policy, keep: int = 2, merge: int = 0, recycle: int = 0, more: dict[str, torch.Tensor] | None = None
) -> Sites:
    given: dict[str, torch.Tensor] = {
        graph_io.INPUTS_EMBEDS: torch.randn(T, H, generator=torch.Generator().manual_seed(0)),
        graph_io.VISUAL_INDEX: ints(*VISUAL),
        graph_io.RATER_SLOTS: slots(2),
        graph_io.ALPHA: torch.linspace(0.0, 1.0, len(policy.sites)),
    }
    for s in range(len(policy.sites)):
        given |= {
            graph_io.keep_slots(s): slots(keep),
            graph_io.keep_offsets(s): ints(0, keep),
            graph_io.merge_slots(s): slots(merge),
            graph_io.merge_offsets(s): ints(0, merge),
            graph_io.recycle_slots(s): slots(recycle),
        }
    return Sites(policy, given | (more or {}))


def rows(**changes: Any) -> Rows:
    values: dict[str, Any] = {
        "position_ids": torch.arange(T, dtype=torch.int32),
        "sequence_ids": ints(*[0] * T),
        "sequence_offsets": ints(0, T),
        "visual_index": ints(*VISUAL),
        "visual_offsets": ints(0, len(VISUAL)),
        "random_scores": None,
    }
    return Rows(**values | changes)


def states() -> tuple[torch.Tensor, torch.Tensor]:
    residual = torch.arange(T, dtype=torch.float32)[:, None].expand(T, H)
    return residual + 100, residual


def attention(*of_visual: float) -> torch.Tensor:
    """[T], 9 at text rows: no method may look at those."""
    found = torch.full((T,), 9.0)
    found[list(VISUAL)] = torch.tensor(of_visual)
    return found


def no_routing(_: torch.Tensor) -> torch.Tensor:
    raise AssertionError("the router is not asked")


def kept(pruned: Pruned) -> list[int]:
    found: list[int] = pruned.kept_index.tolist()
    assert pruned.residual[:, 0].tolist() == pytest.approx(found, rel=1e-5)
    assert pruned.rows.position_ids.tolist() == found
    return found


def test_sites_of_a_layer_have_the_numbers_of_the_policy() -> None:
    """fastv with K = 3 prunes after layer 2, where a site of fastmmoe stands before the MoE block."""
    policy = policy_of(method="all", prune_layers=(2, 4))
    sites = sites_of(policy)
    found = {(i, point): sites.at(i, point) for i in range(DEPTH) for point in ("moe", "output")}
    assert [number for numbered in found.values() for number, _ in numbered] == list(range(len(policy.sites)))
    for (layer, point), numbered in found.items():
        assert all((site.layer, site.point) == (layer, point) for _, site in numbered)
        assert all(policy.sites[number] is site or policy.sites[number] == site for number, site in numbered)
    assert [site.methods for _, site in found[2, "moe"]] == [("fastmmoe", "random")]


def test_the_method_is_known_but_in_a_comparison() -> None:
    alone = sites_of(policy_of(method="fastv"))
    assert [alone.is_active(method) for method in METHODS] == [False, False, False, True, False]
    comparison = sites_of(policy_of(method="all"), more={graph_io.METHOD: ints(METHODS.index("random"))})
    found = [comparison.is_active(method) for method in METHODS]
    assert [bool(active) for active in found] == [method == "random" for method in METHODS]
    assert all(isinstance(active, torch.Tensor) and active.shape == (1,) for active in found)


@pytest.mark.parametrize(
    ("method", "layer", "names"),
    [
        ("fastmmoe", 2, [LAST]),
        ("fastmmoe", 3, []),
        ("random", 2, []),
        ("fastv", 1, [LAST]),
        ("fastv", 2, []),
        ("sparsevlm", 2, [RATERS]),
    ],
)
def test_the_attention_that_a_layer_is_asked_for(method: str, layer: int, names: list[str]) -> None:
    """fastv of K = 2 looks at the layer before."""
    assert list(sites_of(policy_of(method=method, prune_layers=(2,))).watches(layer, rows())) == names


def test_the_last_row_of_each_sequence_is_watched() -> None:
    sites = sites_of(policy_of(method="fastmmoe", prune_layers=(2,)))
    watch = sites.watches(2, rows(sequence_offsets=ints(0, 3, T)))[LAST]
    assert (watch.rows.tolist(), watch.weights.tolist()) == ([2, 7], [1.0, 1.0])


def test_raters_stay_the_last_rows_after_pruning() -> None:
    policy = policy_of(method="sparsevlm", prune_layers=(2,))
    sites = sites_of(policy)
    watch = sites.watches(2, rows())[RATERS]
    assert watch.rows.tolist() == [6, 7]
    embeds = torch.randn(T, H, generator=torch.Generator().manual_seed(0))
    assert torch.equal(watch.weights, rater_weights(embeds[list(VISUAL)], embeds[6:]))
    left: Watch = sites.watches(2, rows(position_ids=torch.arange(5, dtype=torch.int32)))[RATERS]
    assert left.rows.tolist() == [3, 4] and torch.equal(left.weights, watch.weights)


def prune_moe(sites: Sites, policy: Policy, watched: dict[str, torch.Tensor], **of_rows: Any) -> Pruned:
    return sites.prune_moe(0, policy.sites[0], no_routing, *states(), watched, rows(**of_rows))


def test_random_keeps_its_scores_and_both_streams() -> None:
    policy = policy_of(method="random", prune_layers=(2,))
    pruned = prune_moe(sites_of(policy), policy, {}, random_scores=attention(0.1, 0.5, 0.2, 0.4, 0.3))
    assert kept(pruned) == [0, 2, 4, 6, 7]
    assert pruned.hidden_states is not None
    assert pruned.hidden_states[:, 0].tolist() == [100, 102, 104, 106, 107]
    assert (pruned.rows.visual_index.tolist(), pruned.rows.sequence_offsets.tolist()) == ([1, 2], [0, 5])


@pytest.mark.parametrize(("active", "expected"), [("fastmmoe", [0, 1, 2, 6, 7]), ("random", [0, 4, 5, 6, 7])])
def test_a_shared_site_scores_by_the_requests_method(active: Method, expected: list[int]) -> None:
    policy = policy_of(method="all", prune_layers=(2,))
    number, site = next(
        (s, site) for s, site in enumerate(policy.sites) if site.point == "moe" and "random" in site.methods
    )
    sites = sites_of(policy, more={graph_io.METHOD: ints(METHODS.index(active))})
    pruned = sites.prune_moe(
        number,
        site,
        lambda x: torch.ones(len(x), 3),
        *states(),
        {LAST: attention(0.5, 0.4, 0.3, 0.2, 0.1)},
        rows(random_scores=attention(0.1, 0.2, 0.3, 0.4, 0.5)),
    )
    assert kept(pruned) == expected


def test_fastmmoe_merges_a_window_of_alike_routing() -> None:
    """Alpha 1: redundancy alone. The router is asked about visual rows, of which 1, 2 and 3 are alike."""
    policy = policy_of(method="fastmmoe", prune_layers=(2,), window=3, merge="mean")
    asked: list[list[float]] = []

    def routing(x: torch.Tensor) -> torch.Tensor:
        asked.append(x[:, 0].tolist())
        return torch.tensor([[1.0, 0, 0]] * 3 + [[0, 1.0, 0], [0, 0, 1.0]])

    sites = sites_of(policy, keep=2, merge=1, more={graph_io.ALPHA: torch.ones(1)})
    scores = {LAST: attention(0.5, 0.5, 0.5, 0.1, 0.4)}
    pruned = sites.prune_moe(0, policy.sites[0], routing, *states(), scores, rows())
    assert asked == [[101, 102, 103, 104, 105]]
    assert pruned.kept_index.tolist() == [0, 1, 5, 6, 7]
    # The mean of rows 1 to 3 stands at the first of them.
    assert pruned.residual[:, 0].tolist() == [0, 2, 5, 6, 7]


def test_each_site_has_its_own_alpha() -> None:
    """0 at the first site, where attention alone decides what is merged, and 1 at the second."""
    policy = policy_of(method="fastmmoe", prune_layers=(2, 4), window=2, merge="mean")
    sites = sites_of(policy, keep=3, merge=1)

    def routing(x: torch.Tensor) -> torch.Tensor:
        """Rows 1 and 2 are alike, 3 and 4 are not."""
        return torch.tensor([[1.0, 0], [1, 0], [1, 0], [0, 1], [0.5, 0.5]])

    scores = {LAST: attention(0.9, 0.9, 0.1, 0.1, 0.8)}
    first, second = (
        sites.prune_moe(s, policy.sites[s], routing, *states(), scores, rows()).kept_index.tolist() for s in (0, 1)
    )
    assert (first, second) == ([0, 1, 2, 3, 6, 7], [0, 1, 3, 5, 6, 7])


def test_fastv_keeps_what_the_last_row_attends_to() -> None:
    policy = policy_of(method="fastv", prune_layers=(2,))
    scores = {LAST: attention(0.1, 0.5, 0.2, 0.4, 0.3)}
    pruned = sites_of(policy).prune_output(0, policy.sites[0], states()[1], scores, rows())
    assert kept(pruned) == [0, 2, 4, 6, 7]


def test_sparsevlm_recycles_by_the_raters() -> None:
    """Of three: rows 2 and 4 as they are, and one vector of row 5, the best of the rest, behind the last visual row."""
    policy = policy_of(method="sparsevlm", prune_layers=(2,))
    sites = sites_of(policy, keep=3, merge=1, recycle=1)
    scores = {RATERS: attention(0.1, 0.5, 0.2, 0.4, 0.3)}
    pruned = sites.prune_output(0, policy.sites[0], states()[1], scores, rows())
    assert kept(pruned) == [0, 2, 4, 5, 6, 7]
    assert pruned.hidden_states is None
    assert pruned.rows.visual_offsets is not None
    assert (pruned.rows.visual_index.tolist(), pruned.rows.visual_offsets.tolist()) == ([1, 2, 3], [0, 3])
