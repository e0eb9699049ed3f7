# SPDX-License-Identifier: Apache-2.0
"""A language model with transformers, as llm_worker.py answers: torch and transformers in an environment of its own.

python scripts/benchmark_tools/transformers_worker.py DIR float32|bfloat16 THREADS
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from llm_worker import BEGINNING, Call, serve


def load(directory: str, dtype: str, threads: int) -> tuple[Callable[[int], Call], Callable[[], Callable[[], Call]]]:
    """Calls that end with the greatest logit of the last token."""
    import torch
    from transformers import AutoModelForCausalLM, DynamicCache  # type: ignore[import-not-found]

    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=getattr(torch, dtype), attn_implementation="sdpa")
    model.eval()

    def call(rows: int, cache: Any) -> Call:
        ids = torch.randint(2, model.config.vocab_size, (1, rows))

        def run() -> None:
            logits = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
            logits[0, -1].argmax().item()

        return run

    def begin() -> Callable[[], Call]:
        cache = DynamicCache(config=model.config)
        call(BEGINNING, cache)()
        return lambda: call(1, cache)

    return lambda rows: call(rows, DynamicCache(config=model.config)), begin


if __name__ == "__main__":
    DIRECTORY, DTYPE, THREADS = sys.argv[1:]
    serve(lambda: load(DIRECTORY, DTYPE, int(THREADS)))
