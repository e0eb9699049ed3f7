# SPDX-License-Identifier: Apache-2.0
"""Optimisation profiles: the shapes each graph's engine is built for, from a bundle's manifest alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np

from fastmmoe.runtime.backends.batch import CAPACITY_STEP, round_up
from fastmmoe.runtime.bundle import graph_io, signatures
from fastmmoe.runtime.bundle.manifest import Limits, Manifest
from fastmmoe.runtime.errors import InvalidRequest
from fastmmoe.runtime.method.call import Chunk
from fastmmoe.runtime.method.policy import SPARSEVLM, Policy, Site
from fastmmoe.runtime.method.schedule import Schedule, merge_count, plan_request, sparsevlm_counts
from fastmmoe.runtime.request.family import family_of

# Room for text in a prompt and for the answer where the user sets no limit, and the text of a typical prompt.
TEXT_TOKENS = 512
NEW_TOKENS = 512
TYPICAL_TEXT_TOKENS = 64

TensorRange: TypeAlias = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
"""Smallest, typical and greatest shape of an input."""

Profile: TypeAlias = dict[str, TensorRange]
"""An optimisation profile: every input with a dimension that may change."""

Lengths: TypeAlias = tuple[int, int, int]
"""Smallest, typical and greatest value of a dimension."""


def resolve_limits(
    manifest: Manifest,
    *,
    max_tokens: int | None = None,
    max_visual: int | None = None,
    max_cache: int | None = None,
    max_tiles: int | None = None,
    max_batch: int | None = None,
) -> Limits:
    """The limits of a bundle's engines; None = room for one picture of the most tiles, some text and an answer.

    Raises:
        InvalidRequest: a limit is below 1, below one that it must hold, or above the model's longest sequence.
    """
    longest = manifest.processor.max_position_embeddings
    given = {
        "tiles": max_tiles,
        "visual": max_visual,
        "tokens": max_tokens,
        "cache": max_cache,
        "batch": max_batch,
    }
    for name, value in given.items():
        if value is not None and value < 1:
            raise InvalidRequest(f"--max-{name} {value}: expected at least 1")
    family = family_of(manifest.processor)
    tiles = family.picture_tiles(manifest.processor) if max_tiles is None else max_tiles
    visual = max_visual
    if visual is None:
        visual = min(
            family.most_visual_tokens(manifest.processor, tiles), longest if max_tokens is None else max_tokens
        )
    tokens = min(visual + TEXT_TOKENS, longest) if max_tokens is None else max_tokens
    cache = min(tokens + NEW_TOKENS, longest) if max_cache is None else max_cache
    if visual > tokens:
        raise InvalidRequest(f"--max-visual {visual}: expected at most --max-tokens, {tokens}, which counts them too")
    if tokens > cache:
        raise InvalidRequest(f"--max-cache {cache}: expected at least --max-tokens, {tokens}: the cache holds a prompt")
    if cache > longest:
        raise InvalidRequest(f"--max-cache {cache}: expected at most {longest}, the model's longest sequence")
    batch = 1 if max_batch is None else max_batch
    if batch > tokens:
        raise InvalidRequest(f"--max-batch {batch}: expected at most --max-tokens, {tokens}: each sequence has a row")
    return Limits(max_tokens=tokens, max_visual=visual, max_cache=cache, max_tiles=tiles, max_batch=batch)


def engine_profiles(manifest: Manifest, limits: Limits) -> dict[str, tuple[Profile, ...]]:
    """Profiles of every graph: one of vision and embedding; prefill, then decode, of the language model.

    Inputs whose shape is fixed are not named.
    """
    lengths = {
        "vision": ({"tiles": _tiles(limits), "V": (1, _typical_visual(limits), limits.max_visual)},),
        "embedding": ({"T": _tokens(limits)},),
        "language_model": (_prefill(manifest, limits), _decode(manifest, limits)),
    }
    taken = signatures.signatures(manifest)
    return {
        graph: tuple(_profile(taken[graph].inputs, dimensions) for dimensions in profiles)
        for graph, profiles in lengths.items()
    }


def _profile(inputs: Sequence[signatures.Tensor], lengths: Mapping[str, Lengths]) -> Profile:
    """The shapes of the inputs that have a dimension which may change, from the lengths of each dimension."""

    def shape(tensor: signatures.Tensor, which: int) -> tuple[int, ...]:
        return tuple(lengths[size][which] if isinstance(size, str) else size for size in tensor.shape)

    return {
        tensor.name: (shape(tensor, 0), shape(tensor, 1), shape(tensor, 2))
        for tensor in inputs
        if any(isinstance(size, str) for size in tensor.shape)
    }


def _tiles(limits: Limits) -> Lengths:
    return 1, max(1, limits.max_tiles // 2), limits.max_tiles


def _tokens(limits: Limits) -> Lengths:
    return 1, min(limits.max_tokens, _typical_visual(limits) + TYPICAL_TEXT_TOKENS), limits.max_tokens


def _typical_visual(limits: Limits) -> int:
    return max(1, limits.max_visual // 2)


def _typical_schedule(manifest: Manifest, limits: Limits) -> Schedule:
    info = manifest.language_model
    return plan_request(
        manifest.policy, visual_tokens=_typical_visual(limits), moe_layers=info.moe_layers, top_k=info.top_k
    )


def _prefill(manifest: Manifest, limits: Limits) -> dict[str, Lengths]:
    """A prompt, or more of a conversation after what the caches hold, or several of them."""
    typical = _typical_schedule(manifest, limits)
    lengths: dict[str, Lengths] = {
        "T": _tokens(limits),
        "B": (1, 1, limits.max_batch),
        graph_io.OFFSETS: (2, 2, limits.max_batch + 1),
        "V": (0, _typical_visual(limits), limits.max_visual),
        "Q": (0, TYPICAL_TEXT_TOKENS, limits.max_tokens),
    }
    for s, site in enumerate(manifest.policy.sites):
        lengths[f"K{s}"] = (0, typical.keep[s], limits.max_visual)
        lengths[f"M{s}"] = (0, typical.merge[s], _most_merged(manifest.policy, limits, site))
        lengths[f"N{s}"] = (0, typical.recycle[s], sparsevlm_counts(limits.max_visual, 0)[0])
    return lengths | _capacities(manifest, limits)


def _capacities(manifest: Manifest, limits: Limits) -> dict[str, Lengths]:
    """Rows of each group's caches: what is left of a typical prompt, and an answer."""
    _, text_and_visual, _ = _tokens(limits)
    prompt = Chunk(
        0, np.empty((text_and_visual, 0)), np.arange(_typical_visual(limits)), _typical_schedule(manifest, limits)
    )
    rows = signatures.cached_rows(manifest.language_model, manifest.policy, prompt)
    groups = signatures.layer_groups(manifest.language_model.layers, manifest.policy.sites)
    most = round_up(limits.max_cache)
    typical = [min(round_up(int(rows[layers[0]]) + TYPICAL_TEXT_TOKENS), most) for layers in groups]
    return {f"C{g}": (CAPACITY_STEP, capacity, most) for g, capacity in enumerate(typical)}


def _most_merged(policy: Policy, limits: Limits, site: Site) -> int:
    """The most merged vectors a site can make."""
    visual = limits.max_visual
    if SPARSEVLM in site.methods:
        return sparsevlm_counts(visual, 0)[1]
    return max(merge_count(visual, keep, policy.merge_ratio, policy.window) for keep in range(1, visual + 1))


def _decode(manifest: Manifest, limits: Limits) -> dict[str, Lengths]:
    """One token of each sequence after its prompt: no visual tokens, nothing to prune."""
    batch = limits.max_batch
    lengths: dict[str, Lengths] = dict.fromkeys(_prefill(manifest, limits), (0, 0, 0))
    lengths |= {"T": (1, 1, batch), "B": (1, 1, batch), graph_io.OFFSETS: (2, 2, batch + 1)}
    return lengths | _capacities(manifest, limits)
