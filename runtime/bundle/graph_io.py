# SPDX-License-Identifier: Apache-2.0
"""Names and shapes of the graphs: written by the exporter, fed by the runtime.

vision:     pixel_values [tiles, 3, S, S] (and layout_index [V] int32 for DeepSeek-VL2) -> image_features [V, H]
embedding:  input_ids [T] int32 -> inputs_embeds [T, H]

language_model, inputs. The T rows of a call belong to B sequences, one after the other; V of them are visual tokens.
A site s is a place where visual tokens are pruned (`Policy.sites`); the layers between two of them are a group g, whose
caches hold S_g tokens, those of all sequences in the order in which they came.

    inputs_embeds               [T, H]
    position_ids                [T] int32, original positions, ascending within a sequence
    sequence_ids                [T] int32, which sequence of the caches a row belongs to
    sequence_offsets            [B + 1] int32, where in T each sequence of this call starts: 0, ..., T
    visual_index                [V] int32, rows that are visual tokens, ascending; V = 0 when decoding
    visual_offsets              [B + 1] int32, where in V each sequence starts: 0, ..., V
    visual_top_k                [MoE layers] int32
    alpha                       [sites] float32
    method                      [1] int32, its place in `policy.METHODS`; only in comparison bundles
    random_scores               [V] float32, the greatest are kept; only with method random in the graph
    rater_slots                 [Q] int8, only the length counts: the last Q rows rate; only with sparsevlm, B = 1
    keep_slots.{s}              [K_s] int8, only the length counts: visual tokens after site s
    keep_offsets.{s}            [B + 1] int32, where in K_s each sequence starts
    merge_slots.{s}             [M_s] int8, only the length counts: merged vectors among them; not for fastv, random
    merge_offsets.{s}           [B + 1] int32, where in M_s each sequence starts; only for fastmmoe
    recycle_slots.{s}           [N_s] int8, only the length counts: tokens they are made of; only for sparsevlm
    past_key_values.{i}.key     [1, Nkv, S_g, D], .value the same; or .latent [1, S_g, rank + rope] (MLA)
    past_position_ids.{g}       [S_g] int32, only in models with sliding layers
    past_sequence_ids.{g}       [S_g] int32

Outputs: logits [B, vocab] float32 of the last row of each sequence; present.{i}.*, present_position_ids.{g} and
present_sequence_ids.{g} (past plus this call); kept_index.{s} int32, the rows of site s's input that survive it (a
merged vector gives the first of its window, or the centre of its cluster).

A graph exported with method "none" has neither visual_top_k nor alpha nor anything of a site.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from fastmmoe.runtime.method.policy import Site

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

KEY_VALUE = ("key", "value")
LATENT = ("latent",)


def layer_groups(layers: int, sites: Sequence[Site]) -> tuple[tuple[int, ...], ...]:
    """Layers that share a cache length: up to and including the layer of the first site, then to the next, and so on.

    A last group without layers (the last layer prunes) is left out.
    """
    bounds = [0, *sorted({site.layer + 1 for site in sites}), layers]
    groups = [tuple(range(a, b)) for a, b in itertools.pairwise(bounds)]
    return tuple(g for g in groups if g)


def takes_merges(site: Site) -> bool:
    """Whether a site has merge_slots."""
    return "fastmmoe" in site.methods or "sparsevlm" in site.methods


def takes_merge_offsets(site: Site) -> bool:
    """Whether a site has merge_offsets."""
    return "fastmmoe" in site.methods


def takes_recycling(site: Site) -> bool:
    """Whether a site has recycle_slots."""
    return "sparsevlm" in site.methods


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
    """Input: positions of a group's cached tokens."""
    return f"past_position_ids.{group}"


def past_sequence_ids(group: int) -> str:
    """Input: sequences of a group's cached tokens."""
    return f"past_sequence_ids.{group}"


def present_name(past: str) -> str:
    """The output that holds a cache input after the call."""
    return past.replace("past_key_values.", "present.").replace("past_", "present_")
