# SPDX-License-Identifier: Apache-2.0
"""Random inputs that a bundle's graphs take: offsets, slots and rows that belong together."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from fastmmoe.runtime.bundle import graph_io, signatures
from fastmmoe.runtime.bundle.manifest import GRAPHS, Manifest, load_manifest
from fastmmoe.runtime.errors import InvalidRequest
from fastmmoe.runtime.method.call import NO_VISUAL_TOKENS, Call, Chunk
from fastmmoe.runtime.method.schedule import Schedule, plan_request
from fastmmoe.runtime.request.config import ProcessorConfig
from fastmmoe.runtime.request.family import family_of
from fastmmoe.runtime.request.image_reader import Picture
from fastmmoe.runtime.request.inputs import ModelInputs
from fastmmoe.runtime.types import Array

TEXT_BEFORE, TEXT_AFTER = 4, 12
RETENTIONS = (1.0, 0.5, 0.25)


def request_inputs(config: ProcessorConfig, seed: int = 0) -> ModelInputs:
    """A request with the smallest picture, of random pixels, between random words; it needs no tokenizer."""
    rng = np.random.default_rng(seed)
    side = config.tile_size
    picture = Picture(rng.integers(0, 256, (side, side, 3), np.uint8))
    cut = family_of(config).cut(config, [picture.size], None, 0)
    (visual,) = cut.visual_counts
    # Without a tokenizer no token stands for pictures, and any will do: features come into its place.
    image_token = config.image_token_id or 0
    words = np.delete(np.arange(config.vocab_size, dtype=np.int32), image_token)
    text = rng.choice(words, TEXT_BEFORE + TEXT_AFTER)
    ids = np.insert(text, [TEXT_BEFORE] * visual, image_token)
    index = np.arange(TEXT_BEFORE, TEXT_BEFORE + visual, dtype=np.int32)
    return ModelInputs(ids, index, cut.vision_inputs([picture]), cut.tile_counts, (picture.size,))


def check_plain(directory: Path, manifest: Manifest) -> None:
    """Raise InvalidRequest unless NumPy holds every input of the graphs, and ONNX Runtime's CPU provider runs them."""
    if manifest.experts.inputs or manifest.target != "cpu":
        raise InvalidRequest(
            f"{directory}: of target {manifest.target}, whose graphs need a GPU: expected a bundle of --target cpu"
        )
    if manifest.cache_dtype == "bfloat16":
        raise InvalidRequest(
            f"{directory}: its caches are bfloat16, which NumPy and Polygraphy lack: export without --kv-cache-dtype"
        )


def legal_inputs(directory: Path, graph: str, seed: int = 0) -> Iterator[dict[str, Array]]:
    """Random inputs of a graph, one dictionary a call.

    Args:
        directory: the bundle; its files are not hashed.
        graph: of the language model there is a prompt for each of RETENTIONS, and a decoding step after the last.
    Raises:
        InvalidRequest: another graph, or see `check_plain`.
        BundleMismatch: see `load_manifest`.
    """
    manifest = load_manifest(directory)
    check_plain(directory, manifest)
    if graph not in GRAPHS:
        raise InvalidRequest(f"graph {graph!r}: expected one of {', '.join(GRAPHS)}")
    inputs = request_inputs(manifest.processor, seed)
    if graph == "vision":
        yield dict(inputs.vision_inputs)
    elif graph == "embedding":
        yield {graph_io.INPUT_IDS: inputs.input_ids}
    else:
        yield from _language_model(manifest, inputs, np.random.default_rng(seed))


def _language_model(manifest: Manifest, inputs: ModelInputs, rng: np.random.Generator) -> Iterator[dict[str, Array]]:
    info, T = manifest.language_model, len(inputs.input_ids)
    chunk = None
    for retention in RETENTIONS:
        schedule = plan_request(
            manifest.policy,
            visual_tokens=len(inputs.visual_index),
            moe_layers=info.moe_layers,
            top_k=info.top_k,
            retention=retention,
        )
        chunk = Chunk(0, _embeddings(rng, T, info.hidden_size), inputs.visual_index, schedule)
        yield _call(manifest, chunk, 0, np.zeros(info.layers, np.int64), rng)
    assert chunk is not None
    cached = signatures.cached_rows(info, manifest.policy, chunk)
    yield _call(manifest, _step(rng, info.hidden_size, chunk.schedule), T, cached, rng)


def _step(rng: np.random.Generator, width: int, schedule: Schedule) -> Chunk:
    return Chunk(0, _embeddings(rng, 1, width), NO_VISUAL_TOKENS, schedule.for_text())


def _embeddings(rng: np.random.Generator, rows: int, width: int) -> Array:
    return rng.standard_normal((rows, width), np.float32)


def _call(manifest: Manifest, chunk: Chunk, length: int, cached: Array, rng: np.random.Generator) -> dict[str, Array]:
    """A call after `length` positions, of which each layer has cached so many; caches have no room to spare."""
    info, policy = manifest.language_model, manifest.policy
    groups = signatures.layer_groups(info.layers, policy.sites)
    after = cached + signatures.cached_rows(info, policy, chunk)
    past = [[int(cached[layers[0]])] for layers in groups]
    feeds = signatures.feeds(info, Call(policy, [chunk], [length], past, policy.alpha, 0))
    capacities = [int(after[layers[0]]) for layers in groups]
    for name, (shape, dtype) in signatures.cache_shapes(info, policy, manifest.cache_dtype, 1, capacities).items():
        is_positions = dtype == "int32"
        values = np.arange(shape[-1])[None] if is_positions else rng.standard_normal(shape, np.float32)
        feeds[name] = values.astype(dtype)
    return feeds
