# SPDX-License-Identifier: Apache-2.0
"""Prune sites: which attention each method watches, by what it chooses, and what it leaves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from fastmmoe.exporter.pruning.settings import Layers, PolicyOptions, resolve_policy
from fastmmoe.exporter.pruning.sites import (
    HIDDEN_STATES,
    KEEP_OFFSETS,
    KEEP_SLOTS,
    KEPT_INDEX,
    LAST,
    MERGE_OFFSETS,
    MERGE_SLOTS,
    RANDOM_SCORES,
    RATERS,
    RECYCLE_SLOTS,
    RESIDUAL,
    PruneSite,
    is_active,
    own_inputs,
    watch_names,
    watched,
)
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


class Router(nn.Module):
    """Experts with this router, which is asked about visual rows in order."""

    def __init__(self, probs: list[list[float]]) -> None:
        super().__init__()
        self.probs, self.asked = probs, list[list[float]]()

    def routing_probs(self, x: torch.Tensor) -> torch.Tensor:
        self.asked.append(x[:, 0].tolist())
        return torch.tensor(self.probs)


def prune(
    policy: Policy,
    more: dict[str, torch.Tensor],
    s: int = 0,
    *,
    keep: int = 2,
    merge: int = 0,
    recycle: int = 0,
    alpha: float = 0.5,
    experts: nn.Module | None = None,
) -> dict[str, torch.Tensor]:
    """What site s leaves of eight rows; `more` are scores, and the method in a comparison."""
    site = policy.sites[s]
    hidden_states, residual = states()
    counts = {KEEP_SLOTS: slots(keep), MERGE_SLOTS: slots(merge), RECYCLE_SLOTS: slots(recycle)}
    given = counts | {KEEP_OFFSETS: ints(0, keep), MERGE_OFFSETS: ints(0, merge)}
    given = {name: given[name] for name in own_inputs(site, s)}
    given |= {RESIDUAL: residual} | ({HIDDEN_STATES: hidden_states} if site.point == "moe" else {})
    given |= {
        graph_io.POSITION_IDS: torch.arange(T, dtype=torch.int32),
        graph_io.SEQUENCE_IDS: ints(*[0] * T),
        graph_io.SEQUENCE_OFFSETS: ints(0, T),
        graph_io.VISUAL_INDEX: ints(*VISUAL),
        graph_io.VISUAL_OFFSETS: ints(0, len(VISUAL)),
        graph_io.ALPHA: torch.tensor([alpha]),
    }
    return PruneSite(policy, site, watch_names(policy, site.layer), experts)(given | more)


def states() -> tuple[torch.Tensor, torch.Tensor]:
    residual = torch.arange(T, dtype=torch.float32)[:, None].expand(T, H)
    return residual + 100, residual


def attention(*of_visual: float) -> torch.Tensor:
    """[T], 9 at text rows: no method may look at those."""
    found = torch.full((T,), 9.0)
    found[list(VISUAL)] = torch.tensor(of_visual)
    return found


def kept(pruned: dict[str, torch.Tensor]) -> list[int]:
    found: list[int] = pruned[KEPT_INDEX].tolist()
    assert pruned[RESIDUAL][:, 0].tolist() == pytest.approx(found, rel=1e-5)
    assert pruned[graph_io.POSITION_IDS].tolist() == found
    return found


def test_the_inputs_of_a_site_have_its_number() -> None:
    policy = policy_of(method="all", prune_layers=(2, 4))
    for s, site in enumerate(policy.sites):
        own = own_inputs(site, s)
        assert own == {name: f"{name}.{s}" for name in own}
        assert own.keys() >= {KEEP_SLOTS, KEEP_OFFSETS}
        assert (MERGE_OFFSETS in own, RECYCLE_SLOTS in own) == ("fastmmoe" in site.methods, "sparsevlm" in site.methods)
    assert len({site.methods for site in policy.sites}) == 3


def test_the_method_is_known_but_in_a_comparison() -> None:
    assert [is_active("fastv", method, {}) for method in METHODS] == [False, False, False, True, False]
    found = [is_active("all", method, {graph_io.METHOD: ints(METHODS.index("random"))}) for method in METHODS]
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
    assert list(watch_names(policy_of(method=method, prune_layers=(2,)), layer)) == names


def test_random_keeps_its_scores_and_both_streams() -> None:
    policy = policy_of(method="random", prune_layers=(2,))
    pruned = prune(policy, {RANDOM_SCORES: attention(0.1, 0.5, 0.2, 0.4, 0.3)})
    assert kept(pruned) == [0, 2, 4, 6, 7]
    assert pruned[HIDDEN_STATES][:, 0].tolist() == [100, 102, 104, 106, 107]
    assert pruned[RANDOM_SCORES].tolist() == pytest.approx([9, 0.5, 0.4, 9, 9])
    assert pruned[graph_io.VISUAL_INDEX].tolist() == [1, 2] and pruned[graph_io.SEQUENCE_OFFSETS].tolist() == [0, 5]


@pytest.mark.parametrize(("active", "expected"), [("fastmmoe", [0, 1, 2, 6, 7]), ("random", [0, 4, 5, 6, 7])])
def test_a_shared_site_scores_by_the_requests_method(active: Method, expected: list[int]) -> None:
    policy = policy_of(method="all", prune_layers=(2,))
    number = next(s for s, site in enumerate(policy.sites) if site.point == "moe" and "random" in site.methods)
    names = watch_names(policy, policy.sites[number].layer)
    others = {watched(name): attention(*[0.0] * 5) for name in names}
    scores = {watched(LAST): attention(0.5, 0.4, 0.3, 0.2, 0.1)}
    method = {graph_io.METHOD: ints(METHODS.index(active))}
    scores |= {RANDOM_SCORES: attention(0.1, 0.2, 0.3, 0.4, 0.5)} | method
    pruned = prune(policy, others | scores, number, experts=Router([[1.0] * 3] * 5))
    assert kept(pruned) == expected
    # A later site of this layer goes by what is left of its attention.
    assert {len(pruned[watched(name)]) for name in names} == {5}


def test_fastmmoe_merges_a_window_of_alike_routing() -> None:
    """Alpha 1: redundancy alone. The router is asked about visual rows, of which 1, 2 and 3 are alike."""
    policy = policy_of(method="fastmmoe", prune_layers=(2,), window=3, merge="mean")
    router = Router([[1.0, 0, 0]] * 3 + [[0, 1.0, 0], [0, 0, 1.0]])
    scores = {watched(LAST): attention(0.5, 0.5, 0.5, 0.1, 0.4)}
    pruned = prune(policy, scores, keep=2, merge=1, alpha=1.0, experts=router)
    assert router.asked == [[101, 102, 103, 104, 105]]
    assert pruned[KEPT_INDEX].tolist() == [0, 1, 5, 6, 7]
    # The mean of rows 1 to 3 stands at the first of them.
    assert pruned[RESIDUAL][:, 0].tolist() == [0, 2, 5, 6, 7]


@pytest.mark.parametrize(("alpha", "expected"), [(0.0, [0, 1, 2, 3, 6, 7]), (1.0, [0, 1, 3, 5, 6, 7])])
def test_a_site_goes_by_its_alpha(alpha: float, expected: list[int]) -> None:
    """At 0 attention alone decides what is merged. Rows 1 and 2 are alike, 3 and 4 are not."""
    policy = policy_of(method="fastmmoe", prune_layers=(2, 4), window=2, merge="mean")
    router = Router([[1.0, 0], [1, 0], [1, 0], [0, 1], [0.5, 0.5]])
    scores = {watched(LAST): attention(0.9, 0.9, 0.1, 0.1, 0.8)}
    pruned = prune(policy, scores, 1, keep=3, merge=1, alpha=alpha, experts=router)
    assert pruned[KEPT_INDEX].tolist() == expected


def test_fastv_keeps_what_the_last_row_attends_to() -> None:
    policy = policy_of(method="fastv", prune_layers=(2,))
    pruned = prune(policy, {watched(LAST): attention(0.1, 0.5, 0.2, 0.4, 0.3)})
    assert kept(pruned) == [0, 2, 4, 6, 7]
    assert HIDDEN_STATES not in pruned


def test_sparsevlm_recycles_by_the_raters() -> None:
    """Of three: rows 2 and 4 as they are, and one vector of row 5, the best of the rest, behind the last visual row."""
    policy = policy_of(method="sparsevlm", prune_layers=(2,))
    pruned = prune(policy, {watched(RATERS): attention(0.1, 0.5, 0.2, 0.4, 0.3)}, keep=3, merge=1, recycle=1)
    assert kept(pruned) == [0, 2, 4, 5, 6, 7]
    assert HIDDEN_STATES not in pruned
    assert pruned[graph_io.VISUAL_INDEX].tolist() == [1, 2, 3]
