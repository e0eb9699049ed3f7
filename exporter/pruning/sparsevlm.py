# SPDX-License-Identifier: Apache-2.0
"""SparseVLM's token functions, v1.5 rules, as torch code that traces: raters, pruning with recycling, clustering.

Every size is the length of some input and may be 0 at run time (a decode step has no visual tokens), so nothing here
branches on values, and whatever is reduced gets one neutral row first.

Source: SparseVLM (arXiv 2410.04417); clustering: DPC-KNN without its random noise.
"""

from __future__ import annotations

import torch

COUNT_EPSILON = 1e-6


def rater_weights(visual_embeds: torch.Tensor, text_embeds: torch.Tensor) -> torch.Tensor:
    """How much each text token counts in the relation of a visual token: alike for all raters, 0 for the others.

    Raters are the text tokens that visual tokens resemble more than the mean text token. If there is none, all rate.

    Args:
        visual_embeds: [V, H] float.
        text_embeds: [Q, H] float, the text that rates.
    Returns:
        [Q] float32, sum 1; nothing where Q is 0.
    """
    text = text_embeds.float()
    # The neutral row adds 1 / Q to every score and to their mean. A sum chooses as the mean over V does.
    score = (_with_zero_row(visual_embeds.float()) @ text.t()).softmax(1).sum(0)
    is_above = score > _total(score) / text.shape[0]
    weights = (is_above | (_total(is_above.float()) == 0)).float()
    return weights / _total(weights)


def recycle(
    x: torch.Tensor,
    relation: torch.Tensor,
    visual_index: torch.Tensor,
    keep_slots: torch.Tensor,
    merge_slots: torch.Tensor,
    recycle_slots: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Keep K - M visual rows as they are and merge the next N into M vectors; text rows pass through.

    The K - M rows of greatest relation stay, in order. The N that follow by relation are clustered into M vectors,
    which stand where the row after the last visual row stood; other visual rows are dropped. Ties: the smaller index.
    K = V with M = N = 0 is the identity.

    Args:
        x: [T, H].
        relation: [V] float32.
        visual_index: [V] int32, ascending.
        keep_slots [K], merge_slots [M], recycle_slots [N]: only their lengths count; M <= K, M <= N, K - M + N <= V.
    Returns:
        x_out [T - V + K, H]; kept_index [T - V + K] int32, the source row of each, of a merged vector its cluster's
        centre, so not ascending; visual_index_out [K] int32, the surviving visual rows of x_out, ascending.
    """
    T, V, K, M = x.shape[0], visual_index.shape[0], keep_slots.shape[0], merge_slots.shape[0]
    left = T - V + K
    visual = visual_index.long()
    by_relation = visual.index_select(0, _descending(relation))
    recycled = by_relation.index_select(0, torch.arange(recycle_slots.shape[0]) + (K - M))
    merged, centres = merge_clusters(x.index_select(0, recycled), merge_slots)

    # Merged vectors are rows T to T + M - 1 from here on.
    every = torch.ones(M, dtype=torch.int64)
    stays = torch.ones(T, dtype=torch.int64).scatter(0, by_relation, (torch.arange(V) < K - M).long())
    is_visual = torch.zeros(T, dtype=torch.int64).scatter(0, visual, torch.ones_like(visual))
    candidates = _insert_after_last(visual, T, M)
    kept = _compact(candidates, torch.cat((stays, every)).index_select(0, candidates), left)
    survives = torch.cat((is_visual, every)).index_select(0, kept)
    source = torch.cat((torch.arange(T), recycled.index_select(0, centres))).index_select(0, kept)
    x_out = torch.cat((x, merged.to(x.dtype))).index_select(0, kept)
    return x_out, source.int(), _compact(torch.arange(left), survives, K).int()


def merge_clusters(tokens: torch.Tensor, merge_slots: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Cluster tokens around M centres (DPC-KNN with M neighbours, a token being its own first) and take the means.

    Args:
        tokens: [N, H].
        merge_slots: [M], only its length counts; M <= N.
    Returns:
        merged [M, H] float32 and centres [M] int64, the token in the middle of each; best centre first. Of equally
        dense tokens the first counts as the denser.
    """
    N, M = tokens.shape[0], merge_slots.shape[0]
    points = _with_zero_row(tokens.float())
    place = torch.arange(N + 1)
    squared = _squared_distances(points, place)
    centres = _choose_centres(squared, place, M)

    # The neutral row is a cluster of its own, the last.
    candidates = torch.cat((centres, place[-1:]))
    is_own = place[:, None] == candidates[None, :]
    cluster = torch.where(is_own, -1.0, squared.index_select(1, candidates)).argmin(1)
    is_member = (torch.arange(M)[:, None] == cluster[None, :]).float()
    return is_member @ points / (is_member.sum(1, keepdim=True) + COUNT_EPSILON), centres


def _squared_distances(points: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
    """Mean squared difference [N + 1, N + 1] of two points; infinite to and from the last, which is neutral."""
    # Distances do not change when the mean is taken off, but a part that all points share would cost digits.
    centred = points - points.sum(0, keepdim=True) / (points.shape[0] - 1)
    norms = (centred * centred).sum(1)
    products = centred @ centred.t()
    # A matrix product need not be symmetric to the last bit, and two tokens that are each other's nearest must tie.
    squared = norms[:, None] + norms[None, :] - (products + products.t())
    squared = (squared / points.shape[1]).clamp_min(0.0)
    squared = squared.masked_fill(place[:, None] == place[None, :], 0.0)
    is_point = place < place.shape[0] - 1
    return squared.masked_fill(~(is_point[:, None] & is_point[None, :]), float("inf"))


def _choose_centres(squared: torch.Tensor, place: torch.Tensor, M: int) -> torch.Tensor:
    """The M points [M] int64 of greatest density times distance to a denser point."""
    # Log of the inverse density: exp of far-apart points would be 0 for all of them.
    nearest = squared.sort(1).values
    sparsity = nearest.masked_fill(place[None, :] >= M, 0.0).sum(1) / M
    mine, other = sparsity[:, None], sparsity[None, :]
    is_denser = (other < mine) | ((other == mine) & (place[None, :] < place[:, None]))
    distance = squared.sqrt()
    farthest = distance.masked_fill(distance.isinf(), 0.0).max()
    delta = torch.where(is_denser, distance, farthest).amin(1)
    score = (delta.log() - sparsity).masked_fill(place == place.shape[0] - 1, float("-inf"))
    return _descending(score).index_select(0, torch.arange(M))


def _insert_after_last(visual: torch.Tensor, T: int, M: int) -> torch.Tensor:
    """Rows 0 to T - 1 with the rows T to T + M - 1 put in after the last visual one: [T + M] int64."""
    last = torch.cat((torch.full((1,), -1), visual))[-1:]
    place = torch.arange(T + M)
    moved = torch.where(place <= last + M, place - (last + 1) + T, place - M)
    return torch.where(place <= last, place, moved)


def _compact(values: torch.Tensor, is_kept: torch.Tensor, count: int) -> torch.Tensor:
    """Those `count` of the values [R] int64 where is_kept [R] int64 is 1, in order."""
    place = torch.arange(values.shape[0])
    kept_before = is_kept.cumsum(0) - is_kept
    # The others go behind them, so that no two values share a place.
    target = torch.where(is_kept == 1, kept_before, count + place - kept_before)
    return torch.zeros_like(values).scatter(0, target, values).index_select(0, torch.arange(count))


def _descending(values: torch.Tensor) -> torch.Tensor:
    """The order [N] int64 from the greatest of values [N] to the least; ties: the smaller index."""
    if torch.compiler.is_exporting():
        # The exporter knows no stable sort. What it makes of this one is: TopK puts the smaller index first.
        return values.sort(descending=True).indices
    return values.sort(descending=True, stable=True).indices


def _with_zero_row(rows: torch.Tensor) -> torch.Tensor:
    return torch.cat((rows, rows.new_zeros(1, rows.shape[1])))


def _total(values: torch.Tensor) -> torch.Tensor:
    """Sum [] of values [N], 0 if there are none."""
    return torch.cat((values, values.new_zeros(1))).sum()
