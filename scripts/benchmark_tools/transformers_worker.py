# SPDX-License-Identifier: Apache-2.0
"""Runs a language model with transformers: times of a prefill, or of a decode step, for each line that it reads.

    python scripts/benchmark_tools/transformers_worker.py DIR float32|bfloat16 THREADS

Runs in an environment of its own, which needs torch and transformers alone. A line is a number of rows: more than 1 is
a prefill into a new cache, 1 the next step of a sequence that began with 16.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

BEGINNING, LONGEST = 16, 192


def main() -> None:
    """Load the model, say so, and answer each line."""
    directory, dtype, threads = sys.argv[1:]
    import torch
    from transformers import AutoModelForCausalLM, DynamicCache  # type: ignore[import-not-found]

    torch.set_num_threads(int(threads))
    torch.set_grad_enabled(False)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=getattr(torch, dtype), attn_implementation="sdpa")
    model.eval()
    cache: Any = None
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        rows = int(line)
        ids = torch.randint(2, model.config.vocab_size, (1, rows))
        if rows > 1:
            used = DynamicCache(config=model.config)
        elif cache is None or cache.get_seq_length() > LONGEST:
            used = cache = DynamicCache(config=model.config)
            model(input_ids=ids.repeat(1, BEGINNING), past_key_values=cache, use_cache=True)
        else:
            used = cache
        start, cpu_start = time.perf_counter(), time.process_time()
        logits = model(input_ids=ids, past_key_values=used, use_cache=True, logits_to_keep=1).logits
        logits[0, -1].argmax().item()
        found = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu_start}
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
