# SPDX-License-Identifier: Apache-2.0
"""What a batch feeds a backend and carries from call to call, with a backend that computes nothing."""

from __future__ import annotations

import numpy as np
import pytest

from fastmmoe.runtime.backends.batch import Batch
from fastmmoe.runtime.bundle import graph_io
from fastmmoe.runtime.errors import NotFinite
from fastmmoe.runtime.method.call import NO_VISUAL_TOKENS, Chunk
from fastmmoe.runtime.method.schedule import plan_request
from tests.support.echo import Echo
from tests.support.manifests import toy_manifest


@pytest.fixture
def echo() -> Echo:
    """Four layers, of which 1 and 2 prune."""
    manifest = toy_manifest("deepseek_vl2")
    return Echo(manifest.language_model, manifest.policy)


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
    assert batch.lengths == [30, 12]
    # The rows of both that are left after each site.
    assert [len(kept) for kept in batch.kept_index] == [10 + first + 12, 10 + second + 12]
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
