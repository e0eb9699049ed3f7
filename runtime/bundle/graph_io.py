# SPDX-License-Identifier: Apache-2.0
"""The graphs' inputs and outputs, each written once.

Through signatures.py the exporter traces these entries, the runtime feeds them, carries the caches and checks a graph
against them, and the profiles of engines bound them; docs/bundle.md lists them. A new input of the language model is
one entry here, and its use in the decoder.

B sequences have caches. The T rows of a call belong to A of them, one after the other; V of the rows are visual tokens.
A site s is a place where visual tokens are pruned (`Policy.sites`); the layers between two of them are a group g, whose
caches have room for C_g rows of each sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fastmmoe.runtime.method.call import Call, offsets
from fastmmoe.runtime.method.policy import ALL, FASTMMOE, METHODS, RANDOM, SPARSEVLM, UNMODIFIED, Policy, Site
from fastmmoe.runtime.types import Array

if TYPE_CHECKING:
    from fastmmoe.runtime.bundle.manifest import LanguageModelInfo


PIXEL_VALUES = "pixel_values"
LAYOUT_INDEX = "layout_index"
IMAGE_FEATURES = "image_features"
INPUT_IDS = "input_ids"
INPUTS_EMBEDS = "inputs_embeds"
POSITION_IDS = "position_ids"
SEQUENCE_IDS = "sequence_ids"
SEQUENCE_OFFSETS = "sequence_offsets"
VISUAL_INDEX = "visual_index"
VISUAL_OFFSETS = "visual_offsets"
METHOD = "method"
RANDOM_SCORES = "random_scores"
RATER_SLOTS = "rater_slots"
VISUAL_TOP_K = "visual_top_k"
ALPHA = "alpha"
LOGITS = "logits"
NEXT_IDS = "next_ids"
NEXT_POSITION_IDS = "next_position_ids"

KEY_VALUE = ("key", "value")
LATENT = ("latent",)

F = "F"
"""Stands for the bundle's activation dtype."""
S = "S"
"""Stands for the bundle's cache dtype: what caches store."""
OFFSETS = "offsets"
"""The size A + 1."""
_LEAST_SIZES = {"tiles": 1, "T": 1, "B": 1, "C": 1, OFFSETS: 2}


def least_size(size: str) -> int:
    """The least value of a size, C of "C0" and "C1" too."""
    return _LEAST_SIZES.get(size.rstrip("0123456789"), 0)


class Place(NamedTuple):
    """Where an entry would stand. site: None outside of sites. layers: those of the group, () outside of groups."""

    info: LanguageModelInfo
    policy: Policy
    site: Site | None
    layers: tuple[int, ...] = ()


@dataclass(frozen=True)
class Condition:
    """Which graphs, sites or layers have an input, in words and as a function."""

    text: str
    holds: Callable[[Place], bool]


def _site_has(*methods: str) -> Condition:
    names = ", ".join(f"`{m}`" for m in methods)
    return Condition(f"at sites of {names}", lambda p: p.site is not None and bool({*methods} & {*p.site.methods}))


def _graph_has(method: str) -> Condition:
    return Condition(f"with `{method}` in the graph", lambda p: method in p.policy.methods)


ALWAYS = Condition("", lambda place: True)
PRUNES = Condition("with a pruning method", lambda p: p.policy.method != UNMODIFIED)
COMPARES = Condition("in comparison bundles", lambda p: p.policy.method == ALL)
HAS_KEYS = Condition("without latent attention", lambda p: p.info.cache_parts == KEY_VALUE)
HAS_LATENT = Condition("with multi-head latent attention", lambda p: p.info.cache_parts == LATENT)
SLIDES = Condition("in groups with sliding layers", lambda p: bool({*p.info.sliding_layers} & {*p.layers}))


@dataclass(frozen=True)
class Entry:
    """An input or output, or one for each site {s}, layer {i} or layer group {g}.

    Attributes:
        shape: numbers, sizes of the model, and the names of dimensions that may change.
        dtype: NumPy's name, F or S.
        feed: its values in a call, at a site or of a group; None = an output, or a cache, which the call writes to: the
            output `present_name` has the same address.
        moves: whether decoding steps of the same sequences differ in it (`Call.alike`).
    """

    name: str
    shape: tuple[int | str, ...]
    dtype: str
    doc: str
    feed: Callable[[Call, int], Array] | None = None
    only_if: Condition = ALWAYS
    moves: bool = False


def _slots(counts: Sequence[int]) -> Array:
    return np.zeros(sum(counts), np.int8)


VISION = (
    Entry(PIXEL_VALUES, ("tiles", 3, "side", "side"), F, "Normalised tiles."),
    Entry(
        LAYOUT_INDEX,
        ("V",),
        "int32",
        "DeepSeek-VL2: for every visual position a row of (features of all tiles in order, image_newline, "
        "view_seperator).",
    ),
)
EMBEDDING = (Entry(INPUT_IDS, ("T",), "int32", "Token ids."),)
CACHE = ("B", "Nkv", "C{g}", "D")
OF_CALL = (
    Entry(
        INPUTS_EMBEDS,
        ("T", "H"),
        F,
        "Embeddings, with image features at the visual tokens.",
        lambda call, _: call.inputs_embeds(),
        moves=True,
    ),
    Entry(
        POSITION_IDS,
        ("T",),
        "int32",
        "Positions in the original sequence, ascending within one.",
        lambda call, _: call.positions(),
        moves=True,
    ),
    Entry(
        SEQUENCE_IDS,
        ("T",),
        "int32",
        "Which sequence of the caches a row belongs to.",
        lambda call, _: call.sequences(),
    ),
    Entry(
        SEQUENCE_OFFSETS,
        (OFFSETS,),
        "int32",
        "Where in T each sequence of this call starts.",
        lambda call, _: offsets(call.tokens),
    ),
    Entry(
        VISUAL_INDEX,
        ("V",),
        "int32",
        "Rows that are visual tokens, ascending; none when decoding.",
        lambda call, _: call.visual_index(),
    ),
    Entry(
        VISUAL_OFFSETS,
        (OFFSETS,),
        "int32",
        "Where in V each sequence starts.",
        lambda call, _: offsets(call.visual_tokens),
        PRUNES,
    ),
    Entry(
        VISUAL_TOP_K,
        ("MoE layers",),
        "int32",
        "Experts of a visual token, layer by layer.",
        lambda call, _: np.array(call.schedule.visual_top_k),
        PRUNES,
    ),
    Entry(
        ALPHA,
        ("sites",),
        "float32",
        "Weight of redundancy against importance.",
        lambda call, _: np.full(len(call.policy.sites), call.alpha),
        PRUNES,
    ),
    Entry(
        METHOD,
        (1,),
        "int32",
        f"The request's method: {', '.join(f'{i} {m}' for i, m in enumerate(METHODS))}.",
        lambda call, _: np.array([call.method_number()]),
        COMPARES,
    ),
    Entry(
        RANDOM_SCORES,
        ("V",),
        "float32",
        "The visual tokens of the greatest are kept.",
        lambda call, _: call.random_scores(),
        _graph_has(RANDOM),
    ),
    Entry(
        RATER_SLOTS,
        ("Q",),
        "int8",
        "Only its length counts: so many of the last rows rate visual tokens; 0 for other methods.",
        lambda call, _: _slots([call.rater_rows()]),
        _graph_has(SPARSEVLM),
    ),
)
OF_SITE = (
    Entry(
        "keep_slots.{s}",
        ("K{s}",),
        "int8",
        "Only the length counts: visual tokens that the site leaves.",
        lambda call, s: _slots(call.keep(s)),
    ),
    Entry(
        "keep_offsets.{s}",
        (OFFSETS,),
        "int32",
        "Where in K{s} each sequence starts.",
        lambda call, s: offsets(call.keep(s)),
    ),
    Entry(
        "merge_slots.{s}",
        ("M{s}",),
        "int8",
        "Only the length counts: merged vectors among them.",
        lambda call, s: _slots(call.merge(s)),
        _site_has(FASTMMOE, SPARSEVLM),
    ),
    Entry(
        "merge_offsets.{s}",
        (OFFSETS,),
        "int32",
        "Where in M{s} each sequence starts.",
        lambda call, s: offsets(call.merge(s)),
        _site_has(FASTMMOE),
    ),
    Entry(
        "recycle_slots.{s}",
        ("N{s}",),
        "int8",
        "Only the length counts: tokens that become merged vectors.",
        lambda call, s: _slots(call.recycle(s)),
        _site_has(SPARSEVLM),
    ),
)
OF_LAYER = (
    Entry("past_key_values.{i}.key", CACHE, S, "Cached keys after RoPE.", only_if=HAS_KEYS),
    Entry("past_key_values.{i}.value", CACHE, S, "Cached values.", only_if=HAS_KEYS),
    Entry("past_key_values.{i}.latent", CACHE, S, "Cached latents; D = rank + rope.", only_if=HAS_LATENT),
)
OF_GROUP = (
    Entry(
        "past_lengths.{g}",
        ("B",),
        "int32",
        "Rows of each sequence's caches in use; what is behind them may be anything.",
        lambda call, g: np.array(call.past_lengths[g], np.int32),
        moves=True,
    ),
    Entry("past_position_ids.{g}", ("B", "C{g}"), "int32", "Original position of each cached row.", only_if=SLIDES),
)
OUTPUTS = (
    Entry(LOGITS, ("A", "vocab"), "float32", "Of the last row of each sequence."),
    Entry(
        NEXT_IDS,
        ("A",),
        "int32",
        "The token of greatest logit, the smaller id of equal ones; -1 where logits are NaN or infinite.",
    ),
    Entry(NEXT_POSITION_IDS, ("A",), "int32", "The position after each sequence's last row."),
)
SITE_OUTPUTS = (
    Entry(
        "kept_index.{s}",
        ("T{s}",),
        "int32",
        "Rows of the site's input that survive it; a merged vector gives the first of its window, or the centre of its "
        "cluster.",
    ),
)


def keep_slots(site: int) -> str:
    """Input whose length is K of a site."""
    return f"keep_slots.{site}"


def keep_offsets(site: int) -> str:
    """Input: where in K of a site each sequence starts."""
    return f"keep_offsets.{site}"


def merge_slots(site: int) -> str:
    """Input whose length is M of a site."""
    return f"merge_slots.{site}"


def merge_offsets(site: int) -> str:
    """Input: where in M of a site each sequence starts."""
    return f"merge_offsets.{site}"


def recycle_slots(site: int) -> str:
    """Input whose length is N of a site of sparsevlm."""
    return f"recycle_slots.{site}"


def kept_index(site: int) -> str:
    """Output: rows that survive a site."""
    return f"kept_index.{site}"


def past_names(layer: int, parts: tuple[str, ...]) -> list[str]:
    """Cache inputs of a layer; parts is KEY_VALUE or LATENT."""
    return [f"past_key_values.{layer}.{part}" for part in parts]


def past_position_ids(group: int) -> str:
    """Input: positions of a group's cached rows."""
    return f"past_position_ids.{group}"


def past_lengths(group: int) -> str:
    """Input: rows of a group's caches in use."""
    return f"past_lengths.{group}"


def present_name(past: str) -> str:
    """The output that holds what a call leaves of an input."""
    return past.replace("past_key_values.", "present.").replace("past_", "present_")
