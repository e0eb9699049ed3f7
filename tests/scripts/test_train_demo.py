# SPDX-License-Identifier: Apache-2.0
"""The demo model's training, shortened: it learns a few scenes, and its checkpoint is what the exporter reads."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastmmoe.calibration.data import Sample
from fastmmoe.calibration.evaluate import Evaluator
from fastmmoe.calibration.prompts import prepare
from fastmmoe.calibration.questions import ask
from fastmmoe.calibration.scenes import draw_scene, make_scene
from fastmmoe.calibration.torch_model import TorchModel
from fastmmoe.exporter.pruning.settings import PolicyOptions

# One worker trains, not each.
pytestmark = pytest.mark.xdist_group("training")

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
TURNS = 3  # questions of a scene in the shortened training
STAGES = ("symbols", "vision", "joint", "experts")


def _train(out: Path, length: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPTS / "train_demo.py"), str(out), "--smoke", length, "--threads", "1"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, check=False, capture_output=True, text=True, env=environment, timeout=600)


@pytest.fixture(scope="module", params=["short", pytest.param("long", marks=pytest.mark.slow)])
def length(request: pytest.FixtureRequest) -> Any:
    """Of the training."""
    return request.param


@pytest.fixture(scope="module")
def trained(length: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained")
    result = _train(out, length)
    assert result.returncode == 0, result.stderr
    return out


def test_it_learns_the_scenes(trained: Path) -> None:
    """Nearly every question about the scenes is answered right, which their answers' frequencies cannot explain."""
    last = json.loads((trained / "experts.jsonl").read_text().splitlines()[-1])
    assert last["all"] >= 0.9, last
    losses = [json.loads(line)["answer"] for line in (trained / "symbols.jsonl").read_text().splitlines()]
    assert losses[-1] < 0.2 * losses[0]


def test_the_exporter_reads_what_was_trained(trained: Path) -> None:
    """The checkpoint's model, run by the exporter's modules, knows the scenes as well."""
    samples = []
    for index in range(4):
        scene = make_scene("train", index)
        image = draw_scene(scene)
        samples += [Sample(image, q.text, q.answer, q.kind, index) for q in ask(scene, 12, scene.rng(2))[:TURNS]]
    model = TorchModel(trained / "checkpoint")
    with torch.no_grad():
        outcomes = Evaluator(model, prepare(model, samples), "accuracy").outcomes(PolicyOptions(method="none"))
    assert len(outcomes.values) == 4 * TURNS
    assert np.mean(outcomes.values) >= 0.8


def test_a_finished_stage_is_not_run_again(trained: Path, length: str) -> None:
    """The states stay as they are, and so do the weights."""
    files = [trained / f"{stage}.pt" for stage in STAGES]
    steps = [torch.load(file, weights_only=True)["step"] for file in files]
    weights = (trained / "checkpoint" / "model.safetensors").read_bytes()
    result = _train(trained, length)
    assert result.returncode == 0, result.stderr
    assert [torch.load(file, weights_only=True)["step"] for file in files] == steps
    assert (trained / "checkpoint" / "model.safetensors").read_bytes() == weights
