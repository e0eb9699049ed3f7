# SPDX-License-Identifier: Apache-2.0
"""What a recording keeps of calls: inputs as they were before, caches cut to rows in use."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

from fastmmoe.runtime.backends.base import Feeds
from fastmmoe.runtime.bundle import graph_io, signatures
from fastmmoe.runtime.generation import Run
from fastmmoe.runtime.interop.legal_inputs import request_inputs
from fastmmoe.runtime.interop.recording import Recording
from fastmmoe.runtime.request.options import RequestOptions
from fastmmoe.runtime.types import Array
from tests.support.echo import Echo
from tests.support.manifests import toy_manifest

MANIFEST = toy_manifest("deepseek_vl2")
INFO, POLICY = MANIFEST.language_model, MANIFEST.policy


class WithArrays(Echo):
    """Its caches have arrays, which a call fills with 1, everything, as nobody may read what is not in use."""

    def new_caches(self, sequences: int, capacities: Sequence[int], before: Any = None) -> Any:
        caches: Any = super().new_caches(sequences, capacities, before)
        shapes = signatures.cache_shapes(INFO, POLICY, "float32", sequences, capacities)
        caches.arrays = {name: np.full(shape, np.nan, dtype) for name, (shape, dtype) in shapes.items()}
        return caches

    def extend(self, feeds: Feeds, caches: Any, wanted: Sequence[str]) -> dict[str, Array]:
        groups = [name for name in wanted if name.startswith("present_lengths")]
        outputs = super().extend(feeds, caches, [name for name in wanted if name not in groups])
        for array in caches.arrays.values():
            array[:] = 1
        return outputs | {name: caches.lengths[int(name[-1])] for name in groups}


def test_a_prompt_and_a_step() -> None:
    backend = WithArrays(INFO, POLICY)
    recording = Recording(backend, MANIFEST)
    inputs = request_inputs(MANIFEST.processor)
    tokens = list(Run(MANIFEST, recording, [inputs], RequestOptions(max_new_tokens=2), has_logits=True).tokens())
    assert [len(step) for step in tokens] == [1, 1]
    assert {graph: len(calls) for graph, calls in recording.calls.items()} == {
        "vision": 1,
        "embedding": 2,
        "language_model": 2,
    }
    prompt, step = recording.calls["language_model"]
    assert set(prompt.outputs) == {"logits", "next_ids", "kept_index.0", "kept_index.1"}
    names = {tensor.name for tensor in signatures.signatures(MANIFEST)["language_model"].inputs}
    assert set(prompt.inputs) == set(step.inputs) == names
    rows = len(inputs.input_ids)
    # The first group keeps every row, the last 6 of 13 visual ones.
    left = rows - 7
    for layer, length in ((0, rows), (3, left)):
        before, after = (call.inputs[f"past_key_values.{layer}.key"] for call in (prompt, step))
        assert before.shape[2] == length and not before.any()
        assert after.shape[2] == length + 1
        assert (after[:, :, :length] == 1).all() and not after[:, :, length].any()


def test_embeddings_are_those_of_words_alone() -> None:
    recording = Recording(Echo(INFO, POLICY), MANIFEST)
    rows = recording.embed(np.array([3, 9, 4]), np.array([1], np.int32), np.full((1, INFO.hidden_size), -1))
    (call,) = recording.calls["embedding"]
    assert rows[:, 0].tolist() == [3, -1, 4]
    assert call.outputs[graph_io.INPUTS_EMBEDS][:, 0].tolist() == [3, 9, 4]
    assert call.inputs[graph_io.INPUT_IDS].dtype == np.int32


def test_everything_else_is_the_backends() -> None:
    closed = []
    backend: Any = SimpleNamespace(
        provider="echo", close=lambda: closed.append(1), has_room_for=lambda chunks: len(chunks) < 2
    )
    recording = Recording(backend, MANIFEST)
    chunk: Any = None
    assert recording.provider == "echo" and recording.info == INFO and recording.policy == POLICY
    assert recording.has_room_for([chunk]) and not recording.has_room_for([chunk] * 2)
    recording.close()
    assert closed == [1] and recording.decode({}, None, 3) is None  # type: ignore[func-returns-value]
