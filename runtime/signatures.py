# SPDX-License-Identifier: Apache-2.0
"""Inputs and outputs of each graph as data (meaning: runtime/abi.py): the exporter traces them, loading checks them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from fastmmoe.runtime import abi
from fastmmoe.runtime.bundle import LanguageModelInfo, Manifest
from fastmmoe.runtime.policy import ALL, Policy, Site
from fastmmoe.runtime.processor_config import DeepseekVl2ProcessorConfig


class Tensor(NamedTuple):
    """Name, shape with the names of dimensions that may change, NumPy's name of the element type."""

    name: str
    shape: tuple[int | str, ...]
    dtype: str


@dataclass(frozen=True)
class Signature:
    """What a graph takes and gives, in the order of its inputs; of the outputs the lengths that may change are ""."""

    inputs: list[Tensor]
    outputs: list[Tensor]


def signatures(manifest: Manifest) -> dict[str, Signature]:
    """Graph -> its signature, as the manifest says."""
    processor, info, dtype = manifest.processor, manifest.language_model, manifest.activation_dtype
    is_deepseek = isinstance(processor, DeepseekVl2ProcessorConfig)
    vision = vision_inputs(processor.tile_size, dtype, has_layout=is_deepseek)
    return {
        "vision": Signature(vision, [Tensor(abi.IMAGE_FEATURES, ("", info.hidden_size), dtype)]),
        "embedding": Signature(embedding_inputs(), [Tensor(abi.INPUTS_EMBEDS, ("", info.hidden_size), dtype)]),
        "language_model": Signature(
            language_model_inputs(info, manifest.policy, dtype), _language_model_outputs(info, manifest.policy, dtype)
        ),
    }


def vision_inputs(side: int, dtype: str, *, has_layout: bool) -> list[Tensor]:
    """Of the vision graph with square tiles of this side; has_layout: DeepSeek-VL2's second input."""
    layout = [Tensor(abi.LAYOUT_INDEX, ("V",), "int32")] if has_layout else []
    return [Tensor(abi.PIXEL_VALUES, ("tiles", 3, side, side), dtype), *layout]


def embedding_inputs() -> list[Tensor]:
    """Of the embedding graph."""
    return [Tensor(abi.INPUT_IDS, ("T",), "int32")]


def language_model_inputs(info: LanguageModelInfo, policy: Policy, dtype: str) -> list[Tensor]:
    """Of the language model with the policy's prune sites."""
    inputs = [
        Tensor(abi.INPUTS_EMBEDS, ("T", info.hidden_size), dtype),
        Tensor(abi.POSITION_IDS, ("T",), "int32"),
        Tensor(abi.SEQUENCE_IDS, ("T",), "int32"),
        _offsets(abi.SEQUENCE_OFFSETS),
        Tensor(abi.VISUAL_INDEX, ("V",), "int32"),
    ]
    if policy.method != "none":
        inputs.append(_offsets(abi.VISUAL_OFFSETS))
        inputs.append(Tensor(abi.VISUAL_TOP_K, (len(info.moe_layers),), "int32"))
        inputs.append(Tensor(abi.ALPHA, (len(policy.sites),), "float32"))
    if policy.method == ALL:
        inputs.append(Tensor(abi.METHOD, (1,), "int32"))
    if "random" in policy.methods:
        inputs.append(Tensor(abi.RANDOM_SCORES, ("V",), "float32"))
    if "sparsevlm" in policy.methods:
        inputs.append(Tensor(abi.RATER_SLOTS, ("Q",), "int8"))
    for s, site in enumerate(policy.sites):
        inputs += _site(s, site)
    return [*inputs, *_caches(info, policy, dtype)]


def _offsets(name: str) -> Tensor:
    return Tensor(name, ("offsets",), "int32")


def _site(s: int, site: Site) -> Iterator[Tensor]:
    yield Tensor(abi.keep_slots(s), (f"K{s}",), "int8")
    yield _offsets(abi.keep_offsets(s))
    if abi.takes_merges(site):
        yield Tensor(abi.merge_slots(s), (f"M{s}",), "int8")
    if abi.takes_merge_offsets(site):
        yield _offsets(abi.merge_offsets(s))
    if abi.takes_recycling(site):
        yield Tensor(abi.recycle_slots(s), (f"N{s}",), "int8")


def _caches(info: LanguageModelInfo, policy: Policy, dtype: str) -> Iterator[Tensor]:
    *heads, width = info.cache_shape
    for g, layers in enumerate(abi.layer_groups(info.layers, policy.sites)):
        for i in layers:
            for name in abi.past_names(i, info.cache_parts):
                yield Tensor(name, (1, *heads, f"S{g}", width), dtype)
        if info.sliding_layers:
            yield Tensor(abi.past_position_ids(g), (f"S{g}",), "int32")
        yield Tensor(abi.past_sequence_ids(g), (f"S{g}",), "int32")


def _language_model_outputs(info: LanguageModelInfo, policy: Policy, dtype: str) -> list[Tensor]:
    outputs = [Tensor(abi.LOGITS, ("", info.vocab_size), "float32")]
    for name, shape, of_cache in _caches(info, policy, dtype):
        outputs.append(Tensor(abi.present_name(name), tuple("" if isinstance(d, str) else d for d in shape), of_cache))
    outputs += [Tensor(abi.kept_index(s), ("",), "int32") for s in range(len(policy.sites))]
    return outputs
