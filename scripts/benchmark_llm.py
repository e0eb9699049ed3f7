# SPDX-License-Identifier: Apache-2.0
"""Tokens a second of a language model in each format, prefill and decoding, beside transformers on the same weights.

    python scripts/benchmark_llm.py make DIR
    for w in fp32 bf16 int8 int4; do fastmmoe-export DIR/checkpoint DIR/$w --weights $w --method none; done
    python scripts/benchmark_llm.py run DIR/fp32 DIR/bf16 DIR/int8 DIR/int4 \\
        --transformers DIR/text --python ENVIRONMENT/bin/python

`make` writes a random checkpoint of 8 layers (32 experts, 4 a token, 512 hidden columns), and its language model alone
as transformers takes it. `run` asks all of them in turn, so that drift of the machine hits all alike, and prints
medians, by the clock and by processor time. ENVIRONMENT has torch and transformers (`pip install torch transformers`).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from benchmark_tools.machine import processor
from checkpoint_tools.published import PUBLISHED, Cut
from checkpoint_tools.writer import write_checkpoint
from markers import table
from safetensors.torch import load_file, save_file

from fastmmoe.runtime.backends.batch import Batch
from fastmmoe.runtime.backends.onnxruntime import OnnxRuntime
from fastmmoe.runtime.backends.settings import Settings
from fastmmoe.runtime.bundle.manifest import read_manifest
from fastmmoe.runtime.cli.command import run_command
from fastmmoe.runtime.machines.threads import usable_cores
from fastmmoe.runtime.method.call import NO_VISUAL_TOKENS, Chunk
from fastmmoe.runtime.method.policy import UNMODIFIED
from fastmmoe.runtime.method.schedule import plan_request

MODEL = "InternVL3_5-30B-A3B-HF"
SIZES = {
    "hidden_size": 512,
    "intermediate_size": 1024,
    "moe_intermediate_size": 384,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "num_experts": 32,
    "num_experts_per_tok": 4,
}
LAYERS, VOCABULARY = 8, 1024
BEGINNING, LONGEST = 16, 192
STEPS = 8
"""Decode steps that are timed together."""
WORKER = Path(__file__).parent / "benchmark_tools" / "transformers_worker.py"


class Times(NamedTuple):
    """Seconds of a call by the clock, and of its processor time on all threads."""

    seconds: float
    cpu_seconds: float


Rows = Callable[[int], Times]


def make(directory: Path) -> None:
    """Write DIR/checkpoint, and DIR/text with the language model alone."""
    cut = Cut(layers=LAYERS, vision_layers=1, vocab_size=VOCABULARY, text=SIZES)
    write_checkpoint(directory / "checkpoint", PUBLISHED[MODEL], cut)
    prefix, text = "language_model.", directory / "text"
    text.mkdir()
    tensors: dict[str, torch.Tensor] = {}
    for file in sorted((directory / "checkpoint").glob("*.safetensors")):
        tensors |= {n.removeprefix(prefix): t for n, t in load_file(file).items() if n.startswith(prefix)}
    save_file(tensors, text / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((directory / "checkpoint" / "config.json").read_text(encoding="utf-8"))["text_config"]
    config |= {"architectures": ["Qwen3MoeForCausalLM"], "tie_word_embeddings": False}
    (text / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")


class Bundle:
    """A bundle's language model: times of a prefill of so many rows, or of a step (1)."""

    def __init__(self, path: Path, threads: int) -> None:
        self._backend = OnnxRuntime(path, read_manifest(path), Settings(threads=threads), graphs=("language_model",))
        info, self._policy = self._backend.info, self._backend.policy
        self._plan = plan_request(
            self._policy, visual_tokens=0, moe_layers=info.moe_layers, top_k=info.top_k, method=UNMODIFIED
        )
        self._random, self._width = np.random.default_rng(0), info.hidden_size
        self._decoding: Batch | None = None
        self._steps = 0

    def __call__(self, rows: int) -> Times:
        if rows > 1:
            return self._extend(Batch(self._backend), rows, 0)
        if self._decoding is None or self._steps > LONGEST:
            self._decoding, self._steps = Batch(self._backend), BEGINNING
            self._extend(self._decoding, BEGINNING, LONGEST + STEPS)
        self._steps += 1
        return self._extend(self._decoding, 1, 0)

    def _extend(self, batch: Batch, rows: int, new_tokens: int) -> Times:
        embeds = self._random.standard_normal((rows, self._width), np.float32)
        chunk = Chunk(0, embeds, NO_VISUAL_TOKENS, self._plan)
        start, cpu_start = time.perf_counter(), time.process_time()
        batch.extend([chunk], alpha=self._policy.alpha, new_tokens=[new_tokens] if new_tokens else ())
        return Times(time.perf_counter() - start, time.process_time() - cpu_start)


class Transformers:
    """The same of transformers, in a process of another environment."""

    def __init__(self, directory: Path, dtype: str, python: str, threads: int) -> None:
        command = [python, str(WORKER), str(directory), dtype, str(threads)]
        # Threads that wait would take the time of those that compute.
        environment = os.environ | {"OMP_WAIT_POLICY": "passive"}
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment)
        self._read()

    def __call__(self, rows: int) -> Times:
        assert self._process.stdin is not None
        print(rows, file=self._process.stdin, flush=True)
        return Times(**self._read())

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _read(self) -> dict[str, float]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("benchmark_llm.py: the worker of transformers ended; its message is above")
        found: dict[str, float] = json.loads(line)
        return found


def measure(programs: dict[str, Rows], sizes: list[int], repeats: int) -> dict[tuple[str, int], Times]:
    """Median tokens a second by the clock, and a second of processor time, by program and rows of a call."""
    samples: dict[tuple[str, int], list[Times]] = {(name, rows): [] for name in programs for rows in sizes}
    for repeat in range(repeats + 1):
        for rows in sizes:
            for name in random.sample(list(programs), len(programs)):
                steps = STEPS if rows == 1 else 1
                total = [sum(each) / steps for each in zip(*(programs[name](rows) for _ in range(steps)), strict=True)]
                if repeat:  # the first warms up
                    samples[name, rows].append(Times(*(rows / max(one, 1e-9) for one in total)))
    return {key: Times(*map(statistics.median, zip(*values, strict=True))) for key, values in samples.items()}


def run(a: argparse.Namespace) -> int:
    """Print a Markdown table."""
    threads = a.threads or usable_cores()
    programs: dict[str, Rows] = {path.name: Bundle(path, threads) for path in a.bundles}
    peers = []
    if a.transformers is not None:
        for dtype in ("float32", "bfloat16"):
            peers.append(Transformers(a.transformers, dtype, a.python, threads))
            programs[f"transformers {dtype}"] = peers[-1]
    sizes = [1, *a.rows]
    found = measure(programs, sizes, a.repeats)
    for peer in peers:
        peer.close()
    load = os.getloadavg()[0]
    print(
        f"{processor()}, {threads} threads, load {load:.1f}; medians of {a.repeats}: tokens a second, and in brackets"
    )
    print("tokens a second of processor time, which leaves out what other programs took\n")
    head = ("", "decode", *(f"prefill {rows:,}" for rows in a.rows))
    rows_of = {name: [found[name, rows] for rows in sizes] for name in programs}
    print(table(head, ((name, *(f"{c:,.0f} ({p:,.0f})" for c, p in each)) for name, each in rows_of.items())))
    return 0


def main() -> int:
    """Parse and call."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(required=True)
    making = commands.add_parser("make", help="write the checkpoint")
    making.add_argument("directory", type=Path, metavar="DIR")
    making.set_defaults(call=lambda a: make(a.directory))
    running = commands.add_parser("run", help="measure")
    running.add_argument("bundles", type=Path, nargs="+", metavar="BUNDLE")
    running.add_argument("--transformers", type=Path, metavar="DIR", help="the language model alone")
    running.add_argument("--python", default=sys.executable, help="of an environment with torch and transformers")
    running.add_argument("--rows", type=int, nargs="+", default=[64, 512, 2048], metavar="N")
    running.add_argument("--repeats", type=int, default=7, metavar="N")
    running.add_argument("--threads", type=int, default=0, metavar="N", help="default: all cores")
    running.set_defaults(call=run)
    a = parser.parse_args()
    return run_command("benchmark_llm.py", lambda: a.call(a) or 0)


if __name__ == "__main__":
    sys.exit(main())
