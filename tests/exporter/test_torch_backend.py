# SPDX-License-Identifier: Apache-2.0
"""A model's modules as a backend: what goes in and out is NumPy, and a call leaves its rows in the caches."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn

from fastmmoe.exporter.models.steps import Program, Take
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
    return TorchBackend(graphs, MANIFEST.policy, MANIFEST.language_model, longest=64)


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


def test_caches_are_of_the_type_that_the_graphs_have() -> None:
    caches = replace(backend(language_model=None), cache_dtype="bfloat16").new_caches(1, (2, 2, 2))
    assert {cache.dtype for cache in caches.values()} == {torch.bfloat16}


def test_new_caches_have_room_by_group() -> None:
    """Four layers of two heads of 6 in three groups: sites in layers 1 and 2."""
    caches = backend(language_model=None).new_caches(3, (5, 4, 2))
    assert {name: (tuple(cache.shape), cache.dtype) for name, cache in caches.items()} == {
        f"past_key_values.{i}.{part}": ((3, 2, capacity, 6), torch.float32)
        for i, capacity in enumerate((5, 5, 4, 2))
        for part in ("key", "value")
    }


def test_greater_caches_begin_with_the_rows_there_were() -> None:
    before = backend(language_model=None).new_caches(2, (3, 2, 1))
    for i, cache in enumerate(before.values()):
        cache[:] = torch.arange(cache.numel()).view(cache.shape) + i
    after = backend(language_model=None).new_caches(2, (6, 2, 4), before)
    for name, cache in after.items():
        rows = before[name].shape[2]
        assert torch.equal(cache[:, :, :rows], before[name])
    assert [after[f"past_key_values.{i}.key"].shape[2] for i in range(4)] == [6, 6, 2, 4]


def test_a_call_leaves_its_rows_in_the_caches() -> None:
    kept = {f"kept_index.{s}": torch.arange(3 - s) for s in range(2)}
    given = {"logits": torch.ones(1, 5), "next_ids": torch.ones(1), "present.0.key": torch.ones(2), **kept}
    model, zeros = Recorder(**given), torch.zeros(1)
    caches = {PAST: zeros}
    feeds = {graph_io.ALPHA: np.ones(1, np.float32)}
    outputs = backend(language_model=model).extend(feeds, caches, ["logits", *kept])
    assert model.given.keys() == {graph_io.ALPHA, PAST} and model.given[PAST] is zeros
    assert {name: value.tolist() for name, value in outputs.items()} == {
        "logits": [[1.0] * 5],
        "kept_index.0": [0, 1, 2],
        "kept_index.1": [0, 1],
    }
    assert list(caches) == [PAST] and caches[PAST].tolist() == [1.0, 1.0]
    assert not caches[PAST].requires_grad
    assert zeros.tolist() == [0.0]


class Layers(nn.Module):
    """A decoder of which every row [T, 1] is left, and whose logits are twice it and its negative."""

    def program(self, *, every_row: bool) -> Program:
        assert every_row
        takes: dict[str, Take] = dict.fromkeys((graph_io.INPUTS_EMBEDS, PAST), ((), torch.float32))
        return Program.of(self, takes, (graph_io.LOGITS,))

    def forward(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        x = inputs[graph_io.INPUTS_EMBEDS] + inputs[PAST]
        return {graph_io.LOGITS: torch.cat((2 * x, -x), dim=1)}


def test_logits_of_every_row() -> None:
    """The caches stay as they are: a prompt can be asked about again."""
    caches = {PAST: torch.tensor([[10.0]])}
    feeds = {graph_io.INPUTS_EMBEDS: np.array([[1.0], [2.0], [3.0]], np.float32)}
    logits = backend(language_model=Layers()).logits_of_rows(feeds, caches)
    assert isinstance(logits, np.ndarray)
    assert logits.tolist() == [[22, -11], [24, -12], [26, -13]]
    assert {name: cache.tolist() for name, cache in caches.items()} == {PAST: [[10.0]]}


def test_the_decoder_is_that_of_the_graphs() -> None:
    model = Recorder()
    assert backend(language_model=model).language_model is model
