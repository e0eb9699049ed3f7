# SPDX-License-Identifier: Apache-2.0
"""Tokens a second of a language model, prefill and decoding, beside transformers, llama.cpp and ONNX Runtime GenAI.

    python scripts/benchmark_llm.py make DIR
    for w in bf16 int4; do fastmmoe-export DIR/checkpoint DIR/$w --weights $w --method none; done
    LLAMA/bin/python scripts/benchmark_tools/llama_files.py DIR/text DIR/bf16.gguf DIR/q4_0.gguf
    GENAI/bin/python scripts/benchmark_tools/genai_files.py DIR/text DIR/genai-int4 int4
    python scripts/benchmark_llm.py run DIR/int4 --llama LLAMA/bin/python DIR/q4_0.gguf \\
        --genai GENAI/bin/python DIR/genai-int4
    python scripts/benchmark_llm.py run DIR/bf16 --llama LLAMA/bin/python DIR/bf16.gguf \\
        --transformers GENAI/bin/python DIR/text bfloat16

`make` writes a random checkpoint of 8 layers (32 experts, 4 a token, 512 hidden columns), and its language model alone
as peers take it; `text` does so for another checkpoint, as `benchmark_methods.py checkpoint` writes it. Each program of
`run` is a process of its own and is asked by turns, each time after a wait for an idle machine. LLAMA and GENAI are
environments (docs/benchmark.md says what is installed in them).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from benchmark_attention import instruction_set
from benchmark_tools.errors import BenchmarkError
from benchmark_tools.machine import processor
from benchmark_tools.programs import Program
from benchmark_tools.turns import Samples, by_turns
from checkpoint_tools.published import PUBLISHED, Cut
from checkpoint_tools.writer import write_checkpoint
from markers import table, write_part
from safetensors import safe_open
from safetensors.torch import save_file

from fastmmoe.exporter.checkpoint.weight_files import INDEX_FILE
from fastmmoe.runtime.cli.command import run_command
from fastmmoe.runtime.machines.threads import usable_cores

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
PREFIX = "language_model."
STEPS = 8
"""Decode steps of a turn."""


def make(directory: Path) -> None:
    """Write DIR/checkpoint, and DIR/text with the language model alone."""
    cut = Cut(layers=LAYERS, vision_layers=1, vocab_size=VOCABULARY, text=SIZES)
    write_checkpoint(directory / "checkpoint", PUBLISHED[MODEL], cut)
    write_text(directory / "checkpoint", directory / "text")


def write_text(checkpoint: Path, text: Path) -> None:
    """Write the language model of an InternVL3.5 checkpoint in layout -HF, file by file, with its tokenizer.

    Raises:
        BenchmarkError: no tensor is named as in that layout.
    """
    text.mkdir()
    weight_map: dict[str, str] = {}
    total = 0
    for file in sorted(checkpoint.glob("*.safetensors")):
        with safe_open(file, "pt") as found:
            names = [name for name in found.keys() if name.startswith(PREFIX)]  # noqa: SIM118  (no dict)
            tensors: dict[str, torch.Tensor] = {n.removeprefix(PREFIX): found.get_tensor(n) for n in names}
        if tensors:
            save_file(tensors, text / file.name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, file.name)
        total += sum(tensor.nbytes for tensor in tensors.values())
    if not weight_map:
        raise BenchmarkError(f"{checkpoint} has no weights named {PREFIX}*; give an InternVL3.5 checkpoint, layout -HF")
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (text / INDEX_FILE).write_text(json.dumps(index), encoding="utf-8")
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))["text_config"]
    config |= {"architectures": ["Qwen3MoeForCausalLM"], "tie_word_embeddings": False}
    (text / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    for file in checkpoint.glob("tokenizer*.json"):
        (text / file.name).write_bytes(file.read_bytes())


def start(a: argparse.Namespace, threads: int) -> tuple[dict[str, Program], list[str]]:
    """All programs by name, and the names of the peers."""
    last = str(threads)
    ours = {bundle.name: Program(sys.executable, "bundle_worker.py", str(bundle), last) for bundle in a.bundles}
    peers = {}
    for python, file in a.llama:
        peers[f"llama.cpp {Path(file).stem}"] = Program(python, "llama_worker.py", file, last)
    for python, directory in a.genai:
        peers[f"onnxruntime-genai {Path(directory).name}"] = Program(python, "genai_worker.py", directory, last)
    for python, directory, dtype in a.transformers:
        peers[f"transformers {dtype}"] = Program(python, "transformers_worker.py", directory, dtype, last)
    return ours | peers, list(peers)


def rates(samples: Samples, rows: int) -> tuple[float, float]:
    """Median tokens a second, by the clock and by processor time."""
    return rows / statistics.median(samples.best), rows / max(statistics.median(samples.used), 1e-9)


def report(found: Mapping[int, Mapping[str, Samples]], bundles: Sequence[str], peers: Sequence[str]) -> tuple[str, str]:
    """Tables of tokens a second, and of what each bundle does for each token of the best peer.

    Args:
        found: samples by rows of a call, 1 = a decode step, and by program.
    """
    head = ["" if rows == 0 else "decode" if rows == 1 else f"prefill {rows:,}" for rows in (0, *found)]
    by_clock = {name: [rates(found[rows][name], rows) for rows in found] for name in (*bundles, *peers)}
    cells = ([name, *(f"{clock:,.0f} ({cpu:,.0f})" for clock, cpu in each)] for name, each in by_clock.items())
    best = [max((by_clock[name][i][0] for name in peers), default=0.0) for i in range(len(found))]
    ratios = (
        [name, *(f"{clock / peer:.2f}" for (clock, _), peer in zip(by_clock[name], best, strict=True))]
        for name in bundles
    )
    return table(head, cells), table(head, ratios) if peers else ""


def run(a: argparse.Namespace) -> None:
    """Print Markdown tables."""
    threads = a.threads or usable_cores()
    programs, peers = start(a, threads)
    found = {rows: by_turns(programs, rows, STEPS if rows == 1 else 1, a.repeats, a.patience) for rows in (1, *a.rows)}
    for program in programs.values():
        program.close()
    part = describe(found, [bundle.name for bundle in a.bundles], peers, threads)
    print(part)
    if a.write:
        write_part(Path(a.write[0]), a.write[1], part)


def describe(
    found: Mapping[int, Mapping[str, Samples]], bundles: Sequence[str], peers: Sequence[str], threads: int
) -> str:
    """The part of a document."""
    samples = [each for by_name in found.values() for each in by_name.values()]
    clean, every = (sum(len(getattr(each, kind)) for each in samples) for kind in ("clean", "every"))
    tokens, ratios = report(found, bundles, peers)
    head = (
        f"{processor()} ({instruction_set()}), {threads} threads, load {os.getloadavg()[0]:.1f}; {clean} of {every} "
        "calls beside nothing else. Medians, tokens a second, and in brackets tokens a second of processor time:"
    )
    return "\n\n".join((head, tokens, *(("By the best peer of each column:", ratios) if peers else ())))


def main() -> int:
    """Parse and call."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(required=True)
    making = commands.add_parser("make", help="write the small checkpoint and its language model")
    making.add_argument("directory", type=Path, metavar="DIR")
    making.set_defaults(call=lambda a: make(a.directory))
    text = commands.add_parser("text", help="write the language model of an InternVL3.5 checkpoint alone")
    text.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="of layout -HF")
    text.add_argument("text", type=Path, metavar="DIR", help="new")
    text.set_defaults(call=lambda a: write_text(a.checkpoint, a.text))
    running = commands.add_parser("run", help="measure")
    running.add_argument("bundles", type=Path, nargs="+", metavar="BUNDLE")
    peers: dict[str, Any] = {"action": "append", "default": []}
    running.add_argument("--llama", nargs=2, metavar=("PYTHON", "GGUF"), help="a file of llama_files.py", **peers)
    running.add_argument("--genai", nargs=2, metavar=("PYTHON", "DIR"), help="made by genai_files.py", **peers)
    running.add_argument("--transformers", nargs=3, metavar=("PYTHON", "DIR", "DTYPE"), help="of text or make", **peers)
    running.add_argument("--rows", type=int, nargs="+", default=[64, 512, 2048], metavar="N")
    running.add_argument("--repeats", type=int, default=7, metavar="N")
    running.add_argument("--threads", type=int, default=0, metavar="N", help="default: all cores")
    running.add_argument("--patience", type=float, default=5.0, metavar="S", help="waiting for an idle machine")
    running.add_argument("--write", nargs=2, metavar=("FILE", "NAME"), help="put the tables into a document")
    running.set_defaults(call=run)
    a = parser.parse_args()
    return run_command("benchmark_llm.py", lambda: a.call(a) or 0)


if __name__ == "__main__":
    sys.exit(main())
