# SPDX-License-Identifier: Apache-2.0
"""Prune sites, and what each method does there; docs/methods.md has the rules and their sources."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from fastmmoe.exporter.ops import TOKEN_PRUNE
from fastmmoe.exporter.ops.token_prune import torch_op as _prune  # noqa: F401  (registers the operator)
from fastmmoe.exporter.pruning.sparsevlm import rater_weights, recycle
from fastmmoe.exporter.pruning.tokens import Rows, Watch
from fastmmoe.runtime.bundle import graph_io
from fastmmoe.runtime.method.policy import ALL, FASTMMOE, FASTV, METHODS, RANDOM, SPARSEVLM, Method, Policy, Site

LAST, RATERS = "last", "raters"


@dataclass(frozen=True)
class Pruned:
    """The rows that a site leaves.

    Attributes:
        hidden_states: [T', H] normalised states for the MoE block; None at a site "output".
        residual: [T', H].
        kept_index: [T'] int32, the row each comes from.
    """

    hidden_states: torch.Tensor | None
    residual: torch.Tensor
    rows: Rows
    kept_index: torch.Tensor


class Sites:
    """The prune sites of one call.

    Args:
        inputs: the graph's (runtime/bundle/graph_io.py).
    """

    def __init__(self, policy: Policy, inputs: dict[str, torch.Tensor]) -> None:
        self._policy, self._inputs = policy, inputs
        self._raters = self._rater_watch() if SPARSEVLM in policy.methods else None

    def at(self, layer: int, point: str) -> list[tuple[int, Site]]:
        """(number, site) of a layer's sites at "moe" or "output"."""
        return [(s, site) for s, site in enumerate(self._policy.sites) if (site.layer, site.point) == (layer, point)]

    def is_active(self, method: Method) -> torch.Tensor | bool:
        """Whether the request is by this method: [1] bool in a comparison bundle, else known now."""
        if self._policy.method != ALL:
            return method == self._policy.method
        return self._inputs[graph_io.METHOD] == METHODS.index(method)

    def watches(self, layer: int, rows: Rows) -> dict[str, Watch]:
        """The attention that the layer's sites need, by name."""
        methods = {m for site in self._policy.sites if site.layer == layer for m in site.methods}
        found = {}
        if methods & {FASTMMOE, FASTV}:
            found[LAST] = Watch(rows.last, torch.ones_like(rows.last, dtype=torch.float32))
        if SPARSEVLM in methods:
            assert self._raters is not None
            # The raters are the last rows of the sequence, however many have been pruned before them.
            shift = rows.position_ids.shape[0] - self._inputs[graph_io.INPUTS_EMBEDS].shape[0]
            found[RATERS] = Watch(self._raters.rows + shift, self._raters.weights)
        return found

    def prune_moe(
        self,
        s: int,
        site: Site,
        routing_probs: Callable[[torch.Tensor], torch.Tensor],
        hidden_states: torch.Tensor,
        residual: torch.Tensor,
        attention: dict[str, torch.Tensor],
        rows: Rows,
    ) -> Pruned:
        """fastmmoe, random: prune both streams between attention and MoE block.

        Args:
            routing_probs: the layer's router, [n, H] -> [n, E] float32.
            attention: [T] by watch.
        """
        visual = rows.visual_index
        scores = [attention[LAST].index_select(0, visual)] if LAST in attention else []
        if RANDOM in site.methods:
            assert rows.random_scores is not None
            scores.append(rows.random_scores.index_select(0, visual))
        a = scores[0]
        if len(scores) == 2:
            a = torch.where(torch.as_tensor(self.is_active(RANDOM)), scores[1], a)
        if FASTMMOE not in site.methods:
            return self._keep_greatest(s, hidden_states, residual, a, rows)
        p = routing_probs(hidden_states.index_select(0, visual))
        slots = (self._inputs[graph_io.merge_slots(s)], self._inputs[graph_io.merge_offsets(s)])
        return self._token_prune(s, hidden_states, residual, p, a, slots, rows)

    def prune_output(
        self, s: int, site: Site, residual: torch.Tensor, attention: dict[str, torch.Tensor], rows: Rows
    ) -> Pruned:
        """fastv, sparsevlm: prune the residual stream after a layer. attention: [T] by watch."""
        if FASTV in site.methods:
            a = attention[LAST].index_select(0, rows.visual_index)
            return self._keep_greatest(s, residual, residual, a, rows)
        relation = attention[RATERS].index_select(0, rows.visual_index)
        slots = (
            self._inputs[name] for name in (graph_io.keep_slots(s), graph_io.merge_slots(s), graph_io.recycle_slots(s))
        )
        residual, kept_index, visual_index = recycle(residual, relation, rows.visual_index, *slots)
        survivors = rows.survivors(kept_index, visual_index, self._inputs[graph_io.keep_offsets(s)])
        return Pruned(None, residual, survivors, kept_index)

    def _rater_watch(self) -> Watch:
        inputs = self._inputs
        embeds, Q = inputs[graph_io.INPUTS_EMBEDS], inputs[graph_io.RATER_SLOTS].shape[0]
        rows = torch.arange(Q, dtype=torch.int32) + (embeds.shape[0] - Q)
        visual = embeds.index_select(0, inputs[graph_io.VISUAL_INDEX])
        return Watch(rows, rater_weights(visual, embeds.index_select(0, rows)))

    def _keep_greatest(
        self, s: int, hidden_states: torch.Tensor, residual: torch.Tensor, scores: torch.Tensor, rows: Rows
    ) -> Pruned:
        """Keep the K tokens of greatest score: FmmTokenPrune without windows to merge, so routing does not count."""
        keep_slots, keep_offsets = self._inputs[graph_io.keep_slots(s)], self._inputs[graph_io.keep_offsets(s)]
        no_merges = (keep_slots[:0], torch.zeros_like(keep_offsets))
        return self._token_prune(s, hidden_states, residual, scores[:, None], scores, no_merges, rows)

    def _token_prune(
        self,
        s: int,
        hidden_states: torch.Tensor,
        residual: torch.Tensor,
        routing_probs: torch.Tensor,
        attention: torch.Tensor,
        merge: tuple[torch.Tensor, torch.Tensor],
        rows: Rows,
    ) -> Pruned:
        keep_offsets = self._inputs[graph_io.keep_offsets(s)]
        h, x, kept_index, visual_index = torch.ops.fastmmoe.token_prune(
            hidden_states,
            residual,
            routing_probs,
            attention,
            rows.visual_index,
            rows.visual_offsets,
            self._inputs[graph_io.keep_slots(s)],
            keep_offsets,
            *merge,
            self._inputs[graph_io.ALPHA][s : s + 1],
            TOKEN_PRUNE.encode({"window": self._policy.window, "merge": self._policy.merge}),
        )
        return Pruned(h, x, rows.survivors(kept_index, visual_index, keep_offsets), kept_index)
