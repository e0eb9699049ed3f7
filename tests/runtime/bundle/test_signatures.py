# SPDX-License-Identifier: Apache-2.0
"""The feeds of a call are the inputs of the graph."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from fastmmoe.runtime.bundle import signatures
from fastmmoe.runtime.bundle.manifest import LanguageModelInfo
from fastmmoe.runtime.method.call import Call, Chunk
from fastmmoe.runtime.method.policy import Policy
from fastmmoe.runtime.method.schedule import plan_request
from tests.support.manifests import manifest_document


@pytest.mark.parametrize("method", ["none", "fastmmoe", "random", "fastv", "sparsevlm"])
def test_feeds_are_the_inputs_but_the_caches(method: str) -> None:
    toy = manifest_document("deepseek_vl2")
    info = msgspec.convert(toy["language_model"], LanguageModelInfo)
    layers = {"fastmmoe": [1, 2], "random": [1, 2], "fastv": [2], "sparsevlm": [0, 2]}
    policy = msgspec.convert(toy["policy"] | {"method": "all", "prune_layers": layers}, Policy)
    schedule = plan_request(
        policy, visual_tokens=30, moe_layers=info.moe_layers, top_k=info.top_k, method=method, retention=None
    )
    chunk = Chunk(0, np.zeros((40, info.hidden_size), np.float32), np.arange(3, 33, dtype=np.int32), schedule)
    feeds = signatures.feeds(info, Call(policy, [chunk], [7], alpha=0.5, seed=1))
    inputs = signatures.language_model_inputs(info, policy, "float32")
    caches = signatures.cache_inputs(info, policy, "float32")
    assert [t.name for t in inputs] == [*feeds, *(t.name for t in caches)]
    for tensor in inputs[: len(feeds)]:
        assert feeds[tensor.name].dtype == tensor.dtype
        fixed = [(a, b) for a, b in zip(feeds[tensor.name].shape, tensor.shape, strict=True) if isinstance(b, int)]
        assert all(a == b for a, b in fixed)
    assert signatures.cached_rows(info, policy, chunk)[0] == 40
