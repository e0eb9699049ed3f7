# SPDX-License-Identifier: Apache-2.0
"""How the demo is asked, by float32 on the CPU where the folder is packed, and on the machine."""

from __future__ import annotations

import numpy as np

from fastmmoe.runtime.backends.base import Backend
from fastmmoe.runtime.backends.batch import Batch
from fastmmoe.runtime.method.call import NO_VISUAL_TOKENS, Chunk
from fastmmoe.runtime.method.policy import UNMODIFIED
from fastmmoe.runtime.method.schedule import plan_request
from fastmmoe.runtime.types import Array

RETENTIONS = (1.0, 0.5, 0.25)
HALF = "demo-fp16"
"""The bundle's folder."""
REFERENCE = "reference.npz"
"""The question, and what float32 says."""
LARGE = "large"
"""Folder of the large graph."""
WEIGHTS = "weights.json"
"""What its large weights are."""


def answer(
    backend: Backend, embeds: Array, visual_index: Array, retention: float, steps: int, tokens: Array | None
) -> dict[str, Array]:
    """A prompt and the steps after it: logits [1 + steps, vocab] float32, tokens [1 + steps], kept rows of each site.

    Args:
        tokens: [steps] that are fed whatever the logits say; None: the greatest logit's.
    """
    info, policy = backend.info, backend.policy
    schedule = plan_request(
        policy,
        visual_tokens=len(visual_index),
        moe_layers=info.moe_layers,
        top_k=info.top_k,
        retention=retention,
    )
    batch = Batch(backend)
    logits = [batch.extend([Chunk(0, embeds, visual_index, schedule)], alpha=policy.alpha, new_tokens=[steps])]
    kept = {f"kept_index.{site}": np.array(rows) for site, rows in enumerate(batch.kept_index)}
    decoding = plan_request(policy, visual_tokens=0, moe_layers=info.moe_layers, top_k=info.top_k, method=UNMODIFIED)
    for step in range(steps):
        token = np.array([logits[-1][0].argmax() if tokens is None else tokens[step]], np.int32)
        chunk = Chunk(0, backend.embed(token), NO_VISUAL_TOKENS, decoding)
        logits.append(batch.extend([chunk], alpha=policy.alpha))
    all_logits = np.concatenate(logits).astype(np.float32)
    return {"logits": all_logits, "tokens": all_logits.argmax(1).astype(np.int32)} | kept
