# SPDX-License-Identifier: Apache-2.0
"""What a batch feeds a backend and carries from call to call, with a backend that computes nothing."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec
import numpy as np
import pytest

from fastmmoe.runtime.backends.batch import Batch
from fastmmoe.runtime.bundle import graph_io
from fastmmoe.runtime.bundle.manifest import LanguageModelInfo
from fastmmoe.runtime.errors import NotFinite
from fastmmoe.runtime.method.call import NO_VISUAL_TOKENS, Chunk
from fastmmoe.runtime.method.policy import Policy
from fastmmoe.runtime.method.schedule import plan_request
from fastmmoe.runtime.types import Array
from tests.support.manifests import manifest_document


@dataclass
class Echo:
    """A backend whose caches are the number of calls so far."""

    info: LanguageModelInfo
    policy: Policy
    calls: list[dict[str, Array]] = field(default_factory=list)
    logits: float = 0.5

    def image_features(self, vision_inputs: dict[str, Array]) -> Array:
        raise AssertionError("a batch has no pictures")

    def embed(self, input_ids: Array) -> Array:
        raise AssertionError("a batch has no ids")

    def new_caches(self) -> int:
        return 0

    def extend(self, feeds: dict[str, Array], caches: int) -> tuple[dict[str, Array], int]:
        assert caches == len(self.calls), "the caches of another call"
        self.calls.append(feeds)
        sequences = len(feeds[graph_io.SEQUENCE_OFFSETS]) - 1
        outputs = {graph_io.LOGITS: np.full((sequences, self.info.vocab_size), self.logits, np.float32)}
        outputs |= {graph_io.kept_index(s): np.array([s]) for s in range(len(self.policy.sites))}
        return outputs | {"more": np.array([7])}, caches + 1


@pytest.fixture
def echo() -> Echo:
    """Four layers, of which 1 and 2 prune."""
    toy = manifest_document("deepseek_vl2")
    return Echo(msgspec.convert(toy["language_model"], LanguageModelInfo), msgspec.convert(toy["policy"], Policy))


def chunk_of(echo: Echo, sequence: int, tokens: int, visual: int) -> Chunk:
    schedule = plan_request(echo.policy, visual_tokens=visual, moe_layers=echo.info.moe_layers, top_k=echo.info.top_k)
    index = np.arange(1, 1 + visual, dtype=np.int32)
    return Chunk(sequence, np.zeros((tokens, echo.info.hidden_size), np.float32), index, schedule)


def test_lengths_follow_from_the_schedules(echo: Echo) -> None:
    batch = Batch(echo, 2)
    prompts = [chunk_of(echo, 0, 30, 20), chunk_of(echo, 1, 12, 0)]
    assert batch.extend(prompts, alpha=0.3).shape == (2, echo.info.vocab_size)
    first, second = prompts[0].schedule.keep
    assert 20 > first > second > 0
    # The layer that prunes still caches every token that enters it.
    assert batch.cache_lengths.tolist() == [[30, 30, 10 + first, 10 + second], [12] * 4]
    assert (batch.lengths, [k.tolist() for k in batch.kept_index]) == ([30, 12], [[0], [1]])
    assert batch.observed.keys() == {"more"}
    step = chunk_of(echo, 1, 1, 0)
    batch.extend([step], alpha=0.3)
    assert batch.lengths == [30, 13]
    assert batch.cache_lengths.tolist() == [[30, 30, 10 + first, 10 + second], [13] * 4]
    assert echo.calls[1][graph_io.POSITION_IDS].tolist() == [12]
    assert echo.calls[1][graph_io.SEQUENCE_IDS].tolist() == [1]
    assert step.visual_index.tolist() == NO_VISUAL_TOKENS.tolist()


def test_logits_that_are_no_numbers_are_refused(echo: Echo) -> None:
    echo.logits = np.nan
    with pytest.raises(NotFinite, match="the language model computed them"):
        Batch(echo).extend([chunk_of(echo, 0, 5, 2)], alpha=0.3)
