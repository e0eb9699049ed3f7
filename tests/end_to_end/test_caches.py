# SPDX-License-Identifier: Apache-2.0
"""Caches of whole models: whatever their capacity, their company and what is behind the rows in use."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from fastmmoe.runtime.backends import onnxruntime
from fastmmoe.runtime.backends.base import Backend
from fastmmoe.runtime.backends.batch import Batch
from fastmmoe.runtime.method.call import Chunk
from fastmmoe.runtime.method.schedule import plan_request
from fastmmoe.runtime.types import Array
from fastmmoe.runtime.vlm import VLM

# Grouped heads, latent heads, and windows with sinks.
MODELS = pytest.mark.parametrize("name", ["dsvl2-mha", "dsvl2-mla", "internvl-gptoss"])
ALPHA = 0.3


@pytest.fixture
def backend(vlm: Callable[..., VLM], name: str, monkeypatch: pytest.MonkeyPatch) -> Backend:
    """A model whose new caches hold NaN and positions that are none."""
    aligned = onnxruntime._aligned

    def spoiled(shape: tuple[int, ...], dtype: str) -> Array:
        array = aligned(shape, dtype)
        array.fill(np.nan if np.dtype(dtype).kind == "f" else -(2**31))
        return array

    monkeypatch.setattr(onnxruntime, "_aligned", spoiled)
    return vlm(name).backend


def chunk_of(backend: Backend, sequence: int, tokens: int, visual: int = 0, retention: float = 0.25) -> Chunk:
    """Random rows, the same for the same sequence and number; the visual ones stand after the first."""
    info = backend.info
    schedule = plan_request(
        backend.policy, visual_tokens=visual, moe_layers=info.moe_layers, top_k=info.top_k, retention=retention
    )
    rows = np.random.default_rng([sequence, tokens]).normal(0, 0.3, (tokens, info.hidden_size)).astype(np.float32)
    return Chunk(sequence, rows, np.arange(1, 1 + visual, dtype=np.int32), schedule)


def logits_alone(backend: Backend, chunks: Sequence[Chunk], room: int = 0) -> tuple[Batch, Array]:
    """One sequence of these chunks, with room for so many more rows: the batch, and logits [calls, vocab]."""
    batch = Batch(backend)
    found: list[Array] = []
    for chunk in chunks:
        own = Chunk(0, chunk.inputs_embeds, chunk.visual_index, chunk.schedule)
        found.append(batch.extend([own], alpha=ALPHA, new_tokens=[] if found else [room])[0])
    return batch, np.stack(found)


@MODELS
@pytest.mark.parametrize("retention", [0.02, 0.5, 1.0])
def test_sequences_of_a_batch_are_those_alone(backend: Backend, retention: float, assert_close: Any) -> None:
    """Prompts of other lengths, multiples of a capacity's step among them, whose answers end at other steps."""
    prompts = [(300, 200), (40, 30), (256, 100), (512, 400), (33, 3)]
    chunks = [[chunk_of(backend, i, *prompt, retention)] for i, prompt in enumerate(prompts)]
    batch = Batch(backend, len(prompts))
    found = [[row] for row in batch.extend([one for (one,) in chunks], alpha=ALPHA)]
    for step in range(5):
        going_on = [i for i in range(len(prompts)) if step < (4, 0, 5, 2, 3)[i]][:: -1 if step % 2 else 1]
        for i in going_on:
            chunks[i].append(chunk_of(backend, i, 1))
        for i, row in zip(going_on, batch.extend([chunks[i][-1] for i in going_on], alpha=ALPHA), strict=True):
            found[i].append(row)
    for i, own in enumerate(chunks):
        alone, expected = logits_alone(backend, own)
        assert batch.cache_lengths[i].tolist() == alone.cache_lengths[0].tolist()
        assert_close("logits", np.stack(found[i]), expected, backend.info.layers)


@MODELS
def test_caches_that_grow_hold_what_great_ones_do(backend: Backend) -> None:
    """To the last bit: a conversation that begins with one token and fills its caches up to the last row twice."""
    turns = [chunk_of(backend, 0, n, min(n - 2, 100) if n > 100 else 0) for n in (1, 255, 1, 254, 1, 300, 1)]
    grown, found = logits_alone(backend, turns)
    great, expected = logits_alone(backend, turns, room=3000)
    assert grown.capacities[0] == 1024 and great.capacities[0] == 3072
    np.testing.assert_array_equal(found, expected)


@MODELS
@pytest.mark.parametrize("tokens", [2, 256])
def test_rows_one_by_one_are_a_prompt(backend: Backend, tokens: int, assert_close: Any) -> None:
    whole = chunk_of(backend, 0, tokens)
    rows = [Chunk(0, row[None], whole.visual_index, whole.schedule) for row in whole.inputs_embeds]
    (_, found), (_, expected) = logits_alone(backend, rows), logits_alone(backend, [whole])
    assert_close("logits", found[-1:], expected, backend.info.layers)


@pytest.mark.parametrize("name", ["dsvl2-mha"])
def test_rows_of_any_memory(backend: Backend) -> None:
    """Columns first, every second one of another array, backwards."""
    whole = chunk_of(backend, 0, 60, 40)
    rows, index = whole.inputs_embeds, whole.visual_index
    _, expected = logits_alone(backend, [whole])
    for embeds, visual in (
        (np.asfortranarray(rows), index.repeat(2)[::2]),
        (rows.repeat(2, axis=1)[:, ::2], index[::-1].copy()[::-1]),
        (rows[::-1].copy()[::-1], index.astype(np.int64)),
    ):
        _, found = logits_alone(backend, [Chunk(0, embeds, visual, whole.schedule)])
        np.testing.assert_array_equal(found, expected)
