# SPDX-License-Identifier: Apache-2.0
"""A language model with llama.cpp, as llm_worker.py answers: llama-cpp-python in an environment of its own.

python scripts/benchmark_tools/llama_worker.py FILE.gguf THREADS
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from typing import Any

from llm_worker import BEGINNING, Call, serve

ROOM = 2560
"""Tokens of a context: any prefill is one call."""


class Context:
    """A cache of a model, and tokens for it."""

    def __init__(self, llama: Any, model: Any, threads: int) -> None:
        settings = llama.llama_context_default_params()
        settings.n_ctx = settings.n_batch = ROOM
        settings.n_threads = settings.n_threads_batch = threads
        self._llama, self._context = llama, llama.llama_init_from_model(model, settings)
        self._tokens = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))
        self._batch, self._cached = llama.llama_batch_init(ROOM, 0, 1), 0

    def empty(self) -> None:
        """Forget all tokens."""
        self._llama.llama_memory_clear(self._llama.llama_get_memory(self._context), True)
        self._cached = 0

    def call(self, rows: int) -> Call:
        """Take so many more tokens, to the logits of the last."""
        batch = self._batch
        batch.n_tokens = rows
        for i in range(rows):
            batch.token[i], batch.pos[i] = random.randrange(self._tokens), self._cached + i
            batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = 1, 0, i == rows - 1
        self._cached += rows

        def run() -> None:
            status = self._llama.llama_decode(self._context, batch)
            self._llama.llama_synchronize(self._context)
            if status:
                raise SystemExit(f"llama_decode gave {status} for {rows} tokens up to {self._cached}")

        return run


def load(file: str, threads: int) -> tuple[Callable[[int], Call], Callable[[], Callable[[], Call]]]:
    """Calls of two contexts of the model."""
    import llama_cpp as llama  # type: ignore[import-not-found]

    llama.llama_backend_init()
    model = llama.llama_model_load_from_file(file.encode(), llama.llama_model_default_params())
    prefills, steps = Context(llama, model, threads), Context(llama, model, threads)

    def prefill(rows: int) -> Call:
        prefills.empty()
        return prefills.call(rows)

    def begin() -> Callable[[], Call]:
        steps.empty()
        steps.call(BEGINNING)()
        return lambda: steps.call(1)

    return prefill, begin


if __name__ == "__main__":
    FILE, THREADS = sys.argv[1:]
    serve(lambda: load(FILE, int(THREADS)))
