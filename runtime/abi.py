# SPDX-License-Identifier: Apache-2.0
"""Names and shapes of the graphs: written by the exporter, fed by the runtime.

vision:     pixel_values [tiles, 3, S, S] (and layout_index [V] int32 for DeepSeek-VL2) -> image_features [V, H]
embedding:  input_ids [T] int32 -> inputs_embeds [T, H]

language_model, inputs (T tokens of this call, S_g cached tokens of layer group g; the groups are the stretches of
layers between prune layers):

    inputs_embeds               [T, H]
    position_ids                [T] int32, original positions, ascending
    visual_index                [V] int32, rows that are visual tokens, ascending; V = 0 when decoding
    visual_top_k                [MoE layers] int32
    alpha                       [stages] float32
    keep_slots.{s}              [K_s] int8, only the length counts
    merge_slots.{s}             [M_s] int8, only the length counts
    past_key_values.{i}.key     [1, Nkv, S_g, D], .value the same; or .latent [1, S_g, rank + rope] (MLA)
    past_position_ids.{g}       [S_g] int32, only in models with sliding layers

Outputs: logits [1, vocab] float32 of the last row; present.{i}.* and present_position_ids.{g} (past plus this call);
kept_index.{s} [T_s] int32, the rows of stage s's input that survive it.

A graph exported with method "none" has neither visual_top_k nor alpha nor slots nor kept_index.
"""

from __future__ import annotations

import itertools
from typing import Any

PIXEL_VALUES = "pixel_values"
LAYOUT_INDEX = "layout_index"
IMAGE_FEATURES = "image_features"
INPUT_IDS = "input_ids"
INPUTS_EMBEDS = "inputs_embeds"
POSITION_IDS = "position_ids"
VISUAL_INDEX = "visual_index"
VISUAL_TOP_K = "visual_top_k"
ALPHA = "alpha"
LOGITS = "logits"

KEY_VALUE = ("key", "value")
LATENT = ("latent",)


def layer_groups(layers: int, prune_layers: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """Layers that share a cache length: up to and including the first prune layer, then to the next, and so on.

    A last group without layers (the last layer prunes) is left out.
    """
    bounds = [0, *(layer + 1 for layer in prune_layers), layers]
    groups = [tuple(range(a, b)) for a, b in itertools.pairwise(bounds)]
    return tuple(g for g in groups if g)


def keep_slots(stage: int) -> str:
    """Input whose length is K of a stage."""
    return f"keep_slots.{stage}"


def merge_slots(stage: int) -> str:
    """Input whose length is M of a stage."""
    return f"merge_slots.{stage}"


def kept_index(stage: int) -> str:
    """Output: rows that survive a stage."""
    return f"kept_index.{stage}"


def past_names(layer: int, parts: tuple[str, ...]) -> list[str]:
    """Cache inputs of a layer; parts is KEY_VALUE or LATENT."""
    return [f"past_key_values.{layer}.{part}" for part in parts]


def present_names(layer: int, parts: tuple[str, ...]) -> list[str]:
    """Cache outputs of a layer."""
    return [f"present.{layer}.{part}" for part in parts]


def past_position_ids(group: int) -> str:
    """Input: positions of a group's cached tokens."""
    return f"past_position_ids.{group}"


def present_position_ids(group: int) -> str:
    """Output: positions of a group's cached tokens and this call's."""
    return f"present_position_ids.{group}"


def past_length(inputs: dict[str, Any], layer: int, parts: tuple[str, ...]) -> int:
    """Cached tokens of a layer: the second last dimension of its cache."""
    return inputs[past_names(layer, parts)[0]].shape[-2]
