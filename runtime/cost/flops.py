# SPDX-License-Identifier: Apache-2.0
"""FLOPs of one request, by the rules of docs/flops.md: a multiply-add is 2, attention its causal half, MLA expanded."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, fields

from fastmmoe.runtime.bundle.manifest import LanguageModelInfo, Manifest, VisionInfo
from fastmmoe.runtime.cost.weights import expert_weights, projection_weights, vision_weights
from fastmmoe.runtime.errors import InvalidRequest
from fastmmoe.runtime.method.policy import FASTMMOE, FASTV, MLERP, SPARSEVLM, UNMODIFIED, Policy
from fastmmoe.runtime.method.schedule import Schedule, plan_request

NORM_OPERATIONS = 4
"""Operations of a root-mean-square norm, per element: square, sum, scale, weight."""
ROPE_OPERATIONS = 3
"""Per rotated element: two products and their sum."""
SOFTMAX_OPERATIONS = 5
"""Per value: greatest, difference, exponential, sum, quotient."""


@dataclass
class PrefillFlops:
    """FLOPs of a prefill of the language model, by part.

    Attributes:
        projections: linear layers of every attention block, MLA's expansion of the latents to heads included.
        attention: query-key and probability-value products over the causal half, sliding layers within their window.
        router, routed_experts, shared_experts, dense: parts of the feed-forward blocks.
        head: the vocabulary's matrix, for the last row only.
        pruning: what the stages of the method compute for themselves.
        norms, rope, softmax: element by element. These four are not part of the total.
    """

    projections: int = 0
    attention: int = 0
    router: int = 0
    routed_experts: int = 0
    shared_experts: int = 0
    dense: int = 0
    head: int = 0
    pruning: int = 0
    norms: int = 0
    rope: int = 0
    softmax: int = 0

    def __add__(self, other: PrefillFlops) -> PrefillFlops:
        return PrefillFlops(
            **{part.name: getattr(self, part.name) + getattr(other, part.name) for part in fields(self)}
        )

    @property
    def total(self) -> int:
        """The model's matrix products."""
        experts = self.routed_experts + self.shared_experts
        return self.projections + self.attention + self.router + experts + self.dense + self.head


@dataclass(frozen=True)
class RequestFlops:
    """FLOPs of one request beside those of the unmodified model.

    Attributes:
        vision: FLOPs of the vision tower and the projector, which no method changes.
    """

    schedule: Schedule
    text_tokens: int
    prefill: PrefillFlops
    unmodified: PrefillFlops
    vision: int

    @property
    def kept(self) -> int:
        """Visual tokens after the last stage."""
        return (self.schedule.visual_tokens, *self.schedule.kept_visual_tokens)[-1]

    @property
    def reduction(self) -> float:
        """Share of the unmodified language model's prefill that is saved."""
        return 1 - self.prefill.total / self.unmodified.total

    @property
    def reduction_with_vision(self) -> float:
        """The same where the vision tower's FLOPs, which nothing saves, count too."""
        return 1 - (self.prefill.total + self.vision) / (self.unmodified.total + self.vision)


def count_request(
    manifest: Manifest,
    *,
    tokens: int,
    visual_tokens: int,
    tiles: int = 0,
    method: str | None = None,
    retention: float | None = None,
    visual_top_k: int | Sequence[int] | None = None,
    rater_rows: int | None = None,
) -> RequestFlops:
    """Count a request that a bundle would run; no graph is loaded.

    Args:
        tokens: T of the prompt, visual tokens included.
        tiles: those of its pictures; 0 leaves the vision tower out.
        method, retention, visual_top_k: as in `plan_request`; None = the bundle's default.
        rater_rows: see `count_prefill`.
    Raises:
        InvalidRequest: what `plan_request` refuses, or counts that no prompt has.
    """
    if tiles < 0:
        raise InvalidRequest(f"{tiles} tiles: expected at least 0")
    return compare_prefill(
        manifest.language_model,
        manifest.policy,
        tokens=tokens,
        visual_tokens=visual_tokens,
        method=method,
        retention=retention,
        visual_top_k=visual_top_k,
        rater_rows=rater_rows,
        vision=vision_flops(manifest.vision, manifest.language_model.hidden_size, tiles),
    )


def compare_prefill(
    info: LanguageModelInfo,
    policy: Policy,
    *,
    tokens: int,
    visual_tokens: int,
    method: str | None = None,
    retention: float | None = None,
    visual_top_k: int | Sequence[int] | None = None,
    rater_rows: int | None = None,
    vision: int = 0,
) -> RequestFlops:
    """`count_request` for a model without a bundle; vision: FLOPs of its vision tower."""
    if not 0 <= visual_tokens <= tokens or tokens == 0:
        raise InvalidRequest(
            f"{tokens} tokens, {visual_tokens} of them visual: expected at least one token, and 0 to all of them visual"
        )

    plan = functools.partial(
        plan_request, policy, visual_tokens=visual_tokens, moe_layers=info.moe_layers, top_k=info.top_k
    )
    schedule = plan(method=method, retention=retention, visual_top_k=visual_top_k)
    return RequestFlops(
        schedule=schedule,
        text_tokens=tokens - visual_tokens,
        prefill=count_prefill(info, policy, schedule, tokens, rater_rows),
        unmodified=count_prefill(info, policy, plan(method=UNMODIFIED), tokens),
        vision=vision,
    )


def count_prefill(
    info: LanguageModelInfo,
    policy: Policy,
    schedule: Schedule,
    tokens: int,
    rater_rows: int | None = None,
    past: Sequence[int] | None = None,
) -> PrefillFlops:
    """FLOPs of the prefill of one sequence.

    A layer's attention runs on the rows that enter the layer. At a site "moe" its feed-forward block runs on the rows
    that survive. Which rows survive depends on the picture, so a row of a sliding layer is taken to see min(rows up to
    its own, window) keys: after pruning these are the most it can see, as its window spans original positions.

    Args:
        tokens: T of the prompt, visual tokens included.
        schedule: the request's; `plan_request` gives it.
        rater_rows: text rows after the last picture, which sparsevlm rates by; None = all text rows.
        past: cached tokens of every layer, of a conversation that goes on; None = none.
    """
    ends = PrefillFlops(head=head_flops(info), norms=NORM_OPERATIONS * info.hidden_size)
    if schedule.method == SPARSEVLM and schedule.prunes:
        raters = tokens - schedule.visual_tokens if rater_rows is None else rater_rows
        ends.pruning += 2 * schedule.visual_tokens * raters * info.hidden_size
    return sum(count_layers(info, policy, schedule, tokens, rater_rows, past), start=ends)


def count_layers(
    info: LanguageModelInfo,
    policy: Policy,
    schedule: Schedule,
    tokens: int,
    rater_rows: int | None = None,
    past: Sequence[int] | None = None,
) -> list[PrefillFlops]:
    """The part of `count_prefill` that each layer has, its prune sites among it; arguments as there."""
    text, visual = tokens - schedule.visual_tokens, schedule.visual_tokens
    raters = text if rater_rows is None else rater_rows
    layers = []
    for layer in range(info.layers):
        flops, cached = PrefillFlops(), 0 if past is None else past[layer]
        _add_attention(flops, info, layer, text + visual, cached)
        for point in ("moe", "output"):
            for s, site in enumerate(policy.sites):
                if (site.layer, site.point) != (layer, point):
                    continue
                if s in schedule.sites:
                    flops.pruning += _site_flops(info, policy, schedule, s, text + cached, raters)
                visual = schedule.keep[s]
            if point == "moe":
                _add_feed_forward(flops, info, layer, text, visual, schedule)
        layers.append(flops)
    return layers


def vision_flops(info: VisionInfo, hidden_size: int, tiles: int) -> int:
    """FLOPs of the vision graph for this many tiles. A class token counts as one more patch."""
    return sum(vision_parts_flops(info, hidden_size, tiles).values())


def vision_parts_flops(info: VisionInfo, hidden_size: int, tiles: int) -> dict[str, int]:
    """`vision_flops` by the parts of `vision_weights`."""
    rows, weights = info.rows_per_tile, vision_weights(info, hidden_size)
    flops = {part: 2 * rows * count for part, count in weights.items()}
    flops["attention"] += info.layers * 4 * rows * rows * info.width
    flops["projector"] = 2 * info.tokens_per_tile * weights["projector"]
    return {part: tiles * count for part, count in flops.items()}


def head_flops(info: LanguageModelInfo) -> int:
    """FLOPs of the vocabulary's matrix for a row."""
    return 2 * info.hidden_size * info.vocab_size


def _add_attention(flops: PrefillFlops, info: LanguageModelInfo, layer: int, rows: int, past: int) -> None:
    pairs = _pairs(info, layer, past + rows) - _pairs(info, layer, past)
    key_heads = 1 if info.kv_lora_rank else info.kv_heads
    flops.projections += 2 * rows * projection_weights(info)
    flops.attention += 2 * info.heads * (info.query_key_dim + info.value_dim) * pairs
    flops.norms += NORM_OPERATIONS * rows * (2 * info.hidden_size + info.kv_lora_rank)
    flops.rope += ROPE_OPERATIONS * rows * (info.heads + key_heads) * info.rope_dim
    flops.softmax += SOFTMAX_OPERATIONS * info.heads * pairs


def _pairs(info: LanguageModelInfo, layer: int, rows: int) -> int:
    """Query-key pairs of the causal half, within the window of a sliding layer."""
    if layer not in info.sliding_layers or info.sliding_window is None or rows <= info.sliding_window:
        return rows * (rows + 1) // 2
    window = info.sliding_window
    return window * (window + 1) // 2 + (rows - window) * window


def _add_feed_forward(
    flops: PrefillFlops, info: LanguageModelInfo, layer: int, text: int, visual: int, schedule: Schedule
) -> None:
    rows = text + visual
    if layer not in info.moe_layers:
        flops.dense += 6 * rows * info.hidden_size * info.dense_intermediate_size
        return
    visual_top_k = schedule.visual_top_k[info.moe_layers.index(layer)]
    uses = text * info.top_k + visual * visual_top_k
    flops.router += 2 * rows * info.hidden_size * info.num_experts
    flops.routed_experts += 2 * uses * expert_weights(info)
    flops.shared_experts += 6 * rows * info.hidden_size * info.shared_intermediate_size
    flops.softmax += SOFTMAX_OPERATIONS * rows * info.num_experts


def _site_flops(
    info: LanguageModelInfo, policy: Policy, schedule: Schedule, site: int, others: int, raters: int
) -> int:
    """FLOPs of a site by itself. Its scores are computed even where the request keeps every token.

    others: keys in the site's layer that are no visual tokens of this prompt.
    """
    visual, keep = (schedule.visual_tokens, *schedule.keep)[site], schedule.keep[site]
    if visual == 0:
        return 0
    watched_row = 2 * info.heads * info.query_key_dim * (others + visual)
    scores = {
        FASTMMOE: watched_row + 2 * visual * info.hidden_size * info.num_experts,
        FASTV: watched_row,
        SPARSEVLM: raters * watched_row if schedule.prunes else 0,
    }.get(schedule.method, 0)
    if keep == visual and not schedule.merge[site]:
        return scores
    # Choosing is sorting: one comparison = 1 FLOP.
    return scores + visual * (visual - 1).bit_length() + _merge_flops(info, policy, schedule, site, visual)


def _merge_flops(info: LanguageModelInfo, policy: Policy, schedule: Schedule, site: int, visual: int) -> int:
    """FLOPs of a site's merged vectors: finding what is alike, then averaging it."""
    merge, recycle = schedule.merge[site], schedule.recycle[site]
    if not merge:
        return 0
    if schedule.method == SPARSEVLM:
        # Distances between the recycled tokens, then the means of their clusters, as matrix products.
        return 2 * recycle * (recycle + merge) * info.hidden_size
    # Of every routing distribution: its part in the window's mean, the product with it, the norm.
    windows = 5 * visual * info.num_experts
    # In both streams. Of every row of a merged window: its part in the mean, the norm; of the mean: norm and scaling.
    per_window = 3 * policy.window + 3 if policy.merge == MLERP else policy.window
    return windows + 2 * merge * per_window * info.hidden_size
