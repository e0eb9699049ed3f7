# SPDX-License-Identifier: Apache-2.0
"""The command from its first moment on: an interrupt ends it before it has anything to say."""

from __future__ import annotations

import subprocess
import sys

import pytest

from fastmmoe.exporter import cli, start

PROGRAM = """
import os, signal, sys
from importlib.abc import MetaPathFinder
from fastmmoe.exporter import start

class Interrupter(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == "fastmmoe.exporter.cli":
            print("importing", flush=True)
            os.kill(os.getpid(), signal.SIGINT)

# A test run in the background ignores it, and its children inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.meta_path.insert(0, Interrupter())
print(start.main())
"""


def test_signals_are_taken_before_the_command_is_imported() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert done.stdout == "importing\n"
    assert (done.returncode, done.stderr) == (130, "fastmmoe-export: interrupted; nothing was written\n")


def test_the_code_is_the_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr(start, "end_at_interrupts", calls.append)
    monkeypatch.setattr(cli, "main", lambda: 2)
    assert start.main() == 2
    assert calls == ["fastmmoe-export"]
