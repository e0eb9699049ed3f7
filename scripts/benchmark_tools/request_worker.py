# SPDX-License-Identifier: Apache-2.0
"""Requests to a bundle by the runtime of any commit: times of a request for each line that it reads.

    python scripts/benchmark_tools/request_worker.py BUNDLE PICTURE THREADS

A line is a retention and a number of new tokens; the answer has the milliseconds of vision, prefill, first token and
decode step (median), and the bytes of anonymous memory after the request. It asks for no more of a runtime than
any commit has.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
from pathlib import Path

PROMPT = "What is in the picture?"


def anonymous_bytes() -> int:
    """RssAnon of this process."""
    lines = Path("/proc/self/status").read_text("ascii").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon:"))


def main() -> None:
    """Load the bundle, say so, and answer each line."""
    bundle, picture, threads = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    from fastmmoe import VLM

    vlm = VLM(bundle, threads=int(threads))
    content = [{"type": "image", "image": picture}, {"type": "text", "text": PROMPT}]
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        retention, new_tokens = line.split()
        messages = [{"role": "user", "content": content}]
        stats = vlm.generate(messages, retention=float(retention), max_new_tokens=int(new_tokens)).stats
        found = {
            "vision": stats.vision_ms,
            "prefill": stats.prefill_ms,
            "first token": stats.ttft_ms,
            "decode": statistics.median(stats.decode_ms),
            "anonymous": anonymous_bytes(),
        }
        print(json.dumps(found), file=answers, flush=True)


if __name__ == "__main__":
    main()
