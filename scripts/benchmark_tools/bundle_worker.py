# SPDX-License-Identifier: Apache-2.0
"""A bundle's language model, as llm_worker.py answers.

python scripts/benchmark_tools/bundle_worker.py BUNDLE THREADS
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from llm_worker import BEGINNING, LONGEST, Call, serve

from fastmmoe.runtime.backends.batch import Batch
from fastmmoe.runtime.backends.mapped_weights import map_weights
from fastmmoe.runtime.backends.onnxruntime import OnnxRuntime
from fastmmoe.runtime.backends.settings import Settings
from fastmmoe.runtime.bundle.manifest import read_manifest
from fastmmoe.runtime.method.call import NO_VISUAL_TOKENS, Chunk
from fastmmoe.runtime.method.policy import UNMODIFIED
from fastmmoe.runtime.method.schedule import plan_request


def load(path: Path, threads: int) -> tuple[Callable[[int], Call], Callable[[], Callable[[], Call]]]:
    """Calls that end with the logits of the last token."""
    settings = Settings(threads=threads, spinning=True)
    backend = OnnxRuntime(path, read_manifest(path), settings, graphs=("language_model",))
    map_weights(path)  # as llama.cpp does
    info, policy = backend.info, backend.policy
    plan = plan_request(policy, visual_tokens=0, moe_layers=info.moe_layers, top_k=info.top_k, method=UNMODIFIED)
    random = np.random.default_rng(0)

    def call(batch: Batch, rows: int, new_tokens: int) -> Call:
        chunk = Chunk(0, random.standard_normal((rows, info.hidden_size), np.float32), NO_VISUAL_TOKENS, plan)
        return lambda: batch.extend([chunk], alpha=policy.alpha, new_tokens=[new_tokens] if new_tokens else ())

    def begin() -> Callable[[], Call]:
        batch = Batch(backend)
        call(batch, BEGINNING, LONGEST)()
        return lambda: call(batch, 1, 0)

    return lambda rows: call(Batch(backend), rows, 0), begin


if __name__ == "__main__":
    BUNDLE, THREADS = sys.argv[1:]
    serve(lambda: load(Path(BUNDLE), int(THREADS)))
