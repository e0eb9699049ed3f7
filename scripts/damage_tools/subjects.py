# SPDX-License-Identifier: Apache-2.0
"""What is damaged, and the commands that meet it: checkpoints read up to tracing, bundles run to their answers."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

import fastmmoe.exporter.export as export_module
from fastmmoe.calibration.data import BUILTIN, load_samples
from fastmmoe.exporter.cli import main as export_main
from fastmmoe.exporter.config import DEMO, checkpoint_directory
from fastmmoe.runtime.bundle.manifest import read_manifest
from fastmmoe.runtime.cli.main import main as run_main
from fastmmoe.runtime.request.processor import Processor

REPOSITORY = Path(__file__).resolve().parents[2]
REACHED_TRACING = 100
DIFFERS = 101
INPUTS, EXPECTED_LOGITS, PICTURE, EXPECTED_ANSWER = "inputs.npz", "logits.npz", "picture.png", "answer.json"


class ReachedTracing(BaseException):
    """Every check that stands before the trace has let the checkpoint pass."""


def write_checkpoints(directory: Path) -> list[Path]:
    """The built-in checkpoint and the small random ones of tests/golden, complete, in a new directory."""
    tests = _golden_tools()
    golden = tests.unpack_golden(tests.TRIMMED, directory / "golden")
    shutil.copytree(checkpoint_directory(DEMO), directory / DEMO)
    return [directory / DEMO, *(tests.write_checkpoint(golden, name, directory / name) for name in tests.CHECKPOINTS)]


def _golden_tools() -> ModuleType:
    """tests/support/golden.py, which knows how the trimmed golden data are stored."""
    spec = importlib.util.spec_from_file_location("golden_tools", REPOSITORY / "tests" / "support" / "golden.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def read_checkpoint(checkpoint: Path, out: Path) -> int:
    """fastmmoe-export up to its first trace: its exit code, or REACHED_TRACING."""

    def stop(*_: Any, **__: Any) -> Any:
        raise ReachedTracing

    export_module.trace = stop
    try:
        return export_main([str(checkpoint), str(out)])
    except ReachedTracing:
        return REACHED_TRACING


def export_and_run(checkpoint: Path, out: Path) -> int:
    """fastmmoe-export with its whole check, then a first answer."""
    return export_main([str(checkpoint), str(out)]) or run_main(
        ["run", str(out), "--prompt", "x", "--max-new-tokens", "2"]
    )


def make_bundle(out: Path) -> int:
    """Export the built-in checkpoint."""
    return export_main([DEMO, str(out)])


def record_answers(bundle: Path, references: Path) -> int:
    """Write a request as tensors and one as a picture and a question, and what the undamaged bundle answers."""
    references.mkdir()
    sample = load_samples(BUILTIN, split="test", count=1)[0]
    sample.image.save(references / PICTURE)
    manifest = read_manifest(bundle)
    inputs = Processor(manifest.processor, bundle / "tokenizer.json")(sample.messages)
    mask = np.zeros((1, len(inputs.input_ids)), bool)
    mask[0, inputs.visual_index] = True
    tiles = inputs.vision_inputs["pixel_values"]
    np.savez(
        references / INPUTS,
        input_ids=inputs.input_ids[None],
        images_seq_mask=mask,
        images_spatial_crop=np.array([[[1, len(tiles) - 1]]]),
        images=tiles[None],
    )
    (references / "question").write_text(sample.question)
    return _answer(bundle, references, references / EXPECTED_LOGITS, references / EXPECTED_ANSWER)


def answer_again(bundle: Path, references: Path, scratch: Path) -> int:
    """Both requests again: the exit code of the first that fails, or DIFFERS where one has another answer."""
    logits, answer = scratch / "logits.npz", scratch / "answer.json"
    if code := _answer(bundle, references, logits, answer):
        return code
    with np.load(logits) as found, np.load(references / EXPECTED_LOGITS) as expected:
        same = all(np.array_equal(found[name], expected[name]) for name in expected.files)
    same = same and _tokens(answer) == _tokens(references / EXPECTED_ANSWER)
    return 0 if same else DIFFERS


def _answer(bundle: Path, references: Path, logits: Path, answer: Path) -> int:
    inputs = ["--inputs", str(references / INPUTS), "--dump", str(logits)]
    if code := run_main(["run", str(bundle), *inputs, "--max-new-tokens", "2"]):
        return code
    question = ["--image", str(references / PICTURE), "--prompt", (references / "question").read_text()]
    before = os.dup(1)
    file = os.open(answer, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    try:
        return run_main(["run", str(bundle), *question, "--json", "--max-new-tokens", "3"])
    finally:
        os.dup2(before, 1)


def _tokens(answer: Path) -> list[int]:
    tokens: list[int] = json.loads(answer.read_text())["token_ids"]
    return tokens
