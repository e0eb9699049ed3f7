# SPDX-License-Identifier: Apache-2.0
"""The script that damages checkpoints and bundles: it damages them, and it notices what is wrong."""

from __future__ import annotations

import faulthandler
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.scripts import SCRIPTS, script

damage_check = script("damage_check")


def _fail(kind: str) -> Callable[[], int]:
    """A command that goes wrong, or right, in this way."""

    def run() -> int:
        if kind == "crash":
            faulthandler.disable()
            os.abort()
        if kind == "traceback":
            raise ValueError(kind)
        if kind == "memory":
            return len(b"x" * 1_100_000_000) * 0
        if kind == "line":
            print("fastmmoe: error: no", file=sys.stderr)
            return 2
        if kind == "two lines":
            print("fastmmoe: error: no\nand more", file=sys.stderr)
            return 2
        return {"fine": 0, "other answer": 101, "legal": 100, "check failed": 1}[kind]

    return run


@pytest.mark.parametrize(
    ("kind", "verdict", "problem"),
    [
        ("fine", "same answer", ""),
        ("line", "refused", ""),
        ("legal", "legal", ""),
        ("crash", "wrong", "ended by signal 6"),
        ("traceback", "wrong", "traceback"),
        ("memory", "wrong", " MB"),
        ("two lines", "wrong", "expected one at the end"),
        ("other answer", "wrong", "another answer, exit code 0"),
        ("check failed", "wrong", "exit code 1"),
    ],
)
def test_what_is_wrong_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, verdict: str, problem: str
) -> None:
    # A fork starts with what this process holds, which the tests before may have made large.
    monkeypatch.setattr(
        damage_check, "MOST_MEGABYTES", damage_check.MOST_MEGABYTES + damage_check.trials.own_megabytes()
    )
    outcome = damage_check.trials.run_forked(_fail(kind), tmp_path)
    found_verdict, found = damage_check.judge(outcome)
    assert problem in found
    assert bool(problem) == bool(found)
    assert found_verdict == verdict or found.endswith(" MB")


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        ("import sys; print(1); sys.exit(2)", (2, None, "1\n")),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", (None, 11, "")),
        ("import time; time.sleep(60)", (None, 9, "")),
    ],
)
def test_programs_of_their_own(tmp_path: Path, program: str, expected: tuple[int | None, int | None, str]) -> None:
    outcome = damage_check.trials.run_program([sys.executable, "-c", program], tmp_path, seconds=2)
    assert (outcome.code, outcome.signal, outcome.out) == expected


def test_exports_have_no_limits() -> None:
    outcome = damage_check.trials.Outcome(0, None, "", "", 1e6, 1e6)
    assert damage_check.judge(outcome)[0] == "wrong"
    assert damage_check.judge(outcome, has_limits=False) == ("same answer", "")


def _files(directory: Path) -> dict[str, Any]:
    def content(path: Path) -> Any:
        return path.read_bytes() if path.is_file() and not path.is_symlink() else path.lstat().st_mode

    return {path.name: content(path) for path in directory.iterdir()}


def test_every_kind_of_damage_damages(tmp_path: Path) -> None:
    """Nearly always: some replace a value by an equal one. The same seed does the same."""
    base = tmp_path / "base"
    base.mkdir()
    weights = {"a.weight": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}
    header = json.dumps(weights).encode()
    (base / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(range(24)))
    (base / "config.json").write_text('{"model_type": "x", "sizes": [1, 2], "vision": {"layers": 3, "on": true}}')
    for part in ("vision", "embedding", "language_model"):
        (base / f"{part}.onnx").write_bytes(part.encode() * 9)
        (base / f"{part}.data").write_bytes(part.encode() * 99)
    kinds = damage_check.damages.CHECKPOINT_DAMAGES | damage_check.damages.BUNDLE_DAMAGES
    for number, (kind, (_, damage)) in enumerate(kinds.items()):
        changed = 0
        for seed in range(12):
            copies = [damage_check.damages.copy_of(base, tmp_path / f"{number}-{seed}-{again}") for again in range(2)]
            said = [damage(random.Random(seed), copy) for copy in copies]
            assert said[0] == said[1]
            assert _files(copies[0]) == _files(copies[1])
            changed += _files(copies[0]) != _files(base)
        assert changed >= 7, kind


@pytest.mark.slow
def test_nothing_wrong_in_2000_trials(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, SCRIPTS / "damage_check.py"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
