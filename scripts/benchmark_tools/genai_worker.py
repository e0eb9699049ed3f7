# SPDX-License-Identifier: Apache-2.0
"""A language model with ONNX Runtime GenAI, as llm_worker.py answers: onnxruntime-genai in an environment of its own.

    python scripts/benchmark_tools/genai_worker.py DIR THREADS

DIR is one of genai_files.py.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from llm_worker import BEGINNING, LONGEST, Call, serve

SMALLEST_VOCABULARY = 1000
"""Tokens from 2 to here are given."""


def load(directory: str, threads: int) -> tuple[Callable[[int], Call], Callable[[], Callable[[], Call]]]:
    """Calls that end with the next token, or with the prompt's cache."""
    import numpy as np
    import onnxruntime_genai as genai  # type: ignore[import-not-found]

    config = genai.Config(directory)
    config.overlay(f'{{"model": {{"decoder": {{"session_options": {{"intra_op_num_threads": {threads}}}}}}}}}')
    model = genai.Model(config)
    random = np.random.default_rng(0)

    def generator(room: int) -> Any:
        settings = genai.GeneratorParams(model)
        settings.set_search_options(max_length=room, min_length=room, do_sample=False)
        return genai.Generator(model, settings)

    def prefill(rows: int) -> Call:
        found, tokens = generator(rows + 1), random.integers(2, SMALLEST_VOCABULARY, rows, np.int32)
        return lambda: found.append_tokens(tokens)

    def begin() -> Callable[[], Call]:
        found = generator(BEGINNING + LONGEST + 2)
        found.append_tokens(random.integers(2, SMALLEST_VOCABULARY, BEGINNING, np.int32))
        found.generate_next_token()  # of the logits that are there
        return lambda: found.generate_next_token

    return prefill, begin


if __name__ == "__main__":
    DIRECTORY, THREADS = sys.argv[1:]
    serve(lambda: load(DIRECTORY, int(THREADS)))
