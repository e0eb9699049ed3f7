# SPDX-License-Identifier: Apache-2.0
"""What cannot be read is not there, and what cannot be run says nothing."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from fastmmoe.runtime.doctor import host
from fastmmoe.runtime.doctor.host import Host, run_quietly, shown


def test_files_that_cannot_be_read_are_not_there(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("link")
    (tmp_path / "odd").write_bytes(b"\xff\xfe 12 \0")
    (tmp_path / "number").write_text(" 12\n")
    made = Host(tmp_path)
    for name in ("pipe", "folder", "link", "none", "number/below"):
        assert made.text(name) is None and made.number(name) is None
    assert made.text("odd") is not None and made.number("odd") is None
    assert made.number("number") == 12
    assert made.names("n*") == ["number"] and made.names("none/*") == []
    assert made.is_there("folder") and not made.is_there("none")


def test_commands_that_fail_say_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "COMMAND_SECONDS", 0.2)
    assert run_quietly((sys.executable, "-c", "print('said')")) in ("said\n", None)
    assert run_quietly(("/no/such/command",)) is None
    assert run_quietly((sys.executable, "-c", "raise SystemExit(3)")) is None
    assert run_quietly((sys.executable, "-c", "import time; time.sleep(5)")) is None


def test_text_of_files_becomes_part_of_a_line() -> None:
    assert shown("a\n b\0") == r"'a b\x00'"
    assert len(shown("x" * 1000)) < 70
