# SPDX-License-Identifier: Apache-2.0
"""The command on an exported bundle: what the runtime says, what the report measures, and that it goes on."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from msgspec.structs import replace

from fastmmoe.calibration.data import load_samples
from fastmmoe.calibration.report.questions import Questions
from fastmmoe.calibration.report.settings import Planner, Setting
from fastmmoe.calibration.report.stages import Fate, StageTracer
from fastmmoe.exporter.cli import main as export
from fastmmoe.exporter.ops.token_prune.contract import TOKEN_PRUNE
from fastmmoe.runtime.backends.base import Observed, observable
from fastmmoe.runtime.backends.batch import Batch
from fastmmoe.runtime.bundle.manifest import read_manifest, write_manifest
from fastmmoe.runtime.cli.main import main as fastmmoe
from fastmmoe.runtime.vlm import VLM
from tests.support.bench_results import make_result, make_row
from tests.support.documented import undocumented

# On the worker that traces the same model for the tests of end_to_end.
pytestmark = pytest.mark.xdist_group("end_to_end")

COUNT = 10
OPTIONS = ("--retentions", "0.5", "--seeds", "2", "--requests", "2", "--resamples", "200", "--maps", "1", "--jobs", "2")
MAX_TOKENS = 3


@pytest.fixture(scope="module")
def bundle(checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison bundle of random weights in which half of the tokens end an answer."""
    out = tmp_path_factory.mktemp("report") / "bundle"
    assert export([str(checkpoint("dsvl2-mla")), str(out), "--method", "all", "--prune-layers", "1,2,3"]) == 0
    manifest = read_manifest(out)
    stop = tuple(range(0, manifest.processor.vocab_size, 2))
    write_manifest(out, replace(manifest, processor=replace(manifest.processor, stop_token_ids=stop)))
    return out


@pytest.fixture(scope="module")
def vlm(bundle: Path) -> VLM:
    return VLM(bundle, threads=1)


@pytest.fixture(scope="module")
def data(vlm: VLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures and questions whose answers are what the full model says, but for the last, which it gets wrong."""
    directory = tmp_path_factory.mktemp("data")
    lines = []
    for i, sample in enumerate(load_samples("builtin", split="test", count=COUNT)):
        name = f"{sample.scene}.png"
        sample.image.save(directory / name)
        answer = vlm.generate(sample.messages, method="none", max_new_tokens=MAX_TOKENS).text.strip()
        label = "something else" if i == COUNT - 1 else answer
        lines.append({"image": name, "question": sample.question, "answer": label, "kind": sample.kind})
    lines.append({"image": lines[0]["image"], "question": "What is this?"})
    (directory / "questions.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return directory


@pytest.fixture(scope="module")
def questions(vlm: VLM, data: Path) -> Questions:
    return Questions(vlm, load_samples(data))


@pytest.fixture(scope="module")
def bundle_planner(vlm: VLM, questions: Questions) -> Planner:
    return Planner(vlm.manifest, [question.prompt for question in questions.items])


def test_questions_without_an_answer_are_left_out_and_counted(questions: Questions) -> None:
    assert (len(questions.items), questions.unlabelled) == (COUNT, 1)
    assert [len(pack) for pack in questions.packs(4)] == [4, 2, 4]
    assert questions.max_new_tokens > 1


@pytest.mark.parametrize(
    "setting",
    [
        *(Setting("none"), Setting("reduction")),
        *(Setting(variant, 0.5) for variant in ("fastmmoe", "pruning", "fastv", "sparsevlm")),
    ],
    ids=lambda setting: setting.name,
)
def test_answers_are_those_of_the_runtime(
    vlm: VLM, questions: Questions, bundle_planner: Planner, setting: Setting
) -> None:
    asked = questions.ask(vlm.backend, bundle_planner, setting, range(3))
    options = bundle_planner.options(setting) | {"max_new_tokens": questions.max_new_tokens}
    expected = [vlm.generate(question.sample.messages, **options) for question in questions.items[:3]]
    assert asked == [answer.text.strip() for answer in expected]


def test_random_choices_hang_on_seed_and_picture_alone(
    vlm: VLM, questions: Questions, bundle_planner: Planner, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds: list[int] = []
    extend = Batch.extend

    def record(self: Batch, chunks: Any, *, alpha: float, seed: int = 0, new_tokens: Sequence[int] = ()) -> Any:
        # Decode steps have no use for a seed.
        if len(chunks[0].visual_index):
            seeds.append(seed)
        return extend(self, chunks, alpha=alpha, seed=seed, new_tokens=new_tokens)

    monkeypatch.setattr(Batch, "extend", record)
    setting = Setting("random", 0.3)
    pictures = [questions.items[n].picture for n in (0, 3, 6)]
    for seed in (0, 1):
        for numbers in (range(2), range(3, 4), range(6, 8)):
            questions.ask(vlm.backend, bundle_planner, setting, numbers, seed)
    assert pictures == [0, 0, 1]
    one, same, other, *second = seeds
    assert one == same
    assert len({one, other, *second}) == 4


def test_observed_inputs_outlive_their_call(vlm: VLM, questions: Questions, bundle_planner: Planner) -> None:
    chunk = questions.chunk(vlm.backend, bundle_planner, Setting("fastmmoe", 0.3), 0)
    place = [tensor.name for tensor in TOKEN_PRUNE.inputs].index("keep_offsets")
    batch = Batch(observable(vlm.backend).observe(Observed(TOKEN_PRUNE.name, {"keep_offsets": place})))
    batch.extend([chunk], alpha=0.5)
    observed = batch.observed[f"{TOKEN_PRUNE.name}.keep_offsets.0"]
    assert observed[0] == 0 and observed[1] in chunk.schedule.keep
    # ONNX Runtime's view of an array that it was fed does not keep the array.
    assert observed.flags.owndata


def test_stages_agree_with_the_runtime(bundle: Path, vlm: VLM, questions: Questions, bundle_planner: Planner) -> None:
    setting = Setting("fastmmoe", 0.3)
    chunk = questions.chunk(vlm.backend, bundle_planner, setting, 0)
    stages = StageTracer(observable(vlm.backend)).trace(chunk)
    stats = vlm.generate(questions.items[0].sample.messages, method="fastmmoe", retention=0.3, max_new_tokens=1).stats
    assert [stage.layer for stage in stages] == [1, 2, 3]
    window, alive = vlm.manifest.policy.window, stats.visual_tokens
    for stage, kept, merged, rows in zip(
        stages, stats.kept_visual_tokens, stats.merged_vectors, stats.kept_index, strict=True
    ):
        assert stage.count(Fate.GONE) == stats.visual_tokens - alive
        assert stage.count(Fate.KEPT) + merged == kept
        # Windows at the end of a run may be shorter.
        assert 2 * merged <= stage.count(Fate.MERGED) <= window * merged
        survivors = np.flatnonzero(np.isin(chunk.visual_index, rows))
        assert set(np.flatnonzero(stage.fates == Fate.KEPT)) <= set(survivors)
        assert set(survivors) <= set(np.flatnonzero((stage.fates == Fate.KEPT) | (stage.fates == Fate.MERGED)))
        living = stage.similarity[stage.fates != Fate.GONE]
        assert ((living >= 0) & (living <= 1 + 1e-5)).all()
        assert np.isnan(stage.similarity[stage.fates == Fate.GONE]).all()
        alive = kept


def test_the_command_measures_once(
    bundle: Path, vlm: VLM, questions: Questions, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"method": "none", "max_new_tokens": questions.max_new_tokens}
    said = [vlm.generate(q.sample.messages, **options).text.strip() for q in questions.items]
    right = sum(text == q.sample.answer for text, q in zip(said, questions.items, strict=True)) / COUNT
    assert 0.5 < right < 1
    out, measured = tmp_path / "out", tmp_path / "bench.json"
    rows = [
        make_row((ms,), test=test, retention=retention)
        for retention in (1.0, 0.3)
        for test, ms in (("first_token", 9.0), ("prefill", 3.0))
    ]
    of_bundle = {"model": vlm.manifest.model, "sha256": vlm.manifest.sha256, "method": "fastmmoe"}
    measured.write_bytes(msgspec.json.encode(make_result(*rows, bundle=of_bundle)))
    command = ["report", str(bundle), "--data", str(data), "--out", str(out), "--bench", str(measured), *OPTIONS]
    assert fastmmoe(command) == 0
    first = capsys.readouterr().out
    report = json.loads((out / "report.json").read_bytes())
    points = {(p["setting"]["variant"], p["setting"]["retention"]): p for p in report["points"]}
    assert points["none", 1.0]["accuracy"]["value"] == pytest.approx(right)
    assert points["none", 1.0]["quality"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert {"fastmmoe", "reduction", "pruning", "random", "fastv", "sparsevlm"} <= {v for v, _ in points}
    assert report["origin"]["unlabelled"] == 1
    assert all(p["prefill_ms"] > 0 and p["ttft_ms"] > p["prefill_ms"] for p in report["points"])
    assert (out / "map-1-survivors.png").is_file()
    assert f"[1/1] full model at retention 1: {right:.1%} right" in first and "already" not in first
    # What was timed elsewhere is measured, too.
    assert ("fastmmoe", 0.3) in points
    (device,) = report["devices"]
    assert device["is_same"] and [time["first_token_ms"] for time in device["times"]] == [9.0, 9.0]
    # A model of random weights keeps no claim.
    assert fastmmoe([*command, "--json", "--check"]) == 1
    again = capsys.readouterr()
    assert "% right" not in again.err
    assert json.loads(again.out) == report and undocumented("report", report) == []
    assert json.loads((out / "report.json").read_bytes()) == report


def test_a_model_that_answers_nothing_right_is_refused(
    bundle: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = tmp_path / "wrong"
    wrong.mkdir()
    lines = [json.loads(line) for line in (data / "questions.jsonl").read_text().splitlines()[:2]]
    for line in lines:
        (wrong / line["image"]).write_bytes((data / line["image"]).read_bytes())
        line["answer"] = "nothing of this kind"
    (wrong / "questions.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    out = tmp_path / "out"
    assert fastmmoe(["report", str(bundle), "--data", str(wrong), "--out", str(out), *OPTIONS]) == 2
    error = capsys.readouterr().err
    assert error.startswith("fastmmoe: error: the full model answers none of 2 questions right")
    assert not (out / "report.html").exists()


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--retentions", "0.5,1", r"--retentions \[1.0\]: expected numbers in \(0, 1\)"),
        ("--seeds", "0", "--seeds 0: expected at least 1"),
        ("--questions", "0", "--questions 0: expected at least 1"),
        ("--maps", "-1", "--maps -1: expected at least 0"),
        ("--min-quality", "1.5", r"--min-quality 1.5: expected a number in \(0, 1\]"),
    ],
)
def test_options_outside_their_range(
    option: str, value: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fastmmoe(["report", "nowhere", "--out", str(tmp_path / "out"), f"{option}={value}"]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


def test_missing_packages_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "jinja2" else object())
    assert fastmmoe(["report", "nowhere", "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err == "fastmmoe: error: the report needs jinja2: pip install 'fastmmoe[report]'\n"
