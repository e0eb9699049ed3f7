# SPDX-License-Identifier: Apache-2.0
"""Time vision towers of published models, in each format of `--vision`, against torch.mm's rate with bfloat16.

    python scripts/benchmark_vision.py [--model MODEL...] [--layers N] [--tiles N] [--rounds N] [--threads N]
                                       [--formats FORMAT...] [--directory DIR]

Weights are random, sizes are the published ones; the tower is exported with two decoder layers. All formats run in this
process by turns, without spinning threads, and so does torch.mm: the products of a block's linears, with as many rows.
Its rate is that of a round; shares are medians over the rounds, of the processor time of all threads, which stands
still on a busy machine. --directory keeps checkpoints and bundles between runs.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch
from benchmark_attention import Sample, instruction_set, time_once
from benchmark_tools.machine import processor
from checkpoint_tools.published import PUBLISHED, Cut
from checkpoint_tools.writer import write_checkpoint
from markers import table

from fastmmoe.exporter.config import ExportConfig, VisionFormat
from fastmmoe.exporter.export import export
from fastmmoe.exporter.pruning.settings import PolicyOptions
from fastmmoe.runtime.backends.onnxruntime import OnnxRuntime
from fastmmoe.runtime.backends.settings import Settings
from fastmmoe.runtime.bundle.manifest import MANIFEST, VisionInfo, read_manifest
from fastmmoe.runtime.cli.command import run_command
from fastmmoe.runtime.cost.flops import vision_flops
from fastmmoe.runtime.machines.threads import usable_cores
from fastmmoe.runtime.method.policy import UNMODIFIED
from fastmmoe.runtime.request.family import family_of
from fastmmoe.runtime.types import Array

MODELS = ("deepseek-vl2-tiny", "InternVL3_5-30B-A3B-HF")
FORMATS: tuple[VisionFormat, ...] = ("float", "bf16", "int8")
VOCAB_SIZE = 2048
PRODUCTS = "torch.mm bfloat16"


@dataclass(frozen=True)
class Tower:
    """A tower in one format."""

    backend: OnnxRuntime
    inputs: dict[str, Array]

    def run(self) -> Array:
        """Features of the tiles."""
        features = self.backend.image_features(self.inputs)
        assert isinstance(features, np.ndarray)
        return features


def main() -> int:
    """Print one Markdown table for each model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", choices=PUBLISHED, default=MODELS, metavar="MODEL")
    parser.add_argument("--layers", type=int, help="of the tower (default: all)", metavar="N")
    parser.add_argument("--tiles", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=FORMATS)
    parser.add_argument("--directory", type=Path, metavar="DIR")
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    print(
        f"{processor()} ({instruction_set()}), {a.threads} threads, ONNX Runtime {ort.__version__}, PyTorch "
        f"{torch.__version__}, {a.tiles} tiles, load {os.getloadavg()[0]:.1f}. Medians of {a.rounds} rounds."
    )
    with tempfile.TemporaryDirectory() as scratch:
        for name in a.model:
            bundles = write_bundles(a.directory or Path(scratch), name, a.layers, a.formats)
            print(f"\n{measure(name, bundles, a.tiles, a.threads, a.rounds)}", flush=True)
    return 0


def write_bundles(
    directory: Path, name: str, layers: int | None, formats: Sequence[VisionFormat]
) -> Mapping[VisionFormat, Path]:
    """A bundle of the model in each format; what is there stays."""
    home = directory / f"{name}-{layers or 'all'}"
    checkpoint = home / "checkpoint"
    bundles = {vision: home / vision for vision in formats}
    missing = {vision: path for vision, path in bundles.items() if not (path / MANIFEST).is_file()}
    if missing and not checkpoint.is_dir():
        write_checkpoint(checkpoint, PUBLISHED[name], Cut(2, layers, VOCAB_SIZE))
    policy = PolicyOptions(method=UNMODIFIED)
    for vision, path in missing.items():
        export(ExportConfig(str(checkpoint), path, dtype="bf16", vision=vision, policy=policy))
    return bundles


def measure(name: str, bundles: Mapping[VisionFormat, Path], tiles: int, threads: int, rounds: int) -> str:
    """The table of one model."""
    towers = {vision: open_tower(path, tiles, threads) for vision, path in bundles.items()}
    manifest = read_manifest(next(iter(bundles.values())))
    flops = vision_flops(manifest.vision, manifest.language_model.hidden_size, tiles)
    product, product_flops = torch_products(manifest.vision, tiles)
    features = {vision: tower.run() for vision, tower in towers.items()}  # warms up
    subjects: dict[str, Callable[[], object]] = {vision: tower.run for vision, tower in towers.items()}
    subjects[PRODUCTS] = product
    product()
    samples: dict[str, list[Sample]] = {subject: [] for subject in subjects}
    names = list(subjects)
    for i in range(rounds):
        for subject in names[i % len(names) :] + names[: i % len(names)]:
            samples[subject].append(Sample(*time_once(subjects[subject])))
    rates = [product_flops / sample.used for sample in samples[PRODUCTS]]
    lines = []
    for vision in towers:
        passed, used = (statistics.median(getattr(one, kind) for one in samples[vision]) for kind in ("passed", "used"))
        share = statistics.median(flops / one.used / r for one, r in zip(samples[vision], rates, strict=True))
        errors = differences(features[vision], features["float"]) if vision != "float" and "float" in features else ""
        times = (f"{1e3 * seconds / tiles:.0f}" for seconds in (passed, used))
        lines.append((vision, *times, f"{flops / used / 1e9:.0f}", f"{share:.2f}", errors))
    lines.append((PRODUCTS, "", "", f"{statistics.median(rates) / 1e9:.0f}", "", ""))
    v = manifest.vision
    size = f"{v.layers} layers, {v.width} wide, {v.rows_per_tile} rows"
    head = f"{name}: {size} and {flops / tiles / 1e9:.0f} GFLOP a tile"
    times_of = ("ms a tile", "processor ms a tile", "GFLOP/s of a core", "share of torch.mm's")
    columns = ("`--vision`", *times_of, "features beside float: greatest, L2")
    return f"{head}\n\n{table(columns, lines, numbers_from=1)}"


def open_tower(bundle: Path, tiles: int, threads: int) -> Tower:
    """The vision graph with tiles of smooth random pictures."""
    manifest = read_manifest(bundle)
    side = manifest.processor.tile_size
    cut = family_of(manifest.processor).cut(manifest.processor, [(side, side)], None, 0)
    coarse = np.random.default_rng(0).uniform(-1, 1, (tiles, 3, 24, 24)).astype(np.float32)
    pixels = np.ascontiguousarray(coarse.repeat(16, 2).repeat(16, 3)[:, :, :side, :side])
    if side > 384:
        pixels = np.ascontiguousarray(coarse.repeat(-(-side // 24), 2).repeat(-(-side // 24), 3)[:, :, :side, :side])
    inputs = cut.tile_inputs(np.concatenate([pixels] * sum(cut.tile_counts))[: sum(cut.tile_counts)])
    inputs["pixel_values"] = pixels
    if "layout_index" in inputs:
        count = manifest.vision.tokens_per_tile * tiles
        inputs["layout_index"] = np.arange(count, dtype=np.int32)
    backend = OnnxRuntime(bundle, manifest, Settings(threads=threads), graphs=("vision",))
    return Tower(backend, inputs)


def torch_products(vision: VisionInfo, tiles: int) -> tuple[Callable[[], object], float]:
    """The products of a block's linears into what is there, and their FLOPs."""
    rows, width, wide = tiles * vision.rows_per_tile, vision.width, vision.mlp_width
    shapes = ((width, 3 * width), (width, width), (width, wide), (wide, width))
    operands = [(torch.randn(rows, k).bfloat16(), torch.randn(k, n).bfloat16()) for k, n in shapes]
    outputs = [torch.empty(rows, n, dtype=torch.bfloat16) for _, n in shapes]

    def run() -> None:
        for (x, weights), out in zip(operands, outputs, strict=True):
            torch.mm(x, weights, out=out)

    return run, float(sum(2 * rows * k * n for k, n in shapes))


def differences(found: Array, exact: Array) -> str:
    """The greatest difference as a share of the greatest magnitude, and that of the norms."""
    distance = np.abs(found - exact)
    norms = np.linalg.norm(found - exact) / np.linalg.norm(exact)
    return f"{distance.max() / np.abs(exact).max():.1e}, {norms:.1e}"


if __name__ == "__main__":
    sys.exit(run_command("benchmark_vision", main))
