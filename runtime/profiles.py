# SPDX-License-Identifier: Apache-2.0
"""Optimisation profiles: the shapes each graph's engine is built for, from a bundle's manifest alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

from fastmmoe.runtime import abi
from fastmmoe.runtime.bundle import Limits, Manifest
from fastmmoe.runtime.errors import InvalidRequest
from fastmmoe.runtime.policy import Schedule, merge_count, plan_request
from fastmmoe.runtime.processor_config import DeepseekVl2ProcessorConfig, ProcessorConfig

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
        "embedding": ({abi.INPUT_IDS: _vectors(tokens)},),
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
    profile = {abi.PIXEL_VALUES: _shapes(tiles, lambda count: (count, 3, side, side))}
    if isinstance(manifest.processor, DeepseekVl2ProcessorConfig):
        profile[abi.LAYOUT_INDEX] = _vectors((1, _typical_visual(limits), limits.max_visual))
    return profile


def _prefill(manifest: Manifest, limits: Limits) -> Profile:
    """A prompt, or more of a conversation after what the caches hold."""
    policy, visual = manifest.policy, limits.max_visual
    profile = _token_inputs(manifest, (1, _typical_tokens(limits), limits.max_tokens))
    profile[abi.VISUAL_INDEX] = _vectors((0, _typical_visual(limits), visual))
    schedule = _typical_schedule(manifest, limits)
    most_merged = max(merge_count(visual, keep, policy.merge_ratio, policy.window) for keep in range(1, visual + 1))
    for stage, (keep, merge) in enumerate(zip(schedule.keep, schedule.merge, strict=True)):
        profile[abi.keep_slots(stage)] = _vectors((0, keep, visual))
        profile[abi.merge_slots(stage)] = _vectors((0, merge, most_merged))
    groups = abi.layer_groups(manifest.language_model.layers, policy.prune_layers)
    return profile | _cache_inputs(manifest, [(0, 0, limits.max_cache)] * len(groups))


def _decode(manifest: Manifest, limits: Limits) -> Profile:
    """One token after a prompt: no visual tokens, nothing to prune."""
    policy = manifest.policy
    profile = _token_inputs(manifest, (1, 1, 1))
    none = _vectors((0, 0, 0))
    profile[abi.VISUAL_INDEX] = none
    for stage in range(len(policy.prune_layers)):
        profile |= {abi.keep_slots(stage): none, abi.merge_slots(stage): none}
    text = _typical_tokens(limits) - _typical_visual(limits)
    # Every prune layer leaves fewer rows to the caches of the layers after it.
    visual = (_typical_visual(limits), *_typical_schedule(manifest, limits).keep)
    return profile | _cache_inputs(manifest, [(1, text + kept, limits.max_cache) for kept in visual])


def _token_inputs(manifest: Manifest, tokens: Lengths) -> Profile:
    hidden = manifest.language_model.hidden_size
    return {
        abi.INPUTS_EMBEDS: _shapes(tokens, lambda count: (count, hidden)),
        abi.POSITION_IDS: _vectors(tokens),
    }


def _cache_inputs(manifest: Manifest, lengths: Sequence[Lengths]) -> Profile:
    """Caches of every layer group, from the lengths of each."""
    info = manifest.language_model
    *heads, width = info.cache_shape
    profile: Profile = {}
    for group, layers in enumerate(abi.layer_groups(info.layers, manifest.policy.prune_layers)):
        shapes = _shapes(lengths[group], lambda length: (1, *heads, length, width))
        for layer in layers:
            profile |= dict.fromkeys(abi.past_names(layer, info.cache_parts), shapes)
        if info.sliding_layers:
            profile[abi.past_position_ids(group)] = _vectors(lengths[group])
    return profile
