# SPDX-License-Identifier: Apache-2.0
"""Measure the prefill of every pruning method on one comparison bundle, beside its FLOPs and the machine's roofline.

    python scripts/benchmark_methods.py checkpoint DIR [--layers N]
    fastmmoe-export DIR OUT --method all --dtype bf16
    python scripts/benchmark_methods.py run OUT [--only TEXT,TEXT] [--repeats N] [--threads N] [--json FILE]
                                                [--write FILE]

`checkpoint` writes random weights with the layers of InternVL3.5-30B-A3B's language model (make_random_checkpoint.py
those of whole models). `run` prints tables of the methods that the bundle has, of `--method all` or `fastmmoe`; --write
puts them into FILE between `<!-- benchmark -->` and `<!-- end of benchmark -->`, --json writes a line for each setting.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmark_tools.checkpoint import write_layers
from benchmark_tools.errors import BenchmarkError
from benchmark_tools.machine import Machine, measure_machine
from benchmark_tools.prefill import UNMODIFIED, all_settings, make_prompt, measure_prefills, plan
from benchmark_tools.probe import probe
from benchmark_tools.roofline import balance_tokens, bound
from benchmark_tools.tables import Row, machine_table, share_table, time_table
from markers import write_part

from fastmmoe.runtime.backends.load import load_backend
from fastmmoe.runtime.backends.settings import Settings
from fastmmoe.runtime.bundle.manifest import Manifest
from fastmmoe.runtime.bundle.verification import open_bundle
from fastmmoe.runtime.cli.command import run_command
from fastmmoe.runtime.machines.threads import usable_cores
from fastmmoe.runtime.method.policy import ALL, FASTMMOE

MARKER = "benchmark"
TIMES_CAPTION = (
    "R is the retention. FLOPs and time are shares of the unmodified model's; its time is that of the same repeat. "
    "Computing and reading the weights are what each would take alone; the roofline takes the greater of the two in "
    "every layer."
)
SHARES_CAPTION = (
    "Shares of the time of all nodes, by ONNX Runtime's profiler. *pruning*: the nodes that choose and move rows for "
    "this method; *all sites*: all nodes that the graph has for pruning, those of the other methods included."
)


def run(bundle: Path, words: list[str], repeats: int, threads: int) -> tuple[Machine, Manifest, list[Row]]:
    """Measure the unmodified model, and the settings whose names hold one of the words."""
    opened = open_bundle(bundle)
    manifest = opened.manifest
    _check(manifest)
    info = manifest.language_model
    settings, prompt = all_settings(manifest.policy, info.top_k), make_prompt(info.hidden_size)
    settings = [s for s in settings if s == UNMODIFIED or any(word in s.name for word in words)]
    tokens = len(prompt.inputs_embeds)
    machine = measure_machine(info, tokens, threads)
    print(machine_table(machine), flush=True)
    findings = probe(bundle, manifest, settings, prompt, threads)
    counted = {}
    for setting in settings:
        counted[setting] = bound(machine, manifest, plan(manifest, setting), tokens, findings[setting].experts_used)
    times = measure_prefills(load_backend(opened, Settings(threads=threads)), manifest, settings, prompt, repeats)
    rows = []
    for setting in settings:
        schedule, (flops, least) = plan(manifest, setting), counted[setting]
        rows.append(
            Row(
                setting=setting,
                kept=(schedule.visual_tokens, *schedule.kept_visual_tokens),
                flops=flops.total,
                baseline_flops=counted[UNMODIFIED][0].total,
                bound=least,
                findings=findings[setting],
                times_ms=tuple(times[setting]),
                baseline_ms=tuple(times[UNMODIFIED]),
            )
        )
    return machine, manifest, rows


def _check(manifest: Manifest) -> None:
    method = manifest.policy.method
    if (manifest.target, manifest.family) != ("cpu", "internvl3_5") or method not in (ALL, FASTMMOE):
        raise BenchmarkError(
            f"the bundle is of {manifest.family}, exported with --target {manifest.target} --method {method}: expected "
            "internvl3_5, --target cpu --method all or fastmmoe"
        )


def describe(machine: Machine, manifest: Manifest, rows: list[Row]) -> str:
    """The generated part of the document."""
    info, policy, repeats = manifest.language_model, manifest.policy, len(rows[0].times_ms)
    layers = "; ".join(f"{method} {', '.join(map(str, own))}" for method, own in policy.prune_layers.items())
    spread = "10th to 90th percentile" if repeats >= 10 else "least to greatest"
    return "\n\n".join(
        (
            f"{machine.processor}, {machine.cores} cores, {machine.threads} threads, ONNX Runtime "
            f"{machine.onnxruntime}; {info.layers} layers, {manifest.dtype} experts; prune layers: {layers}. Medians "
            f"of {repeats} repeats, spread: {spread}.",
            "### The machine",
            machine_table(machine),
            f"The roofline uses the greatest of these rates, {machine.gflops:.0f} GFLOP/s. With it, reading the "
            f"weights of a layer takes as long as the products of {balance_tokens(machine, manifest)} text tokens.",
            "### Prefill",
            TIMES_CAPTION,
            time_table(rows),
            "### What pruning itself costs",
            SHARES_CAPTION,
            share_table(rows),
        )
    )


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure the prefill of every pruning method on one bundle.")
    commands = parser.add_subparsers(dest="command", required=True)
    checkpoint = commands.add_parser("checkpoint", help="write random weights of InternVL3.5-30B-A3B's layers")
    checkpoint.add_argument("directory", type=Path)
    checkpoint.add_argument("--layers", type=int, default=4, help="1.25 GB each (default %(default)s)")
    measure = commands.add_parser("run", help="measure a bundle exported with --method all or fastmmoe")
    measure.add_argument("bundle", type=Path)
    measure.add_argument("--only", default="", metavar="TEXT,TEXT", help="settings whose names hold one of these")
    measure.add_argument("--repeats", type=int, default=30, help="of every setting (default %(default)s)")
    measure.add_argument("--threads", type=int, default=usable_cores(), help="default: one for each core")
    measure.add_argument("--json", type=Path, metavar="FILE", help="write a JSON line for each setting")
    measure.add_argument("--write", type=Path, metavar="FILE", help="put the tables into a document")
    return parser.parse_args()


def _main() -> int:
    arguments = _parse()
    if arguments.command == "checkpoint":
        size = write_layers(arguments.directory, arguments.layers)
        print(f"wrote {arguments.directory}: {size / 1e9:.2f} GB of random weights")
        return 0
    if min(arguments.repeats, arguments.threads) < 1:
        raise BenchmarkError(f"--repeats {arguments.repeats} --threads {arguments.threads}: expected at least 1 each")
    machine, manifest, rows = run(arguments.bundle, arguments.only.split(","), arguments.repeats, arguments.threads)
    part = describe(machine, manifest, rows)
    print(part)
    if arguments.json:
        arguments.json.write_text("".join(row.json() + "\n" for row in rows), encoding="utf-8")
    if arguments.write:
        write_part(arguments.write, MARKER, part)
    return 0


if __name__ == "__main__":
    sys.exit(run_command("benchmark_methods", _main))
