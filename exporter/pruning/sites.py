# SPDX-License-Identifier: Apache-2.0
"""Prune sites, and what each method does there; docs/methods.md has the rules and their sources."""

from __future__ import annotations

import torch
from torch import nn

from fastmmoe.exporter.ops import TOKEN_PRUNE
from fastmmoe.exporter.ops.token_prune import torch_op as _prune  # noqa: F401  (registers the operator)
from fastmmoe.exporter.pruning.sparsevlm import recycle
from fastmmoe.exporter.pruning.tokens import Rows
from fastmmoe.runtime.bundle import graph_io
from fastmmoe.runtime.method.policy import ALL, FASTMMOE, FASTV, METHODS, RANDOM, SPARSEVLM, Method, Policy, Site

LAST, RATERS = "last", "raters"
HIDDEN_STATES, RESIDUAL, RANDOM_SCORES = "hidden_states", "residual", "row_scores"
KEEP_SLOTS, KEEP_OFFSETS, MERGE_SLOTS, MERGE_OFFSETS = "keep_slots", "keep_offsets", "merge_slots", "merge_offsets"
RECYCLE_SLOTS, KEPT_INDEX = "recycle_slots", "kept_index"


def watch_names(policy: Policy, layer: int) -> tuple[str, ...]:
    """The attention that the layer's sites need."""
    methods = {m for site in policy.sites if site.layer == layer for m in site.methods}
    return (LAST,) * bool(methods & {FASTMMOE, FASTV}) + (RATERS,) * (SPARSEVLM in methods)


def own_inputs(site: Site, s: int) -> dict[str, str]:
    """The inputs of the graph that belong to site s alone: name in its step -> name in the graph."""
    found = {KEEP_SLOTS: graph_io.keep_slots(s), KEEP_OFFSETS: graph_io.keep_offsets(s)}
    if {FASTMMOE, SPARSEVLM} & {*site.methods}:
        found[MERGE_SLOTS] = graph_io.merge_slots(s)
    if FASTMMOE in site.methods:
        found[MERGE_OFFSETS] = graph_io.merge_offsets(s)
    if SPARSEVLM in site.methods:
        found[RECYCLE_SLOTS] = graph_io.recycle_slots(s)
    return found


def watched(name: str) -> str:
    """Name of the attention [T] that a watch gives."""
    return f"attention.{name}"


class PruneSite(nn.Module):
    """The step of a site: it knows nothing of its number, or of its layer but what routes its tokens.

    forward takes and gives tensors by name: the rows (`Rows`; random_scores as `RANDOM_SCORES`), `RESIDUAL` [T, H],
    `HIDDEN_STATES` [T, H] where it prunes before a MoE block, `watched` attention [T], the site's own inputs of the
    graph without its number, alpha [1], and in a comparison bundle the method. It gives what is left of them, and
    `KEPT_INDEX` [T'] int32, the row that each comes from.

    Args:
        watches: the layer's (`watch_names`).
        experts: the layer's, whose router a site of fastmmoe asks; has `routing_probs`, [n, H] -> [n, E] float32.
    """

    def __init__(self, policy: Policy, site: Site, watches: tuple[str, ...], experts: nn.Module | None) -> None:
        super().__init__()
        self.method, self.window, self.merge = policy.method, policy.window, policy.merge
        self.point, self.methods, self.watches = site.point, site.methods, watches
        self.experts = experts if FASTMMOE in site.methods else None

    def forward(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        rows = Rows(
            inputs[graph_io.POSITION_IDS],
            inputs[graph_io.SEQUENCE_IDS],
            inputs[graph_io.SEQUENCE_OFFSETS],
            inputs[graph_io.VISUAL_INDEX],
            inputs[graph_io.VISUAL_OFFSETS],
            inputs.get(RANDOM_SCORES),
        )
        if SPARSEVLM in self.methods:
            found = self._recycle(inputs, rows)
        elif FASTV in self.methods:
            scores = inputs[watched(LAST)].index_select(0, rows.visual_index)
            found = self._keep_greatest(inputs, scores, rows)
        else:
            found = self._prune_before_experts(inputs, rows)
        kept_index = found[KEPT_INDEX]
        return found | {watched(name): inputs[watched(name)].index_select(0, kept_index) for name in self.watches}

    def _prune_before_experts(self, inputs: dict[str, torch.Tensor], rows: Rows) -> dict[str, torch.Tensor]:
        """fastmmoe, random: prune both streams between attention and MoE block."""
        visual = rows.visual_index
        scores = [inputs[watched(LAST)].index_select(0, visual)] if LAST in self.watches else []
        if RANDOM in self.methods:
            assert rows.random_scores is not None
            scores.append(rows.random_scores.index_select(0, visual))
        a = scores[0]
        if len(scores) == 2:
            a = torch.where(torch.as_tensor(is_active(self.method, RANDOM, inputs)), scores[1], a)
        if self.experts is None:
            return self._keep_greatest(inputs, a, rows)
        p = self.experts.routing_probs(inputs[HIDDEN_STATES].index_select(0, visual))  # type: ignore[operator]
        return self._token_prune(inputs, p, a, (inputs[MERGE_SLOTS], inputs[MERGE_OFFSETS]), rows)

    def _recycle(self, inputs: dict[str, torch.Tensor], rows: Rows) -> dict[str, torch.Tensor]:
        """sparsevlm: prune the residual stream after a layer."""
        relation = inputs[watched(RATERS)].index_select(0, rows.visual_index)
        counts = (inputs[KEEP_SLOTS], inputs[MERGE_SLOTS], inputs[RECYCLE_SLOTS])
        residual, kept_index, visual_index = recycle(inputs[RESIDUAL], relation, rows.visual_index, *counts)
        survivors = rows.survivors(kept_index, visual_index, inputs[KEEP_OFFSETS])
        return _pruned(None, residual, kept_index, survivors)

    def _keep_greatest(
        self, inputs: dict[str, torch.Tensor], scores: torch.Tensor, rows: Rows
    ) -> dict[str, torch.Tensor]:
        """Keep the K tokens of greatest score: FmmTokenPrune without windows to merge, so routing does not count."""
        no_merges = (inputs[KEEP_SLOTS][:0], torch.zeros_like(inputs[KEEP_OFFSETS]))
        return self._token_prune(inputs, scores[:, None], scores, no_merges, rows)

    def _token_prune(
        self,
        inputs: dict[str, torch.Tensor],
        routing_probs: torch.Tensor,
        attention: torch.Tensor,
        merge: tuple[torch.Tensor, torch.Tensor],
        rows: Rows,
    ) -> dict[str, torch.Tensor]:
        keep_offsets = inputs[KEEP_OFFSETS]
        h, x, kept_index, visual_index = torch.ops.fastmmoe.token_prune(
            inputs.get(HIDDEN_STATES, inputs[RESIDUAL]),
            inputs[RESIDUAL],
            routing_probs,
            attention,
            rows.visual_index,
            rows.visual_offsets,
            inputs[KEEP_SLOTS],
            keep_offsets,
            *merge,
            inputs[graph_io.ALPHA],
            TOKEN_PRUNE.encode({"window": self.window, "merge": self.merge}),
        )
        survivors = rows.survivors(kept_index, visual_index, keep_offsets)
        return _pruned(h if HIDDEN_STATES in inputs else None, x, kept_index, survivors)


def _pruned(
    hidden_states: torch.Tensor | None, residual: torch.Tensor, kept_index: torch.Tensor, rows: Rows
) -> dict[str, torch.Tensor]:
    found = {
        RESIDUAL: residual,
        KEPT_INDEX: kept_index,
        graph_io.POSITION_IDS: rows.position_ids,
        graph_io.SEQUENCE_IDS: rows.sequence_ids,
        graph_io.SEQUENCE_OFFSETS: rows.sequence_offsets,
        graph_io.VISUAL_INDEX: rows.visual_index,
    }
    found |= {} if hidden_states is None else {HIDDEN_STATES: hidden_states}
    return found | ({} if rows.random_scores is None else {RANDOM_SCORES: rows.random_scores})


def is_active(policy_method: str, method: Method, inputs: dict[str, torch.Tensor]) -> torch.Tensor | bool:
    """Whether the request is by this method: [1] bool in a comparison bundle, else known now."""
    if policy_method != ALL:
        return method == policy_method
    return inputs[graph_io.METHOD] == METHODS.index(method)
