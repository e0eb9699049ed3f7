# SPDX-License-Identifier: Apache-2.0
"""What the whole-model section runs: the demo's graphs in float16, what float32 on the CPU says, and a large graph."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastmmoe import VLM
from fastmmoe.calibration.data import BUILTIN, load_samples
from fastmmoe.exporter.checkpoint.reader import Checkpoint
from fastmmoe.exporter.config import DEMO, checkpoint_directory
from fastmmoe.exporter.export import write_graphs
from fastmmoe.exporter.manifest import build_manifest
from fastmmoe.exporter.model import Model, Precision
from fastmmoe.exporter.processor import read_processor_config
from fastmmoe.exporter.pruning.settings import PolicyOptions
from fastmmoe.runtime.bundle.manifest import TOKENIZER, write_manifest
from fastmmoe.runtime.types import Array
from gpu_acceptance_tools.answers import HALF, LARGE, REFERENCE, RETENTIONS, answer
from gpu_acceptance_tools.large import write_large

STEPS, TINY_STEPS = 64, 2
WHOLE = "demo-fp32"
OPSETS = {HALF: 20, WHOLE: 23}


def make_bundles(folder: Path, *, is_rehearsal: bool) -> None:
    """Write them all anew."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    _write_demo(folder / HALF, HALF, Precision(torch.float16, torch.float16, kv_caches=torch.float16))
    write_large(folder / LARGE, is_rehearsal=is_rehearsal)
    with tempfile.TemporaryDirectory() as scratch:
        whole = Path(scratch) / WHOLE
        _write_demo(whole, WHOLE, Precision(torch.float32, torch.float32, kv_caches=torch.float32))
        arrays: dict[str, Any] = _reference(whole, TINY_STEPS if is_rehearsal else STEPS)
        np.savez_compressed(folder / REFERENCE, **arrays)


def _write_demo(directory: Path, name: str, precision: Precision) -> None:
    """A bundle of the demo; that in float16 has engines' graphs, but the experts' weights in them: it has no plugin."""
    directory.mkdir()
    checkpoint = Checkpoint(checkpoint_directory(DEMO))
    model = Model(checkpoint, PolicyOptions(), precision)
    processor = read_processor_config(
        checkpoint.path,
        model.config_reader,
        vocab_size=model.config.vocab_size,
        chat_template="builtin",
        say=lambda line: None,
    )
    write_graphs(directory, DEMO, model, opset=OPSETS[name], portable=False, say=lambda line: None)
    is_half = name == HALF
    shutil.copyfile(checkpoint.path / TOKENIZER, directory / TOKENIZER)
    target, dtype = ("rtx", "fp16") if is_half else ("cpu", "fp32")
    manifest = build_manifest(directory, DEMO, model, processor, target=target, dtype=dtype, portable=False)
    write_manifest(directory, manifest)


def _reference(bundle: Path, steps: int) -> dict[str, Array]:
    """The inputs of a question about a drawn scene, and what the model says at each retention, in float32."""
    vlm = VLM(bundle)
    inputs = vlm.processor(load_samples(BUILTIN, split="test", count=1)[0].messages)
    found: dict[str, Array] = {"input_ids": inputs.input_ids, "visual_index": inputs.visual_index}
    found |= {f"vision.{name}": value for name, value in inputs.vision_inputs.items()}
    features = np.asarray(vlm.backend.image_features(inputs.vision_inputs))
    found["features"] = features
    embeds = vlm.backend.embed(inputs.input_ids, inputs.visual_index, vlm.backend.image_features(inputs.vision_inputs))
    for retention in RETENTIONS:
        result = answer(vlm.backend, embeds, inputs.visual_index, retention, steps, None)
        found |= {f"{name}.{retention}": value for name, value in result.items()}
    return found
