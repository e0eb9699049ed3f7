# SPDX-License-Identifier: Apache-2.0
"""fastmmoe profile: what is printed of a profile that nothing was measured for, and arguments that are refused."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fastmmoe.runtime.cli.main import main
from fastmmoe.runtime.cli.profile import describe
from fastmmoe.runtime.cost.demands import Demand
from fastmmoe.runtime.profiling import build
from tests.support.documented import undocumented
from tests.support.profiles import phase, profile

EXPERTS = {"routed_experts": Demand(4_000_000, 8_000_000)}


def test_a_table_of_80_columns() -> None:
    lines = list(describe(profile(phase(least={"routed_experts": 2.0}, demands=EXPERTS), notes=("a note",)), nodes=2))
    assert max(map(len, lines)) <= 80
    text = "\n".join(lines)
    assert "a decode step: 11 ms; 11.5 ms with the profiler (+5%)" in text
    assert "experts                8.000   72.7%      2   0.004  8.000  2.000       25%" in text
    assert "outside of nodes       0.750    6.8%      -       -      -      -         -" in text
    assert "together               11.00  100.0%      5       -      -      -         -" in text
    assert "58.5%  6.000 ms  layers.0.mlp.experts/FmmSparseMoE" in text
    assert lines[-1] == "a note"


def keys(value: Any) -> Iterator[str]:
    """All keys of an object, machine, bundle, settings and rates aside, which are those of bench."""
    if isinstance(value, dict):
        yield from value
        for key, one in value.items():
            if key not in ("machine", "bundle", "settings", "rates"):
                yield from keys(one)
    elif isinstance(value, list):
        for one in value:
            yield from keys(one)


def test_json_and_picture(
    toy_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given: list[Any] = []

    def profiled(directory: Path, options: Any, **settings: Any) -> Any:
        given.append((directory, options, settings))
        return profile(phase(least={"routed_experts": 2.0}, demands=EXPERTS))

    monkeypatch.setattr(build, "profile_bundle", profiled)
    svg = tmp_path / "profile.svg"
    arguments = ["-n", "3", "-w", "0", "-t", "4", "--prompt", "What?", "--threads", "1", "--max-tiles", "1"]
    arguments += ["--image", "a.png", "--image", "-"]
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"a picture")))
    assert main(["profile", str(toy_bundle), *arguments, "--svg", str(svg), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["phases"][0]["parts"][2]["ms"] == 8.0
    assert undocumented("profile", dict.fromkeys(keys(found))) == []
    assert svg.read_text().startswith("<svg ")
    (_, options, settings) = given[0]
    # The bundle's own retention, where none is given.
    assert (options.retentions, options.repetitions, options.warmup, options.new_tokens) == ((0.5,), 3, 0, 4)
    assert (options.prompt, options.max_tiles, options.images) == ("What?", 1, ("a.png", b"a picture"))
    assert settings.pop("say") is not None
    assert settings == {"provider": "auto", "portable": False, "threads": 1, "spinning": False, "verify": True}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--nodes", "-1"), "--nodes -1: expected 0 or more"),
        (("-n", "0"), "-n 0: expected 1 or more"),
        (("-r", "50"), "did you mean 50%?"),
        (("-r", "0"), "retention 0.0"),
        (("--threads", "-1"), "--threads -1: expected 0 or more"),
        (("--svg", "nowhere/p.svg"), "nowhere"),
        (("--svg", "BUNDLE/manifest.json"), "which takes no other files"),
        (("--image", "-", "--image", "-"), "--image - twice: standard input is read once"),
    ],
)
def test_what_is_refused(
    arguments: tuple[str, ...], words: str, toy_bundle: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(build, "profile_bundle", lambda *_, **__: pytest.fail("is run"))
    errors: list[str] = []
    monkeypatch.setattr("sys.stderr.write", errors.append)
    try:
        code = main(["profile", str(toy_bundle), *(one.replace("BUNDLE", str(toy_bundle)) for one in arguments)])
    except SystemExit as end:
        code = int(str(end.code))
    assert code == 2 and words in "".join(errors)
