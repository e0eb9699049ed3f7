# SPDX-License-Identifier: Apache-2.0
"""An export with a policy.json: what the bundle does by default and on request, and files of other models."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from fastmmoe.exporter.checkpoint.reader import Checkpoint
from fastmmoe.exporter.cli import main as export_main
from fastmmoe.exporter.pruning.policy_file import PolicyFile, write_policy
from fastmmoe.exporter.pruning.settings import PolicyModel
from fastmmoe.runtime.vlm import VLM
from tests.support.messages import question

Write = Callable[..., Path]
EXPONENTS = (0.2, 1.0)
VISUAL_TOP_K = (3, 1)


@pytest.fixture
def written(small_dir: Path, tmp_path: Path) -> Write:
    """Function (**model) -> a policy.json for the small checkpoint, or for one that differs in these."""

    def write(**model: Any) -> Path:
        shape: dict[str, Any] = {
            "family": "deepseek_vl2",
            "layers": 3,
            "moe_layers": (1, 2),
            "top_k": 4,
            "checkpoint_identity": Checkpoint(small_dir).identity,
        }
        policy = PolicyFile(
            prune_layers=(1, 2),
            stage_exponents=EXPONENTS,
            retention=0.3,
            alpha=0.7,
            merge_ratio=0.1,
            window=4,
            merge="mean",
            reduction_weights="none",
            visual_top_k=VISUAL_TOP_K,
            model=PolicyModel(**(shape | model)),
        )
        path = tmp_path / "policy.json"
        write_policy(path, policy)
        return path

    return write


@pytest.fixture
def messages() -> Any:
    """A question about a picture."""
    return question("Where is it?", Image.new("RGB", (400, 400)))


def check_stages(model: VLM, messages: Any, retention: float | None, experts: tuple[int, ...]) -> None:
    """Tokens after each stage and experts of one request, by hand."""
    stats = model.generate(messages, retention=retention, max_new_tokens=1).stats
    shares = [(0.3 if retention is None else retention) ** e for e in EXPONENTS]
    assert list(stats.kept_visual_tokens) == [int(stats.visual_tokens * share) for share in shares]
    assert stats.visual_top_k == experts


def test_the_bundle_does_what_the_file_says(
    written: Write, small_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], messages: Any
) -> None:
    """By default and at another retention; an option beside the file overrides its value."""
    out = tmp_path / "out"
    assert export_main([str(small_dir), str(out), "--policy", str(written()), "--merge-ratio", "0"]) == 0
    printed = capsys.readouterr().out
    assert "policy: stage exponents 0.2,1; experts per visual token by MoE layer 3,1\n" in printed
    assert "ANOTHER" not in printed
    stored = json.loads((out / "manifest.json").read_text())["policy"]
    assert (stored["alpha"], stored["window"], stored["merge"], stored["merge_ratio"]) == (0.7, 4, "mean", 0)
    assert (stored["reduction_weights"], stored["retention"]) == ("none", 0.3)
    model = VLM(out)
    for retention in (None, 0.6):
        check_stages(model, messages, retention, VISUAL_TOP_K)
    stats = model.generate(messages, retention=1.0, visual_top_k=(2, 3), max_new_tokens=1).stats
    assert (stats.visual_top_k, stats.kept_visual_tokens) == ((2, 3), (stats.visual_tokens,) * 2)


def test_random_on_another_checkpoint_of_the_same_shape(
    written: Write, small_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], messages: Any
) -> None:
    """It takes the settings, and the export says so; random has the stages and the model's experts."""
    out = tmp_path / "out"
    file = written(checkpoint_identity="f" * 64)
    assert export_main([str(small_dir), str(out), "--policy", str(file), "--method", "random"]) == 0
    ours = Checkpoint(small_dir).identity[:12]
    line = f"policy: found for ANOTHER checkpoint of this shape (ffffffffffff, this one is {ours}): measure its quality"
    assert line in capsys.readouterr().out
    check_stages(VLM(out), messages, 0.6, (4, 4))


def test_a_model_of_another_shape(written: Write, small_dir: Path, tmp_path: Path, refusal: Callable[..., str]) -> None:
    line = refusal(export_main, [str(small_dir), str(tmp_path / "out"), "--policy", str(written(layers=4))])
    assert line.endswith("settings were found for a model with layers 4, this one has 3: find settings for this model")
    assert [path.name for path in tmp_path.iterdir()] == ["policy.json"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--method", "fastv"), "--method fastv: --policy and stage_exponents are for the stages of fastmmoe"),
        (("--method", "none"), "--method none: --policy and stage_exponents are for the stages of fastmmoe"),
        (("--prune-layers", "1"), "stage_exponents 0.2,1.0: expected 1 (one for each prune layer)"),
        (("--policy", "nowhere.json"), "nowhere.json: No such file or directory; give a policy.json"),
    ],
)
def test_options_that_do_not_go_with_the_file(
    flags: tuple[str, ...], words: str, written: Write, small_dir: Path, tmp_path: Path, refusal: Callable[..., str]
) -> None:
    command = [str(small_dir), str(tmp_path / "out"), "--policy", str(written()), *flags]
    assert words in refusal(export_main, command)
    assert [path.name for path in tmp_path.iterdir()] == ["policy.json"]
