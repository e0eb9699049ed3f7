# SPDX-License-Identifier: Apache-2.0
"""fastmmoe calibrate from a directory of pictures to a policy.json that an export reads."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from fastmmoe.calibration import calibrate as module
from fastmmoe.calibration.confirm import LatencyModel, confirm
from fastmmoe.calibration.data import Sample
from fastmmoe.calibration.evaluate import Outcomes
from fastmmoe.calibration.options import CalibrationFailed, CalibrationOptions
from fastmmoe.calibration.samples import load_data
from fastmmoe.exporter.pruning.policy_file import read_policy
from fastmmoe.runtime.cli.main import main
from fastmmoe.runtime.errors import InvalidRequest
from tests.support.documented import undocumented

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(checkpoint: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Function (model, *arguments) -> exit code, output and errors of the command with a small search."""

    def call(name: str, *arguments: str) -> tuple[int, str, str]:
        small = ("--search-questions", "2", "--jobs", "1", "--out", str(tmp_path / "out"))
        code = main(["calibrate", str(checkpoint(name)), *small, *arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def test_a_policy_is_found_and_confirmed(
    run: Run, write_data: Callable[..., Path], checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    data, out = write_data(3), tmp_path / "out"
    code, printed, errors = run("internvl-qwen3moe", "--data", str(data), "--trials", "5", "--flops-reduction", "0.3")
    assert (code, errors) == (0, "")
    assert "4 questions, 2 held out" in printed
    names = sorted(path.name for path in out.iterdir())
    assert names == ["calibration.md", "front.json", "policy.json", "statistics.json", "trials.jsonl"]
    policy, front = read_policy(out / "policy.json"), json.loads((out / "front.json").read_text())
    assert policy.model.family == "internvl3_5"
    chosen = [p for p in front["points"] if p["settings"]["prune_layers"] == list(policy.prune_layers)]
    assert any(p["settings"]["retention"] == policy.retention and p["flops_reduction"] >= 0.3 for p in chosen)
    shares = [(p["flops_share"], p["quality"]) for p in front["points"]]
    assert shares == sorted(shares)
    text = (out / "calibration.md").read_text()
    assert "## Data that the search has not seen: 2 questions, 1 pictures" in text
    assert "does what torch does on 100.0%" in text
    # Nothing is left to try, so a second run ends in the same place.
    again = ("--data", str(data), "--trials", "5", "--flops-reduction", "30%", "--json")
    code, printed, errors = run("internvl-qwen3moe", *again)
    assert code == 0 and "4 questions, 2 held out" in errors
    assert "\ntrial " not in errors
    assert read_policy(out / "policy.json") == policy
    found = json.loads(printed)
    assert found["policy"] == json.loads((out / "policy.json").read_text()) and found["files"] == names
    assert undocumented("calibrate", found) == []


def test_a_model_that_knows_nothing(run: Run, write_data: Callable[..., Path], tmp_path: Path) -> None:
    code, _, errors = run("dsvl2-mha", "--data", str(write_data(2, answer="red")), "--trials", "1")
    assert code == 2
    assert errors.startswith("fastmmoe: error: the full model answers 0 of 2 questions rightly")
    assert not (tmp_path / "out" / "policy.json").exists()


def test_activations_instead_of_a_search(run: Run, write_data: Callable[..., Path], tmp_path: Path) -> None:
    code, printed, _ = run("dsvl2-mha", "--data", str(write_data(2)), "--activations", "--json")
    assert code == 0
    assert json.loads(printed) == {
        "out": str(tmp_path / "out"),
        "files": ["activations.json", "activations.safetensors"],
    }
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["activations.json", "activations.safetensors"]
    ranges = json.loads((tmp_path / "out" / "activations.json").read_text())["ranges"]
    assert {"vision.blocks.0.attn.qkv", "projector.layers.0", "language.lm_head"} <= ranges.keys()


def test_a_directory_is_split_by_pictures(write_data: Callable[..., Path]) -> None:
    data = load_data(CalibrationOptions(data=str(write_data(10)), seed=1))
    scenes = [{s.scene for s in samples} for samples in (data.calibration, data.held_out)]
    assert (len(scenes[0]), len(scenes[1]), scenes[0] & scenes[1]) == (8, 2, set())
    assert data.kind == "kl"


def test_weights_that_are_no_numbers_are_not_measured(
    own_checkpoint: Callable[[str], Path],
    write_data: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    directory, name = own_checkpoint("internvl-qwen3moe"), "multi_modal_projector.linear_1.bias"
    tensors = load_file(directory / "model.safetensors")
    tensors[name][3] = np.nan
    save_file(tensors, directory / "model.safetensors")
    assert main(["calibrate", str(directory), "--data", str(write_data(3)), "--out", str(tmp_path / "out")]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("fastmmoe: error: ") and errors.count("\n") == 1
    assert f"tensor '{name}' [64] has nan at [3]: expected finite numbers" in errors


@pytest.mark.parametrize(
    ("pictures", "options", "message"),
    [
        (1, {}, "has 1 picture: expected 2 or more"),
        (3, {"quality": "accuracy"}, "0 calibration and 0 held-out questions have an answer"),
        (3, {"questions": 5}, "--questions 5: .* has 4 beside those held out"),
    ],
)
def test_data_that_does_not_do(
    write_data: Callable[..., Path], pictures: int, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidRequest, match=message):
        load_data(CalibrationOptions(data=str(write_data(pictures)), **options))


class FakeAnswer:
    """What confirm reads of an answer."""

    def __init__(self, text: str) -> None:
        self.text, self.token_ids, self.stats = text, (7,), type("Stats", (), {"ttft_ms": 5.0})


class FakeVlm:
    """Answers " red " to everything."""

    def generate(self, messages: Any, **options: Any) -> FakeAnswer:
        return FakeAnswer(" red ")


def test_confirming_counts_what_differs() -> None:
    image: Any = None
    samples = [Sample(image, "?", answer, "", 0) for answer in ("red", "blue", "red", "red")]

    def expect(values: list[float]) -> Outcomes:
        return Outcomes("accuracy", np.array(values), np.zeros(4), np.full(4, 7))

    vlm: Any = FakeVlm()
    found = confirm(vlm, samples, expect([1, 0, 1, 0]), "accuracy", 2)
    assert (found.values.tolist(), found.agreement, found.ttft_ms) == ([1, 0, 1, 1], 0.75, 5.0)
    with pytest.raises(CalibrationFailed, match="differ on 2 of 4 questions"):
        confirm(vlm, samples, expect([1, 0, 0, 0]), "accuracy", 2)


def test_a_graph_that_is_not_confirmed_leaves_no_policy(
    run: Run, write_data: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def differs(*_: Any) -> None:
        raise CalibrationFailed("the exported graph and torch differ on 3 of 4 questions")

    monkeypatch.setattr(module, "confirm", differs)
    monkeypatch.setattr(module, "export_with", lambda *_: None)
    code, _, errors = run("dsvl2-mha", "--data", str(write_data(2)), "--trials", "2", "--flops-reduction", "0.3")
    assert (code, errors) == (2, "fastmmoe: error: the exported graph and torch differ on 3 of 4 questions\n")
    assert not (tmp_path / "out" / "policy.json").exists()


@pytest.mark.parametrize(
    ("flags", "said"),
    [((), "the same command goes on with what is in {out}"), (("--activations",), "nothing was written")],
)
def test_an_interrupt_says_what_is_kept(
    flags: tuple[str, ...],
    said: str,
    run: Run,
    write_data: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "calibrate", interrupt)
    code, _, errors = run("dsvl2-mha", "--data", str(write_data(2)), *flags)
    assert (code, errors) == (130, f"fastmmoe: interrupted; {said.format(out=tmp_path / 'out')}\n")


def test_predicted_latency_is_linear_between_measured_ones() -> None:
    model = LatencyModel((1e6, 2e6, 4e6), (10.0, 12.0, 30.0), 5.0)
    assert [model.predict(f) for f in (1e6, 1.5e6, 3e6, 4e6)] == [15.0, 16.0, 26.0, 35.0]
