# SPDX-License-Identifier: Apache-2.0
"""The command on this machine and in words."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from fastmmoe.runtime.cli.command import SIGNALS
from fastmmoe.runtime.cli.doctor import describe
from fastmmoe.runtime.cli.main import main
from fastmmoe.runtime.doctor import examination
from fastmmoe.runtime.doctor.host import Finding
from tests.support.manifests import write_toy_bundle


@pytest.fixture(autouse=True)
def _keep_signal_handlers() -> Iterator[None]:
    """The command takes over signals for good, as a process of its own may."""
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


def test_this_machine(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Whatever it has; it says the same in both forms."""
    bundle = str(write_toy_bundle(tmp_path / "toy"))
    code = main(["doctor", bundle, "--quick", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert code == (1 if found["worst"] == "problem" else 0)
    assert {tuple(finding) for finding in found["findings"]} == {("name", "severity", "found", "mend")}
    assert main(["doctor", bundle, "--quick"]) == code
    text = capsys.readouterr().out
    assert all(finding["name"] in text for finding in found["findings"])


@pytest.mark.parametrize(("severity", "code"), [("ok", 0), ("warning", 0), ("problem", 1)])
def test_exit_codes(severity: str, code: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(examination, "examine", lambda *_, **__: iter([Finding("x", severity, "y", "z")]))  # type: ignore[arg-type]
    assert main(["doctor"]) == code


def test_a_damaged_bundle_is_a_problem_and_no_error(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["doctor", str(tmp_path / "none"), "--quick"]) == 1
    captured = capsys.readouterr()
    assert "[✗] bundle: " in captured.out and captured.err == ""


def test_words_stay_within_80_columns_and_what_mends_is_one_line() -> None:
    long = Finding("memory", "warning", "word " * 60, "sudo " + "x" * 100)
    *lines, mend = describe(long)
    assert len(lines) > 3 and all(len(line) <= 80 for line in lines)
    assert lines[0].startswith("[!] memory: ") and mend.strip() == long.mend
    assert list(describe(Finding("cores", "ok", "2"))) == ["[✓] cores: 2"]
