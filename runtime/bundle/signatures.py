# SPDX-License-Identifier: Apache-2.0
"""Inputs and outputs of each graph as data (meaning: graph_io.py): the exporter traces them, loading checks them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from fastmmoe.runtime.bundle import graph_io
from fastmmoe.runtime.bundle.manifest import LanguageModelInfo, Manifest
from fastmmoe.runtime.method.policy import ALL, Policy, Site
from fastmmoe.runtime.request.config import DeepseekVl2ProcessorConfig


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
        "vision": Signature(vision, [Tensor(graph_io.IMAGE_FEATURES, ("", info.hidden_size), dtype)]),
        "embedding": Signature(embedding_inputs(), [Tensor(graph_io.INPUTS_EMBEDS, ("", info.hidden_size), dtype)]),
        "language_model": Signature(
            language_model_inputs(info, manifest.policy, dtype), _language_model_outputs(info, manifest.policy, dtype)
        ),
    }


def vision_inputs(side: int, dtype: str, *, has_layout: bool) -> list[Tensor]:
    """Of the vision graph with square tiles of this side; has_layout: DeepSeek-VL2's second input."""
    layout = [Tensor(graph_io.LAYOUT_INDEX, ("V",), "int32")] if has_layout else []
    return [Tensor(graph_io.PIXEL_VALUES, ("tiles", 3, side, side), dtype), *layout]


def embedding_inputs() -> list[Tensor]:
    """Of the embedding graph."""
    return [Tensor(graph_io.INPUT_IDS, ("T",), "int32")]


def language_model_inputs(info: LanguageModelInfo, policy: Policy, dtype: str) -> list[Tensor]:
    """Of the language model with the policy's prune sites."""
    inputs = [
        Tensor(graph_io.INPUTS_EMBEDS, ("T", info.hidden_size), dtype),
        Tensor(graph_io.POSITION_IDS, ("T",), "int32"),
        Tensor(graph_io.SEQUENCE_IDS, ("T",), "int32"),
        _offsets(graph_io.SEQUENCE_OFFSETS),
        Tensor(graph_io.VISUAL_INDEX, ("V",), "int32"),
    ]
    if policy.method != "none":
        inputs.append(_offsets(graph_io.VISUAL_OFFSETS))
        inputs.append(Tensor(graph_io.VISUAL_TOP_K, (len(info.moe_layers),), "int32"))
        inputs.append(Tensor(graph_io.ALPHA, (len(policy.sites),), "float32"))
    if policy.method == ALL:
        inputs.append(Tensor(graph_io.METHOD, (1,), "int32"))
    if "random" in policy.methods:
        inputs.append(Tensor(graph_io.RANDOM_SCORES, ("V",), "float32"))
    if "sparsevlm" in policy.methods:
        inputs.append(Tensor(graph_io.RATER_SLOTS, ("Q",), "int8"))
    for s, site in enumerate(policy.sites):
        inputs += _site(s, site)
    return [*inputs, *_caches(info, policy, dtype)]


def _offsets(name: str) -> Tensor:
    return Tensor(name, ("offsets",), "int32")


def _site(s: int, site: Site) -> Iterator[Tensor]:
    yield Tensor(graph_io.keep_slots(s), (f"K{s}",), "int8")
    yield _offsets(graph_io.keep_offsets(s))
    if graph_io.takes_merges(site):
        yield Tensor(graph_io.merge_slots(s), (f"M{s}",), "int8")
    if graph_io.takes_merge_offsets(site):
        yield _offsets(graph_io.merge_offsets(s))
    if graph_io.takes_recycling(site):
        yield Tensor(graph_io.recycle_slots(s), (f"N{s}",), "int8")


def _caches(info: LanguageModelInfo, policy: Policy, dtype: str) -> Iterator[Tensor]:
    *heads, width = info.cache_shape
    for g, layers in enumerate(graph_io.layer_groups(info.layers, policy.sites)):
        for i in layers:
            for name in graph_io.past_names(i, info.cache_parts):
                yield Tensor(name, (1, *heads, f"S{g}", width), dtype)
        if info.sliding_layers:
            yield Tensor(graph_io.past_position_ids(g), (f"S{g}",), "int32")
        yield Tensor(graph_io.past_sequence_ids(g), (f"S{g}",), "int32")


def _language_model_outputs(info: LanguageModelInfo, policy: Policy, dtype: str) -> list[Tensor]:
    outputs = [Tensor(graph_io.LOGITS, ("", info.vocab_size), "float32")]
    for name, shape, of_cache in _caches(info, policy, dtype):
        outputs.append(
            Tensor(graph_io.present_name(name), tuple("" if isinstance(d, str) else d for d in shape), of_cache)
        )
    outputs += [Tensor(graph_io.kept_index(s), ("",), "int32") for s in range(len(policy.sites))]
    return outputs
