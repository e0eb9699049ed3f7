# SPDX-License-Identifier: Apache-2.0
"""Optimisation profiles: the shapes each graph's engine is built for, from a bundle's manifest alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

from fastmmoe.runtime.bundle import graph_io
from fastmmoe.runtime.bundle.manifest import Limits, Manifest
from fastmmoe.runtime.errors import InvalidRequest
from fastmmoe.runtime.method.policy import Site
from fastmmoe.runtime.method.schedule import Schedule, merge_count, plan_request, sparsevlm_counts
from fastmmoe.runtime.request.config import DeepseekVl2ProcessorConfig, ProcessorConfig

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
) -> Limits:
    """The limits of a bundle's engines; None = room for one picture of the most tiles, some text and an answer.

    Raises:
        InvalidRequest: a limit is below 1, below one that it must hold, or above the model's longest sequence.
    """
    longest = manifest.processor.max_position_embeddings
    given = {"tiles": max_tiles, "visual": max_visual, "tokens": max_tokens, "cache": max_cache}
    for name, value in given.items():
        if value is not None and value < 1:
            raise InvalidRequest(f"--max-{name} {value}: expected at least 1")
    tiles = picture_tiles(manifest.processor) if max_tiles is None else max_tiles
    visual = max_visual
    if visual is None:
        visual = min(visual_tokens(manifest.processor, tiles), longest if max_tokens is None else max_tokens)
    tokens = min(visual + TEXT_TOKENS, longest) if max_tokens is None else max_tokens
    cache = min(tokens + NEW_TOKENS, longest) if max_cache is None else max_cache
    if visual > tokens:
        raise InvalidRequest(f"--max-visual {visual}: expected at most --max-tokens, {tokens}, which counts them too")
    if tokens > cache:
        raise InvalidRequest(f"--max-cache {cache}: expected at least --max-tokens, {tokens}: the cache holds a prompt")
    if cache > longest:
        raise InvalidRequest(f"--max-cache {cache}: expected at most {longest}, the model's longest sequence")
    return Limits(max_tokens=tokens, max_visual=visual, max_cache=cache, max_tiles=tiles)


def picture_tiles(processor: ProcessorConfig) -> int:
    """The most tiles of one picture, its global view or thumbnail among them."""
    if isinstance(processor, DeepseekVl2ProcessorConfig):
        side = processor.tile_size
        return 1 + max((width // side) * (height // side) for width, height in processor.candidate_resolutions)
    return processor.max_tiles + (processor.use_thumbnail and processor.max_tiles > 1)


def visual_tokens(processor: ProcessorConfig, tiles: int) -> int:
    """The most visual tokens that pictures of so many tiles in all can have."""
    if isinstance(processor, DeepseekVl2ProcessorConfig):
        side = processor.grid_side
        # At worst every tile's rows end with a newline of their own. A picture has two tiles or more and one separator.
        return tiles * side * (side + 1) + tiles // 2
    return tiles * processor.tokens_per_tile


def engine_profiles(manifest: Manifest, limits: Limits) -> dict[str, tuple[Profile, ...]]:
    """Profiles of every graph: one of vision and embedding; prefill, then decode, of the language model.

    Inputs whose shape is fixed are not named.
    """
    tokens = (1, _typical_tokens(limits), limits.max_tokens)
    return {
        "vision": (_vision(manifest, limits),),
        "embedding": ({graph_io.INPUT_IDS: _vectors(tokens)},),
        "language_model": (_prefill(manifest, limits), _decode(manifest, limits)),
    }


def _shapes(lengths: Lengths, shape: Callable[[int], tuple[int, ...]]) -> TensorRange:
    smallest, typical, greatest = (shape(length) for length in lengths)
    return smallest, typical, greatest


def _vectors(lengths: Lengths) -> TensorRange:
    return _shapes(lengths, lambda length: (length,))


def _typical_visual(limits: Limits) -> int:
    return max(1, limits.max_visual // 2)


def _typical_tokens(limits: Limits) -> int:
    return min(limits.max_tokens, _typical_visual(limits) + TYPICAL_TEXT_TOKENS)


def _typical_schedule(manifest: Manifest, limits: Limits) -> Schedule:
    info = manifest.language_model
    return plan_request(
        manifest.policy, visual_tokens=_typical_visual(limits), moe_layers=info.moe_layers, top_k=info.top_k
    )


def _vision(manifest: Manifest, limits: Limits) -> Profile:
    side = manifest.processor.tile_size
    tiles = (1, max(1, limits.max_tiles // 2), limits.max_tiles)
    profile = {graph_io.PIXEL_VALUES: _shapes(tiles, lambda count: (count, 3, side, side))}
    if isinstance(manifest.processor, DeepseekVl2ProcessorConfig):
        profile[graph_io.LAYOUT_INDEX] = _vectors((1, _typical_visual(limits), limits.max_visual))
    return profile


def _prefill(manifest: Manifest, limits: Limits) -> Profile:
    """A prompt, or more of a conversation after what the caches hold."""
    profile = _token_inputs(manifest, (1, _typical_tokens(limits), limits.max_tokens))
    profile |= _visual_inputs(manifest, (0, _typical_visual(limits), limits.max_visual))
    groups = graph_io.layer_groups(manifest.language_model.layers, manifest.policy.sites)
    caches = _cache_inputs(manifest, [(0, 0, limits.max_cache)] * len(groups))
    return profile | _slot_inputs(manifest, limits) | caches


def _slot_inputs(manifest: Manifest, limits: Limits) -> Profile:
    """Inputs of which only the length counts, in a prefill."""
    typical = _typical_schedule(manifest, limits)
    profile: Profile = {}
    for s, site in enumerate(manifest.policy.sites):
        profile[graph_io.keep_slots(s)] = _vectors((0, typical.keep[s], limits.max_visual))
        if graph_io.takes_merges(site):
            profile[graph_io.merge_slots(s)] = _vectors((0, typical.merge[s], _most_merged(manifest, limits, site)))
        if graph_io.takes_recycling(site):
            most, _ = sparsevlm_counts(limits.max_visual, 0)
            profile[graph_io.recycle_slots(s)] = _vectors((0, typical.recycle[s], most))
    if "sparsevlm" in manifest.policy.methods:
        profile[graph_io.RATER_SLOTS] = _vectors((0, TYPICAL_TEXT_TOKENS, limits.max_tokens))
    return profile


def _most_merged(manifest: Manifest, limits: Limits, site: Site) -> int:
    """The most merged vectors a site can make."""
    policy, visual = manifest.policy, limits.max_visual
    if graph_io.takes_recycling(site):
        return sparsevlm_counts(visual, 0)[1]
    return max(merge_count(visual, keep, policy.merge_ratio, policy.window) for keep in range(1, visual + 1))


def _decode(manifest: Manifest, limits: Limits) -> Profile:
    """One token after a prompt: no visual tokens, nothing to prune."""
    none = (0, 0, 0)
    profile = _token_inputs(manifest, (1, 1, 1)) | _visual_inputs(manifest, none)
    profile |= dict.fromkeys(_slot_inputs(manifest, limits), _vectors(none))
    text = _typical_tokens(limits) - _typical_visual(limits)
    # Every layer with a site leaves fewer rows to the caches of the layers after it.
    typical, visual = _typical_schedule(manifest, limits), [_typical_visual(limits)]
    for s, site in enumerate(manifest.policy.sites):
        following = manifest.policy.sites[s + 1 : s + 2]
        if not following or following[0].layer != site.layer:
            visual.append(typical.keep[s])
    return profile | _cache_inputs(manifest, [(1, text + kept, limits.max_cache) for kept in visual])


def _token_inputs(manifest: Manifest, tokens: Lengths) -> Profile:
    hidden = manifest.language_model.hidden_size
    profile = {
        graph_io.INPUTS_EMBEDS: _shapes(tokens, lambda count: (count, hidden)),
        graph_io.POSITION_IDS: _vectors(tokens),
        graph_io.SEQUENCE_IDS: _vectors(tokens),
    }
    # Engines take one sequence at a time.
    names = [graph_io.SEQUENCE_OFFSETS]
    if manifest.policy.method != "none":
        names.append(graph_io.VISUAL_OFFSETS)
    for s, site in enumerate(manifest.policy.sites):
        names += [graph_io.keep_offsets(s)] + [graph_io.merge_offsets(s)] * graph_io.takes_merge_offsets(site)
    return profile | {name: _vectors((2, 2, 2)) for name in names}


def _visual_inputs(manifest: Manifest, visual: Lengths) -> Profile:
    profile = {graph_io.VISUAL_INDEX: _vectors(visual)}
    if "random" in manifest.policy.methods:
        profile[graph_io.RANDOM_SCORES] = _vectors(visual)
    return profile


def _cache_inputs(manifest: Manifest, lengths: Sequence[Lengths]) -> Profile:
    """Caches of every layer group, from the lengths of each."""
    info = manifest.language_model
    *heads, width = info.cache_shape
    profile: Profile = {}
    for group, layers in enumerate(graph_io.layer_groups(info.layers, manifest.policy.sites)):
        shapes = _shapes(lengths[group], lambda length: (1, *heads, length, width))
        for layer in layers:
            profile |= dict.fromkeys(graph_io.past_names(layer, info.cache_parts), shapes)
        profile[graph_io.past_sequence_ids(group)] = _vectors(lengths[group])
        if info.sliding_layers:
            profile[graph_io.past_position_ids(group)] = _vectors(lengths[group])
    return profile
