# SPDX-License-Identifier: Apache-2.0
"""A model's modules as a backend: what goes in and out is NumPy, and caches are carried from call to call."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn

from fastmmoe.exporter.torch_backend import TorchBackend
from fastmmoe.runtime.bundle import graph_io
from tests.support.manifests import toy_manifest

MANIFEST = toy_manifest("deepseek_vl2")
PAST = "past_key_values.0.key"


class Recorder(nn.Module):
    """Gives what it is told to, and remembers what it was given."""

    def __init__(self, **outputs: torch.Tensor) -> None:
        super().__init__()
        self.outputs, self.weight = outputs, nn.Parameter(torch.ones(1))
        self.given: dict[str, torch.Tensor] = {}

    def forward(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        self.given = inputs
        return {name: value * self.weight for name, value in self.outputs.items()}


def backend(**modules: Any) -> TorchBackend:
    graphs: Any = SimpleNamespace(**modules)
    return TorchBackend(graphs, MANIFEST.policy, MANIFEST.language_model)


def test_features_of_a_picture() -> None:
    vision = Recorder(image_features=torch.arange(6.0).view(2, 3))
    features = backend(vision=vision).image_features({graph_io.PIXEL_VALUES: np.full((1, 3, 2, 2), 0.5, np.float32)})
    assert isinstance(features, np.ndarray)
    assert features.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert list(vision.given) == [graph_io.PIXEL_VALUES]
    assert torch.equal(vision.given[graph_io.PIXEL_VALUES], torch.full((1, 3, 2, 2), 0.5))


def test_ids_of_every_integer_type_are_embedded() -> None:
    embedding = Recorder(inputs_embeds=torch.ones(2, 3))
    for ids in (np.array([3, 1]), np.array([3, 1], np.int32), np.array([3, 1], np.uint16)):
        assert backend(embedding=embedding).embed(ids).shape == (2, 3)
        given = embedding.given[graph_io.INPUT_IDS]
        assert (given.dtype, given.tolist()) == (torch.int32, [3, 1])


def test_new_caches_hold_nothing() -> None:
    """Four layers of two heads of 6, and the sequences of three groups: sites in layers 1 and 2."""
    caches = backend(language_model=None).new_caches()
    assert {name: (tuple(cache.shape), cache.dtype) for name, cache in caches.items()} == {
        **{f"past_key_values.{i}.{part}": ((1, 2, 0, 6), torch.float32) for i in range(4) for part in ("key", "value")},
        **{f"past_sequence_ids.{g}": ((0,), torch.int32) for g in range(3)},
    }


def test_a_call_carries_its_caches_on() -> None:
    model = Recorder(**{"logits": torch.ones(1, 5), "kept_index.0": torch.arange(3), "present.0.key": torch.ones(2)})
    before = {PAST: torch.zeros(1)}
    outputs, after = backend(language_model=model).extend({graph_io.ALPHA: np.ones(1, np.float32)}, before)
    assert model.given.keys() == {graph_io.ALPHA, PAST} and model.given[PAST] is before[PAST]
    assert {name: value.tolist() for name, value in outputs.items()} == {
        "logits": [[1.0] * 5],
        "kept_index.0": [0, 1, 2],
    }
    assert list(after) == [PAST] and after[PAST].tolist() == [1.0, 1.0]
    assert not after[PAST].requires_grad
    assert before[PAST].tolist() == [0.0]


def test_the_decoder_is_that_of_the_graphs() -> None:
    model = Recorder()
    assert backend(language_model=model).language_model is model
