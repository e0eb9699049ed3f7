# SPDX-License-Identifier: Apache-2.0
"""Engines of the double beside the model in torch: the same request on both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fastmmoe.exporter.manifest import language_model_info
from fastmmoe.exporter.model import Model
from fastmmoe.exporter.torch_backend import TorchBackend
from fastmmoe.runtime.backends.base import Backend
from fastmmoe.runtime.backends.tensorrt.backend import TensorRT
from fastmmoe.runtime.backends.tensorrt.build import build_engines
from fastmmoe.runtime.backends.tensorrt.loading import load_engines
from fastmmoe.runtime.bundle.manifest import TOKENIZER, Manifest, read_manifest
from fastmmoe.runtime.generation import Run, Token
from fastmmoe.runtime.request.inputs import ModelInputs
from fastmmoe.runtime.request.options import RequestOptions
from fastmmoe.runtime.request.processor import Processor
from tests.support.double import Double

BORDER = {"float16": 6e-2, "bfloat16": 2e-1}
"""Share of the greatest logit that rounding to the element type at the borders of an engine may move one by."""


def check_runs(directory: Path, twin: Model, double: Double, *options: dict[str, Any]) -> None:
    """Build the bundle's engines by the double and compare requests with torch.

    Args:
        twin: the float32 twin of the model that was exported.
        options: of each request.
    """
    modules = double.modules()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.environ", double.environment())
        build_engines(directory, say=lambda _: None)
    manifest = read_manifest(directory)
    engines = load_engines(directory, manifest)
    inputs = _inputs(directory, manifest)
    for one in options:
        ours, theirs = _run(engines, manifest, inputs, one), _run_in_torch(twin, manifest, inputs, one)
        _compare(ours, theirs, BORDER[manifest.activation_dtype], str(one))
    assert isinstance(engines, TensorRT)
    engines.close()
    assert [live.allocations for live in modules.control.live()] == [0, 0]


def _inputs(directory: Path, manifest: Manifest) -> ModelInputs:
    side = manifest.processor.tile_size
    picture = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    image = Image.fromarray(picture).resize((side, side), Image.Resampling.BICUBIC)
    content = [{"type": "image", "image": image}, {"type": "text", "text": "What is there?"}]
    return Processor(manifest.processor, directory / TOKENIZER)([{"role": "user", "content": content}])


def _run(
    backend: Backend, manifest: Manifest, inputs: ModelInputs, options: dict[str, Any]
) -> tuple[list[Token], list[Any]]:
    run = Run(manifest, backend, [inputs], RequestOptions(max_new_tokens=4, **options), has_logits=True)
    return [tokens[0] for tokens in run.tokens()], run.stats[0].kept_index


def _run_in_torch(
    twin: Model, manifest: Manifest, inputs: ModelInputs, options: dict[str, Any]
) -> tuple[list[Token], list[Any]]:
    for graph, module in twin.graphs.items():
        values = {name: twin.load(f"{graph}.{name}") for name, _ in module.named_parameters()}
        module.load_state_dict(values, assign=True)
    longest = manifest.processor.max_position_embeddings
    backend = TorchBackend(twin.graphs, twin.policy, language_model_info(twin.config), longest)
    return _run(backend, manifest, inputs, options)


def _compare(
    ours: tuple[list[Token], list[Any]], theirs: tuple[list[Token], list[Any]], share: float, what: str
) -> None:
    for a, b in zip(ours[1], theirs[1], strict=True):
        others = len(set(a) ^ set(b)) / len(b)
        # Scores that nearly tie fall either way by rounding; then the logits are those of other rows.
        assert len(a) == len(b) and others < 0.05, f"{what}: {others:.1%} of the rows are others"
        if others:
            return
    for step, (a, b) in enumerate(zip(ours[0], theirs[0], strict=True)):
        assert a.logits is not None and b.logits is not None
        scale = np.abs(b.logits).max()
        np.testing.assert_allclose(a.logits, b.logits, rtol=0, atol=share * scale, err_msg=f"{what}, step {step}")
        if a.id != b.id:
            # A near tie: what follows is another answer.
            assert b.logits[b.id] - b.logits[a.id] < share * scale
            return
