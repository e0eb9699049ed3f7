# SPDX-License-Identifier: Apache-2.0
"""fastmmoe watch: its lines, its JSON, its summary and how it ends; on a scripted model."""

from __future__ import annotations

import json
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fastmmoe.runtime import vlm
from fastmmoe.runtime.camera.loop import FrameStats
from fastmmoe.runtime.cli.main import main
from fastmmoe.runtime.cli.watch import summary
from tests.support.scripted_camera import FakeClock, ScriptedVLM


class FakeModel(ScriptedVLM):
    """The scripted one in the place of a bundle's; its times are not waited for."""

    def __init__(self, *_: Any, **given: Any) -> None:
        super().__init__(FakeClock())
        made.append((self, given))

    def __enter__(self) -> FakeModel:
        return self

    def __exit__(self, *_: object) -> None:
        pass


made: list[tuple[FakeModel, dict[str, Any]]] = []


@pytest.fixture(autouse=True)
def pattern(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Of five pictures."""
    made.clear()
    monkeypatch.setattr(vlm, "VLM", FakeModel)
    for number in range(5):
        Image.fromarray(np.full((64, 64, 3), number, np.uint8)).save(tmp_path / f"{number}.png")
    return str(tmp_path / "*.png")


def watch(pattern: str, *options: str) -> int:
    return main(["watch", "bundle", "--source", pattern, "--prompt", "A cup?", "--fps", "50", *options])


def stats(**changed: Any) -> FrameStats:
    values: dict[str, Any] = {field.name: 0 for field in fields(FrameStats)}
    return FrameStats(**values | {"budget_ms": None, "is_met": None, "limit": None} | changed)


def test_a_line_for_each_frame_and_what_there_was(pattern: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert watch(pattern, "--budget-ms", "1000") == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert 1 <= len(lines) <= 5 and all(len(line) <= 80 and line.endswith("| yes") for line in lines)
    assert "[learning]" in lines[0] and "R 0.15 tiles  1" in lines[0] and "/1000 ms" in lines[0]
    assert err.startswith(f"{len(lines)} frames answered, {5 - len(lines)} dropped; median ")
    assert err.endswith("100% within 1000 ms\n")


def test_json_has_one_object_a_frame(pattern: str, capsys: pytest.CaptureFixture[str]) -> None:
    """docs/camera.md has every key."""
    assert watch(pattern, "--json", "--budget-ms", "1000", "--frames", "1") == 0
    (line,) = capsys.readouterr().out.splitlines()
    found = json.loads(line)
    page = (Path(__file__).parents[3] / "docs" / "camera.md").read_text(encoding="utf-8")
    assert not [key for key in found if f"`{key}`" not in page]
    assert {field.name for field in fields(FrameStats)} < found.keys()
    assert (found["text"], found["finish_reason"], found["is_met"], found["tiles"]) == ("yes", "stop", True, 1)


def test_a_terminal_has_one_line_that_is_written_over(
    pattern: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "40")
    assert watch(pattern, "--frames", "2") == 0
    out = capsys.readouterr().out
    shown = out.split("\r\x1b[K")
    assert shown[0] == "" and len(shown) == 3 and out.count("\n") == 1 and out.endswith("\n")
    assert all(len(text.rstrip("\n")) <= 39 for text in shown)


def test_options_reach_the_model(pattern: str) -> None:
    options = ["--retention", "0.5", "--max-tiles", "3", "--max-new-tokens", "2", "--method", "fastmmoe"]
    options += ["--threads", "1", "--spinning", "--no-verify", "--system", "Look."]
    assert watch(pattern, "--frames", "1", *options) == 0
    ((model, given),) = made
    assert given == {"provider": "auto", "threads": 1, "spinning": True, "verify": False}
    ((messages, asked),) = model.asked
    assert [one["role"] for one in messages] == ["system", "user"]
    assert asked == {"retention": 0.5, "max_tiles": 3, "max_new_tokens": 2, "method": "fastmmoe"}


def test_an_interrupt_says_how_many_were_answered(
    pattern: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = FakeModel.generate

    def interrupted(self: FakeModel, messages: Any, **options: Any) -> Any:
        if self.asked:
            raise KeyboardInterrupt
        return answer(self, messages, **options)

    monkeypatch.setattr(FakeModel, "generate", interrupted)
    assert watch(pattern) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "fastmmoe: interrupted; 1 frames were answered"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--budget-ms", "0"], "budget_ms 0.0: expected a number of milliseconds above 0"),
        (["--retention", "0.5,0.2"], "retention (0.5, 0.2): expected"),
        (["--retention", "half"], "'half': expected a share such as 0.5, or 50%"),
        (["--frames", "0"], "frames 0: expected at least 1"),
        (["--max-new-tokens", "0"], "max_new_tokens 0: expected at least 1"),
        (["--fps", "-1"], "fps -1: expected"),
        (["--source", "/nowhere/*"], "no file has this pattern"),
    ],
)
def test_what_a_user_can_mend_is_one_line(
    pattern: str, options: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = watch(pattern, *options)
    except SystemExit as end:
        code = int(str(end.code))
    err = capsys.readouterr().err
    assert code == 2 and said in err and len(err.splitlines()) <= 2
    # The bundle was not loaded for it.
    assert made == []


def test_the_summary_says_when_the_budget_is_below_the_floor() -> None:
    below = stats(budget_ms=20.0, is_met=False, limit="vision", latency_ms=40.0, floor_ms=44.0, vision_floor_ms=30.0)
    first, second = summary([below] * 3)
    assert first == "3 frames answered, 0 dropped; median 40 ms, p90 40 ms; 0% within 20 ms"
    assert "below the floor" in second and "up to 44 ms, 30 ms of them for vision" in second
    assert summary([stats(latency_ms=3.0)]) == ["1 frames answered, 0 dropped; median 3 ms, p90 3 ms"]
    assert summary([]) == ["no frames"]
