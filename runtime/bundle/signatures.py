# SPDX-License-Identifier: Apache-2.0
"""Signatures of a model's graphs, feeds of a call and caches, all made from the entries of graph_io.py."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from fastmmoe.runtime.bundle import graph_io
from fastmmoe.runtime.method.call import Call, Chunk
from fastmmoe.runtime.method.policy import Policy, Site
from fastmmoe.runtime.request.family import family_of
from fastmmoe.runtime.types import Array

if TYPE_CHECKING:
    from fastmmoe.runtime.bundle.manifest import LanguageModelInfo, Manifest


class Tensor(NamedTuple):
    """Name, shape with the names of dimensions that may change, NumPy's name of the element type."""

    name: str
    shape: tuple[int | str, ...]
    dtype: str


@dataclass(frozen=True)
class Signature:
    """Inputs and outputs of a graph, in its own order; of the outputs the lengths that may change are ""."""

    inputs: list[Tensor]
    outputs: list[Tensor]


def signatures(manifest: Manifest) -> dict[str, Signature]:
    """Graph -> its signature, as the manifest says."""
    processor, info = manifest.processor, manifest.language_model
    dtype, cache_dtype = manifest.activation_dtype, manifest.cache_dtype
    vision = vision_inputs(processor.tile_size, dtype, has_layout=family_of(processor).HAS_LAYOUT)
    return {
        "vision": Signature(vision, [Tensor(graph_io.IMAGE_FEATURES, ("", info.hidden_size), dtype)]),
        "embedding": Signature(embedding_inputs(), [Tensor(graph_io.INPUTS_EMBEDS, ("", info.hidden_size), dtype)]),
        "language_model": Signature(
            [*language_model_inputs(info, manifest.policy, dtype, cache_dtype), *expert_inputs(manifest)],
            _language_model_outputs(info, manifest.policy, cache_dtype),
        ),
    }


def vision_inputs(side: int, dtype: str, *, has_layout: bool) -> list[Tensor]:
    """Inputs of the vision graph with square tiles of this side; has_layout: DeepSeek-VL2's second input."""
    return [_tensor(entry, {"side": side}, {graph_io.F: dtype}) for entry in graph_io.VISION[: 1 + has_layout]]


def embedding_inputs() -> list[Tensor]:
    """Inputs of the embedding graph."""
    return [_tensor(entry, {}, {}) for entry in graph_io.EMBEDDING]


def language_model_inputs(info: LanguageModelInfo, policy: Policy, dtype: str, cache_dtype: str) -> list[Tensor]:
    """Inputs of the language model with the policy's prune sites, for activations and caches of these types."""
    sizes = _sizes(info, policy)
    called = [_tensor(entry, sizes, {graph_io.F: dtype}, s=n, g=n) for entry, n in _called(info, policy)]
    return called + cache_inputs(info, policy, cache_dtype)


def expert_inputs(manifest: Manifest) -> list[Tensor]:
    """Inputs of the language model of an engine that hold the routed experts' weights."""
    return [Tensor(name, tensor.shape, tensor.dtype) for name, tensor in manifest.experts.inputs.items()]


def cache_inputs(info: LanguageModelInfo, policy: Policy, cache_dtype: str) -> list[Tensor]:
    """The language model's inputs that a call writes to."""
    sizes = _sizes(info, policy)
    found = []
    for g, place in enumerate(_groups(info, policy)):
        of_layers = [(entry, i) for i in place.layers for entry in graph_io.OF_LAYER]
        for entry, i in [*of_layers, *((entry, 0) for entry in graph_io.OF_GROUP if entry.feed is None)]:
            if entry.only_if.holds(place):
                found.append(_tensor(entry, sizes, {graph_io.S: cache_dtype}, i=i, g=g))
    return found


def cache_shapes(
    info: LanguageModelInfo, policy: Policy, cache_dtype: str, sequences: int, capacities: Sequence[int]
) -> dict[str, tuple[tuple[int, ...], str]]:
    """Name -> shape and dtype of the caches of so many sequences, with a capacity for each layer group."""
    sizes = {"B": sequences} | {f"C{g}": capacity for g, capacity in enumerate(capacities)}
    return {
        name: (tuple(sizes[size] if isinstance(size, str) else size for size in shape), of_cache)
        for name, shape, of_cache in cache_inputs(info, policy, cache_dtype)
    }


def feeds(info: LanguageModelInfo, call: Call) -> dict[str, Array]:
    """The language model's inputs in a call but its caches.

    Raises:
        InvalidRequest: the call is none that the graph can do, see `Call.rater_rows`.
    """
    return Feeding(info, call.policy).feeds(call)


class Feeding:
    """What one call after the other is fed. Steps that are alike share the arrays in which they do not differ."""

    def __init__(self, info: LanguageModelInfo, policy: Policy) -> None:
        self._entries = [
            (e.name.format(s=n, g=n), e, n, None if e.dtype == graph_io.F else np.dtype(e.dtype))
            for e, n in _called(info, policy)
        ]
        self._moving = [fed for fed in self._entries if fed[1].moves]
        self._alike: object = None
        self._found: dict[str, Array] = {}

    def feeds(self, call: Call) -> dict[str, Array]:
        """See `feeds`; nobody may write to these arrays."""
        alike = call.alike
        is_alike = alike is not None and alike == self._alike
        found = dict(self._found) if is_alike else {}
        for name, entry, n, dtype in self._moving if is_alike else self._entries:
            assert entry.feed is not None
            value = entry.feed(call, n)
            found[name] = value if dtype is None or value.dtype == dtype else value.astype(dtype)
        self._alike, self._found = alike, found
        return found


def _called(info: LanguageModelInfo, policy: Policy) -> Iterator[tuple[graph_io.Entry, int]]:
    """The entries that a call gives values, with the number of their site or layer group."""
    for entry in graph_io.OF_CALL:
        if entry.only_if.holds(graph_io.Place(info, policy, None)):
            yield entry, 0
    for s, site in enumerate(policy.sites):
        for entry in graph_io.OF_SITE:
            if entry.only_if.holds(graph_io.Place(info, policy, site)):
                yield entry, s
    for g, place in enumerate(_groups(info, policy)):
        for entry in graph_io.OF_GROUP:
            if entry.feed is not None and entry.only_if.holds(place):
                yield entry, g


def _groups(info: LanguageModelInfo, policy: Policy) -> list[graph_io.Place]:
    return [graph_io.Place(info, policy, None, layers) for layers in layer_groups(info.layers, policy.sites)]


def _sizes(info: LanguageModelInfo, policy: Policy) -> dict[str, int]:
    """Sizes that the model alone decides."""
    heads, width = info.cache_shape
    sizes = {"H": info.hidden_size, "vocab": info.vocab_size, "Nkv": heads, "D": width}
    return sizes | {"MoE layers": len(info.moe_layers), "sites": len(policy.sites)}


def _tensor(entry: graph_io.Entry, sizes: dict[str, int], dtypes: dict[str, str], **numbers: int) -> Tensor:
    """dtypes: what graph_io.F and graph_io.S stand for, as far as the entry has them."""
    shape = tuple(sizes.get(d, d.format(**numbers)) if isinstance(d, str) else d for d in entry.shape)
    return Tensor(entry.name.format(**numbers), shape, dtypes.get(entry.dtype, entry.dtype))


def _language_model_outputs(info: LanguageModelInfo, policy: Policy, cache_dtype: str) -> list[Tensor]:
    sizes = _sizes(info, policy)
    outputs = [_tensor(entry, sizes, {}) for entry in graph_io.OUTPUTS]
    lengths = [_tensor(entry, sizes, {}, g=g) for entry, g in _called(info, policy) if entry in graph_io.OF_GROUP]
    left = [*lengths, *cache_inputs(info, policy, cache_dtype)]
    outputs += [tensor._replace(name=graph_io.present_name(tensor.name)) for tensor in left]
    outputs += [_tensor(entry, sizes, {}, s=s) for s in range(len(policy.sites)) for entry in graph_io.SITE_OUTPUTS]
    return [o._replace(shape=tuple("" if isinstance(d, str) else d for d in o.shape)) for o in outputs]


def outputs_of_call(policy: Policy) -> list[str]:
    """The outputs that the runtime looks at after a call, beside the logits or the tokens chosen by them."""
    return [graph_io.kept_index(s) for s in range(len(policy.sites))]


def layer_groups(layers: int, sites: Sequence[Site]) -> tuple[tuple[int, ...], ...]:
    """Layers that share a cache length: up to and including the layer of the first site, then to the next, and so on.

    A last group without layers (the last layer prunes) is left out.
    """
    bounds = [0, *sorted({site.layer + 1 for site in sites}), layers]
    groups = [tuple(range(a, b)) for a, b in itertools.pairwise(bounds)]
    return tuple(g for g in groups if g)


def sites_before(groups: Sequence[Sequence[int]], sites: Sequence[Site]) -> list[int | None]:
    """Of each layer group the last site in front of it; None = there is none."""
    return [max((s for s, site in enumerate(sites) if site.layer < layers[0]), default=None) for layers in groups]


def rows_left(chunk: Chunk, site: int | None) -> int:
    """Rows of a chunk after a site; None = in front of all of them."""
    rows, schedule = len(chunk.inputs_embeds), chunk.schedule
    return rows if site is None else rows - schedule.visual_tokens + schedule.keep[site]


def cached_rows(info: LanguageModelInfo, policy: Policy, chunk: Chunk) -> Array:
    """Tokens that a chunk adds to the cache of every layer, int64 [layers]: fewer after each layer with a site."""
    rows, groups = np.empty(info.layers, np.int64), layer_groups(info.layers, policy.sites)
    for layers, site in zip(groups, sites_before(groups, policy.sites), strict=True):
        rows[list(layers)] = rows_left(chunk, site)
    return rows
